# SPDX-License-Identifier: Apache-2.0
"""The file through which diffusers finds a pipeline's class; `test_loading` loads through it."""

from diffusers_mdm import MDMPipeline, MDMUpscalePipeline
from diffusers_mdm.pipelines.finder_file import FINDER_FILE, write_finder


def test_the_file_names_the_class_and_differs_in_length(tmp_path):
    lengths = set()
    for pipeline in (MDMPipeline, MDMUpscalePipeline):
        write_finder(pipeline, tmp_path / "new" / pipeline.__name__)
        source = (tmp_path / "new" / pipeline.__name__ / FINDER_FILE).read_text()
        assert f"from diffusers_mdm import {pipeline.__name__} as Pipeline" in source
        lengths.add(len(source))
    assert len(lengths) == 2


def test_classes_of_other_packages_get_none(tmp_path):
    class Foreign(MDMPipeline):
        pass

    write_finder(Foreign, tmp_path)
    assert not list(tmp_path.iterdir())
