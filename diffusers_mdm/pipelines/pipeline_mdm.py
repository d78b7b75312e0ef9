# SPDX-License-Identifier: Apache-2.0
"""Text to image with a Matryoshka diffusion model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffusers_mdm.loaders import MDMLoraLoaderMixin
from diffusers_mdm.models import NestedUNetModel
from diffusers_mdm.pipelines import input_checks as checks
from diffusers_mdm.pipelines.denoising import DenoisingMixin, Sample
from diffusers_mdm.pipelines.pipeline_output import MDMPipelineOutput
from diffusers_mdm.pipelines.text_encoding import PromptEncodingMixin, TextFeatures, group_rows_by_text
from diffusers_mdm.pyramid import as_pyramid
from diffusers_mdm.schedulers import MatryoshkaScheduler

# Written beside the weights, so that the host finds the class where this package was not imported before.
CUSTOM_PIPELINE_FILE = "pipeline.py"


class MDMPipeline(DiffusionPipeline, PromptEncodingMixin, DenoisingMixin, MDMLoraLoaderMixin):
    """Draw pictures from prompts, at every resolution of the model at once (Gu et al., arXiv:2310.15111).

    Args:
        text_encoder: any transformers model with a `last_hidden_state` (T5 for the published models).
        tokenizer: its tokenizer.
        unet: the dolls. `height` chooses how many of them are opened.
        scheduler: `MatryoshkaScheduler`, or one of the host's where a single doll is opened.

    Each may be None as long as nothing asks for it: with prompt embeddings no text encoder is needed, and
    `encode_prompt` needs nothing else.
    """

    model_cpu_offload_seq = "text_encoder->unet"
    _optional_components: list[str] = []
    _callback_tensor_inputs = [
        "latents",
        "pred_original_sample",
        "prompt_embeds",
        "negative_prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_attention_mask",
    ]

    def __init__(
        self,
        text_encoder: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        unet: NestedUNetModel | None,
        scheduler: MatryoshkaScheduler | KarrasDiffusionSchedulers | None,
    ) -> None:
        super().__init__()
        self.register_modules(text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, do_resize=False)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> MDMPipeline:
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
            (folder / CUSTOM_PIPELINE_FILE).write_text(f"from {package} import {type(self).__name__}  # noqa: F401\n")
        super().save_pretrained(save_directory, *args, **kwargs)

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
            outermost = as_pyramid(latents)[0][-1]
            return outermost.shape[-2], outermost.shape[-1]
        return self.unet.sample_sizes[-1], self.unet.sample_sizes[-1]

    def check_inputs(
        self,
        prompt: str | list[str] | None,
        height: int,
        width: int,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Sample | None = None,
        micro_conditioning: Mapping[str, Any] | None = None,
        output_type: str = "pil",
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
    ) -> None:
        """Refuse what cannot be drawn before anything is computed. Arguments as in `__call__`.

        Raises:
            ValueError: says what was wrong, what was expected and what to do.
            TypeError: `prompt` and `negative_prompt` are of different types.
        """
        checks.check_choices(output_type, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        checks.check_prompt("prompt", prompt, prompt_embeds, prompt_attention_mask)
        checks.check_prompt("negative_prompt", negative_prompt, negative_prompt_embeds, negative_prompt_attention_mask)
        checks.check_prompt_pair(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        text_width = self.unet.config.encoder_hid_dim or self.unet.config.cross_attention_dim
        checks.check_text_width("prompt_embeds", prompt_embeds, text_width)
        checks.check_text_width("negative_prompt_embeds", negative_prompt_embeds, text_width)
        checks.check_count("num_images_per_prompt", num_images_per_prompt)

        num_images = self.num_prompts(prompt, prompt_embeds) * num_images_per_prompt
        multiples = [ratio * self.unet.size_multiple for ratio in self.unet.level_ratios]
        checks.check_size(height, width, self.unet.sample_sizes, multiples)
        shapes = self.level_shapes(num_images, height, width)
        if len(shapes) > 1 and not isinstance(self.scheduler, MatryoshkaScheduler):
            raise ValueError(
                f"{type(self.scheduler).__name__} steps one tensor, but {height} x {width} pixels open {len(shapes)} "
                f"dolls; use MatryoshkaScheduler, or draw {self.unet.sample_sizes[0]} pixels (the innermost doll)."
            )
        if latents is not None:
            checks.check_latents(latents, shapes)
        checks.check_generator(generator, num_images)
        checks.check_micro_conditioning(micro_conditioning, self.unet.config.micro_conditioning_keys, num_images)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Sample | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        micro_conditioning: Mapping[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        output_type: str = "pil",
        output_pyramid: bool = False,
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[..., dict[str, Any]] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = 128,
    ) -> MDMPipelineOutput | tuple[Any, ...]:
        """Draw pictures for prompts.

        A picture depends on its own prompt, noise and generator, not on the batch it is drawn in. (Where
        `prompt_embeds` are given, the pads among them are the caller's choice: a model that does not mask pads in its
        cross-attention, as the published ones, sees them.)

        Args:
            prompt: one text or a list of them.
            height: pixels; with `width` it chooses how many dolls are opened: the larger one has to be a doll's side
                (`unet.sample_sizes`). By default the outermost doll is drawn; one of the two alone means a square.
            width: pixels.
            num_inference_steps: number of denoising steps.
            timesteps: the time steps themselves, descending, in 0 … num_train_timesteps - 1.
            guidance_scale: w of classifier-free guidance, at every level; 1 or less turns it off.
            negative_prompt: what guidance pushes away from: one text for a text, a list for a list; empty by default.
            num_images_per_prompt: pictures of each prompt.
            eta: 0 for DDIM to 1 for ancestral sampling.
            generator: one, or one a picture: the same seed then gives the same picture in any batch.
            latents: starting noise N(0, 1): a pyramid, innermost first, or a tensor where one doll is opened.
            prompt_embeds: `(B, L, width)` from `encode_prompt`, in place of `prompt`.
            negative_prompt_embeds: the same shape, in place of `negative_prompt`.
            prompt_attention_mask: `(B, L)`, True where `prompt_embeds` has a token; None says everywhere.
            negative_prompt_attention_mask: the same for `negative_prompt_embeds`.
            micro_conditioning: e.g. `{"scale": 256}`; one number, one a picture, or two a picture (those of the
                unconditional rows first). What is missing takes the model's own value.
            guidance_rescale: 0 to 1, brings each level's spread back to that of the unguided prediction
                (arXiv:2305.08891).
            output_type: "pil", "np" (`(B, H, W, C)` in [0, 1]), "pt" (`(B, C, H, W)` in [0, 1]) or "latent" (the last
                sample, not clipped).
            output_pyramid: also return the pictures of the dolls inside.
            return_dict: False returns a tuple `(images,)`, or `(images, pyramid)` with `output_pyramid`.
            cross_attention_kwargs: e.g. `{"scale": 0.5}`, the strength of a LoRA.
            callback_on_step_end: called after each step as `(pipeline, step, timestep, tensors)`; the tensors it
                returns replace those of the pipeline. Set `pipeline._interrupt = True` to stop.
            callback_on_step_end_tensor_inputs: which tensors it gets, of `_callback_tensor_inputs`;
                "pred_original_sample" is a preview of the finished pyramid in [-1, 1] (None with host schedulers that
                do not tell).
            max_sequence_length: longer prompts are cut, with a warning.

        Raises:
            ValueError: see `check_inputs`.
            TypeError: `prompt` and `negative_prompt` are of different types.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        height, width = self.resolve_size(height, width, latents)
        self.check_inputs(
            prompt,
            height,
            width,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            prompt_attention_mask,
            negative_prompt_attention_mask,
            num_images_per_prompt,
            generator,
            latents,
            micro_conditioning,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        self._guidance_scale = guidance_scale
        self._guidance_rescale = guidance_rescale
        self._cross_attention_kwargs = cross_attention_kwargs
        self._interrupt = False
        device = self._execution_device
        num_images = self.num_prompts(prompt, prompt_embeds) * num_images_per_prompt

        # 1. The prompts. Pads among embeddings that are given are meant; those of our own making are not.
        own_pads = prompt_embeds is None and negative_prompt_embeds is None
        text = TextFeatures(
            *self.encode_prompt(
                prompt,
                device,
                num_images_per_prompt,
                self.do_classifier_free_guidance,
                negative_prompt,
                prompt_embeds,
                negative_prompt_embeds,
                prompt_attention_mask,
                negative_prompt_attention_mask,
                max_sequence_length,
            )
        )
        groups = group_rows_by_text(text, own_columns=own_pads and not self.unet.config.use_cross_attention_mask)

        # 2. Time steps, starting noise, everything else a step needs.
        schedule = self.retrieve_timesteps(num_inference_steps, device, timesteps)
        self._num_timesteps = len(schedule)
        sample_dtype = torch.promote_types(self.unet.dtype, torch.float32)
        latents = self.prepare_latents(num_images, height, width, sample_dtype, device, generator, latents)
        micro_rows = self.prepare_micro_conditioning(micro_conditioning, num_images, device)
        step_kwargs = self.prepare_extra_step_kwargs(generator, eta)

        # 3. Denoise all levels together.
        with self.progress_bar(total=len(schedule)) as progress_bar:
            for step, timestep in enumerate(schedule):
                if self.interrupt:
                    continue
                model_input = self.scheduler.scale_model_input(latents, timestep)
                prediction = self.predict(model_input, timestep, text, groups, micro_rows)
                step_output = self.scheduler.step(prediction, timestep, latents, **step_kwargs)
                latents = step_output.prev_sample

                if callback_on_step_end is not None:
                    tensors = {
                        "latents": latents,
                        "pred_original_sample": getattr(step_output, "pred_original_sample", None),
                        **text._asdict(),
                    }
                    asked = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    changed = callback_on_step_end(self, step, timestep, asked)
                    latents = changed.get("latents", latents)
                    text = text._replace(**{name: changed[name] for name in text._fields if name in changed})
                progress_bar.update()

        # 4. Pictures.
        pyramid = self.postprocess(latents if output_pyramid else as_pyramid(latents)[0][-1], output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (pyramid[-1], pyramid) if output_pyramid else (pyramid[-1],)
        return MDMPipelineOutput(images=pyramid[-1], pyramid=pyramid if output_pyramid else None)
