# SPDX-License-Identifier: Apache-2.0
"""Guided predictions: plain guidance, rescaling, and the grouping of a batch into calls of the model."""

from collections import Counter

import pytest
import torch
from peft import LoraConfig

from diffusers_mdm.pipelines.drawing.guidance import prediction
from diffusers_mdm.pipelines.drawing.guidance.prediction import (
    each_level,
    has_weights_in_place,
    is_guided,
    lay_out_for,
    plain,
    predict,
    rescaled,
)
from diffusers_mdm.pipelines.drawing.request import read_call
from diffusers_mdm.pipelines.drawing.setup import begin_drawing, scaled_noise, set_timesteps, starting_noise
from tests.group_offloading import needs_group_offloading
from tests.pipelines.tiny_pipeline import draw, make_pipeline, make_unet, seed

WITHOUT, WITH = torch.randn(2, 3, 8, 8, generator=seed(0)), torch.randn(2, 3, 8, 8, generator=seed(1))


def test_a_scale_of_1_gives_the_conditional_prediction_and_0_the_other_one():
    torch.testing.assert_close(plain(WITH, WITHOUT, 1.0), WITH)
    torch.testing.assert_close(plain(WITH, WITHOUT, 0.0), WITHOUT)
    torch.testing.assert_close(plain(WITH, WITHOUT, 3.0), WITHOUT + 3 * (WITH - WITHOUT))


def test_rescaling_restores_the_standard_deviation_of_each_sample():
    guided = plain(WITH, WITHOUT, 5.0)
    full = rescaled(guided, WITH, 1.0)
    torch.testing.assert_close(full.std(dim=(1, 2, 3)), WITH.std(dim=(1, 2, 3)))
    half = rescaled(guided, WITH, 0.5)
    torch.testing.assert_close(half, (full + guided) / 2)


@pytest.mark.parametrize(
    ("weight", "guided"), [(0.0, False), (1.0, False), (1.001, True), (7.5, True), ([1.0, 3.0], True)]
)
def test_only_scales_above_1_need_negative_prompts(weight, guided):
    assert is_guided(weight) == guided


def test_a_bare_tensor_stays_bare():
    assert torch.equal(each_level(torch.neg, WITH), -WITH)
    assert isinstance(each_level(torch.neg, [WITH]), list)


def test_prompts_of_different_lengths_need_separate_calls_and_keep_their_order():
    pipe, prompts = make_pipeline(), ["red", "a very long picture", "sad"]
    calls = []
    pipe.unet.register_forward_pre_hook(lambda module, args: calls.append(len(args[0][0])))

    def prediction(texts, numbers):
        request = read_call(
            {"prompt": texts, "generator": [seed(number) for number in numbers], "guidance_scale": 3.0}
        )
        pipe.check_inputs(request)
        with torch.no_grad(), begin_drawing(pipe, request) as drawing:
            pipe.encode_conditions(drawing)
            set_timesteps(drawing)
            noise = scaled_noise(drawing.scheduler, starting_noise(drawing))
            return predict(drawing, noise, drawing.timesteps[0])

    together = prediction(prompts, range(3))
    assert sorted(calls) == [2, 4]  # with guidance, each twice
    for number, prompt in enumerate(prompts):
        for level, alone in zip(together, prediction([prompt], [number]), strict=True):
            torch.testing.assert_close(level[number : number + 1], alone, atol=1e-5, rtol=0)


def projections_of_text(unet):
    """Count how often each layer runs that depends only on the text."""
    counts = Counter()
    for name, module in unet.named_modules():
        if name.rpartition(".")[2] in ("encoder_hid_proj", "norm_encoder", "add_k_proj", "add_v_proj"):
            module.register_forward_hook(lambda *_, name=name: counts.update([name]))
    return counts


def test_a_text_is_projected_once_per_drawing():
    pipe = make_pipeline()
    counts = projections_of_text(pipe.unet)
    draw(pipe, prompt=["red", "a sad cat"], num_inference_steps=3, guidance_scale=3.0)
    assert len(counts) > 3
    assert set(counts.values()) == {2}, "once for each group of prompts of one length"


def projections_of_time(unet):
    """Count how often each layer runs that depends only on timestep and conditions."""
    counts = Counter()
    for name, module in unet.named_modules():
        if name.endswith("time_emb_proj"):
            module.register_forward_hook(lambda *_, name=name: counts.update([name]))
    return counts


