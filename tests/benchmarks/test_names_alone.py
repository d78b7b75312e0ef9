# SPDX-License-Identifier: Apache-2.0
"""Names are the same every time, and the variety is that of the images of two seeds."""

import argparse

import names_alone
import pytest
import sampling
import torch

from tests.evaluation.tiny_images import MeanColours
from tests.pipelines.tiny_pipeline import make_pipeline


def test_names_are_chosen_once_for_all_from_the_training_data():
    names = names_alone.choose_names(sampling.DATA_DIR, 100)
    assert len(set(names)) == 100
    assert names[:5] == names_alone.choose_names(sampling.DATA_DIR, 5)
    assert not any("," in name and name.endswith("style") for name in names)


def test_each_number_of_steps_is_compared_with_the_first(tmp_path):
    real = sampling.Real(MeanColours(), torch.rand(20, 12, generator=torch.Generator().manual_seed(0)))
    args = argparse.Namespace(output_dir=tmp_path, steps=[3, 1], num_seeds=2, batch_size=2)
    pipeline, names = make_pipeline(), ["apple", "cat", "dog"]
    first, second = names_alone.measure(pipeline, names, real, args)
    assert first["kid difference"] == [0.0, 0.0]
    assert second["kid difference"][0] == pytest.approx(second["kid"][0] - first["kid"][0])
    setting = sampling.drawn_in(3, sampling.EVEN, guidance_scale=1.5)
    one, other = (
        sampling.drawn_levels(pipeline, "names 3", setting, seed, names, tmp_path, 2)[-1] for seed in range(2)
    )
    assert first["variety"] == sampling.pixel_distance(one, other) > 0
    table = names_alone.markdown_table([first, second]).splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == ["| 3", "| 1"]
