# SPDX-License-Identifier: Apache-2.0
"""A scheduler config that an older version saved, or that lacks a key of today, is the scheduler it was."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusers_mdm import MatryoshkaScheduler


@pytest.fixture
def older(fixtures_dir: Path) -> dict[str, Any]:
    return json.loads((fixtures_dir / "saved_configs" / "scheduler_first_version.json").read_text())


def test_an_older_config_loads_and_keeps_its_process(older, tmp_path):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(older))
    loaded = MatryoshkaScheduler.from_pretrained(tmp_path)
    expected = MatryoshkaScheduler(base_sample_size=8, shift_power=2.0)
    assert torch.equal(loaded.alphas_cumprod, expected.alphas_cumprod)
    assert (loaded.config.shift_power, loaded.config.base_sample_size) == (2.0, 8)


def test_any_missing_key_takes_its_default(older):
    expected = MatryoshkaScheduler().config
    for key in set(older) - {"_class_name", "_diffusers_version"}:
        rest = {name: value for name, value in older.items() if name != key}
        assert MatryoshkaScheduler.from_config(rest).config[key] == expected[key]
