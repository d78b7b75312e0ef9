# SPDX-License-Identifier: Apache-2.0
"""`NestedUNetModel`, which denoises all levels of a pyramid at once (Gu et al. 2024, section 3.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.utils import BaseOutput, apply_lora_scale
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from ..pyramid import Pyramid, as_pyramid
from .adapter_strengths import AdapterStrengthMixin
from .compilation import CompilationMixin
from .config_checks import check_model_config, resolve_time_embed_dim
from .forward_inputs import (
    StepEmbedding,
    TextConditioning,
    check_classes,
    check_sample,
    check_text,
    check_text_fits,
    expand_to_batch,
    masked_mean,
    micro_conditions,
    modulations_of,
    values_per_sample,
)
from .frames import fold_frames, unfold_frames
from .growth import GrowthMixin
from .inner_level_cache import InnerLevelCacheMixin
from .layers import MatryoshkaAttention, TextSelfAttention
from .level import embed_steps
from .level_config import LevelConfig
from .level_geometry import LevelGeometry
from .level_slicing import LevelSlicingMixin
from .loading.single_file import SingleFileMixin
from .loading.weight_variants import VariantMixin
from .weight_sharing import build_levels


@dataclasses.dataclass
class NestedUNetOutput(BaseOutput):
    """Output of `NestedUNetModel`.

    Args:
        sample: the prediction, a pyramid (innermost first) with the shapes of the input; a tensor if the input was
            one.
    """

    sample: Pyramid | torch.Tensor


class NestedUNetModel(
    InnerLevelCacheMixin,
    GrowthMixin,
    VariantMixin,
    CompilationMixin,
    LevelSlicingMixin,
    AdapterStrengthMixin,
    ModelMixin,
    AttentionMixin,
    ConfigMixin,
    PeftAdapterMixin,
    SingleFileMixin,
):
    r"""A nested U-Net that denoises all levels of a pyramid at once.

    Its levels are a flat list, innermost first; the U-Net of level i wraps that of level i - 1. Settings of levels are
    lists with one entry per level: see [`LevelConfig`] for `block_out_channels` … `share_blocks`. With `num_frames`
    above 1 it is a video model, with samples `(B, C, F, H, W)`.

    Args:
        sample_size: side of level 0 in pixels. Level i, with n resolutions, is 2^(n - 1) times larger than level i -
            1, in side or (`temporal_downsample`) in frames; the side is also larger by the ratio of their
            `patch_size`.
        in_channels: channels of the noisy image.
        out_channels: channels of the prediction.
        num_attention_heads: heads of every attention layer.
        attention_norm_num_groups: groups of the group norms in attention.
        norm_eps: epsilon of all norms.
        time_embed_dim: width of the time embedding; None for 4 times the first channels of level 0.
        encoder_hid_dim: width of the text encoder's output if it is projected to `cross_attention_dim`, None
            otherwise.
        cross_attention_dim: width of the text features inside the model; None for a model without text.
        num_text_layers: transformer layers on the projected text features.
        use_cross_attention_mask: exclude padding from attention to the text. The published models exclude it only from
            the pooled text.
        num_class_embeds: number of class embeddings; None without classes.
        output_bound: s in tanh(v / s) s; None for no bound. Only for models with one level.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Level", "TextSelfAttention"]
    _repeated_blocks = ["SpatialAttention", "TemporalAttention", "TextSelfAttention"]
    _skip_layerwise_casting_patterns = ["norm"]
    _supports_group_offloading = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 3,
        out_channels: int = 3,
        block_out_channels: tuple[tuple[int, ...], ...] = ((256, 512, 768),),
        layers_per_block: tuple[tuple[int, ...], ...] = ((2, 2, 2),),
        attention_layers_per_block: tuple[tuple[int, ...], ...] = ((0, 1, 5),),
        has_mid_block: tuple[bool, ...] = (True,),
        has_attention_ffn: tuple[bool, ...] = (True,),
        norm_num_groups: tuple[int, ...] = (32,),
        normalize_input: tuple[bool, ...] = (False,),
        dropout: tuple[float, ...] = (0.0,),
        micro_conditioning_keys: tuple[tuple[str, ...], ...] = (("scale",),),
        micro_conditioning_defaults: tuple[tuple[float, ...], ...] = ((64.0,),),
        patch_size: tuple[int, ...] | None = None,
        num_frames: tuple[int, ...] | None = None,
        temporal_layers_per_block: tuple[tuple[int, ...] | None, ...] | None = None,
        temporal_downsample: tuple[bool, ...] | None = None,
        temporal_rotary: tuple[bool, ...] | None = None,
        tiled_adapters: tuple[bool, ...] | None = None,
        share_time_embedding: tuple[bool, ...] | None = None,
        share_blocks: tuple[bool, ...] | None = None,
        num_attention_heads: int = 8,
        attention_norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        time_embed_dim: int | None = None,
        encoder_hid_dim: int | None = None,
        cross_attention_dim: int | None = None,
        num_text_layers: int = 0,
        use_cross_attention_mask: bool = False,
        num_class_embeds: int | None = None,
        output_bound: float | None = None,
    ) -> None:
        super().__init__()
        self.level_configs = level_configs = LevelConfig.levels_from(self.config)
        check_model_config(self.config, level_configs)
        time_embed_dim = resolve_time_embed_dim(self.config, level_configs)
        self.geometry = LevelGeometry.of(level_configs)
        self.micro_conditioning_names = sorted(
            {key for level in level_configs for key in level.micro_conditioning_keys}
        )

        # What belongs to no level comes first, so that a new level only appends parameters (EMA, optimizer state).
        self._add_conditions(time_embed_dim)
        self.levels = nn.ModuleList(build_levels(self.config, level_configs, time_embed_dim))
        for slot, attention in enumerate(self._text_attentions()):
            attention.text_slot = slot
        if any(level.share_time_embedding or level.share_blocks for level in level_configs):
            self._keep_levels_together()

    def _keep_levels_together(self) -> None:
        """Keep all levels on one device: a level that shares layers with another one must be on the same device."""
        self._no_split_modules = ["ModuleList"]
        self._supports_group_offloading = False

    def _add_conditions(self, time_embed_dim: int) -> None:
        """Add the modules for text and classes."""
        config, width = self.config, self.config["cross_attention_dim"]
        if config["encoder_hid_dim"] is not None and width is not None:
            self.encoder_hid_proj = nn.Linear(config["encoder_hid_dim"], width)
        if width is not None:
            heads, eps = config["num_attention_heads"], config["norm_eps"]
            self.text_layers = nn.ModuleList(
                [TextSelfAttention(width, heads, eps) for _ in range(config["num_text_layers"])]
            )
            self.text_embedding = nn.Linear(width, time_embed_dim, bias=False)
        if config["num_class_embeds"] is not None:
            self.class_embedding = nn.Embedding(config["num_class_embeds"], time_embed_dim)

    # --- shape of the pyramid ---

    @property
    def num_levels(self) -> int:
        """Number of levels R."""
        return len(self.level_configs)

    @property
    def level_ratios(self) -> tuple[int, ...]:
        """Side of every level relative to level 0, e.g. (1, 4, 16)."""
        return self.geometry.ratios

    @property
    def level_frames(self) -> tuple[int, ...]:
        """Number of frames of every level, e.g. (1, 4, 16); all 1 for an image model."""
        return self.geometry.frames

    @property
    def sample_sizes(self) -> tuple[int, ...]:
        """Side of every level in pixels, e.g. (64, 256, 1024)."""
        return tuple(self.config["sample_size"] * ratio for ratio in self.geometry.ratios)

    @property
    def size_multiple(self) -> int:
        """The number of which the sides of level 0 must be multiples."""
        return self.geometry.multiples[-1]

    def _text_attentions(self) -> list[MatryoshkaAttention]:
        """The attention layers with text, in the order of `TextConditioning.keys_values`."""
        return [
            module
            for module in self.modules()
            if isinstance(module, MatryoshkaAttention) and module.add_k_proj is not None
        ]

    @apply_forward_hook
    @apply_lora_scale("cross_attention_kwargs")
    def encode_text(
        self,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        with_keys_values: bool = False,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> TextConditioning:
        """Compute everything from a prompt that does not depend on the timestep.

        The result can be passed to `forward` as `encoder_hidden_states` at every step of a sampling loop, and does not
        change its output.

        Args:
            encoder_hidden_states: `(B, L, encoder_hid_dim or cross_attention_dim)`, the text encoder's output, zero at
                padding.
            encoder_attention_mask: `(B, L)`, nonzero for tokens, zero for padding; None without padding.
            with_keys_values: also compute the keys and values of the text for every attention layer.
            cross_attention_kwargs: as in `forward`, which does not scale what is computed here.
        """
        return self._encode_text(encoder_hidden_states, encoder_attention_mask, with_keys_values)

    def _encode_text(
        self, encoder_hidden_states: torch.Tensor, encoder_attention_mask: torch.Tensor | None, with_keys_values: bool
    ) -> TextConditioning:
        """Implement `encode_text`, inside a call that has already moved weights and scaled adapters."""
        check_text(self.config, encoder_hidden_states, encoder_attention_mask)
        hidden_states = encoder_hidden_states
        if self.config["encoder_hid_dim"] is not None:
            hidden_states = self.encoder_hid_proj(hidden_states)
        use_mask = self.config["use_cross_attention_mask"]
        mask = None if encoder_attention_mask is None else encoder_attention_mask.bool()
        for layer in self.text_layers:
            hidden_states = layer(hidden_states, mask if use_mask else None)
        # As in ml-mdm, text layers drop the mask before the text is pooled, unless attention uses the mask.
        pooling_mask = mask if use_mask or len(self.text_layers) == 0 else None
        pooled = self.text_embedding(masked_mean(hidden_states, pooling_mask))
        text = TextConditioning(hidden_states, pooled, mask if use_mask else None)
        if with_keys_values:
            text.keys_values = tuple(attention.text_key_value(text) for attention in self._text_attentions())
        return text

    @apply_forward_hook
    @apply_lora_scale("cross_attention_kwargs")
    def embed_timesteps(
        self,
        timesteps: torch.Tensor,
        batch_size: int,
        encoder_hidden_states: TextConditioning | None = None,
        class_labels: torch.Tensor | None = None,
        added_cond_kwargs: Mapping[str, torch.Tensor] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> list[StepEmbedding]:
        """Compute everything that depends on timestep and conditions alone, for several steps at once.

        The results, one for each step, can be passed to `forward` as `timestep`, and do not change its output.

        Args:
            timesteps: t of each step, `(S,)`.
            batch_size: B, samples in a step.
            encoder_hidden_states: result of `encode_text` for these samples, if the model has text.
            class_labels: as in `forward`.
            added_cond_kwargs: as in `forward`.
            cross_attention_kwargs: as in `forward`, which does not scale what is computed here.
        """
        check_text_fits(encoder_hidden_states, self.config["cross_attention_dim"] is not None)
        micro = micro_conditions(added_cond_kwargs, self.micro_conditioning_names, batch_size, timesteps.device)
        dtype = self.dtype if encoder_hidden_states is None else encoder_hidden_states.pooled.dtype
        pooled = self._pooled(encoder_hidden_states, class_labels, batch_size, dtype)
        return embed_steps(self.levels, timesteps, batch_size, micro, pooled)

    @apply_lora_scale("cross_attention_kwargs")
    def forward(
        self,
        sample: Sequence[torch.Tensor] | torch.Tensor,
        timestep: torch.Tensor | float | int | StepEmbedding,
        encoder_hidden_states: torch.Tensor | TextConditioning | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        added_cond_kwargs: Mapping[str, torch.Tensor] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> NestedUNetOutput | tuple[Pyramid | torch.Tensor]:
        r"""Predict every level of a noisy pyramid.

        Args:
            sample: noisy levels `(B_i, in_channels, H_i, W_i)`, innermost first, B_0 >= B_1 >= …; with k levels only
                the inner k levels run. A bare tensor is level 0. Video models take `(B_i, in_channels, F_i, H_i, W_i)`
                with `level_frames` frames; if all k levels have equally many frames, also single frames (F_i = 1, or
                images).
            timestep: 0 … num_train_timesteps - 1, one for all samples or `(B_0,)`; or an entry of the result of
                `embed_timesteps`.
            encoder_hidden_states: `(B_0, L, D)`, zero at padding, or the result of `encode_text`.
            encoder_attention_mask: `(B_0, L)`, zero for padding; None without padding.
            class_labels: `(B_0,)` integers, if the model has classes.
            added_cond_kwargs: micro-conditioning values `(B_0,)` by name, e.g. `{"scale": ...}`; missing ones have
                their defaults.
            cross_attention_kwargs: `{"scale": s}` scales LoRA layers for this call.
            return_dict: return a `NestedUNetOutput` instead of a tuple.

        Raises:
            ValueError: sizes, batches or conditions do not fit the model.
            TypeError: an argument has a wrong type.
        """
        pyramid, is_tensor = as_pyramid(sample)
        check_sample(pyramid, self.geometry, self.config["in_channels"])
        batch, dtype, is_clip = pyramid[0].shape[0], pyramid[0].dtype, pyramid[0].ndim == 5
        timesteps = values_per_sample(getattr(timestep, "timesteps", timestep), "timestep", batch, pyramid[0].device)
        micro = micro_conditions(added_cond_kwargs, self.micro_conditioning_names, batch, timesteps.device)
        text = self._text(encoder_hidden_states, encoder_attention_mask, batch, dtype)
        pooled = self._pooled(text, class_labels, batch, dtype)
        texts = [None if text is None else text.first_samples(level.shape[0]) for level in pyramid]

        predictions, features = self._reused(pyramid, timesteps)
        # In: from the outermost level to the innermost one that runs.
        inward = None
        encoded: list[Any] = []
        for index in reversed(range(len(predictions), len(pyramid))):
            batch = pyramid[index].shape[0]
            level, num_frames = fold_frames(pyramid[index]) if is_clip else (pyramid[index], 1)
            hidden_states, skips, inward, embedding = self.levels[index](
                "encode",
                level,
                inward,
                timesteps[:batch],
                {key: value[:batch] for key, value in micro.items()},
                None if pooled is None else pooled[:batch],
                texts[index],
                num_frames,
                None if is_clip else modulations_of(timestep, index, batch),
            )
            encoded.insert(0, (hidden_states, skips, embedding, num_frames))
        # Out: from the innermost level that runs to the outermost one.
        for index, (hidden_states, skips, embedding, num_frames) in enumerate(encoded, start=len(predictions)):
            prediction, features = self.levels[index](
                "decode", hidden_states, skips, features, embedding, texts[index], num_frames
            )
            predictions.append(self._bound(unfold_frames(prediction, num_frames) if is_clip else prediction))
            if self.inner_cache is not None:
                self.inner_cache.keep(predictions, features, pyramid, timesteps)

        output = predictions[0] if is_tensor else predictions
        return NestedUNetOutput(sample=output) if return_dict else (output,)

    def _reused(self, pyramid: Pyramid, timesteps: torch.Tensor) -> tuple[Pyramid, torch.Tensor | None]:
        """Return cached predictions of inner levels that need not run, and the features for the next level, if any."""
        return ([], None) if self.inner_cache is None else self.inner_cache.reused(pyramid, timesteps)

    def _reset_stateful_cache(self, recurse: bool = True) -> None:
        """Discard the cached results of inner levels; diffusers' pipelines call this after each sampling run."""
        if self.inner_cache is not None:
            self.inner_cache.forget()

    def _bound(self, prediction: torch.Tensor) -> torch.Tensor:
        bound = self.config["output_bound"]
        return prediction if bound is None else torch.tanh(prediction / bound) * bound

    def _text(
        self,
        encoder_hidden_states: torch.Tensor | TextConditioning | None,
        encoder_attention_mask: torch.Tensor | None,
        batch: int,
        dtype: torch.dtype,
    ) -> TextConditioning | None:
        check_text_fits(encoder_hidden_states, self.config["cross_attention_dim"] is not None)
        if encoder_hidden_states is None:
            return None
        text = encoder_hidden_states
        if not isinstance(text, TextConditioning):
            text = self._encode_text(text.to(dtype), encoder_attention_mask, with_keys_values=False)
        if text.hidden_states.shape[0] != batch:
            raise ValueError(
                f"`encoder_hidden_states` has a batch of {text.hidden_states.shape[0]}, level 0 of `sample` one of "
                f"{batch}; pass one text for each sample."
            )
        return text

    def _pooled(
        self, text: TextConditioning | None, class_labels: torch.Tensor | None, batch: int, dtype: torch.dtype
    ) -> torch.Tensor | None:
        check_classes(class_labels, self.config["num_class_embeds"])
        pooled = None if text is None else text.pooled
        if class_labels is None:
            return pooled
        labels = self.class_embedding(expand_to_batch(class_labels, batch, "class_labels")).to(dtype)
        return labels if pooled is None else pooled + labels
