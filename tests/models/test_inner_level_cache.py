# SPDX-License-Identifier: Apache-2.0
"""Reuse of inner levels between steps: their clean images stay the same, and other caches are refused."""

import pytest
import torch
from diffusers import DDIMScheduler, FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from diffusers.hooks import FasterCacheConfig, TaylorSeerCacheConfig

from diffusers_mdm import InnerLevelCacheConfig
from diffusers_mdm.models import NestedUNetModel
from tests.pipelines.tiny_pipeline import draw, make_pipeline, make_scheduler, make_unet, seed
from tests.pipelines.tiny_tasks import task


@pytest.fixture
def unet() -> NestedUNetModel:
    return make_unet()


def call(unet, sample, step, timestep=500):
    text = torch.ones(1, 2, 16)
    with torch.no_grad(), unet.cache_context("call", step_index=step):
        return unet(sample, torch.tensor(timestep), text).sample


def samples(number):
    return [torch.randn(1, 3, side, side, generator=seed(number)) for side in (8, 16)]


def runs_of(unet, level):
    """Count how often the encoder of a level runs from now on."""
    runs = []
    unet.levels[level].encoder.register_forward_pre_hook(lambda *_: runs.append(1))
    return runs


def test_inner_levels_run_in_every_nth_step(unet):
    unet.enable_cache(InnerLevelCacheConfig(make_scheduler(), every=3))
    inner, outer = runs_of(unet, 0), runs_of(unet, 1)
    for step in range(7):
        call(unet, samples(step), step, 900 - 100 * step)
    assert (len(inner), len(outer)) == (3, 7)


def test_reuse_does_not_change_the_prediction_for_the_same_sample(unet):
    expected = unet(samples(0), torch.tensor(500), torch.ones(1, 2, 16)).sample
    unet.enable_cache(InnerLevelCacheConfig(make_scheduler()))
    call(unet, samples(0), 0)
    for level, other in zip(call(unet, samples(0), 1), expected, strict=True):
        torch.testing.assert_close(level, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
@pytest.mark.parametrize("level_scaling", ["shift", "rescale"])
def test_reused_predictions_give_the_same_clean_images(unet, prediction_type, level_scaling):
    scheduler = make_scheduler(prediction_type=prediction_type, level_scaling=level_scaling, clip_sample=False)
    scheduler.set_timesteps(5)
    unet.enable_cache(InnerLevelCacheConfig(scheduler))
    first, second = samples(0), samples(1)
    before = scheduler.step(call(unet, first, 0, 600), 600, first).pred_original_sample
    after = scheduler.step(call(unet, second, 1, 400), 400, second).pred_original_sample
    torch.testing.assert_close(after[0], before[0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(after[1], before[1], atol=1e-2)


def test_the_number_of_reused_levels_can_be_chosen():
    kind = task("video")
    unet = kind.make().unet
    unet.enable_cache(InnerLevelCacheConfig(make_scheduler(), num_levels=1))
    runs = [runs_of(unet, level) for level in range(3)]
    pyramid = [torch.randn(1, 3, frames, side, side) for frames, side in ((1, 8), (4, 8), (4, 16))]
    for step in range(2):
        call(unet, pyramid, step)
    assert [len(entry) for entry in runs] == [1, 2, 2]


# In drawings


def test_running_inner_levels_in_every_step_changes_nothing():
    pipe = make_pipeline()
    plainly = draw(pipe, num_inference_steps=4)
    pipe.unet.enable_cache(InnerLevelCacheConfig(pipe.scheduler, every=1))
    assert pipe.unet.is_cache_enabled
    assert torch.equal(draw(pipe, num_inference_steps=4), plainly)
    pipe.unet.disable_cache()
    pipe.unet.enable_cache(InnerLevelCacheConfig(pipe.scheduler, every=2))
    first = draw(pipe, num_inference_steps=4)
    assert not torch.allclose(first, plainly, atol=1e-3)
    assert torch.equal(draw(pipe, num_inference_steps=4), first)
    pipe.unet.disable_cache()
    assert torch.equal(draw(pipe, num_inference_steps=4), plainly)


@pytest.mark.parametrize("name", ["text", "class", "upscale", "video"])
def test_images_do_not_depend_on_their_batch(name):
    kind = task(name)
    pipe = kind.make()
    pipe.unet.enable_cache(InnerLevelCacheConfig(pipe.scheduler))
    together = kind.draw(pipe, slice(None), open_levels_at=-6.0)
    torch.testing.assert_close(kind.draw(pipe, 1, open_levels_at=-6.0), together[1:2], atol=2e-4, rtol=0)


def test_nothing_is_reused_if_only_inner_levels_run():
    pipe = make_pipeline()
    alone = draw(pipe, height=8, num_inference_steps=4)
    pipe.unet.enable_cache(InnerLevelCacheConfig(pipe.scheduler))
    assert torch.equal(draw(pipe, height=8, num_inference_steps=4), alone)


# Refusals


@pytest.mark.parametrize(
    "config",
    [
        FirstBlockCacheConfig(),
        FasterCacheConfig(),
        PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2),
        TaylorSeerCacheConfig(),
        "often",
    ],
    ids=lambda config: type(config).__name__,
)
def test_other_caches_are_refused(unet, config):
    with pytest.raises(ValueError, match=f"{type(config).__name__} is made for transformers"):
        unet.enable_cache(config)
    assert not unet.is_cache_enabled


def test_wrong_settings_are_refused(unet):
    with pytest.raises(ValueError, match="expected the MatryoshkaScheduler"):
        InnerLevelCacheConfig(DDIMScheduler())
    with pytest.raises(ValueError, match="`every` of InnerLevelCacheConfig"):
        InnerLevelCacheConfig(make_scheduler(), every=0)
    with pytest.raises(ValueError, match="at most 1 are inside"):
        unet.enable_cache(InnerLevelCacheConfig(make_scheduler(), num_levels=2))
    unet.enable_cache(InnerLevelCacheConfig(make_scheduler()))
    with pytest.raises(ValueError, match="cache is already on"):
        unet.enable_cache(InnerLevelCacheConfig(make_scheduler()))
    with pytest.raises(ValueError, match="cache_context"):
        unet(samples(0), torch.tensor(500), torch.ones(1, 2, 16))
