# SPDX-License-Identifier: Apache-2.0
"""The file with which diffusers finds the class of a saved pipeline; `test_loading` loads pipelines with it."""

from diffusers_mdm import MDMPipeline
from diffusers_mdm.pipelines.finder_file import FINDER_FILE, write_finder
from diffusers_mdm.registration import PIPELINES


def test_each_file_imports_its_class_and_has_a_length_of_its_own(tmp_path):
    """Python distinguishes files of the same name that were written in the same second by their lengths."""
    lengths = set()
    for pipeline in PIPELINES:
        write_finder(pipeline, tmp_path / "new" / pipeline.__name__)
        source = (tmp_path / "new" / pipeline.__name__ / FINDER_FILE).read_text(encoding="utf-8")
        assert f"from diffusers_mdm import {pipeline.__name__} as Pipeline" in source
        lengths.add(len(source))
    assert len(lengths) == len(PIPELINES)


def test_classes_of_other_packages_get_no_file(tmp_path):
    class Foreign(MDMPipeline):
        pass

    write_finder(Foreign, tmp_path)
    assert not list(tmp_path.iterdir())
