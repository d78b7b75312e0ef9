# SPDX-License-Identifier: Apache-2.0
"""A tiny real pipeline for every task, with three rows of input each: what the shared contract is checked on."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL

from diffusers_mdm import (
    MDMClassConditionalPipeline,
    MDMImg2ImgPipeline,
    MDMInpaintPipeline,
    MDMPipeline,
    MDMSuperResolutionPipeline,
    MDMUnconditionalPipeline,
    MDMUpscalePipeline,
    MDMVideoPipeline,
)
from tests.pipelines.tiny_pipeline import make_pipeline, make_scheduler, make_unet, seed

ID2LABEL = {0: "cat, tabby", 1: "dog", 2: "red apple", 3: "house"}
NUM_CLASSES = len(ID2LABEL) + 1
NUM_ROWS = 3
NUM_FRAMES = 4
# One frame of 8 pixels, 4 frames of 8, 4 frames of 16.
CLIPS: dict[str, Any] = {
    "block_out_channels": ((8, 16), (32, 8, 32), (8, 32)),
    "layers_per_block": ((1, 1), (1, 1, 1), (1, 1)),
    "attention_layers_per_block": ((0, 1), (0, 0, 0), (0, 0)),
    "has_mid_block": (True, False, False),
    "has_attention_ffn": (True, False, False),
    "norm_num_groups": (4,) * 3,
    "normalize_input": (False, True, True),
    "dropout": (0.0,) * 3,
    "micro_conditioning_keys": (("scale",),) * 3,
    "micro_conditioning_defaults": ((8.0,), (8.0,), (16.0,)),
    "num_frames": (1, NUM_FRAMES, NUM_FRAMES),
    "temporal_layers_per_block": (None, (1, 0, 1), (0, 1)),
    "temporal_downsample": (False, True, False),
    "temporal_rotary": (False, True, True),
}
# Two levels of 4 frames: nothing resamples frames, so single ones go through, too.
EVEN_CLIPS: dict[str, Any] = {
    **{name: column[:1] + column[2:] for name, column in CLIPS.items()},
    "num_frames": (NUM_FRAMES, NUM_FRAMES),
    "temporal_layers_per_block": (None, (0, 1)),
}
PROMPTS = ["a red apple", "a very very long picture of the sad dog", "the cat"]


def eight_bit_images(side: int) -> torch.Tensor:
    """Images `(3, 3, side, side)` of 8 bits, light on the left and dark on the right, with some noise."""
    ramp = torch.linspace(220, 30, side).expand(NUM_ROWS, 3, side, side)
    noise = torch.randn(ramp.shape, generator=seed(7)) * 15
    return (ramp + noise).clamp(0, 255).to(torch.uint8)


def masks(side: int) -> torch.Tensor:
    """Masks `(3, 1, side, side)`: another rectangle in each row, at odd places."""
    drawn = torch.zeros(NUM_ROWS, 1, side, side)
    for row in range(NUM_ROWS):
        drawn[row, :, 1 + row : side // 2 + 1, 3 : side - 3 - row] = 1
    return drawn


def make_class_unet(**changes: Any) -> Any:
    """The tiny model, of classes in place of texts."""
    return make_unet(
        **{"encoder_hid_dim": None, "cross_attention_dim": None, "num_class_embeds": NUM_CLASSES, **changes}
    )


def make_plain_unet(**changes: Any) -> Any:
    """The tiny model, without conditions."""
    return make_unet(**{"encoder_hid_dim": None, "cross_attention_dim": None, **changes})


def make_vae(**changes: Any) -> AutoencoderKL:
    """A tiny autoencoder: 4 channels of latents, half the side."""
    torch.manual_seed(3)
    config = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 32,
        "scaling_factor": 0.7,
        "shift_factor": 0.1,
        **changes,
    }
    return AutoencoderKL(**config).eval()


# Of a model with one level of 16 pixels, which enlarges images.
ENLARGING: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 6,
    "block_out_channels": ((16, 32),),
    "layers_per_block": ((1, 1),),
    "attention_layers_per_block": ((0, 1),),
    "has_mid_block": (True,),
    "has_attention_ffn": (True,),
    "norm_num_groups": (4,),
    "normalize_input": (False,),
    "dropout": (0.0,),
    "micro_conditioning_keys": (("noise_level",),),
    "micro_conditioning_defaults": ((0.0,),),
}


@dataclass(frozen=True)
class Task:
    """What one pipeline is drawn with.

    Attributes:
        pipeline: its class.
        rows: three entries of every argument that may differ from row to row.
        of_classes: whether the model is one of classes.
        of_latents: whether there is an autoencoder.
        settings: further arguments.
        of_clips: whether the model is one of clips.
        of_nothing: whether the model has no conditions; such a pipeline takes neither rows nor guidance.
        sides: of the images or frames of every level, innermost first.
    """

    pipeline: type
    rows: dict[str, Any]
    of_classes: bool = False
    of_latents: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    of_clips: bool = False
    of_nothing: bool = False
    sides: tuple[int, ...] = (8, 16)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is drawn for one row, as a tensor."""
        return (*((NUM_FRAMES,) if self.of_clips else ()), 3, self.sides[-1], self.sides[-1])

    def make(self) -> Any:
        """Make the pipeline anew, the same each time."""
        shape: dict[str, Any] = {"in_channels": 4, "out_channels": 4} if self.of_latents else {}
        shape |= CLIPS if self.of_clips else {}
        enlarges = self.pipeline is MDMSuperResolutionPipeline
        shape |= ENLARGING if enlarges else {}
        settings = {"low_resolution": 8, "max_noise_level": 0.5} if enlarges else {}
        latent = {"vae": make_vae(), "scheduler": make_scheduler(clip_sample=False)} if self.of_latents else {}
        if self.of_nothing:
            pipeline = self.pipeline(**{"unet": make_plain_unet(**shape), "scheduler": make_scheduler(), **latent})
        elif self.of_classes:
            parts = {"unet": make_class_unet(**shape), "scheduler": make_scheduler(), "id2label": ID2LABEL, **latent}
            pipeline = self.pipeline(**parts)
        else:
            pipeline = self.pipeline(**{**make_pipeline(**shape).components, **latent, **settings})
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def draw(self, pipeline: Any, rows: slice | int = 0, **changes: Any) -> Any:
        """Draw one row (a number) or several (a slice), each with its own seed; as tensors."""
        chosen = list(range(NUM_ROWS))[rows]
        single = isinstance(chosen, int)
        numbers = [chosen] if single else chosen
        # Tensors keep the axis of the batch; of lists a single entry is passed as it is.
        inputs = {
            name: entries[numbers]
            if isinstance(entries, torch.Tensor)
            else (entries[chosen] if single else [entries[number] for number in numbers])
            for name, entries in self.rows.items()
        }
        settings = {
            "num_inference_steps": 3,
            "guidance_scale": 3.0,
            "generator": [seed(number) for number in numbers],
            "output_type": "pt",
            **self.settings,
        }
        arguments = {**inputs, **settings, **changes}
        if self.of_nothing:
            arguments = {"batch_size": len(numbers), **arguments}
            del arguments["guidance_scale"]
        output = pipeline(**arguments)
        if not changes.get("return_dict", True):
            return output
        return output.frames if self.of_clips else output.images


