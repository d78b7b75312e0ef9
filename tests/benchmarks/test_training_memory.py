# SPDX-License-Identifier: Apache-2.0
"""What `--dry_run` predicts, against what real steps take."""

import json

import pytest
import training_memory

from tests.training.tiny_run import RECIPES


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param([], id="as the recipe has it"),
        pytest.param(["--batch_size", "32"], id="more activations than weights", marks=pytest.mark.slow),
        pytest.param(["--gradient_checkpointing"], id="checkpointing"),
        pytest.param(["--dtype", "bf16"], id="half precision", marks=pytest.mark.slow),
    ],
)
def test_the_estimate_is_near_the_peak(flags, tmp_path, capsys):
    output = tmp_path / "rows.json"
    training_memory.main(["--recipe", str(RECIPES / "tiny.yaml"), "--output", str(output), *flags])
    rows = json.loads(output.read_text())["rows"]
    assert [row["stage"] for row in rows] == ["inner", "outer"]
    for row in rows:
        assert row["estimate / measured"] == pytest.approx(1, abs=0.15)