@pytest.mark.parametrize(("at_once", "expected"), [(64, 1), (8, 3), (4, 6)])
def test_timesteps_are_embedded_together(monkeypatch, at_once, expected):
    """Six guided steps of two images: 4 samples a step."""
    pipe = make_pipeline()
    settings = {"prompt": ["red", "sad"], "num_inference_steps": 6, "guidance_scale": 3.0}
    monkeypatch.setattr(prediction, "_MOST_EMBEDDED", 0)
    alone = draw(pipe, **settings)
    counts = projections_of_time(pipe.unet)
    monkeypatch.setattr(prediction, "_MOST_EMBEDDED", at_once)
    torch.testing.assert_close(draw(pipe, **settings), alone, atol=1e-4, rtol=0)
    assert set(counts.values()) == {expected}


def test_timesteps_are_not_embedded_together_if_a_callback_may_change_the_conditions():
    pipe = make_pipeline()
    counts = projections_of_time(pipe.unet)

    def callback(pipeline, step, timestep, tensors):
        return {}

    settings = {"num_inference_steps": 3, "guidance_scale": 3.0, "callback_on_step_end": callback}
    draw(pipe, **settings)
    assert set(counts.values()) == {1}
    draw(pipe, **settings, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    assert set(counts.values()) == {4}


def test_a_text_that_a_callback_changes_in_place_is_projected_again():
    pipe = make_pipeline()
    plain = draw(pipe, num_inference_steps=3, guidance_scale=3.0)
    counts = projections_of_text(pipe.unet)

    def callback(pipeline, step, timestep, tensors):
        if step == 0:
            tensors["prompt_embeds"].mul_(-1)

    asked = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    changed = draw(pipe, num_inference_steps=3, guidance_scale=3.0, **asked)
    assert (changed - plain).abs().max() > 1e-3
    assert set(counts.values()) == {3}


def test_adapters_rescaled_by_a_callback_apply_from_the_next_step():
    pipe = make_pipeline()
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["add_k_proj", "add_v_proj"], init_lora_weights=False))
    whole = draw(pipe, num_inference_steps=3, guidance_scale=3.0)
    none = draw(pipe, num_inference_steps=3, guidance_scale=3.0, cross_attention_kwargs={"scale": 0.0})

    def callback(pipeline, step, timestep, tensors):
        pipeline._cross_attention_kwargs = {"scale": 0.0}
        return tensors

    partly = draw(pipe, num_inference_steps=3, guidance_scale=3.0, callback_on_step_end=callback)
    assert (whole - none).abs().max() > 1e-3
    assert (partly - none).abs().max() > 1e-5
    assert (partly - whole).abs().max() > 1e-5


@needs_group_offloading
def test_text_is_not_projected_beforehand_if_weights_are_moved_layer_by_layer():
    pipe = make_pipeline()
    plain = draw(pipe, num_inference_steps=2, guidance_scale=3.0)
    assert has_weights_in_place(pipe.unet)
    pipe.unet.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    assert not has_weights_in_place(pipe.unet)
    torch.testing.assert_close(draw(pipe, num_inference_steps=2, guidance_scale=3.0), plain, atol=1e-5, rtol=0)


def test_reordering_weights_in_memory_on_cpus_changes_no_values(tmp_path):
    pipe = make_pipeline()
    before = {name: parameter.detach().clone() for name, parameter in pipe.unet.named_parameters()}
    with torch.no_grad():
        inputs = (torch.randn(2, 3, 8, 8), 500, torch.randn(2, 4, pipe.unet.config.encoder_hid_dim))
        plain = pipe.unet(*inputs).sample
        draw(pipe)
        kernels = [parameter for parameter in pipe.unet.parameters() if parameter.ndim == 4]
        assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
        torch.testing.assert_close(pipe.unet(*inputs).sample, plain, atol=1e-5, rtol=0)
    pipe.unet.save_pretrained(tmp_path)
    saved = type(pipe.unet).from_pretrained(tmp_path)
    for name, parameter in saved.named_parameters():
        assert torch.equal(parameter, before[name]), name


def is_channels_last(unet: torch.nn.Module) -> bool:
    kernels = [parameter for parameter in unet.parameters() if parameter.ndim == 4 and parameter.shape[-1] > 1]
    return all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_only_models_that_run_on_cpus_are_reordered_in_memory():
    """Where a model runs counts: offloaded weights are on the CPU until then. What the user chose is kept."""
    gpu, unet = torch.device("cuda"), make_unet()
    lay_out_for(unet, gpu)
    assert not is_channels_last(unet)
    lay_out_for(unet, torch.device("cpu"))
    assert is_channels_last(unet)
    lay_out_for(unet, gpu)
    assert all(parameter.is_contiguous() for parameter in unet.parameters())
    chosen = make_unet().to(memory_format=torch.channels_last)
    for device in (gpu, torch.device("cpu"), gpu):
        lay_out_for(chosen, device)
        assert is_channels_last(chosen)
