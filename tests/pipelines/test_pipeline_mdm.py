# SPDX-License-Identifier: Apache-2.0
"""What diffusers checks of its own pipelines, checked of this one: batches, outputs, sizes, callbacks, precision."""

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.utils import is_accelerate_available

from diffusers_mdm import MDMPipeline, MDMPipelineOutput
from diffusers_mdm.pyramid import pyramid_noise
from tests.group_offloading import needs_group_offloading
from tests.pipelines.tiny_pipeline import draw, make_pipeline, make_scheduler, seed

# Rows of a batch differ from the same rows alone by rounding only; observed: 2e-6.
BATCH_TOLERANCE = 2e-5
PROMPTS = ["a cat", "a very long picture of " * 37 + "the very sad dog house in red", "the happy dog of a green house"]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_an_image_does_not_depend_on_its_batch(masked, guidance_scale):
    pipe = make_pipeline(use_cross_attention_mask=masked)
    assert len(PROMPTS[1]) >= 850
    pipe.tokenizer.model_max_length = 512
    pyramid = pipe(
        PROMPTS,
        num_inference_steps=2,
        guidance_scale=guidance_scale,
        generator=[seed(0), seed(1), seed(2)],
        eta=1.0,
        output_type="pt",
        output_pyramid=True,
        micro_conditioning={"scale": [3.0, 5.0, 8.0]},
    ).pyramid
    for row, (prompt, scale) in enumerate(zip(PROMPTS, [3.0, 5.0, 8.0], strict=True)):
        alone = draw(
            pipe,
            prompt=prompt,
            generator=seed(row),
            guidance_scale=guidance_scale,
            eta=1.0,
            micro_conditioning={"scale": scale},
        )
        torch.testing.assert_close(pyramid[-1][row : row + 1], alone, atol=BATCH_TOLERANCE, rtol=0)


@pytest.mark.parametrize("num_prompts", [1, 3])
@pytest.mark.parametrize("num_images_per_prompt", [1, 2])
def test_number_of_images(pipe, num_prompts, num_images_per_prompt):
    images = draw(pipe, prompt=["a cat"] * num_prompts, num_images_per_prompt=num_images_per_prompt)
    assert images.shape == (num_prompts * num_images_per_prompt, 3, 16, 16)


def test_images_of_one_prompt_lie_side_by_side(pipe):
    images = draw(
        pipe, prompt=["a cat", "red"], num_images_per_prompt=2, generator=[seed(0), seed(1), seed(0), seed(1)]
    )
    alone = draw(pipe, prompt="red", generator=seed(1))
    torch.testing.assert_close(images[3:], alone, atol=BATCH_TOLERANCE, rtol=0)


def test_same_seed_gives_the_same_image(pipe):
    assert torch.equal(draw(pipe), draw(pipe))
    assert not torch.equal(draw(pipe), draw(pipe, generator=seed(1)))


def test_output_types_agree(pipe):
    tensors, arrays, images = (draw(pipe, output_type=kind) for kind in ("pt", "np", "pil"))
    assert tensors.min() >= 0
    assert tensors.max() <= 1
    np.testing.assert_array_equal(arrays, tensors.permute(0, 2, 3, 1).numpy())
    assert isinstance(images[0], PIL.Image.Image)
    np.testing.assert_array_equal(np.asarray(images[0]), (arrays[0] * 255).round().astype("uint8"))
    latents = draw(pipe, output_type="latent")
    torch.testing.assert_close((latents.clamp(-1, 1) + 1) / 2, tensors)


@pytest.mark.parametrize("kind", ["pt", "np", "pil", "latent"])
def test_every_level_on_request(pipe, kind):
    output = pipe("a cat", num_inference_steps=1, output_type=kind, output_pyramid=True, generator=seed(0))
    assert isinstance(output, MDMPipelineOutput)
    sides = [np.asarray(level[0]).shape[-1 if kind in ("pt", "latent") else 0] for level in output.pyramid]
    assert sides == [8, 16]
    assert output.pyramid[-1] is output.images


def test_return_dict(pipe):
    images = draw(pipe)
    assert torch.equal(draw(pipe, return_dict=False)[0], images)
    in_tuple, pyramid = draw(pipe, return_dict=False, output_pyramid=True)
    assert torch.equal(in_tuple, images)
    assert len(pyramid) == 2


# Sizes


