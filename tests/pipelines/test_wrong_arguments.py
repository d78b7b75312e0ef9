# SPDX-License-Identifier: Apache-2.0
"""Wrong types and values in public calls end in an image, or in an error of our own that says what was expected."""

import inspect
import math
import random
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import diffusers_mdm
from diffusers_mdm.pipelines.drawing.request import KINDS
from tests.pipelines.tiny_pipeline import TEXT_WIDTH, make_scheduler, seed
from tests.pipelines.tiny_tasks import task

PACKAGE = Path(diffusers_mdm.__file__).parent
ONE_OF_EACH = ["text", "class", "upscale", "img2img", "inpaint", "video", "unconditional"]
NUM_CALLS, NUM_CHUNKS = 1000, 4


class Odd:
    """An object of no use."""


# Each argument of a drawing is given these in turn; many fit some argument.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 8, 16, 17, 10**9, 10**30, 0.0, 0.5, 1.0, -0.5, 1.5, 16.0, 1e30,
    math.nan, math.inf, -math.inf, 1j, "", "cat", "latent", "dog", "\ud800", b"cat", [], (), {}, set(), [[]],
    [None], ["cat"], ["cat", 3], ["latents"], ("latents",), [0], [1.5], [3, 2, 1], [999, 500, 0], range(5, 0, -1),
    {"scale": None}, {"scale": "big"}, {"scale": 4}, {"scale": [1, 2]}, {"scale": math.nan}, {"scale": [[1.0]]},
    {"scale": Odd()}, {3: 4}, {"size": 1}, Odd(), Odd, len, lambda *args: None, lambda: None, 42,
    np.float32(0.5), np.int64(2), np.bool_(True), np.zeros(3), np.zeros((1, 4, TEXT_WIDTH)), np.zeros((16, 16, 3)),
    np.array(["a"]), np.array(None), np.zeros((2, 2), dtype=object),
    torch.tensor(3), torch.tensor(0.5), torch.tensor([2, 1]), torch.tensor([True]), torch.zeros(0),
    torch.zeros(1, 4, TEXT_WIDTH), torch.ones(1, 4), torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 3, 8, 8),
    torch.zeros(1, 3, 8, 8, dtype=torch.int64), torch.zeros(1, 3, 16, 16, dtype=torch.complex64),
    torch.full((1, 3, 8, 8), math.nan), [torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 16, 16)], [torch.zeros(1)],
    torch.zeros(3, 16, 16, device="meta"), torch.zeros(1, 3, 8, 8, device="meta"),
    torch.zeros(3, 8, 8).to_sparse(),
    torch.float32, torch.device("cpu"), torch.Generator(), [torch.Generator()], [torch.Generator(), None],
    PIL.Image.new("RGB", (16, 16)), PIL.Image.new("RGB", (7, 5)), [PIL.Image.new("L", (8, 8))],
    PIL.Image.new("RGBA", (16, 16)),
)  # fmt: skip


def outcome(call: Any) -> str | None:
    """What is wrong about how a call ends; None if nothing is."""
    try:
        call()
    except (ValueError, TypeError) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        if Path(frame.filename).is_relative_to(PACKAGE) and str(error):
            return None
        return f"{type(error).__name__} of {frame.filename}:{frame.lineno}: {error}"
    except Exception as error:  # noqa: BLE001 (whatever else comes is what this looks for)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} of {frame.filename}:{frame.lineno}: {error}"
    return None


def wrong_drawing(choice: random.Random, pipes: dict[str, Any]) -> tuple[str, Any]:
    """A call of a pipeline in which one to three arguments are anything."""
    name = choice.choice(ONE_OF_EACH)
    kind, pipe = task(name), pipes[name]
    names = sorted(inspect.signature(pipe.__call__).parameters)
    changes = {argument: choice.choice(VALUES) for argument in choice.sample(names, choice.choice((1, 1, 2, 3)))}
    settings = {**kind.settings, "num_inference_steps": 1, "generator": seed(0), "output_type": "pt"}
    inputs = {argument: entries[:1] for argument, entries in kind.rows.items()}
    return f"{name} {changes}", lambda: pipe(**{**inputs, **settings, **changes})


