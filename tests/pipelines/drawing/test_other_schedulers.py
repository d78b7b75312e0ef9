# SPDX-License-Identifier: Apache-2.0
"""Every scheduler that diffusers exports either draws the innermost level or is refused before the first step."""

import diffusers
import pytest
import torch
from diffusers import ConfigMixin, DPMSolverMultistepScheduler, SchedulerMixin

from diffusers_mdm import MatryoshkaScheduler
from diffusers_mdm.pipelines.drawing.other_schedulers import check_draws_one_level
from diffusers_mdm.pipelines.drawing.request import Request
from tests.pipelines.tiny_pipeline import draw, make_pipeline, make_scheduler, seed

# diffusers' schedulers hand tensors to numpy in a way that it is about to give up.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
# What a config of ours leaves open; the values are of no importance, since these are refused.
NEEDED = {
    "AmusedScheduler": {"mask_token_id": 7},
    "VQDiffusionScheduler": {"num_vec_classes": 7},
    "RFD4ProteinaScheduler": None,  # made for proteins, from objects of its own
}
USABLE = {
    "CogVideoXDDIMScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
}
OURS = make_scheduler()
MAX_STEPS = 12


def exported() -> list[type]:
    """Schedulers of diffusers whose own requirements are installed here."""
    found = [getattr(diffusers, name) for name in sorted(dir(diffusers)) if name.endswith("Scheduler")]
    classes = [entry for entry in found if isinstance(entry, type) and issubclass(entry, ConfigMixin)]
    return [
        entry
        for entry in classes
        if entry.__module__.startswith("diffusers.") and NEEDED.get(entry.__name__, {}) is not None
    ]


def perfect(scheduler, clean: torch.Tensor) -> torch.Tensor:
    """Draw with a network that knows the image."""
    scheduler.set_timesteps(MAX_STEPS)
    sample = torch.randn(clean.shape, generator=seed(0)) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        power = OURS.alphas_cumprod[int(timestep)]
        noisy = scheduler.scale_model_input(sample, timestep)
        noise = (noisy - power.sqrt() * clean) / (1 - power).sqrt()
        sample = scheduler.step(power.sqrt() * noise - (1 - power).sqrt() * clean, timestep, sample).prev_sample
    return sample


@pytest.mark.parametrize("scheduler_class", exported(), ids=lambda entry: entry.__name__)
def test_every_scheduler_draws_or_is_refused(scheduler_class):
    name = scheduler_class.__name__
    scheduler = scheduler_class.from_config(OURS.config, **NEEDED.get(name, {}))
    request = Request(num_inference_steps=MAX_STEPS)
    if name in USABLE:
        state = vars(scheduler).copy()
        check_draws_one_level(scheduler, request)
        assert vars(scheduler).keys() == state.keys()
        assert all(vars(scheduler)[key] is value for key, value in state.items())
        clean = torch.rand(2, 3, 8, 8, generator=seed(1)) * 1.6 - 0.8
        # Those that rescale the schedule, or add noise at the end, come less near: 0.021 was seen.
        assert (perfect(scheduler, clean) - clean).abs().mean() < 0.05
        return
    with pytest.raises(ValueError, match=rf"^{name} cannot be used with this model: .*\. Use MatryoshkaScheduler"):
        check_draws_one_level(scheduler, request)


def test_there_are_schedulers_of_both_kinds():
    names = {entry.__name__ for entry in exported()}
    assert names >= USABLE
    assert names >= {"RePaintScheduler", "FlowMatchEulerDiscreteScheduler", "CMStochasticIterativeScheduler"}


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (diffusers.RePaintScheduler, "its `step` needs `original_image` and `mask`"),
        (diffusers.FlowMatchEulerDiscreteScheduler, "no noise schedule over discrete timesteps"),
        (diffusers.DDIMInverseScheduler, "goes from images to noise"),
        (diffusers.UnCLIPScheduler, "its first step fails .ValueError: prediction_type given as v_prediction"),
    ],
)
def test_pipelines_say_why_before_the_first_step(scheduler, reason):
    pipe = make_pipeline()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    pipe.unet.register_forward_pre_hook(lambda *args: pytest.fail("the model was called"))
    with pytest.raises(ValueError, match=reason):
        draw(pipe, height=8)


def test_predictions_of_flow_are_refused():
    for changes in ({"prediction_type": "flow_prediction"}, {"use_flow_sigmas": True}):
        scheduler = DPMSolverMultistepScheduler.from_config(OURS.config, **changes)
        with pytest.raises(ValueError, match=r"expects predictions of the kind .*flow"):
            check_draws_one_level(scheduler, Request(num_inference_steps=MAX_STEPS))


def test_the_trial_draws_no_number_of_the_users():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    for scheduler_class in (diffusers.DDPMScheduler, diffusers.EulerAncestralDiscreteScheduler):
        check_draws_one_level(scheduler_class.from_config(OURS.config), Request(num_inference_steps=MAX_STEPS))
    assert torch.equal(torch.rand(1), expected)


def test_a_scheduler_need_not_be_registered():
    class Own(MatryoshkaScheduler):
        pass

    assert issubclass(Own, SchedulerMixin)
    pipe = make_pipeline()
    expected = draw(pipe)
    pipe.scheduler = Own.from_config(pipe.scheduler.config)
    assert torch.equal(draw(pipe), expected)


def test_samples_that_are_not_finite_are_never_returned():
    class Broken(diffusers.DDIMScheduler):
        def step(self, *args, **kwargs):
            output = super().step(*args, **kwargs)
            output.prev_sample = output.prev_sample * float("nan")
            return output

    pipe = make_pipeline()
    pipe.scheduler = Broken.from_config(pipe.scheduler.config)
    for output_type in ("pt", "pil", "latent"):
        with pytest.raises(ValueError, match="The last samples of Broken hold NaN or infinity"):
            draw(pipe, height=8, num_inference_steps=1, output_type=output_type)
