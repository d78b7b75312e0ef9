# SPDX-License-Identifier: Apache-2.0
"""The program of a Space finds its models in three places."""

import runpy

from diffusers_mdm.cli.space_folder import SPACE


def test_models_of_a_space(tmp_path):
    sources = runpy.run_path(str(SPACE / "app.py"))["sources"]
    assert sources(tmp_path, "") == []
    for name in ("b", "a"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "model_index.json").touch()
    (tmp_path / "models" / "c").mkdir()
    (tmp_path / "models.txt").write_text("me/one\nme/two\n")
    found = sources(tmp_path, " me/three ")
    assert found == [str(tmp_path / "models" / "a"), str(tmp_path / "models" / "b"), "me/one", "me/two", "me/three"]
