# SPDX-License-Identifier: Apache-2.0
"""The base class of all MDM pipelines: components, saving and loading, conversion, checks, conditioning, output."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import logging

from diffusers_mdm.loaders import MDMLoraLoaderMixin
from diffusers_mdm.models.loading.weight_variants import naming_variants
from diffusers_mdm.pipelines.components import checked_components, keeping_precision, keeps_precision
from diffusers_mdm.pipelines.drawing import input_checks as checks
from diffusers_mdm.pipelines.drawing import setup
from diffusers_mdm.pipelines.drawing.conditioning import Conditioning, encode_prompts
from diffusers_mdm.pipelines.drawing.guidance.prediction import is_guided, needs_negatives
from diffusers_mdm.pipelines.drawing.guidance.registry import read_guider
from diffusers_mdm.pipelines.drawing.guidance.weaker_model import check_weaker_model
from diffusers_mdm.pipelines.drawing.known_pixels import KnownPixels
from diffusers_mdm.pipelines.drawing.latent_space import check_autoencoder, clips_to_images
from diffusers_mdm.pipelines.drawing.loop import Refine, finish
from diffusers_mdm.pipelines.drawing.request import (
    BUCKETS,
    PUBLISHED_DEFAULTS,
    Request,
    Sample,
    check_defaults,
    fill_in,
)
from diffusers_mdm.pipelines.drawing.setup import Drawing, RunningDrawings, control
from diffusers_mdm.pipelines.finder_file import write_finder
from diffusers_mdm.pipelines.pipeline_output import MDMPipelineOutput
from diffusers_mdm.pyramid import Size, as_pyramid

logger = logging.get_logger(__name__)


class MDMPipelineBase(DiffusionPipeline, MDMLoraLoaderMixin):
    """Base class of all MDM pipelines. The pipeline of a task adds `__call__` and further checks.

    The steps of a call are functions in `drawing/` that work on a `Drawing`, the state of one sampling run.

    Args:
        drawing_defaults: default settings that suit the model; see `drawing.request`.
        components: the components of the task, by name.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ["vae"]
    _output_class: Any = MDMPipelineOutput
    _callback_tensor_inputs = [
        "latents",
        "pred_original_sample",
        "prompt_embeds",
        "negative_prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_attention_mask",
    ]

    # Used if neither the call nor the folder sets a value; see `drawing.request`.
    _published_defaults: Mapping[str, Any] = PUBLISHED_DEFAULTS
    _defaults_prefix = ""

    def __init__(self, drawing_defaults: Mapping[str, Any] | None = None, **components: Any) -> None:
        super().__init__()
        defaults = check_defaults(drawing_defaults)
        if defaults is not None:
            self.register_to_config(drawing_defaults=defaults)
        self.running_drawings = RunningDrawings()
        self.register_modules(**checked_components(components))
        if components.get("vae") is not None and clips_to_images(components.get("scheduler")):
            logger.warning(
                "The scheduler clips predicted samples to [-1, 1], but latents of unit variance reach beyond that; "
                "build it with `clip_sample=False` for a pipeline with a `vae`."
            )
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, do_resize=False)

    # Saving, loading, converting
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Load a pipeline as diffusers does; components that were None when it was saved are None again.

        Args:
            pretrained_model_name_or_path: a folder written by `save_pretrained`, or a repository id.
            kwargs: as in `DiffusionPipeline.from_pretrained`.
        """
        where = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision")
        index = cls.load_config(pretrained_model_name_or_path, **{key: kwargs[key] for key in where if key in kwargs})
        absent = {key: None for key, value in index.items() if isinstance(value, list) and value[0] is None}
        with naming_variants(kwargs.get("variant"), pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, **{**absent, **kwargs})

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save all components, and a small file with which `DiffusionPipeline` finds this class.

        That file lets `DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)`
        work without importing this package first.

        Args:
            save_directory: folder, created if missing.
            args: as in `DiffusionPipeline.save_pretrained`.
            kwargs: as in `DiffusionPipeline.save_pretrained`.
        """
        write_finder(type(self), save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
        """Create a pipeline of this class with the components of another one, which are shared, not copied.

        Unlike in diffusers, components keep their precision unless a `dtype` is passed.

        Args:
            pipeline: e.g. an `MDMPipeline`.
            kwargs: as in `DiffusionPipeline.from_pipe`: components to use instead of the pipeline's own, `dtype`.
        """
        # diffusers drops, with a warning, an autoencoder of a class that is not in the signature.
        if pipeline.components.get("vae") is not None:
            kwargs.setdefault("vae", pipeline.components["vae"])
        if kwargs.get("dtype") is not None or kwargs.get("torch_dtype") is not None:
            return super().from_pipe(pipeline, **kwargs)
        with keeping_precision():
            return super().from_pipe(pipeline, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move the models to a device, cast them, or both, as in `DiffusionPipeline.to`."""
        return self if keeps_precision() else super().to(*args, **kwargs)

    # Settings of the running drawing, which callbacks and users read and callbacks change

    _guidance_scale = control("guidance_scale")
    _guidance_rescale = control("guidance_rescale")
    _cross_attention_kwargs = control("cross_attention_kwargs")
    _num_timesteps = control("num_timesteps")
    _interrupt = control("interrupt")

    @property
    def guidance_scale(self) -> float | list[float]:
        """Guidance scale w at the current step, or of each level; a callback can change `_guidance_scale`."""
        return self._guidance_scale

    @property
    def guidance_rescale(self) -> float:
        """How far the standard deviation of the guided prediction is moved to that of the conditional one, 0 to 1."""
        return self._guidance_rescale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the model also runs without the prompt."""
        return is_guided(self._guidance_scale)

    @property
    def cross_attention_kwargs(self) -> dict[str, Any] | None:
        """Passed to the model at each step, e.g. `{"scale": 0.5}` for the strength of a LoRA."""
        return self._cross_attention_kwargs

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the current or last drawing."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the remaining steps are skipped; set `_interrupt` in a callback, or from another thread."""
        return self._interrupt

    # Sizes

    @property
    def vae_scale_factor(self) -> int:
        """The number of pixels per latent along a side; 1 without an autoencoder."""
        return setup.pixels_per_latent(self.vae)

    @property
    def image_sides(self) -> tuple[int, ...]:
        """Side in pixels of each level's images, innermost first."""
        return setup.image_sides(self.unet, self.vae)

    @property
    def image_multiples(self) -> list[int]:
        """For every level, the number of which height and width of its images must be multiples, innermost first."""
        return setup.image_multiples(self.unet, self.vae)

    @property
    def aspect_ratio_buckets(self) -> tuple[Size, ...]:
        """Sizes (height, width) in pixels of the outermost level besides squares, from `drawing_defaults`."""
        sizes = (self.config.get("drawing_defaults") or {}).get(BUCKETS) or ()
        return tuple((height, width) for height, width in sizes)

    @property
    def num_image_channels(self) -> int:
        """Channels of input and output images, 3 for RGB."""
        return self.unet.config.out_channels if self.vae is None else self.vae.config.in_channels

    # Checks

    def check_inputs(self, request: Request) -> None:
        """Check the arguments of a call before anything is computed, and fill in missing ones.

        Args:
            request: the arguments of `__call__`; receives the size, the number of images, and the converted `image`
                and `mask_image`.

        Raises:
            ValueError: says what was wrong, what was expected and what to do.
            TypeError: `prompt` and `negative_prompt` are of different types.
        """
        for name in ("unet", "scheduler"):
            if getattr(self, name) is None:
                raise ValueError(f"This pipeline has no `{name}`, so it cannot draw; load it with one.")
        self.check_model()
        if self.vae is None:
            checks.check_shows_images(self.unet.config.out_channels, request.output_type)
        else:
            check_autoencoder(self.vae, self.unet.config.in_channels)
        if request.guider is not None:
            read_guider(request)
        folder = self.config.get("drawing_defaults")
        fill_in(request, self.scheduler, folder, self._published_defaults, self._defaults_prefix)
        checks.check_callback_names(request.callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        self.resolve_size(request)
        counts = self.count_conditions(request)
        num_levels = checks.check_batch_and_size(self, request, counts)
        if request.guidance_unet is not None:
            check_weaker_model(self.unet, request.guidance_unet, num_levels, self._execution_device)

    def check_model(self) -> None:
        """Check that the model is of the kind that this pipeline draws with.

        Raises:
            ValueError: it takes other channels than it predicts.
        """
        taken, predicted = self.unet.config.in_channels, self.unet.config.out_channels
        if taken != predicted:
            raise ValueError(
                f"This model takes {taken} channels and predicts {predicted}; this pipeline needs equally many. A "
                "model for super-resolution, which takes the small image too, is used with MDMSuperResolutionPipeline."
            )

    def resolve_size(self, request: Request) -> None:
        """Fill in height and width in pixels: the given ones, those of given noise, or those of the largest level.

        Args:
            request: the request; if only one of height and width is given, images are square.
        """
        if request.height is not None or request.width is not None:
            request.height, request.width = request.height or request.width or 0, request.width or request.height or 0
        elif request.latents is not None and len(request.latents):
            outermost, factor = as_pyramid(request.latents)[0][-1], self.vae_scale_factor
            request.height, request.width = (side * factor for side in (*outermost.shape, 0, 0)[-4:-2])
        else:
            request.height = request.width = self.image_sides[-1]

    def count_conditions(self, request: Request) -> dict[str, int]:
        """Check prompts and labels, and count them.

        Args:
            request: the request.

        Returns:
            The numbers of entries, by name of the argument.

        Raises:
            ValueError: says what was wrong, what was expected and what to do.
            TypeError: `prompt` and `negative_prompt` are of different types.
        """
        config = self.unet.config
        checks.check_reads_text(config)
        checks.check_texts(request, config.encoder_hid_dim or config.cross_attention_dim)
        return {"prompt": request.num_prompts}

    # Steps of a call

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        max_sequence_length: int = 128,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
        """Encode prompts to text features. Gradients flow to the text encoder where they are enabled.

        Args:
            prompt: one text or a list of them.
            device: device of the features; by default that of the pipeline.
            num_images_per_prompt: n, how often the features of each prompt are repeated.
            do_classifier_free_guidance: whether to encode the negative prompts too.
            negative_prompt: one text, or one for each prompt; empty texts by default.
            prompt_embeds: `(B, L, width)`, precomputed features, instead of `prompt`.
            negative_prompt_embeds: the same, instead of `negative_prompt`.
            prompt_attention_mask: `(B, L)`, True where `prompt_embeds` has a token; None means everywhere.
            negative_prompt_attention_mask: the same for `negative_prompt_embeds`.
            max_sequence_length: longer prompts are truncated, with a warning.

        Returns:
            Features `(B * n, L, width)` of the prompts and of the negative prompts, zero at padding, and their masks
            `(B * n, L)`, True for tokens. Both have the same L. Without guidance the negative ones are None.

        Raises:
            ValueError: there are prompts to encode, but no text encoder.
        """
        request = Request(
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            prompt_attention_mask=prompt_attention_mask,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
            max_sequence_length=max_sequence_length,
        )
        prompt_embeds, negative_prompt_embeds, prompt_attention_mask, negative_prompt_attention_mask = encode_prompts(
            request,
            self.tokenizer,
            self.text_encoder,
            device or self._execution_device,
            guided=do_classifier_free_guidance,
            copies=num_images_per_prompt,
        )
        # diffusers' own tests read the order of the results from the names in this line.
        return prompt_embeds, negative_prompt_embeds, prompt_attention_mask, negative_prompt_attention_mask

    def encode_conditions(self, drawing: Drawing) -> None:
        """Encode the conditions of a drawing, each repeated for its images.

        Args:
            drawing: receives the conditions.
        """
        request = drawing.request
        text = encode_prompts(
            request,
            self.tokenizer,
            self.text_encoder,
            drawing.device,
            guided=needs_negatives(request),
            copies=request.num_images // request.num_prompts,
        )
        # Padding in given embeddings is intended by the caller, unlike padding that is added here.
        own_pads = request.prompt_embeds is None and request.negative_prompt_embeds is None
        drawing.own_columns = own_pads and not self.unet.config.use_cross_attention_mask
        drawing.condition_on(Conditioning(*text))

    def prepare_latents(
        self,
        num_images: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Sample | None = None,
        num_frames: int | None = None,
    ) -> Sample:
        """Sample the starting noise of every level, level 0 first, or use the given noise.

        Args:
            num_images: B.
            height: height of the image in pixels.
            width: width of the image in pixels.
            dtype: dtype of the samples between steps.
            device: device of the samples.
            generator: one, or one per image; with a list, an image does not depend on its batch.
            latents: noise of unit variance for every level, innermost first; a bare tensor for a single level.
            num_frames: frames of clips; None for images.

        Returns:
            The pyramid, or a bare tensor for a single level.
        """
        shape = (num_images, height, width, num_frames, self.aspect_ratio_buckets)
        shapes = setup.level_shapes(self.unet, self.vae, *shape)
        return setup.scaled_noise(self.scheduler, setup.draw_noise(shapes, generator, latents, device, dtype))

    def finish_drawing(
        self, drawing: Drawing, latents: Sample, known: KnownPixels | None = None, refine: Refine | None = None
    ) -> Any:
        """Convert the last samples to the output of the pipeline, and release offloaded models.

        Args:
            drawing: the drawing, whose request determines the output type.
            latents: the last samples.
            known: known pixels, which are returned exactly as given.
            refine: modifies the images of all levels, about in [-1, 1], before they are clipped.
        """
        levels = finish(drawing, latents, known, refine)
        self.maybe_free_model_hooks()
        request = drawing.request
        if not request.return_dict:
            return (levels[-1], levels) if request.output_pyramid else (levels[-1],)
        return self._output_class(levels[-1], levels if request.output_pyramid else None)
