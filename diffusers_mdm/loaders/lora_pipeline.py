# SPDX-License-Identifier: Apache-2.0
"""LoRA for pipelines with a `NestedUNetModel`, in diffusers' file format."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.utils import USE_PEFT_BACKEND

from diffusers_mdm.library_internals import FETCH_LORA, SAVE_LORA
from diffusers_mdm.models import NestedUNetModel

from .lora_names import UNET_PREFIX, name_lora_weights

StateDict = dict[str, torch.Tensor]


class MDMLoraLoaderMixin(LoraBaseMixin):
    """Mixin of pipelines that loads, saves, fuses and unfuses LoRA weights of the U-Net.

    Weights are stored in `pytorch_lora_weights.safetensors` under names such as `unet.<module>.lora_A.weight`. Methods
    that scale, select, disable and remove adapters are inherited from diffusers.
    """

    _lora_loadable_modules = ["unet"]
    unet_name = UNET_PREFIX

    @classmethod
    def lora_state_dict(
        cls,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | StateDict,
        return_lora_metadata: bool = False,
        **kwargs: Any,
    ) -> StateDict | tuple[StateDict, dict[str, Any] | None]:
        """Read LoRA weights.

        Args:
            pretrained_model_name_or_path_or_dict: a folder, a file, a repository id, or the weights themselves.
            return_lora_metadata: also return the adapter's settings (rank, alpha, ...) where the file has them.
            kwargs: `weight_name`, `subfolder`, `use_safetensors`, and the arguments of downloads: `cache_dir`,
                `force_download`, `proxies`, `local_files_only`, `token`, `revision`.
        """
        use_safetensors = kwargs.pop("use_safetensors", None)
        options = ("weight_name", "local_files_only", "cache_dir", "proxies", "token", "revision", "subfolder")
        fetch = {name: kwargs.pop(name, None) for name in options}
        force_download = kwargs.pop("force_download", False)
        if kwargs:
            raise ValueError(f"Unknown arguments {sorted(kwargs)} for loading LoRA weights.")
        state_dict, metadata = FETCH_LORA.get()(
            pretrained_model_name_or_path_or_dict,
            use_safetensors=use_safetensors is not False,
            allow_pickle=use_safetensors is None,
            force_download=force_download,
            user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
            **fetch,
        )
        return (state_dict, metadata) if return_lora_metadata else state_dict

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | StateDict,
        adapter_name: str | None = None,
        hotswap: bool = False,
        low_cpu_mem_usage: bool = True,
        **kwargs: Any,
    ) -> None:
        """Load LoRA weights into the U-Net as an adapter and activate it.

        Args:
            pretrained_model_name_or_path_or_dict: see `lora_state_dict`.
            adapter_name: its name in the pipeline; by default `default_0`, `default_1`, ...
            hotswap: replace the weights of the existing adapter of that name, without recompiling.
            low_cpu_mem_usage: do not initialise weights that are overwritten anyway.
            kwargs: passed to `lora_state_dict`.

        Raises:
            ValueError: these are not LoRA weights, they belong to another model, or peft is not installed.
        """
        if not USE_PEFT_BACKEND:
            raise ValueError("LoRA needs the `peft` package; install it with `pip install peft`.")
        weights = pretrained_model_name_or_path_or_dict
        if isinstance(weights, dict):
            weights = dict(weights)  # a copy, because the calls below remove entries
        state_dict, metadata = cast(
            tuple[StateDict, dict[str, Any] | None],
            self.lora_state_dict(weights, return_lora_metadata=True, **kwargs),
        )
        foreign = [key for key in state_dict if "lora" not in key and not key.endswith(".alpha")]
        if foreign or not state_dict:
            raise ValueError(
                f"These are not LoRA weights: every name has to contain 'lora', but {len(foreign)} of "
                f"{len(state_dict)} do not, e.g. {foreign[:3]}."
            )
        self.load_lora_into_unet(
            state_dict,
            unet=self.unet,
            adapter_name=adapter_name,
            metadata=metadata,
            low_cpu_mem_usage=low_cpu_mem_usage,
            hotswap=hotswap,
            _pipeline=self,
        )

    @classmethod
    def load_lora_into_unet(
        cls,
        state_dict: StateDict,
        unet: NestedUNetModel,
        adapter_name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        low_cpu_mem_usage: bool = True,
        hotswap: bool = False,
        _pipeline: Any = None,
    ) -> None:
        """Load LoRA weights into a model.

        Args:
            state_dict: the weights, with the names of this package or of another tool (see `lora_names`).
            unet: the model.
            adapter_name: see `load_lora_weights`.
            metadata: the adapter's settings; without them rank and alpha are inferred from the weights.
            low_cpu_mem_usage: see `load_lora_weights`.
            hotswap: see `load_lora_weights`.
            _pipeline: the pipeline whose offloading has to be suspended meanwhile.

        Raises:
            ValueError: names or sizes do not fit the model, or the settings require weights that are missing.
        """
        named = name_lora_weights(state_dict, unet)
        settings = _settings_of_unet(metadata)
        before = set(getattr(unet, "peft_config", {}))
        unet.load_lora_adapter(
            named.weights,
            prefix=cls.unet_name,
            network_alphas=(named.alphas or None) if settings is None else None,
            adapter_name=adapter_name,
            metadata=settings,
            low_cpu_mem_usage=low_cpu_mem_usage,
            hotswap=hotswap,
            _pipeline=_pipeline,
        )
        for added in set(unet.peft_config) - before:
            _refuse_unfilled(unet, added, set(named.weights))

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike,
        unet_lora_layers: Mapping[str, torch.Tensor] | torch.nn.Module | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable[..., None] | None = None,
        safe_serialization: bool = True,
        unet_lora_adapter_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Save LoRA weights in the format that `load_lora_weights` reads.

        Args:
            save_directory: folder, created if missing.
            unet_lora_layers: `peft.get_peft_model_state_dict(unet)`.
            is_main_process: False writes nothing (other processes of a distributed run).
            weight_name: file name, `pytorch_lora_weights.safetensors` by default.
            save_function: used instead of the safetensors writer, called with weights and path.
            safe_serialization: False writes a pickle, which cannot hold metadata.
            unet_lora_adapter_metadata: `unet.peft_config[name].to_dict()`. Without it, an alpha that differs from the
                rank is lost.

        Raises:
            ValueError: `unet_lora_layers` is missing.
        """
        if not unet_lora_layers:
            raise ValueError("There is nothing to save: pass `unet_lora_layers`.")
        if not is_main_process:
            return
        SAVE_LORA.get()(
            save_directory=save_directory,
            lora_layers={cls.unet_name: unet_lora_layers},
            lora_metadata={cls.unet_name: unet_lora_adapter_metadata},
            weight_name=weight_name,
            save_function=save_function,
            safe_serialization=safe_serialization,
        )

    def fuse_lora(
        self,
        components: Sequence[str] = ("unet",),
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Merge the active adapters into the weights, so that they take no extra time.

        Args:
            components: which parts of the pipeline; only the U-Net has LoRA.
            lora_scale: strength of the adapters.
            safe_fusing: refuse weights that would become NaN.
            adapter_names: which adapters; all active ones by default.
            kwargs: deprecated arguments of diffusers.
        """
        super().fuse_lora(
            components=list(components),
            lora_scale=lora_scale,
            safe_fusing=safe_fusing,
            adapter_names=adapter_names,
            **kwargs,
        )

    def unfuse_lora(self, components: Sequence[str] = ("unet",), **kwargs: Any) -> None:
        """Subtract fused adapters from the weights again.

        Args:
            components: which parts of the pipeline; only the U-Net has LoRA.
            kwargs: deprecated arguments of diffusers.
        """
        super().unfuse_lora(components=list(components), **kwargs)


def _settings_of_unet(metadata: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return an adapter's settings as `unet.<name>`, None if there are none for the U-Net."""
    prefix = f"{UNET_PREFIX}."
    settings = dict(metadata or {})
    if "r" in settings:  # written without the name of the component
        settings = {f"{prefix}{name}": value for name, value in settings.items()}
    settings = {name: value for name, value in settings.items() if name.startswith(prefix)}
    return settings or None


def _refuse_unfilled(unet: NestedUNetModel, adapter_name: str, given: set[str]) -> None:
    """Remove an adapter that is incomplete: weights that were not given would be uninitialised or random.

    Raises:
        ValueError: weights of the adapter are missing.
    """
    from peft.utils import get_peft_model_state_dict

    present = {f"{UNET_PREFIX}.{name}" for name in get_peft_model_state_dict(unet, adapter_name=adapter_name)}
    unfilled = sorted(name for name in present - given if ".lora_" in name)
    if not unfilled:
        return
    if len(unet.peft_config) > 1:
        unet.delete_adapters(adapter_name)
    else:
        unet.unload_lora()
    raise ValueError(
        f"The settings of the LoRA require weights that the file does not have, e.g. {unfilled[0]!r} ({len(unfilled)} "
        "tensors). Is the file complete? Save it again with all of its layers, or without `lora_adapter_metadata`."
    )
