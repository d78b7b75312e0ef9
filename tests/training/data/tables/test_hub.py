# SPDX-License-Identifier: Apache-2.0
"""What `datasets` finds by itself, and its errors."""

import datasets
import pytest

from diffusers_mdm.training.data.tables.hub import load_with_datasets, reasons_of_datasets


def fail_inside() -> None:
    try:
        raise KeyError("no such codec")
    except KeyError as error:
        raise datasets.exceptions.DatasetGenerationError("An error occurred") from error


def test_the_first_cause_is_what_is_told():
    message = r"^pics cannot be read as a data set: 'no such codec' \(KeyError\)$"
    with pytest.raises(ValueError, match=message), reasons_of_datasets("pics"):
        fail_inside()


@pytest.mark.parametrize("error", [FileNotFoundError("nothing there"), ConnectionError("no network")])
def test_what_is_missing_or_out_of_reach_stays_what_it_is(error):
    with pytest.raises(type(error)), reasons_of_datasets("pics"):
        raise error


def test_causes_are_short_whatever_they_are():
    with pytest.raises(ValueError, match="cannot be read") as caught, reasons_of_datasets("pics"):
        raise RuntimeError("line\n" * 10**5)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_folder_whose_name_would_be_a_pattern_is_refused(tmp_path):
    folder = tmp_path / "tables [1]"
    folder.mkdir()
    (folder / "a.csv").write_text("text\na\n")
    with pytest.raises(ValueError, match=r"\* \? \[ \], which `datasets` takes as a pattern; rename it"):
        load_with_datasets(str(folder), None)
