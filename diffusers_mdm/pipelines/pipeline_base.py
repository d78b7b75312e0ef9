# SPDX-License-Identifier: Apache-2.0
"""What all MDM pipelines are: components, saving and loading, converting to siblings, checks, conditioning, output."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import logging

from diffusers_mdm.loaders import MDMLoraLoaderMixin
from diffusers_mdm.pipelines.drawing import input_checks as checks
from diffusers_mdm.pipelines.drawing.conditioning import Conditioning, ConditionInputs, RowGroup, group_rows_by_text
from diffusers_mdm.pipelines.drawing.known_pixels import KnownPixels
from diffusers_mdm.pipelines.drawing.latent_space import clips_to_pictures
from diffusers_mdm.pipelines.drawing.loop import DenoisingMixin, Sample
from diffusers_mdm.pipelines.drawing.text_encoding import PromptEncodingMixin
from diffusers_mdm.pipelines.pipeline_output import MDMPipelineOutput
from diffusers_mdm.pyramid import Pyramid, as_pyramid
from diffusers_mdm.schedulers import MatryoshkaScheduler

logger = logging.get_logger(__name__)

# Written beside the weights, so that the host finds the class where this package was not imported before.
CUSTOM_PIPELINE_FILE = "pipeline.py"


class MDMPipelineBase(DiffusionPipeline, PromptEncodingMixin, DenoisingMixin, MDMLoraLoaderMixin):
    """The parts that every MDM pipeline shares. A pipeline for a task adds `check_inputs` and `__call__`.

    Args:
        components: the components of the task, by name.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ["vae"]
    _callback_tensor_inputs = [
        "latents",
        "pred_original_sample",
        "prompt_embeds",
        "negative_prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_attention_mask",
    ]

    def __init__(self, **components: Any) -> None:
        super().__init__()
        self.register_modules(**components)
        if components.get("vae") is not None and clips_to_pictures(components.get("scheduler")):
            logger.warning(
                "The scheduler clips predicted samples to [-1, 1], but latents of unit variance reach beyond that; "
                "build it with `clip_sample=False` for a pipeline with a `vae`."
            )
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, do_resize=False)

    # Saving, loading, converting

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Load a pipeline as the host does; a component that was None when it was saved is None again.

        Args:
            pretrained_model_name_or_path: a folder written by `save_pretrained`, or a repository id.
            kwargs: as in `DiffusionPipeline.from_pretrained`.
        """
        where = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision")
        index = cls.load_config(pretrained_model_name_or_path, **{key: kwargs[key] for key in where if key in kwargs})
        absent = {key: None for key, value in index.items() if isinstance(value, list) and value[0] is None}
        return super().from_pretrained(pretrained_model_name_or_path, **{**absent, **kwargs})

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save every component, and beside them the small file through which `DiffusionPipeline` finds this class.

        That file lets `DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)`
        work without importing this package first.

        Args:
            save_directory: folder, made if missing.
            args: as in `DiffusionPipeline.save_pretrained`.
            kwargs: as in `DiffusionPipeline.save_pretrained`.
        """
        package = type(self).__module__.partition(".")[0]
        if package == __name__.partition(".")[0]:
            folder = Path(save_directory)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CUSTOM_PIPELINE_FILE).write_text(_custom_pipeline_source(type(self), package))
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
        """Make a pipeline of this class around the components of another one, which are shared, not copied.

        Unlike the host's, it leaves every component in its precision unless a `dtype` is asked for.

        Args:
            pipeline: e.g. an `MDMPipeline`.
            kwargs: as in `DiffusionPipeline.from_pipe`: components to use in place of the pipeline's own, `dtype`.
        """
        if kwargs.get("dtype") is not None or kwargs.get("torch_dtype") is not None:
            return super().from_pipe(pipeline, **kwargs)
        models = [part for part in {**pipeline.components, **kwargs}.values() if isinstance(part, torch.nn.Module)]
        dtypes = [cast(torch.dtype, model.dtype) for model in models]
        # The host casts to one dtype: the widest one loses nothing on the way there and back.
        widest = functools.reduce(torch.promote_types, dtypes) if dtypes else torch.float32
        converted = super().from_pipe(pipeline, **{**kwargs, "dtype": widest})
        for model, dtype in zip(models, dtypes, strict=True):
            if model.dtype != dtype:
                model.to(dtype=dtype)
        return converted

    # Checks

    def resolve_size(self, height: int | None, width: int | None, latents: Sample | None) -> tuple[int, int]:
        """Give height and width in pixels: the given ones, those of given noise, or the largest doll's.

        Args:
            height: alone it means a square.
            width: alone it means a square.
            latents: starting noise, innermost level first.
        """
        if height is not None or width is not None:
            return height or width or 0, width or height or 0
        if latents is not None and len(latents):
            outermost, factor = as_pyramid(latents)[0][-1], self.vae_scale_factor
            return outermost.shape[-2] * factor, outermost.shape[-1] * factor
        return self.picture_sides[-1], self.picture_sides[-1]

    def check_conditions(self, inputs: ConditionInputs) -> int:
        """Refuse prompts that do not belong together or to this model.

        Args:
            inputs: what is asked for.

        Returns:
            How many different pictures are asked for.

        Raises:
            ValueError: says what was wrong, what was expected and what to do.
            TypeError: `prompt` and `negative_prompt` are of different types.
        """
        checks.check_reads_text(self.unet.config)
        return self.check_texts(inputs)

    def check_texts(self, inputs: ConditionInputs) -> int:
        """Refuse prompts that do not belong together, or embeddings of another text encoder.

        Args:
            inputs: what is asked for; labels are not looked at.

        Returns:
            How many prompts there are.
        """
        prompt, negative_prompt, embeds, negative_embeds, mask, negative_mask, *_ = inputs
        checks.check_prompt("prompt", prompt, embeds, mask)
        checks.check_prompt("negative_prompt", negative_prompt, negative_embeds, negative_mask)
        checks.check_prompt_pair(prompt, negative_prompt, embeds, negative_embeds)
        text_width = self.unet.config.encoder_hid_dim or self.unet.config.cross_attention_dim
        checks.check_text_width("prompt_embeds", embeds, text_width)
        checks.check_text_width("negative_prompt_embeds", negative_embeds, text_width)
        return self.num_prompts(prompt, embeds)

    def check_size_and_noise(
        self,
        num_images: int,
        height: int,
        width: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Sample | None = None,
        micro_conditioning: Mapping[str, Any] | None = None,
        num_frames: int | None = None,
    ) -> None:
        """Refuse a size that no doll has, or noise, generators and micro-conditions of another batch or size.

        Args:
            num_images: B.
            height: pixels of the picture.
            width: pixels of the picture.
            generator: see `prepare_latents`.
            latents: see `prepare_latents`.
            micro_conditioning: see `prepare_micro_conditioning`.
            num_frames: of clips; None for pictures.

        Raises:
            ValueError: says what was wrong, what was expected and what to do.
        """
        checks.check_size(height, width, self.picture_sides, self.picture_multiples)
        shapes = self.level_shapes(num_images, height, width, num_frames)
        if num_frames is None:
            checks.check_draws_pictures(self.unet.level_frames[: len(shapes)])
        if len(shapes) > 1 and not isinstance(self.scheduler, MatryoshkaScheduler):
            raise ValueError(
                f"{type(self.scheduler).__name__} steps one tensor, but {height} x {width} pixels open {len(shapes)} "
                f"dolls; use MatryoshkaScheduler, or draw {self.picture_sides[0]} pixels (the innermost doll)."
            )
        if latents is not None:
            checks.check_latents(latents, shapes)
        checks.check_generator(generator, num_images)
        checks.check_micro_conditioning(micro_conditioning, self.unet.config.micro_conditioning_keys, num_images)

    # Before and after the steps

    def begin_drawing(
        self, guidance_scale: float, guidance_rescale: float, cross_attention_kwargs: dict[str, Any] | None
    ) -> None:
        """Note what callbacks may read and change while a drawing goes on.

        Args:
            guidance_scale: see the property.
            guidance_rescale: see the property.
            cross_attention_kwargs: see the property.
        """
        self._guidance_scale = guidance_scale
        self._guidance_rescale = guidance_rescale
        self._cross_attention_kwargs = cross_attention_kwargs
        self._interrupt = False

    def encode_conditioning(
        self, inputs: ConditionInputs, num_images: int, max_sequence_length: int = 128
    ) -> tuple[Conditioning, list[RowGroup]]:
        """Encode what is asked for, and say which rows may go through the model together.

        Args:
            inputs: what is asked for.
            num_images: B; each prompt is repeated for its share of the rows.
            max_sequence_length: longer prompts are cut, with a warning.
        """
        text = self.encode_prompt(
            inputs.prompt,
            self._execution_device,
            num_images // self.num_prompts(inputs.prompt, inputs.prompt_embeds),
            self.do_classifier_free_guidance,
            inputs.negative_prompt,
            inputs.prompt_embeds,
            inputs.negative_prompt_embeds,
            inputs.prompt_attention_mask,
            inputs.negative_prompt_attention_mask,
            max_sequence_length,
        )
        conditioning = Conditioning(*text)
        # Pads among embeddings that are given are meant; those of our own making are not.
        own_pads = inputs.prompt_embeds is None and inputs.negative_prompt_embeds is None
        own_columns = own_pads and not self.unet.config.use_cross_attention_mask
        return conditioning, group_rows_by_text(conditioning, own_columns=own_columns)

    @property
    def sample_dtype(self) -> torch.dtype:
        """What samples are kept in between the steps: float32 at least."""
        return torch.promote_types(self.unet.dtype, torch.float32)

    def finish_drawing(
        self,
        latents: Sample,
        output_type: str,
        output_pyramid: bool,
        return_dict: bool,
        known: KnownPixels | None = None,
        refine: Callable[[Pyramid], Pyramid] | None = None,
    ) -> MDMPipelineOutput | tuple[Any, ...]:
        """Turn the last samples into what the pipeline returns, and let offloaded models go.

        Args:
            latents: the last samples.
            output_type: see `postprocess`.
            output_pyramid: also return the pictures of the dolls inside.
            return_dict: False returns a tuple `(images,)`, or `(images, pyramid)` with `output_pyramid`.
            known: what was given of the pictures, and comes out as it was.
            refine: see `postprocess`.
        """
        levels = as_pyramid(latents)[0]
        if not output_pyramid:
            known = None if known is None else known.of_level(len(levels) - 1)
            levels = levels[-1:]
        pyramid = self.postprocess(levels, output_type, known, refine)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (pyramid[-1], pyramid) if output_pyramid else (pyramid[-1],)
        return MDMPipelineOutput(images=pyramid[-1], pyramid=pyramid if output_pyramid else None)


def _custom_pipeline_source(pipeline: type, package: str) -> str:
    """The small file for a pipeline.

    The host runs such files one after the other in the same module, and wants to find one pipeline there: so all of
    them use the same name. What the class is for makes their lengths differ, by which Python tells them apart when
    they were written in the same second.
    """
    purpose = (pipeline.__doc__ or pipeline.__name__).strip().splitlines()[0]
    return f'"""{purpose}"""\n\nfrom {package} import {pipeline.__name__} as Pipeline  # noqa: F401\n'
