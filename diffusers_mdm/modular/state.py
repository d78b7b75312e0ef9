# SPDX-License-Identifier: Apache-2.0
"""What the blocks share: the names of their inputs, and the pipeline that does the work of a block."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.modular_pipelines import ComponentSpec, ConfigSpec, InputParam, OutputParam
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffusers_mdm.models import NestedUNetModel
from diffusers_mdm.pipelines import MDMPipeline
from diffusers_mdm.pipelines.drawing.request import Request, read_call
from diffusers_mdm.schedulers import MatryoshkaScheduler

# The architecture's name, by which diffusers finds the class of a modular pipeline.
MODEL_NAME = "mdm"
TEXT_ENCODER = ComponentSpec("text_encoder", PreTrainedModel)
TOKENIZER = ComponentSpec("tokenizer", PreTrainedTokenizerBase)
UNET = ComponentSpec("unet", NestedUNetModel)
SCHEDULER = ComponentSpec("scheduler", MatryoshkaScheduler)
VAE = ComponentSpec("vae", description="for models of latents: the autoencoder of these latents")
DEFAULTS = ConfigSpec("drawing_defaults", None, "settings that suit the model, as in `model_index.json`")

TEXTS = {
    "prompt_embeds": "text features `(B, L, width)`",
    "negative_prompt_embeds": "the same without the prompt; None without guidance",
    "prompt_attention_mask": "`(B, L)`, True for tokens",
    "negative_prompt_attention_mask": "the same for `negative_prompt_embeds`",
}
GUIDANCE_SCALE = InputParam(
    "guidance_scale", description="one for all levels or one per level, innermost first; 1 or less: no guidance"
)
GENERATOR = InputParam("generator", description="one generator, or one per image")
HEIGHT = InputParam("height", int, description="pixels; selects how many levels are generated (default: all)")
WIDTH = InputParam("width", int, description="pixels")
NUM_STEPS = InputParam("num_inference_steps", int, description="number of denoising steps")
LATENTS = OutputParam("latents", list, "samples of every level, innermost first: noise, later images")


def text_outputs() -> list[OutputParam]:
    """Return the outputs of the block that encodes texts."""
    return [OutputParam(name, torch.Tensor, text) for name, text in TEXTS.items()]


def text_inputs(required: bool = True) -> list[InputParam]:
    """Return the inputs of blocks that need encoded texts; only the features of the prompts are ever required."""
    return [
        InputParam(name, torch.Tensor, required=required and name == "prompt_embeds", description=text)
        for name, text in TEXTS.items()
    ]


def pipeline_of(components: Any) -> MDMPipeline:
    """Return a pipeline with those of its components that a modular pipeline has, which are shared."""
    names = ("text_encoder", "tokenizer", "unet", "scheduler", "vae")
    parts = {name: getattr(components, name, None) for name in names}
    defaults = components.config.get("drawing_defaults")
    return MDMPipeline(**parts, drawing_defaults=None if defaults is None else dict(defaults))


def checked_request(pipeline: MDMPipeline, inputs: dict[str, Any]) -> Request:
    """Check inputs as those of a pipeline's call are checked, and fill in the defaults of the folder.

    Args:
        pipeline: the pipeline of the components.
        inputs: inputs by name, with the features of all images; None for those that were not given.

    Raises:
        ValueError: names the input, and says what it is and what was expected.
    """
    # What the samples are converted to is checked by the block that converts them.
    given = {name: value for name, value in inputs.items() if value is not None}
    request = read_call({**given, "output_type": "latent"})
    pipeline.check_inputs(request)
    return request
