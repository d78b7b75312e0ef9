# SPDX-License-Identifier: Apache-2.0
"""The card of an average says which one it is, keeps the metadata of its run, and refers to files that exist."""

import logging
import re

import pytest
import yaml

from diffusers_mdm.training.reports.average_card import write_average_card
from diffusers_mdm.training.state.post_hoc.reconstruction import Average

AVERAGE = Average({}, step=1200, num_snapshots=4, error=0.002)


@pytest.fixture
def folders(tmp_path):
    run_dir, output_dir = tmp_path / "my-model", tmp_path / "my-model-0.15"
    run_dir.mkdir()
    output_dir.mkdir()
    return run_dir, output_dir


def test_the_card_says_which_average_it_is(folders):
    run_dir, output_dir = folders
    (run_dir / "README.md").write_text(
        "---\nlicense: mit\ntags: [diffusers]\n---\n\n# my-model\n\n![x](samples.png)\n"
    )
    (run_dir / "samples.png").write_bytes(b"samples")
    (output_dir / "model_index.json").write_text("{}")
    write_average_card(run_dir, output_dir, AVERAGE, 0.15, "fp16")
    text = (output_dir / "README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1]) == {"license": "mit", "tags": ["diffusers"]}
    assert "# my-model-0.15\n" in text
    assert "sigma_rel 0.15, at step 1,200 of its training" in text
    assert "4 snapshots; their profile differs by 0.2 %" in text
    assert "`fp16`" in text
    (link,) = re.findall(r"]\((.*?)\)", text)
    assert (output_dir / link).read_text() == (run_dir / "README.md").read_text()
    assert (output_dir / link).with_name("samples.png").is_file()


def test_a_run_without_a_card_is_named_alone(folders):
    run_dir, output_dir = folders
    write_average_card(run_dir, output_dir, AVERAGE, 0.15, "fp16")
    text = (output_dir / "README.md").read_text()
    assert "`fp32`" in text  # LoRA weights are not rounded
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "diffusers"
    assert "The model `my-model` with averaged weights" in text
    assert "](" not in text
    assert [path.name for path in output_dir.iterdir()] == ["README.md"]


def test_a_card_that_cannot_be_written_is_reported(folders, caplog):
    run_dir, output_dir = folders
    (output_dir / "README.md").mkdir()
    with caplog.at_level(logging.ERROR):
        write_average_card(run_dir, output_dir, AVERAGE, 0.15, "fp32")
    assert "the model is complete" in caplog.text
