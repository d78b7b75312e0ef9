# SPDX-License-Identifier: Apache-2.0
"""LoRA for pipelines around `NestedUNetModel`, in diffusers' file format."""

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
    """Load LoRA weights into the U-Net of a pipeline, save, fuse and remove them.

    Weights are kept in `pytorch_lora_weights.safetensors` under `unet.<module>.lora_A.weight`; scaling, choosing,
    disabling and removing adapters is inherited from diffusers.
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
            kwargs: `weight_name`, `subfolder`, `use_safetensors`, and what downloads take: `cache_dir`,
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
            hotswap: put the weights in the place of those of the adapter of that name, without recompiling.
            low_cpu_mem_usage: do not initialise weights that are replaced anyway.
            kwargs: passed to `lora_state_dict`.

        Raises:
            ValueError: these are no LoRA weights, they belong to another model, or peft is missing.
        """
        if not USE_PEFT_BACKEND:
            raise ValueError("LoRA needs the `peft` package; install it with `pip install peft`.")
        weights = pretrained_model_name_or_path_or_dict
        if isinstance(weights, dict):
            weights = dict(weights)  # what follows takes entries out
        state_dict, metadata = cast(
            tuple[StateDict, dict[str, Any] | None],
            self.lora_state_dict(weights, return_lora_metadata=True, **kwargs),
        )
        foreign = [key for key in state_dict if "lora" not in key and not key.endswith(".alpha")]
        if foreign or not state_dict:
            raise ValueError(
                "These are no LoRA weights: every name has to contain 'lora', but there are "
                f"{len(foreign)} other names of {len(state_dict)}, e.g. {foreign[:3]}."
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
            state_dict: weights, by the names that they have in this package or in another tool (see `lora_names`).
            unet: the model.
            adapter_name: see `load_lora_weights`.
            metadata: the adapter's settings; without them rank and alpha are read off the weights.
            low_cpu_mem_usage: see `load_lora_weights`.
            hotswap: see `load_lora_weights`.
            _pipeline: the pipeline whose offloading has to pause meanwhile.

        Raises:
            ValueError: names or sizes that do not fit the model, or settings that ask for weights that are not there.
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
        """Save LoRA weights as `load_lora_weights` reads them.

        Args:
            save_directory: folder, made if missing.
            unet_lora_layers: `peft.get_peft_model_state_dict(unet)`.
            is_main_process: False writes nothing (other processes of a distributed run).
            weight_name: file name, `pytorch_lora_weights.safetensors` by default.
            save_function: in place of the safetensors writer, called with weights and path.
            safe_serialization: False writes a pickle, which cannot hold metadata.
            unet_lora_adapter_metadata: `unet.peft_config[name].to_dict()`. Without it an alpha that differs from the
                rank is lost.

        Raises:
            ValueError: there are no layers to save.
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
        """Add the active adapters to the weights, so that they cost no time.

        Args:
            components: which parts of the pipeline; only the U-Net has LoRA.
            lora_scale: strength.
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
        """Take fused adapters out of the weights again.

        Args:
            components: which parts of the pipeline; only the U-Net has LoRA.
            kwargs: deprecated arguments of diffusers.
        """
        super().unfuse_lora(components=list(components), **kwargs)


def _settings_of_unet(metadata: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """An adapter's settings as `unet.<name>`; `None` if there are none for the U-Net."""
    prefix = f"{UNET_PREFIX}."
    settings = dict(metadata or {})
    if "r" in settings:  # written without saying for which part
        settings = {f"{prefix}{name}": value for name, value in settings.items()}
    settings = {name: value for name, value in settings.items() if name.startswith(prefix)}
    return settings or None


def _refuse_unfilled(unet: NestedUNetModel, adapter_name: str, given: set[str]) -> None:
    """Take an adapter out again some of whose weights were not given: they would hold no values, or random ones.

    Raises:
        ValueError: there are such layers.
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
        f"The settings of the LoRA ask for weights that it does not have, e.g. {unfilled[0]!r} ({len(unfilled)} "
        "tensors). Is the file complete? Save it again with all of its layers, or without `lora_adapter_metadata`."
    )
