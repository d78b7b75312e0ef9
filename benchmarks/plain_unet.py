# SPDX-License-Identifier: Apache-2.0
"""The published semantics in plain form: what `NestedUNetModel` is timed against.

The same weights and the same numbers, each operation written as the formula has it: images in NCHW, attention as
einsum with a softmax in float32, norm, scale, shift and activation one after another, pixels doubled before they are
convolved, texts projected at every call. Models of images only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from diffusers_mdm import LevelConfig, NestedUNetModel

Text = tuple[torch.Tensor, torch.Tensor | None]  # states (B, L, D), and the mask (B, L) that attention uses


class PlainUNet(nn.Module):
    """A model of images, computed from the weights of another one.

    Args:
        model: whose config and weights; they are copied.
    """

    def __init__(self, model: NestedUNetModel) -> None:
        super().__init__()
        self.config = dict(model.config)
        self.level_configs: Sequence[LevelConfig] = model.level_configs
        # Names of parameters have no dots.
        self.weights = nn.ParameterDict(
            {
                _key(name): nn.Parameter(value.detach().clone(memory_format=torch.contiguous_format))
                for name, value in model.named_parameters()
            }
        )
        # Layers of each block by kind, such as "levels.0.encoder.down_blocks.1.attentions".
        self.numbers: dict[str, int] = {}
        for name in self.weights:
            path, found, rest = name.rpartition("/resnets/" if "/resnets/" in name else "/attentions/")
            if found:
                block = f"{path}{found.rstrip('/')}".replace("/", ".")
                self.numbers[block] = max(self.numbers.get(block, 0), int(rest.partition("/")[0]) + 1)

    def weight(self, name: str) -> torch.Tensor | None:
        """A parameter by its name in `NestedUNetModel`; None if there is none."""
        return self.weights.get(_key(name), None)

    # Layers

    def linear(self, name: str, states: torch.Tensor) -> torch.Tensor:
        """The linear layer `name`."""
        return F.linear(states, self.weights[_key(f"{name}.weight")], self.weight(f"{name}.bias"))

    def conv(self, name: str, states: torch.Tensor, stride: int = 1) -> torch.Tensor:
        """The convolution `name`, 3 x 3 or 1 x 1; linear layers are 1 x 1 convolutions of images."""
        kernel = self.weights[_key(f"{name}.weight")]
        kernel = kernel[:, :, None, None] if kernel.ndim == 2 else kernel
        return F.conv2d(states, kernel, self.weight(f"{name}.bias"), stride=stride, padding=kernel.shape[-1] // 2)

    def norm(self, name: str, states: torch.Tensor, num_groups: int) -> torch.Tensor:
        """The group norm `name`."""
        return F.group_norm(
            states, num_groups, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"), self.config["norm_eps"]
        )

    def layer_norm(self, name: str, states: torch.Tensor) -> torch.Tensor:
        """The layer norm `name`."""
        return F.layer_norm(
            states,
            states.shape[-1:],
            self.weight(f"{name}.weight"),
            self.weight(f"{name}.bias"),
            self.config["norm_eps"],
        )

    def residual(self, name: str, states: torch.Tensor, embedding: torch.Tensor, num_groups: int) -> torch.Tensor:
        """A residual layer (ml-mdm, ResNet)."""
        hidden = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", states, num_groups)))
        scale, shift = self.linear(f"{name}.time_emb_proj", F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        hidden = F.silu(self.norm(f"{name}.norm2", hidden, num_groups) * (1 + scale) + shift)
        hidden = self.conv(f"{name}.conv2", hidden)
        if self.weight(f"{name}.conv_shortcut.weight") is not None:
            states = self.conv(f"{name}.conv_shortcut", states)
        return states + hidden

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Softmax in float32 over `(B, C, N)` and `(B, C, M)`, heads of neighbouring channels; mask `(B, M)`."""
        heads = self.config["num_attention_heads"]
        query, key, value = (states.unflatten(1, (heads, -1)) for states in (query, key, value))
        scale = query.shape[2] ** -0.25
        scores = torch.einsum("bhdn,bhdm->bhnm", query * scale, key * scale)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
        weights = scores.float().softmax(dim=-1).to(scores.dtype)
        return torch.einsum("bhnm,bhdm->bhdn", weights, value).flatten(1, 2)

    def attention(self, name: str, states: torch.Tensor, text: Text | None) -> torch.Tensor:
        """Attention among the pixels and to the text: one query, two softmaxes (ml-mdm, Spatial attention)."""
        groups, shape = self.config["attention_norm_num_groups"], states.shape[2:]
        normed = self.norm(f"{name}.norm", states, groups)
        query, key, value = (self.conv(f"{name}.attn.{part}", normed).flatten(2) for part in ("to_q", "to_k", "to_v"))
        attended = self.attend(query, key, value)
        if text is not None:
            tokens = self.layer_norm(f"{name}.attn.norm_encoder", text[0])
            key, value = (self.linear(f"{name}.attn.{part}", tokens).mT for part in ("add_k_proj", "add_v_proj"))
            attended = attended + self.attend(query, key, value, text[1])
        states = states + self.conv(f"{name}.attn.to_out.0", attended.unflatten(2, shape))
        if self.weight(f"{name}.ff.proj_in.weight") is not None:
            hidden = self.conv(f"{name}.ff.proj_in", self.norm(f"{name}.ff.norm", states, groups))
            states = states + self.conv(f"{name}.ff.proj_out", F.gelu(hidden))
        return states

    # What the model is conditioned on

    def read_text(self, states: torch.Tensor, mask: torch.Tensor | None) -> tuple[Text, torch.Tensor]:
        """The text that attention sees, and the vector that is added to the embedding of the time (ml-mdm, Text)."""
        uses_mask = self.config["use_cross_attention_mask"]
        mask = None if mask is None else mask.bool()
        if self.config["encoder_hid_dim"] is not None:
            states = self.linear("encoder_hid_proj", states)
        num_layers = self.config["num_text_layers"]
        for index in range(num_layers):
            name = f"text_layers.{index}"
            normed = self.layer_norm(f"{name}.norm", states)
            parts = (self.linear(f"{name}.attn.{part}", normed).mT for part in ("to_q", "to_k", "to_v"))
            attended = self.attend(*parts, mask if uses_mask else None).mT
            states = states + self.linear(f"{name}.attn.to_out.0", attended)
            hidden = self.linear(f"{name}.ff.proj_in", self.layer_norm(f"{name}.ff.norm", states))
            states = states + self.linear(f"{name}.ff.proj_out", F.gelu(hidden))
        if mask is None or (num_layers and not uses_mask):
            pooled = states.mean(dim=1)
        else:
            weights = mask.to(states.dtype)[..., None]
            pooled = (states * weights).sum(dim=1) / weights.sum(dim=1)
        return (states, mask if uses_mask else None), self.linear("text_embedding", pooled)

    def embed(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """Sines and cosines of `(B,)`, then two linear layers (ml-mdm, Time embedding)."""
        half = self.weights[_key(f"{name}.linear_1.weight")].shape[1] // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=values.device) / half)
        angles = values.float()[:, None] * frequencies
        waves = torch.cat([angles.sin(), angles.cos()], dim=1).to(self.weights[_key(f"{name}.linear_1.weight")].dtype)
        return self.linear(f"{name}.linear_2", F.silu(self.linear(f"{name}.linear_1", waves)))

    def level_embedding(
        self, index: int, timestep: torch.Tensor, conditions: Mapping[str, torch.Tensor], pooled: torch.Tensor | None
    ) -> torch.Tensor:
        """Embedding of time, text and micro-conditions of a level."""
        config, name = self.level_configs[index], f"levels.{index}.embedding"
        embedding = self.embed(f"{name}.time_embedding", timestep)
        if pooled is not None:
            embedding = embedding + pooled
        for key, default in zip(config.micro_conditioning_keys, config.micro_conditioning_defaults, strict=True):
            value = conditions.get(key, torch.full(timestep.shape, default, device=timestep.device)).float()
            value = (value / default).clamp(max=1) * default if key == "scale" else 1000 * value
            embedding = embedding + self.embed(f"{name}.micro_embeddings.{key}", value)
        return embedding

    # Levels

    def layers(
        self, name: str, number: int, states: torch.Tensor, embedding: torch.Tensor, text: Text | None, index: int
    ) -> torch.Tensor:
        """Residual layer `number` of a block and the attention layers that follow it."""
        states = self.residual(
            f"{name}.resnets.{number}", states, embedding, self.level_configs[index].norm_num_groups
        )
        each = self.numbers.get(f"{name}.attentions", 0) // self.numbers[f"{name}.resnets"]
        for position in range(each * number, each * (number + 1)):
            states = self.attention(f"{name}.attentions.{position}", states, text)
        return states

    def encode(
        self,
        index: int,
        sample: torch.Tensor,
        features: torch.Tensor | None,
        embedding: torch.Tensor,
        text: Text | None,
    ) -> list[torch.Tensor]:
        """Way down of a level: all of its skips, the coarsest features last."""
        config, name = self.level_configs[index], f"levels.{index}.encoder"
        if config.normalize_input:
            sample = sample / sample.std(dim=(1, 2, 3), keepdim=True)
        states = self.conv(f"{name}.conv_in", F.pixel_unshuffle(sample, config.patch_size))
        if features is not None:
            missing = states.shape[0] - features.shape[0]
            states = states + torch.cat([features, features.new_zeros(missing, *features.shape[1:])])
        skips = [states]
        for step in range(len(config.block_out_channels)):
            for number in range(config.layers_per_block[step]):
                states = self.layers(f"{name}.down_blocks.{step}", number, states, embedding, text, index)
                skips.append(states)
            if step < len(config.block_out_channels) - 1:
                states = self.conv(f"{name}.down_blocks.{step}.downsamplers.0.conv", states, stride=2)
                skips.append(states)
        return skips

    def decode(
        self,
        index: int,
        skips: list[torch.Tensor],
        features: torch.Tensor | None,
        embedding: torch.Tensor,
        text: Text | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Way up of a level: its prediction and the features that it was made of."""
        config, name, states = self.level_configs[index], f"levels.{index}.decoder", skips[-1]
        if features is not None:
            states = states + self.conv(f"{name}.out_adapter", features[: states.shape[0]])
        if config.has_mid_block:
            groups = config.norm_num_groups
            states = self.residual(f"{name}.mid_block.resnets.0", states, embedding, groups)
            states = self.attention(f"{name}.mid_block.attentions.0", states, text)
            states = self.residual(f"{name}.mid_block.resnets.1", states, embedding, groups)
        remaining, last = list(skips), len(config.block_out_channels) - 1
        for step in range(last + 1):
            block = f"{name}.up_blocks.{step}"
            for number in range(config.layers_per_block[last - step] + 1):
                joined = torch.cat([states, remaining.pop()], dim=1)
                states = self.layers(block, number, joined, embedding, text, index)
            if step < last:
                states = F.interpolate(states, scale_factor=2.0, mode="nearest")
                states = self.conv(f"{block}.upsamplers.0.conv", states)
        last_states = F.silu(self.norm(f"{name}.norm_out", states, config.norm_num_groups))
        return F.pixel_shuffle(self.conv(f"{name}.conv_out", last_states), config.patch_size), states

    def forward(
        self,
        sample: Sequence[torch.Tensor],
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        added_cond_kwargs: Mapping[str, torch.Tensor] | None = None,
    ) -> list[torch.Tensor]:
        """Predictions of every level, innermost first; arguments as in `NestedUNetModel.forward`."""
        text, pooled = None, None
        if encoder_hidden_states is not None:
            text, pooled = self.read_text(encoder_hidden_states, encoder_attention_mask)
        features, encoded = None, []
        for index in reversed(range(len(sample))):
            num_rows = sample[index].shape[0]
            own_text = None if text is None else (text[0][:num_rows], None if text[1] is None else text[1][:num_rows])
            conditions = {key: value[:num_rows] for key, value in (added_cond_kwargs or {}).items()}
            own_pooled = None if pooled is None else pooled[:num_rows]
            embedding = self.level_embedding(index, timestep[:num_rows], conditions, own_pooled)
            skips = self.encode(index, sample[index], features, embedding, own_text)
            features = self.conv(f"levels.{index}.encoder.in_adapter", skips[-1]) if index else None
            encoded.insert(0, (skips, embedding, own_text))
        predictions = []
        for index, (skips, embedding, own_text) in enumerate(encoded):
            prediction, features = self.decode(index, skips, features, embedding, own_text)
            predictions.append(prediction)
        return predictions


def _key(name: str) -> str:
    return name.replace(".", "/")
