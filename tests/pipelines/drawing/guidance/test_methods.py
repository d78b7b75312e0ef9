# SPDX-License-Identifier: Apache-2.0
"""Guidance methods: their defining properties, one step at a time and in whole drawings."""

import math

import pytest
import torch
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    AutoGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    SkipLayerGuidance,
)

from diffusers_mdm.pipelines.drawing.guidance.interval import IntervalGuidance
from diffusers_mdm.pipelines.drawing.guidance.method import (
    GuidanceMethod,
    LevelStep,
    NoiseLevels,
    PlainGuidance,
)
from diffusers_mdm.pipelines.drawing.guidance.prediction import plain, rescaled
from diffusers_mdm.pipelines.drawing.guidance.projected import ProjectedGuidance
from diffusers_mdm.pipelines.drawing.guidance.registry import METHODS, method_of
from diffusers_mdm.pipelines.drawing.guidance.zero_star import ZeroStarGuidance
from tests.pipelines.tiny_pipeline import draw, make_pipeline, make_scheduler, make_unet, seed
from tests.pipelines.tiny_tasks import make_class_unet, task

SAMPLE, COND, OTHER = (torch.randn(2, 3, 8, 8, generator=seed(number)) for number in range(3))
PREDICTION_TYPES = pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])


def at(scale=3.0, rescale=0.0, step=0, timestep=500, prediction_type="v_prediction"):
    scheduler = make_scheduler(prediction_type=prediction_type)
    return LevelStep(0, scale, rescale, NoiseLevels(scheduler, [SAMPLE], torch.tensor(timestep)), step, 10)


