# SPDX-License-Identifier: Apache-2.0
"""What every pipeline keeps, whatever its task: saving and loading, batches, seeds, outputs, callbacks, precision."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import is_accelerate_available

from diffusers_mdm import MDMPipelineOutput, MDMVideoPipelineOutput
from diffusers_mdm.pyramid import as_pyramid
from tests.group_offloading import needs_group_offloading
from tests.pipelines.tiny_tasks import TASKS, Task
from tests.pipelines.tiny_tasks import task as find_task

# Rows of a batch differ from the same rows alone by rounding only; the autoencoder adds some.
BATCH_TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=TASKS)
def task(request) -> Task:
    return find_task(request.param)


@pytest.fixture(scope="module")
def pipe(task) -> Any:
    """One pipeline of the task for all tests that leave it as it is."""
    return task.make()


@pytest.fixture
def own_pipe(task) -> Any:
    """A pipeline for a test that changes it."""
    return task.make()


@pytest.fixture(scope="module")
def saved(task, pipe, tmp_path_factory) -> tuple[Path, torch.Tensor]:
    """The folder of the saved pipeline, and what it draws."""
    folder = tmp_path_factory.mktemp("saved")
    pipe.save_pretrained(folder)
    return folder, task.draw(pipe)


def assert_nearly_same(task: Task, first: torch.Tensor, second: torch.Tensor) -> None:
    """Both are the same drawing, in another batch or from weights that lie elsewhere: sums may be split otherwise."""
    distance = (first - second).abs()
    if task.settings.get("exact_consistency"):
        # On the grid of 8 bits a pixel may, by a rounding error, go one step up where its neighbour did before.
        assert distance.max() <= 1 / 255 + BATCH_TOLERANCE
        assert (distance > BATCH_TOLERANCE).float().mean() < 0.01
    else:
        assert distance.max() <= BATCH_TOLERANCE


@pytest.mark.parametrize("way", ["own class", "diffusers", "file beside the weights"])
def test_saved_and_loaded_it_draws_the_same(task, saved, way):
    folder, images = saved
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == task.pipeline.__name__
    assert index["unet"] == ["diffusers_mdm", "NestedUNetModel"]
    if way == "own class":
        loaded = task.pipeline.from_pretrained(folder)
    elif way == "diffusers":
        loaded = DiffusionPipeline.from_pretrained(folder)
    else:
        loaded = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)
    assert type(loaded) is task.pipeline
    loaded.set_progress_bar_config(disable=True)
    # Loaded weights lie elsewhere in memory, which may change the order of sums.
    torch.testing.assert_close(task.draw(loaded), images, rtol=0, atol=1e-5)


def test_an_image_does_not_depend_on_its_batch(task, pipe):
    together = task.draw(pipe, slice(None), eta=1.0)
    assert together.shape == (3, *task.shape)
    for row in range(3):
        assert_nearly_same(task, together[row : row + 1], task.draw(pipe, row, eta=1.0))


def test_seeds(task, pipe):
    first, again = (task.draw(pipe, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    other = task.draw(pipe, generator=torch.Generator().manual_seed(6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_output_types_agree(task, pipe):
    tensors, arrays, images = (task.draw(pipe, output_type=kind) for kind in ("pt", "np", "pil"))
    assert tensors.min() >= 0
    assert tensors.max() <= 1
    np.testing.assert_array_equal(arrays, tensors.movedim(-3, -1).numpy())
    # Of clips, a list of frames each.
    last = images[-1][-1] if task.of_clips else images[-1]
    assert isinstance(last, PIL.Image.Image)
    expected = arrays[-1][-1] if task.of_clips else arrays[-1]
    np.testing.assert_array_equal(np.asarray(last), (expected * 255).round().astype("uint8"))


def test_every_level_on_request(task, pipe):
    images = task.draw(pipe)
    output = task.draw(pipe, output_pyramid=True, return_dict=False)
    assert torch.equal(output[0], images)
    assert [level.shape[-1] for level in output[1]] == list(task.sides)
    assert output[1][-1] is output[0]
    in_dict = pipe(**{**_inputs(task), "output_pyramid": True})
    assert isinstance(in_dict, MDMVideoPipelineOutput if task.of_clips else MDMPipelineOutput)
    assert len(in_dict.pyramid) == len(task.sides)


def _inputs(task: Task) -> dict[str, Any]:
    rows = {name: entries[:1] for name, entries in task.rows.items()}
    return {**rows, **task.settings, "num_inference_steps": 2, "output_type": "pt"}


def test_callback_gets_what_it_asks_for_and_changes_the_samples(task, pipe):
    seen = []

    def note(pipeline, step, timestep, tensors):
        seen.append((step, set(tensors)))
        return {"latents": [torch.zeros_like(level) for level in as_pyramid(tensors["latents"])[0]]}

    names = pipe._callback_tensor_inputs
    changed = task.draw(pipe, callback_on_step_end=note, callback_on_step_end_tensor_inputs=names)
    assert seen == [(step, set(names)) for step in range(pipe.num_timesteps)]
    assert not torch.equal(changed, task.draw(pipe))


def test_interrupt_skips_the_remaining_steps(task, pipe):
    steps = []

    def stop(pipeline, step, timestep, tensors):
        steps.append(step)
        pipeline._interrupt = True
        return tensors

    stopped = task.draw(pipe, num_inference_steps=4, callback_on_step_end=stop)
    assert steps == [0]
    assert torch.isfinite(stopped).all()
    assert not torch.equal(stopped, task.draw(pipe, num_inference_steps=4))


def test_guidance_off_runs_the_model_once_a_row(task, own_pipe):
    if task.of_nothing:
        pytest.skip("this pipeline has no guidance")
    rows = []
    own_pipe.unet.register_forward_pre_hook(lambda module, args: rows.append(len(as_pyramid(args[0])[0][0])))
    task.draw(own_pipe, guidance_scale=1.0)
    assert set(rows) == {1}
    rows.clear()
    task.draw(own_pipe, guidance_scale=2.0)
    assert set(rows) == {2}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws_nearly_the_same(task, pipe, own_pipe, dtype):
    full = task.draw(pipe, guidance_scale=1.0)
    half = task.draw(own_pipe.to(dtype=dtype), guidance_scale=1.0)
    assert half.dtype == torch.float32
    assert (half - full).abs().mean() < 0.15
    assert own_pipe.unet.dtype == dtype


@needs_group_offloading
def test_group_offload_changes_nothing(task, own_pipe):
    images = task.draw(own_pipe)
    own_pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    # Weights that move are read layer by layer, the text with them, and stay in the order of memory that they have.
    assert_nearly_same(task, task.draw(own_pipe), images)


@pytest.mark.gpu
@pytest.mark.skipif(not (torch.cuda.is_available() and is_accelerate_available()), reason="needs an accelerator")
@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offload_changes_nothing(task, offload):
    device = torch.device("cuda")
    images = task.draw(task.make().to(device)).cpu()
    pipe = task.make()
    getattr(pipe, offload)(device=device)
    assert_nearly_same(task, task.draw(pipe).cpu(), images)
    assert pipe.unet.device.type in ("cpu", "meta")


BAD_INPUTS = {
    "output type": ({"output_type": "jpg"}, "one of pil, np, pt, latent, but is 'jpg'"),
    "callback names": ({"callback_on_step_end_tensor_inputs": ["latent"]}, r"found \['latent'\]"),
    "generators": ({"generator": [torch.Generator()] * 2}, "list of 2 generators for 1"),
    "levels": ({"latents": [torch.zeros(1, 3, 2, 2)]}, r"1 level\(s\)|No level|noise of clips"),
    "micro-condition": ({"micro_conditioning": {"size": 3}}, "no micro-condition 'size'; it has (scale|noise_level)"),
    "no steps": ({"num_inference_steps": 0}, "num_inference_steps"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_a_value_error(task, pipe, case):
    changes, message = BAD_INPUTS[case]
    with pytest.raises(ValueError, match=message):
        task.draw(pipe, **changes)