_TEXT = {"prompt": PROMPTS}
_CLASS = {"class_labels": [0, "dog", 2]}
_MAKERS: dict[str, Callable[[], Task]] = {
    "text": lambda: Task(MDMPipeline, _TEXT),
    "class": lambda: Task(MDMClassConditionalPipeline, _CLASS, of_classes=True),
    "unconditional": lambda: Task(MDMUnconditionalPipeline, {}, of_nothing=True),
    "upscale": lambda: Task(MDMUpscalePipeline, {**_TEXT, "image": eight_bit_images(8)}),
    "super-resolution": lambda: Task(
        MDMSuperResolutionPipeline,
        {**_TEXT, "image": eight_bit_images(8)},
        settings={"noise_level": 0.2},
        sides=(16,),
    ),
    "exact upscale": lambda: Task(
        MDMUpscalePipeline,
        {**_TEXT, "image": eight_bit_images(8)},
        settings={"exact_consistency": True, "num_resampling_steps": 2, "eta": 1.0},
    ),
    "img2img": lambda: Task(MDMImg2ImgPipeline, {**_TEXT, "image": eight_bit_images(16)}),
    "class img2img": lambda: Task(
        MDMImg2ImgPipeline, {**_CLASS, "image": eight_bit_images(16)}, of_classes=True, settings={"strength": 0.5}
    ),
    "inpaint": lambda: Task(
        MDMInpaintPipeline,
        {**_TEXT, "image": eight_bit_images(16), "mask_image": masks(16)},
        settings={"num_resampling_steps": 2},
    ),
    "video": lambda: Task(MDMVideoPipeline, _TEXT, of_clips=True, sides=(8, 8, 16)),
    "class video": lambda: Task(MDMVideoPipeline, _CLASS, of_classes=True, of_clips=True, sides=(8, 8, 16)),
    "latent video": lambda: Task(MDMVideoPipeline, _TEXT, of_latents=True, of_clips=True, sides=(16, 16, 32)),
    "latent text": lambda: Task(MDMPipeline, _TEXT, of_latents=True, sides=(16, 32)),
    "latent class": lambda: Task(
        MDMClassConditionalPipeline, _CLASS, of_classes=True, of_latents=True, sides=(16, 32)
    ),
    "latent upscale": lambda: Task(
        MDMUpscalePipeline,
        {**_TEXT, "image": eight_bit_images(16)},
        of_latents=True,
        settings={"exact_consistency": True},
        sides=(16, 32),
    ),
    "latent img2img": lambda: Task(
        MDMImg2ImgPipeline, {**_TEXT, "image": eight_bit_images(32)}, of_latents=True, sides=(16, 32)
    ),
    "latent inpaint": lambda: Task(
        MDMInpaintPipeline,
        {**_TEXT, "image": eight_bit_images(32), "mask_image": masks(32)},
        of_latents=True,
        sides=(16, 32),
    ),
}
TASKS = tuple(_MAKERS)


@functools.cache
def task(name: str) -> Task:
    """Look a task up by its name."""
    return _MAKERS[name]()