@PREDICTION_TYPES
def test_predictions_are_converted_to_clean_levels_and_velocities_and_back(prediction_type):
    level = at(prediction_type=prediction_type)
    torch.testing.assert_close(level.prediction(level.clean(COND)), COND, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(level.prediction_of_velocity(level.velocity(COND)), COND, atol=1e-5, rtol=1e-4)


@PREDICTION_TYPES
@pytest.mark.parametrize(
    "method", [PlainGuidance(), IntervalGuidance(), ProjectedGuidance(eta=1.0), ProjectedGuidance(1.0, bound=1e9)]
)
def test_methods_equal_plain_guidance_with_these_settings(method, prediction_type):
    level = at(prediction_type=prediction_type)
    guided = method.combine(COND, OTHER, level)
    torch.testing.assert_close(guided, plain(COND, OTHER, 3.0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_a_scale_of_1_turns_guidance_off(name):
    method = method_of(name)
    assert not method.needs_other(at(scale=1.0))
    torch.testing.assert_close(method.combine(COND, None, at(scale=1.0)), COND)
    # Nor would it be if both predictions were there.
    torch.testing.assert_close(method.guide(COND, OTHER, at(scale=1.0)), COND, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_equal_predictions_are_not_changed(name):
    torch.testing.assert_close(method_of(name).guide(COND, COND, at()), COND, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_rescaled(name):
    method, level = method_of(name), at(rescale=0.7)
    expected = rescaled(method.guide(COND, OTHER, level), COND, 0.7)
    torch.testing.assert_close(method.new().combine(COND, OTHER, level), expected)


def test_guidance_is_limited_to_the_interval():
    snr = at().log_snr
    for method, inside in (
        (IntervalGuidance(snr - 1, snr + 1), True),
        (IntervalGuidance(snr + 1), False),
        (IntervalGuidance(high=snr - 1), False),
        (IntervalGuidance(snr - 1, snr + 1, method=ProjectedGuidance()), True),
    ):
        assert method.needs_other(at()) == inside
    wrapped = IntervalGuidance(method=ProjectedGuidance())
    torch.testing.assert_close(wrapped.guide(COND, OTHER, at()), ProjectedGuidance().guide(COND, OTHER, at()))


@PREDICTION_TYPES
def test_projected_guidance_adds_only_an_orthogonal_component(prediction_type):
    level = at(prediction_type=prediction_type)
    clean = level.clean(COND)
    move = level.clean(ProjectedGuidance().guide(COND, OTHER, level)) - clean
    cosines = torch.nn.functional.cosine_similarity(move.flatten(1), clean.flatten(1))
    torch.testing.assert_close(cosines, torch.zeros(2), atol=1e-5, rtol=0)
    assert move.abs().max() > 0.1


def test_a_bound_limits_the_difference_of_each_sample():
    level = at(scale=2.0)
    difference = level.clean(COND) - level.clean(OTHER)
    bounded = ProjectedGuidance(eta=1.0, bound=0.5).guide(COND, OTHER, level)
    move = level.clean(bounded) - level.clean(COND)
    torch.testing.assert_close(move.square().mean((1, 2, 3)).sqrt(), torch.full((2,), 0.5))
    torch.testing.assert_close(
        torch.nn.functional.normalize(move.flatten(1)), torch.nn.functional.normalize(difference.flatten(1))
    )


def test_momentum_adds_earlier_differences_which_a_new_copy_does_not_have():
    method, level = ProjectedGuidance(eta=1.0, momentum=-0.5), at(scale=2.0)
    first = level.clean(method.guide(COND, OTHER, level)) - level.clean(COND)
    second = level.clean(method.guide(COND, OTHER, level)) - level.clean(COND)
    torch.testing.assert_close(second, 0.5 * first, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        method.new().guide(COND, OTHER, level), ProjectedGuidance(1.0).guide(COND, OTHER, level)
    )


def test_zero_star_scales_the_other_velocity_to_the_nearest_multiple():
    guided = ZeroStarGuidance().guide(COND, OTHER, at(scale=0.0))
    rest = COND - guided
    products = (rest * OTHER).sum((1, 2, 3)) / OTHER.square().sum((1, 2, 3))
    torch.testing.assert_close(products, torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        ZeroStarGuidance().guide(COND, 5 * OTHER, at()), ZeroStarGuidance().guide(COND, OTHER, at())
    )


@PREDICTION_TYPES
def test_zero_steps_have_zero_velocity_and_need_no_second_prediction(prediction_type):
    method = ZeroStarGuidance(num_zero_steps=2)
    early, late = (at(step=step, prediction_type=prediction_type) for step in (1, 2))
    assert not method.needs_other(early)
    assert method.needs_other(late)
    velocity = early.velocity(method.combine(COND, None, early))
    torch.testing.assert_close(velocity, torch.zeros_like(COND), atol=1e-5, rtol=0)


# In whole drawings


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture(scope="module")
def plainly(pipe):
    return draw(pipe)


@pytest.mark.parametrize(
    "guider",
    ["plain", {"name": "interval"}, {"name": "projected", "eta": 1.0}, ClassifierFreeGuidance(guidance_scale=3.0)],
    ids=["plain", "interval", "projected", "diffusers"],
)
def test_drawings_with_methods_that_equal_plain_guidance(pipe, plainly, guider):
    own = {"guidance_scale": None} if isinstance(guider, ClassifierFreeGuidance) else {}
    torch.testing.assert_close(draw(pipe, guider=guider, **own), plainly, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "guider",
    [
        "projected",
        "zero_star",
        {"name": "interval", "low": -1.0, "method": {"name": "projected", "momentum": -0.5}},
        AdaptiveProjectedGuidance(guidance_scale=3.0, adaptive_projected_guidance_momentum=-0.5),
        ClassifierFreeZeroStarGuidance(guidance_scale=3.0),
    ],
    ids=["projected", "zero_star", "interval", "diffusers projected", "diffusers zero_star"],
)
def test_methods_treat_each_image_separately_and_keep_no_state_between_calls(guider):
    kind = task("text")
    pipe = kind.make()
    own = {"guidance_scale": None} if not isinstance(guider, (str, dict)) else {}
    together = kind.draw(pipe, slice(None), guider=guider, **own)
    assert not torch.allclose(together, kind.draw(pipe, slice(None)), atol=1e-3)
    torch.testing.assert_close(kind.draw(pipe, 2, guider=guider, **own), together[2:], atol=2e-4, rtol=0)


def test_each_level_has_its_own_scale(pipe, plainly):
    torch.testing.assert_close(draw(pipe, guidance_scale=[3.0, 3.0]), plainly)
    inner = draw(pipe, guidance_scale=[1.0, 3.0], output_pyramid=True, return_dict=False)[1]
    unguided = draw(pipe, guidance_scale=[1.0, 1.0], output_pyramid=True, return_dict=False)[1]
    assert not torch.allclose(inner[1], unguided[1], atol=1e-3)
    calls = []
    handle = pipe.unet.register_forward_pre_hook(lambda module, args: calls.append(len(args[0][0])))
    draw(pipe, guidance_scale=[1.0, 1.0])
    draw(pipe, guidance_scale=[1.0, 2.0])
    handle.remove()
    assert calls == [1, 1, 2, 2]


def test_outside_the_interval_the_model_runs_once_per_step(pipe):
    calls = []
    handle = pipe.unet.register_forward_pre_hook(lambda module, args: calls.append(len(args[0][0])))
    draw(pipe, guider=IntervalGuidance(low=0.0), num_inference_steps=4)
    handle.remove()
    assert calls[0] == 1
    assert calls[-1] == 2


def test_autoguidance_moves_away_from_a_weaker_model_and_not_from_the_model_itself(pipe):
    unguided = draw(pipe, guidance_scale=1.0)
    torch.testing.assert_close(draw(pipe, guidance_unet=pipe.unet), unguided, atol=1e-4, rtol=0)
    weaker = make_unet()
    with torch.no_grad():
        weaker.levels[0].decoder.conv_out.weight.mul_(0.5)
    assert not torch.allclose(draw(pipe, guidance_unet=weaker), unguided, atol=1e-3)


@pytest.mark.parametrize(
    ("guider", "message"),
    [
        ("strongly", "`guider` is 'strongly'; expected one of plain, interval"),
        (3.0, "`guider` is"),
        ({"low": 1.0}, "`guider` is"),
        ({"name": "projected", "strength": 1}, "`guider` 'projected' does not take these settings"),
        ({"name": "interval", "low": 2.0, "high": -2.0}, "expected increasing log SNRs"),
        ({"name": "projected", "bound": 0.0}, "expected a number above 0"),
        ({"name": "projected", "momentum": 1.0}, "expected a number in"),
        ({"name": "zero_star", "num_zero_steps": -1}, "expected 0 or more"),
        (
            SkipLayerGuidance(skip_layer_guidance_layers=[0]),
            "SkipLayerGuidance guides by running a transformer a second time",
        ),
        (
            AutoGuidance(auto_guidance_layers=[0], dropout=0.5),
            "AutoGuidance guides by running a transformer a second time",
        ),
        (ClassifierFreeGuidance(), "ClassifierFreeGuidance has its own `guidance_scale`"),
    ],
)
def test_wrong_guiders_are_refused(pipe, guider, message):
    with pytest.raises(ValueError, match=message):
        draw(pipe, guider=guider)


@pytest.mark.parametrize(
    ("weaker", "message"),
    [
        (lambda: "unet", "has to be a NestedUNetModel"),
        (make_class_unet, "differs from the pipeline's model in cross_attention_dim, num_class_embeds"),
    ],
)
def test_wrong_weaker_models_are_refused(pipe, weaker, message):
    with pytest.raises(ValueError, match=message):
        draw(pipe, guidance_unet=weaker())


def test_a_custom_method(pipe, plainly):
    class Half(GuidanceMethod):
        def guide(self, conditional, other, at):
            return plain(conditional, other, (at.scale + 1) / 2)

    torch.testing.assert_close(draw(pipe, guider=Half()), draw(pipe, guidance_scale=2.0), atol=1e-4, rtol=0)
    with pytest.raises(NotImplementedError, match="give it a method `guide`"):
        draw(pipe, guider=GuidanceMethod())


def test_log_snrs_at_the_ends_of_the_schedule_are_defined():
    assert math.isfinite(at(timestep=999).log_snr)
