# SPDX-License-Identifier: Apache-2.0
"""What all MDM pipelines are: components, saving and loading, converting to siblings, checks, conditioning, output."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import logging

from diffusers_mdm.loaders import MDMLoraLoaderMixin
from diffusers_mdm.models.loading.weight_variants import naming_variants
from diffusers_mdm.pipelines.drawing import input_checks as checks
from diffusers_mdm.pipelines.drawing import setup
from diffusers_mdm.pipelines.drawing.conditioning import Conditioning, encode_prompts
from diffusers_mdm.pipelines.drawing.guidance.prediction import is_guided, needs_negatives
from diffusers_mdm.pipelines.drawing.guidance.registry import read_guider
from diffusers_mdm.pipelines.drawing.guidance.weaker_model import check_weaker_model
from diffusers_mdm.pipelines.drawing.known_pixels import KnownPixels
from diffusers_mdm.pipelines.drawing.latent_space import check_autoencoder, clips_to_pictures
from diffusers_mdm.pipelines.drawing.loop import Refine, finish
from diffusers_mdm.pipelines.drawing.request import (
    PUBLISHED_DEFAULTS,
    Request,
    Sample,
    check_argument,
    check_defaults,
    fill_in,
)
from diffusers_mdm.pipelines.drawing.setup import Drawing, RunningDrawings
from diffusers_mdm.pipelines.finder_file import write_finder
from diffusers_mdm.pipelines.pipeline_output import MDMPipelineOutput
from diffusers_mdm.pyramid import as_pyramid

logger = logging.get_logger(__name__)

# diffusers casts all components of a converted pipeline to one precision; these are shared, and stay as they are.
_KEEPS_PRECISION: ContextVar[bool] = ContextVar("keeps precision", default=False)


def control(name: str) -> Any:
    """A property that reads and changes a control of the current drawing, see `RunningDrawings`."""

    def get(pipeline: MDMPipelineBase) -> Any:
        return pipeline.running_drawings.get(name)

    def change(pipeline: MDMPipelineBase, value: Any) -> None:
        pipeline.running_drawings.set(name, check_argument(name, value))

    return property(get, change)


class MDMPipelineBase(DiffusionPipeline, MDMLoraLoaderMixin):
    """What every MDM pipeline is. A pipeline for a task adds its `__call__`, and what it checks besides.

    The steps of a call are functions of `drawing/` over a `Drawing`, which carries everything that one drawing needs.

    Args:
        drawing_defaults: settings that suit the model, for calls that say nothing; see `drawing.request`.
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

    # For calls and folders that say nothing, see `drawing.request`.
    _published_defaults: Mapping[str, Any] = PUBLISHED_DEFAULTS
    _defaults_prefix = ""

    def __init__(self, drawing_defaults: Mapping[str, Any] | None = None, **components: Any) -> None:
        super().__init__()
        defaults = check_defaults(drawing_defaults)
        if defaults is not None:
            self.register_to_config(drawing_defaults=defaults)
        self.running_drawings = RunningDrawings()
        self.register_modules(**checks.checked_components(components))
        if components.get("vae") is not None and clips_to_pictures(components.get("scheduler")):
            logger.warning(
                "The scheduler clips predicted samples to [-1, 1], but latents of unit variance reach beyond that; "
                "build it with `clip_sample=False` for a pipeline with a `vae`."
            )
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, do_resize=False)

    # Saving, loading, converting
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Load a pipeline as diffusers does; a component that was None when it was saved is None again.

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
        """Save every component, and beside them the small file through which `DiffusionPipeline` finds this class.

        That file lets `DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)`
        work without importing this package first.

        Args:
            save_directory: folder, made if missing.
            args: as in `DiffusionPipeline.save_pretrained`.
            kwargs: as in `DiffusionPipeline.save_pretrained`.
        """
        write_finder(type(self), save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
        """Make a pipeline of this class around the components of another one, which are shared, not copied.

        Unlike diffusers', it leaves every component in its precision unless a `dtype` is asked for.

        Args:
            pipeline: e.g. an `MDMPipeline`.
            kwargs: as in `DiffusionPipeline.from_pipe`: components to use in place of the pipeline's own, `dtype`.
        """
        # diffusers leaves out, with a warning, an autoencoder of a class that the signature does not name.
        if pipeline.components.get("vae") is not None:
            kwargs.setdefault("vae", pipeline.components["vae"])
        if kwargs.get("dtype") is not None or kwargs.get("torch_dtype") is not None:
            return super().from_pipe(pipeline, **kwargs)
        token = _KEEPS_PRECISION.set(True)
        try:
            return super().from_pipe(pipeline, **kwargs)
        finally:
            _KEEPS_PRECISION.reset(token)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move the models to a device, cast them, or both, as in `DiffusionPipeline.to`."""
        return self if _KEEPS_PRECISION.get() else super().to(*args, **kwargs)

    # What callbacks and users read, and callbacks change, while a drawing goes on

    _guidance_scale = control("guidance_scale")
    _guidance_rescale = control("guidance_rescale")
    _cross_attention_kwargs = control("cross_attention_kwargs")
    _num_timesteps = control("num_timesteps")
    _interrupt = control("interrupt")

    @property
    def guidance_scale(self) -> float | list[float]:
        """Weight w of the guidance at the current step, or of each level; a callback may change `_guidance_scale`."""
        return self._guidance_scale

    @property
    def guidance_rescale(self) -> float:
        """How far the spread of the guided prediction is brought back to that of the conditional one, 0 to 1."""
        return self._guidance_rescale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the model also runs without the prompt."""
        return is_guided(self._guidance_scale)

    @property
    def cross_attention_kwargs(self) -> dict[str, Any] | None:
        """Given to the model at each step, e.g. `{"scale": 0.5}` for the strength of a LoRA."""
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
        """Pixels of a picture's side for one of its latents' side; 1 without an autoencoder."""
        return setup.pixels_per_latent(self.vae)

    @property
    def picture_sides(self) -> tuple[int, ...]:
        """Side in pixels of the pictures that each level draws, innermost first."""
        return setup.picture_sides(self.unet, self.vae)

    @property
    def picture_multiples(self) -> list[int]:
        """For every level, what height and width of its pictures have to be multiples of, innermost first."""
        return setup.picture_multiples(self.unet, self.vae)

    @property
    def num_picture_channels(self) -> int:
        """Channels of pictures that are given or returned, 3 for colours."""
        return self.unet.config.in_channels if self.vae is None else self.vae.config.in_channels

    # Checks

    def check_inputs(self, request: Request) -> None:
        """Refuse what cannot be drawn before anything is computed, and fill in what was left open.

        Args:
            request: the arguments of `__call__`; takes the size, the number of pictures, and the pictures that were
                read of `image` and `mask_image`.

        Raises:
            ValueError: says what was wrong, what was expected and what to do.
            TypeError: `prompt` and `negative_prompt` are of different types.
        """
        for name in ("unet", "scheduler"):
            if getattr(self, name) is None:
                raise ValueError(f"This pipeline has no `{name}`, so it cannot draw; load it with one.")
        if self.vae is None:
            checks.check_shows_pictures(self.unet.config.in_channels, request.output_type)
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

    def resolve_size(self, request: Request) -> None:
        """Fill in height and width in pixels: the given ones, those of given noise, or the largest level's.

        Args:
            request: one of height and width alone means a square.
        """
        if request.height is not None or request.width is not None:
            request.height, request.width = request.height or request.width or 0, request.width or request.height or 0
        elif request.latents is not None and len(request.latents):
            outermost, factor = as_pyramid(request.latents)[0][-1], self.vae_scale_factor
            request.height, request.width = (side * factor for side in (*outermost.shape, 0, 0)[-4:-2])
        else:
            request.height = request.width = self.picture_sides[-1]

    def count_conditions(self, request: Request) -> dict[str, int]:
        """Refuse prompts that do not belong together or to this model, and count what is asked for.

        Args:
            request: what is asked for.

        Returns:
            How many entries there are, by the name of the argument.

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
        """Encode prompts into what the model attends to. Gradients flow to the text encoder where they are enabled.

        Args:
            prompt: one text or a list of them.
            device: where the features go; by default where the pipeline runs.
            num_images_per_prompt: n, the features of each prompt are repeated so often.
            do_classifier_free_guidance: whether to encode the negative prompts too.
            negative_prompt: one text, or one for each prompt; empty texts by default.
            prompt_embeds: `(B, L, width)`, ready features in place of `prompt`.
            negative_prompt_embeds: the same in place of `negative_prompt`.
            prompt_attention_mask: `(B, L)`, True where `prompt_embeds` has a token; None says everywhere.
            negative_prompt_attention_mask: the same for `negative_prompt_embeds`.
            max_sequence_length: longer prompts are cut, with a warning.

        Returns:
            Features `(B * n, L, width)`, zero at pads, of the prompts and of the negative prompts, then their masks
            `(B * n, L)`, True where there is a token. Both have the same L. Without guidance the negative ones are
            None.

        Raises:
            ValueError: there are texts to encode, and no text encoder.
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
        # diffusers' own tests find out from the names on this line what comes in which place.
        return prompt_embeds, negative_prompt_embeds, prompt_attention_mask, negative_prompt_attention_mask

    def encode_conditions(self, drawing: Drawing) -> None:
        """Encode what is asked for, each entry repeated for its share of the pictures.

        Args:
            drawing: takes the conditions.
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
        # Pads among embeddings that are given are meant; those of our own making are not.
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
        """Draw the starting noise of every level, level 0 first, or take what is given.

        Args:
            num_images: B.
            height: pixels of the picture.
            width: pixels of the picture.
            dtype: of the samples between the steps.
            device: of the samples.
            generator: one, or one a picture; with a list a picture does not change with the batch it is drawn in.
            latents: noise of unit variance for every level, innermost first; a bare tensor where one level is drawn.
            num_frames: frames of clips; None for pictures.

        Returns:
            The pyramid, or a bare tensor where one level is drawn.
        """
        shapes = setup.level_shapes(self.unet, self.vae, num_images, height, width, num_frames)
        return setup.scaled_noise(self.scheduler, setup.draw_noise(shapes, generator, latents, device, dtype))

    def finish_drawing(
        self, drawing: Drawing, latents: Sample, known: KnownPixels | None = None, refine: Refine | None = None
    ) -> Any:
        """Turn the last samples into what the pipeline returns, and let offloaded models go.

        Args:
            drawing: its request says in which form.
            latents: the last samples.
            known: what was given of the pictures, and comes out as it was.
            refine: changes the pictures of all levels, about in [-1, 1], before they are clipped.
        """
        levels = finish(drawing, latents, known, refine)
        self.maybe_free_model_hooks()
        request = drawing.request
        if not request.return_dict:
            return (levels[-1], levels) if request.output_pyramid else (levels[-1],)
        return self._output_class(levels[-1], levels if request.output_pyramid else None)