def test_height_chooses_the_levels(pipe):
    assert draw(pipe).shape == draw(pipe, height=16).shape == draw(pipe, width=16, height=16).shape == (1, 3, 16, 16)
    assert draw(pipe, height=8).shape == draw(pipe, width=8).shape == (1, 3, 8, 8)
    assert draw(pipe, height=16, width=8).shape == (1, 3, 16, 8)
    assert draw(pipe, height=4, width=8).shape == (1, 3, 4, 8)


def test_inner_levels_alone_are_the_inner_model(pipe):
    inner = MDMPipeline(**{**pipe.components, "unet": pipe.unet.inner_model(1)})
    assert torch.equal(draw(pipe, height=8), draw(inner))


def test_latents_are_the_starting_noise(pipe):
    noise = pyramid_noise([(1, 3, 8, 8), (1, 3, 16, 16)], seed(0))
    assert torch.equal(draw(pipe, latents=noise, generator=None), draw(pipe))
    assert torch.equal(draw(pipe, latents=noise[0], generator=None), draw(pipe, height=8))
    assert torch.equal(draw(pipe, latents=noise[:1], generator=None), draw(pipe, height=8))


# Guidance and conditions


def test_guidance_off_runs_the_model_once_a_row(pipe):
    rows = []
    pipe.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0][0])))
    draw(pipe, guidance_scale=1.0)
    draw(pipe, guidance_scale=2.0)
    assert rows == [1, 1, 2, 2]


def test_negative_prompt(pipe):
    plain = draw(pipe)
    assert torch.equal(draw(pipe, negative_prompt=""), plain)
    against = draw(pipe, negative_prompt="sad")
    assert not torch.equal(against, plain)
    both = draw(pipe, prompt=["a red apple"] * 2, negative_prompt=["", "sad"], generator=[seed(0), seed(0)])
    torch.testing.assert_close(both, torch.cat([plain, against]), atol=BATCH_TOLERANCE, rtol=0)


def test_guidance_rescale_brings_the_spread_back(pipe):
    assert not torch.equal(draw(pipe, guidance_rescale=0.7), draw(pipe))


def test_micro_conditioning(pipe):
    default = draw(pipe)
    small = draw(pipe, micro_conditioning={"scale": 2.0})
    assert not torch.equal(small, default)
    assert torch.equal(draw(pipe, micro_conditioning={"scale": [2.0]}), small)
    assert torch.equal(draw(pipe, micro_conditioning={"scale": torch.tensor([2.0, 2.0])}), small)
    assert not torch.equal(draw(pipe, micro_conditioning={"scale": [8.0, 2.0]}), small)


def test_own_timesteps(pipe):
    pipe.scheduler.set_timesteps(2)
    steps = pipe.scheduler.timesteps.tolist()
    assert torch.equal(draw(pipe, timesteps=steps), draw(pipe))


# Other schedulers


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_schedulers_of_diffusers_draw_the_innermost_level(pipe, scheduler):
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    images = draw(pipe, height=8, num_inference_steps=3)
    assert images.shape == (1, 3, 8, 8)
    assert torch.isfinite(images).all()
    with pytest.raises(ValueError, match="supports a single level, but 16 x 16 pixels need 2 levels"):
        draw(pipe)


def test_ddim_of_diffusers_agrees_with_ours(pipe):
    # diffusers mixes the unclipped prediction with the clipped image unless told otherwise.
    settings = {"height": 8, "num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "latent"}
    pipe.scheduler = make_scheduler(clip_sample=False, timestep_spacing="trailing")
    ours = draw(pipe, **settings)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    theirs = draw(pipe, **settings)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


def test_eta_without_use_is_refused(pipe):
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="has no `eta`"):
        draw(pipe, height=8, eta=0.5)


# Callbacks


def test_callback_gets_what_it_asks_for(pipe):
    seen = []

    def note(pipeline, step, timestep, tensors):
        seen.append((step, int(timestep), set(tensors)))
        return tensors

    draw(pipe, callback_on_step_end=note, callback_on_step_end_tensor_inputs=pipe._callback_tensor_inputs)
    steps = pipe.scheduler.timesteps.tolist()
    assert seen == [(index, t, set(pipe._callback_tensor_inputs)) for index, t in enumerate(steps)]
    seen.clear()
    draw(pipe, callback_on_step_end=note)
    assert seen[0][2] == {"latents"}


def test_preview_is_a_pyramid_that_ends_as_the_image(pipe):
    previews = []

    def keep(pipeline, step, timestep, tensors):
        previews.append(tensors["pred_original_sample"])
        return {}

    images = draw(pipe, callback_on_step_end=keep, callback_on_step_end_tensor_inputs=["pred_original_sample"])
    assert [tuple(level.shape[-2:]) for level in previews[0]] == [(8, 8), (16, 16)]
    torch.testing.assert_close((previews[-1][-1] + 1) / 2, images)