def wrong_step(choice: random.Random, _: Any) -> tuple[str, Any]:
    """A call of a method of the scheduler in which one or two arguments are anything."""
    scheduler = make_scheduler(algorithm=choice.choice(("ddim", "dpmsolver++")))
    scheduler.set_timesteps(3)
    sample = torch.zeros(1, 3, 8, 8)
    calls = {
        "step": {
            "model_output": sample,
            "timestep": 500,
            "sample": sample,
            "eta": 0.0,
            "variance_noise": None,
            "generator": None,
        },
        "set_timesteps": {"num_inference_steps": 3, "timesteps": None},
        "add_noise": {"original_samples": sample, "noise": sample, "timesteps": torch.tensor([5])},
        "get_velocity": {"sample": sample, "noise": sample, "timesteps": torch.tensor([5])},
        "previous_timestep": {"timestep": 500},
        "level_alphas_cumprod": {"pyramid": sample, "timesteps": torch.tensor([5])},
    }
    method = choice.choice(sorted(calls))
    arguments = calls[method]
    changes = {
        name: choice.choice(VALUES)
        for name in choice.sample(sorted(arguments), min(len(arguments), choice.choice((1, 2))))
    }
    return f"scheduler.{method} {changes}", lambda: getattr(scheduler, method)(**{**arguments, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(NUM_CHUNKS))
def test_anything_ends_in_an_image_or_in_an_error_of_ours(chunk):
    choice = random.Random(chunk)
    pipes = {name: task(name).make() for name in ONE_OF_EACH}
    failures = []
    for _ in range(NUM_CALLS // NUM_CHUNKS):
        make = wrong_step if choice.random() < 0.25 else wrong_drawing
        description, call = make(choice, pipes)
        wrong = outcome(call)
        if wrong is not None:
            failures.append(f"{description}\n    {wrong}")
    assert not failures, "\n".join(failures)


WRONG = {
    "generator": (42, r"has to be a torch.Generator or a list of them, one per image, or None, but is 42"),
    "prompt_embeds": (
        np.zeros((1, 4, 16)),
        r"has to be a tensor of floating-point numbers .* but is ndarray of shape",
    ),
    "prompt_attention_mask": ([[1, 1]], "has to be a tensor .batch, tokens"),
    "height": (16.0, r"has to be a whole number of pixels, or None, but is 16\.0"),
    "max_sequence_length": (None, "has to be a whole number of at least 1, but is None"),
    "guidance_scale": (math.nan, "has to be a finite number.* but is nan"),
    "guidance_rescale": (1.5, "has to be a number from 0 to 1, but is 1.5"),
    "num_inference_steps": ("many", "has to be a whole number of at least 1, or None, but is 'many'"),
    "timesteps": ([1.5], r"has to be a list of whole numbers, or None, but is \[1\.5\]"),
    "eta": (2, "has to be a number from 0 .deterministic. to 1 .ancestral., .* but is 2"),
    "latents": (
        np.zeros(3),
        r"has to be a tensor of floating-point numbers \(batch, channels, \.\.\.\) or a list of them",
    ),
    "micro_conditioning": ([1], "has to be a dict of numbers by name"),
    "output_type": (3, "has to be one of pil, np, pt, latent, but is 3"),
    "output_pyramid": ("yes", "has to be True or False, but is 'yes'"),
    "return_dict": (None, "has to be True or False, but is None"),
    "cross_attention_kwargs": ({"scale": "big"}, "has to be a dict such as"),
    "callback_on_step_end": ("print", "has to be a function, or None, but is 'print'"),
    "callback_on_step_end_tensor_inputs": ("latents", "has to be a list of names, or None, but is 'latents'"),
}


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    return {name: task(name).make() for name in ONE_OF_EACH}


@pytest.mark.parametrize("argument", WRONG)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_pipeline_says_what_was_expected(pipes, name, argument):
    if argument in inspect.signature(pipes[name].__call__).parameters:
        value, message = WRONG[argument]
        with pytest.raises(ValueError, match=f"`{argument}` {message}"):
            task(name).draw(pipes[name], **{argument: value})


@pytest.mark.parametrize("value", [None, "big", math.nan, [[1.0]], Odd()])
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_micro_conditions_are_numbers(pipes, name, value):
    with pytest.raises(ValueError, match=r"micro_conditioning\['scale'\] has to be a finite number"):
        task(name).draw(pipes[name], micro_conditioning={"scale": value})


def test_every_argument_of_every_pipeline_has_a_kind_or_a_check_of_its_own(pipes):
    others = {"prompt", "negative_prompt", "class_labels", "negative_class_labels", "guider", "guidance_unet"}
    for pipe in pipes.values():
        assert set(inspect.signature(pipe.__call__).parameters) <= set(KINDS) | others
