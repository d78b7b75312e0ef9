# SPDX-License-Identifier: Apache-2.0
"""More steps end closer to the result of many steps, and each setting is compared with its own guidance scale."""

import argparse

import many_steps
import pytest
import sampling
import torch

from tests.pipelines.tiny_pipeline import make_pipeline


def test_settings_without_a_limit_of_their_own_scale_are_left_out():
    found = many_steps.comparable_settings()
    assert {"4 DDIM, log SNR, guidance 1.5", "12 DDIM, log SNR, guidance 1.5, inner every 2nd"} <= found.keys()
    others = sampling.SETTINGS.keys() - found.keys()
    assert {"12 DDIM, log SNR, guidance 2 and 1", "25 DDIM, agree", "12 inner, then 4"} <= others
    assert "12 DDIM, log SNR, guidance 1.5, projected" in others


def test_a_setting_is_compared_with_its_own_guidance_scale():
    name, many = many_steps.many_steps_of(sampling.drawn_in(4, sampling.PAIR, guidance_scale=1.5), 100)
    assert name == "100 DDIM, log SNR, guidance 1.5"
    assert many.call == {"num_inference_steps": 100, "guidance_scale": 1.5}
    assert many.scheduler == sampling.EVEN


def test_more_steps_end_closer_to_many(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sampling, "SETTINGS", {f"{steps} steps": sampling.drawn_in(steps, sampling.EVEN) for steps in (2, 10)}
    )
    args = argparse.Namespace(
        output_dir=tmp_path, num_compared=1, num_seeds=2, num_steps=20, guidance_scales=[2.0], batch_size=2
    )
    real = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    truth = sampling.Truth(["a red apple", "a green apple"], real, sampling.thumbnail(real), [])
    pipeline = make_pipeline()
    found = many_steps.measure(pipeline, truth, args)
    few, more, many = found
    assert [few["name"], more["name"], many["name"]] == ["2 steps", "10 steps", "20 DDIM, log SNR, guidance 2"]
    assert few["distance"][0] > 2 * more["distance"][0] > many["distance"][0] == 0
    drawn = [
        sampling.drawn_levels(pipeline, "2 steps", sampling.SETTINGS["2 steps"], seed, truth.captions, tmp_path, 2)[-1]
        for seed in range(2)
    ]
    expected = sum(sampling.pixel_distance(images[:1], real[:1]) for images in drawn) / 2
    assert few["real"][0] == pytest.approx(expected)
    table = many_steps.markdown_table(found, 20).splitlines()
    assert len(table) == 5
    assert table[2].startswith("| 2 steps | 4 |")
    args.guidance_scales = [1.0]
    assert many_steps.measure(pipeline, truth, args) == []