def test_callback_changes_latents_and_text(pipe):
    def blacken(pipeline, step, timestep, tensors):
        return {"latents": [torch.full_like(level, -1.0) for level in tensors["latents"]]}

    assert draw(pipe, callback_on_step_end=blacken).abs().max() == 0

    def silence(pipeline, step, timestep, tensors):
        return {name: torch.zeros_like(value) for name, value in tensors.items()}

    names = ["prompt_embeds", "negative_prompt_embeds"]
    changed = draw(pipe, callback_on_step_end=silence, callback_on_step_end_tensor_inputs=names)
    assert not torch.equal(changed, draw(pipe))


def test_callback_changes_guidance_midway(pipe):
    def increase(pipeline, step, timestep, tensors):
        pipeline._guidance_scale += 1.0
        return tensors

    changed = draw(pipe, callback_on_step_end=increase)
    assert pipe.guidance_scale == 5.0
    assert not torch.equal(changed, draw(pipe))


def test_a_callback_of_diffusers_cuts_guidance_off(pipe):
    rows = []
    pipe.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0][0])))
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0)
    draw(pipe, num_inference_steps=3, callback_on_step_end=cutoff)
    assert rows == [2, 1, 1]


def test_guidance_cannot_be_turned_on_midway(pipe):
    def turn_on(pipeline, step, timestep, tensors):
        pipeline._guidance_scale = 3.0
        return tensors

    with pytest.raises(ValueError, match="no negative prompts"):
        draw(pipe, guidance_scale=1.0, callback_on_step_end=turn_on)


def test_interrupt_keeps_what_is_there(pipe):
    states = []

    def stop(pipeline, step, timestep, tensors):
        states.append(tensors["latents"])
        pipeline._interrupt = step == 1
        return tensors

    stopped = draw(pipe, num_inference_steps=4, callback_on_step_end=stop, output_type="latent")
    assert len(states) == 2
    assert torch.equal(stopped, states[1][-1])


# Precision, devices, components


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.15), (torch.float16, 0.02)])
def test_half_precision_draws_nearly_the_same(pipe, dtype, tolerance):
    full = draw(pipe)
    half = draw(pipe.to(dtype=dtype))
    assert half.dtype == torch.float32
    assert (half - full).abs().mean() < tolerance


def test_mixed_precision_of_text_and_model(pipe):
    pipe.unet.to(torch.bfloat16)
    assert torch.isfinite(draw(pipe)).all()


def test_from_pipe_shares_components(pipe):
    images = draw(pipe)
    other = MDMPipeline.from_pipe(pipe)
    assert other.unet is pipe.unet
    assert torch.equal(draw(other), images)


@pytest.mark.slow
def test_compiled_model(pipe):
    images = draw(pipe)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    torch.testing.assert_close(draw(pipe), images, atol=BATCH_TOLERANCE, rtol=0)


def test_layerwise_casting_keeps_the_compute_precision(pipe):
    images = draw(pipe)
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert (draw(pipe) - images).abs().mean() < 0.1


@needs_group_offloading
@pytest.mark.parametrize("options", [{"offload_type": "leaf_level"}, {"num_blocks_per_group": 1}])
def test_group_offload_changes_nothing(pipe, options):
    images = draw(pipe)
    pipe.enable_group_offload(onload_device=torch.device("cpu"), **{"offload_type": "block_level", **options})
    # Steps are then embedded one by one, which sums in another order.
    torch.testing.assert_close(draw(pipe), images, atol=BATCH_TOLERANCE, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not (torch.cuda.is_available() and is_accelerate_available()), reason="needs an accelerator")
@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offload_changes_nothing(offload):
    device = torch.device("cuda")
    images = draw(make_pipeline().to(device)).cpu()
    pipe = make_pipeline()
    getattr(pipe, offload)(device=device)
    torch.testing.assert_close(draw(pipe).cpu(), images, atol=1e-4, rtol=0)
    assert pipe.unet.device.type in ("cpu", "meta")


@pytest.mark.skipif(torch.cuda.is_available(), reason="with an accelerator it works")
def test_offload_without_an_accelerator_is_the_error_of_diffusers(pipe):
    with pytest.raises(RuntimeError, match="accelerator"):
        pipe.enable_model_cpu_offload()
