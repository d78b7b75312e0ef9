# SPDX-License-Identifier: Apache-2.0
"""A process that draws with the package of a folder."""

import pytest
from drawing_process import DrawingProcess


@pytest.mark.slow
def test_another_package_is_refused(tmp_path, capfd):
    process = DrawingProcess(tmp_path, {"model": "", "num_images": 1, "steps": 1, "guidance_scale": 1.0})
    process.begin()
    with pytest.raises(RuntimeError, match="stopped with exit status 1"):
        process.end()
    process.stop()
    assert "was imported, which is not in" in capfd.readouterr().err
