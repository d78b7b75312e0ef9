# SPDX-License-Identifier: Apache-2.0
"""The loop: what is known is held at every level, and the last samples become what was asked for."""

import contextlib
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch

from diffusers_mdm import MatryoshkaScheduler
from diffusers_mdm.pipelines.drawing.known_pixels import KnownPixels
from diffusers_mdm.pipelines.drawing.loop import check_finite, clips, denoise, finish, go_back, hold_known, images
from diffusers_mdm.pipelines.drawing.request import read_call
from diffusers_mdm.pipelines.drawing.setup import begin_drawing, set_timesteps, starting_noise
from tests.pipelines.tiny_pipeline import draw, make_pipeline, seed


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture
def drawing(pipe):
    request = read_call({"prompt": "a cat", "num_inference_steps": 3, "generator": seed(0), "guidance_scale": 2.0})
    pipe.check_inputs(request)
    with torch.no_grad(), begin_drawing(pipe, request) as drawing:
        pipe.encode_conditions(drawing)
        set_timesteps(drawing)
        yield drawing


def test_every_time_step_is_done_once(drawing):
    noise = starting_noise(drawing)
    levels = denoise(drawing, noise)
    assert [level.shape for level in levels] == [level.shape for level in noise]
    assert drawing.controls.num_timesteps == 3
    assert drawing.scheduler.step_index == 3


def test_the_dtype_of_the_model_is_read_at_the_first_step_only(drawing):
    class Counting(type(drawing.pipeline.unet)):
        reads = 0

        @property
        def dtype(self):
            Counting.reads += 1
            return super().dtype

    unet = drawing.pipeline.unet
    unet.__class__ = Counting
    try:
        denoise(drawing, starting_noise(drawing))
    finally:
        unet.__class__ = Counting.__base__
    assert Counting.reads == 1


def test_an_interrupted_drawing_keeps_its_samples(drawing):
    drawing.controls.interrupt = True
    noise = starting_noise(drawing)
    assert denoise(drawing, noise) is noise


def test_what_is_known_stands_as_its_noised_truth(drawing):
    noise = starting_noise(drawing)
    inner = torch.rand(1, 3, 8, 8, generator=seed(4))
    clean = 2 * inner - 1
    drawing.known = KnownPixels.whole([inner], [clean], noise)
    samples = [torch.zeros_like(level) for level in noise]
    held = hold_known(drawing, samples, None)
    assert torch.equal(held[0], clean)
    assert torch.equal(held[1], samples[1])
    timestep = drawing.timesteps[1]
    expected = drawing.scheduler.add_noise([clean], noise[:1], timestep.reshape(1))[0]
    torch.testing.assert_close(hold_known(drawing, samples, timestep)[0], expected)
    assert hold_known(drawing, None, timestep) is None


def test_going_back_adds_noise(drawing):
    samples = [torch.zeros_like(level) for level in starting_noise(drawing)]
    back = go_back(drawing, samples, drawing.timesteps[2], drawing.timesteps[0])
    assert all(0.1 < level.std() < 1.1 for level in back)


def test_kinds_of_output(pipe):
    levels = [torch.linspace(-2, 2, 3 * side**2).reshape(1, 3, side, side) for side in (8, 16)]
    assert all(got is level for got, level in zip(images(pipe, levels, "latent"), levels, strict=True))
    tensors = images(pipe, levels, "pt")
    torch.testing.assert_close(tensors[1], (levels[1].clamp(-1, 1) + 1) / 2)
    arrays = images(pipe, levels, "np")
    np.testing.assert_array_equal(arrays[0], tensors[0].permute(0, 2, 3, 1).numpy())
    assert isinstance(images(pipe, levels, "pil")[1][0], PIL.Image.Image)
    darker = images(pipe, levels, "pt", refine=lambda pyramid: [level - 4 for level in pyramid])
    assert darker[1].max() == 0


def test_frames_of_a_clip_stay_together(pipe):
    level = torch.rand(2, 3, 4, 8, 8, generator=seed(1)) * 2 - 1
    tensors = clips(pipe, [level], "pt")[0]
    torch.testing.assert_close(tensors, (level.transpose(1, 2) + 1) / 2)
    frames = clips(pipe, [level], "pil")[0]
    assert [len(clip) for clip in frames] == [4, 4]
    expected = (tensors[1, 2].permute(1, 2, 0).numpy() * 255).round()
    np.testing.assert_array_equal(np.asarray(frames[1][2]), expected)


@pytest.mark.parametrize("output_pyramid", [False, True])
def test_the_outermost_level_is_last(drawing, output_pyramid):
    drawing.request.output_pyramid, drawing.request.output_type = output_pyramid, "pt"
    made = finish(drawing, [torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 16, 16)])
    assert [level.shape[-1] for level in made] == ([8, 16] if output_pyramid else [16])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_no_image(value):
    broken = torch.zeros(1, 3, 8, 8)
    check_finite([broken], "The samples hold")
    broken[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="The samples hold NaN or infinity, so there is no image to return"):
        check_finite([torch.zeros(1, 3, 4, 4), broken], "The samples hold")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_prediction_is_named_at_the_end(drawing, value):
    hook = drawing.pipeline.unet.register_forward_hook(break_second_call(value))
    with (
        contextlib.closing(SimpleNamespace(close=hook.remove)),
        pytest.raises(ValueError, match=rf"at timestep {int(drawing.timesteps[1])}, level 1 \(0 = innermost\)"),
    ):
        denoise(drawing, starting_noise(drawing))


def break_second_call(value):
    calls = []

    def hook(module, inputs, output):
        calls.append(1)
        if len(calls) == 2:
            output[0][1][0, 0, 0, 0] = value

    return hook


WAITING = ["item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"]


@pytest.mark.parametrize("settings", [{}, {"eta": 0.5}, {"algorithm": "dpmsolver++"}, {"thresholding": True}])
def test_no_step_waits_for_an_accelerator(settings, monkeypatch):
    eta = settings.get("eta", 0.0)
    pipe = make_pipeline()
    config = {name: value for name, value in settings.items() if name != "eta"}
    pipe.scheduler = MatryoshkaScheduler.from_config(pipe.scheduler.config, **config)
    waits = {"counted": False, "calls": []}

    def counted(name):
        original = getattr(torch.Tensor, name)

        def wait(tensor, *args, **kwargs):
            if waits["counted"]:
                waits["calls"].append(name)
            return original(tensor, *args, **kwargs)

        return wait

    @contextlib.contextmanager
    def progress_bar(total):
        waits["counted"] = True
        yield SimpleNamespace(update=lambda: None)
        waits["counted"] = False

    for name in WAITING:
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    monkeypatch.setattr(pipe, "progress_bar", progress_bar)
    draw(pipe, num_inference_steps=3, guidance_scale=3.0, eta=eta)
    assert waits["calls"] == []
