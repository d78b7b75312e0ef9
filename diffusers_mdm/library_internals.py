# SPDX-License-Identifier: Apache-2.0
"""Every use that this package makes of private or undocumented parts of other libraries.

When a new release moves one of these parts, only the function that needs it fails, with one clear sentence; `import
diffusers_mdm` still works. `tests/test_library_internals.py` checks that each part exists.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
from collections.abc import Iterable, Mapping
from typing import Any

import torch


@dataclasses.dataclass(frozen=True)
class Internal:
    """A private part of a library, which may move without notice.

    Args:
        module: where it is.
        name: its name in the module, with dots for parts of a class.
        purpose: what does not work without it, as in "cannot <purpose>".
        older_name: its name in older releases that are still supported.
    """

    module: str
    name: str
    purpose: str
    older_name: str | None = None

    def name_here(self) -> str:
        """The name that the installed release has for it."""
        if self.older_name is None or hasattr(importlib.import_module(self.module), self.name):
            return self.name
        return self.older_name

    def get(self) -> Any:
        """Return the part itself.

        Raises:
            ImportError: the installed release of the library no longer has it.
        """
        library = self.module.partition(".")[0]
        try:
            found: Any = importlib.import_module(self.module)
            for step in self.name_here().split("."):
                found = getattr(found, step)
        except (ImportError, AttributeError) as error:
            raise ImportError(
                f"{library} {importlib.metadata.version(library)} has no `{self.module}.{self.name}`, without which "
                f"diffusers_mdm cannot {self.purpose}. Install a release of {library} that was tested with it (see "
                f"constraints.txt), or a newer diffusers_mdm."
            ) from error
        return found


FETCH_LORA = Internal("diffusers.loaders.lora_base", "_fetch_state_dict", "read LoRA files")
SAVE_LORA = Internal("diffusers.loaders.lora_base", "LoraBaseMixin._save_lora_weights", "save LoRA files")
LOADABLE_CLASSES = Internal(
    "diffusers.pipelines.pipeline_loading_utils", "LOADABLE_CLASSES", "load its pipelines by `DiffusionPipeline`"
)
SINGLE_FILE_CLASSES = Internal(
    "diffusers.loaders.single_file_model", "SINGLE_FILE_LOADABLE_CLASSES", "read published checkpoints as single files"
)
COMPATIBLE_SCHEDULERS = Internal(
    "diffusers.schedulers.scheduling_utils", "SchedulerMixin._get_compatibles", "name compatible schedulers"
)
GRAPH_LIMIT = Internal(
    "torch._dynamo.config",
    "recompile_limit",
    "compile a model for several batches and sizes",
    older_name="cache_size_limit",  # torch 2.6
)
MARK_DYNAMIC = Internal("torch._dynamo", "maybe_mark_dynamic", "compile a model for texts of several lengths")
FAKE_TENSORS = Internal("torch._subclasses.fake_tensor", "FakeTensorMode", "estimate the memory that training takes")
FOREACH_SUB = Internal("torch", "_foreach_sub", "average weights in few kernels")
FOREACH_SUB_IN_PLACE = Internal("torch", "_foreach_sub_", FOREACH_SUB.purpose)
STORAGE_ADDRESS = Internal("torch", "UntypedStorage._cdata", "estimate the memory that training takes")
INTERNALS = (
    FETCH_LORA,
    SAVE_LORA,
    LOADABLE_CLASSES,
    SINGLE_FILE_CLASSES,
    COMPATIBLE_SCHEDULERS,
    GRAPH_LIMIT,
    MARK_DYNAMIC,
    FAKE_TENSORS,
    FOREACH_SUB,
    FOREACH_SUB_IN_PLACE,
    STORAGE_ADDRESS,
)
# Attributes that subclasses of diffusers' classes set or read, although their names are private; diffusers' own
# models, attention layers and pipelines do so too.
OF_SUBCLASSES = tuple(
    Internal(module, name, "do what its models and pipelines do in diffusers")
    for module, cls, names in (
        (
            "diffusers",
            "ModelMixin",
            (
                "_supports_gradient_checkpointing",
                "_no_split_modules",
                "_repeated_blocks",
                "_skip_layerwise_casting_patterns",
                "_supports_group_offloading",
                "_set_gradient_checkpointing",
            ),
        ),
        ("diffusers", "DiffusionPipeline", ("_execution_device", "_optional_components")),
        ("diffusers", "SchedulerMixin", ("_compatibles",)),
        (
            "diffusers.models.attention",
            "AttentionModuleMixin",
            ("_default_processor_cls", "_available_processors", "fused_projections"),
        ),
        ("diffusers.loaders.lora_base", "LoraBaseMixin", ("_lora_loadable_modules",)),
    )
    for name in (f"{cls}.{name}" for name in names)
)

# The config key in which diffusers lists which values were not passed but are defaults.
DEFAULTED_KEYS = "_use_default_values"
# The config key in which diffusers keeps the argument of `from_pretrained`.
ORIGIN_KEY = "_name_or_path"
# The attribute in which diffusers keeps the config of a model, pipeline or scheduler.
_CONFIG = "_internal_dict"
# The attributes under which accelerate and diffusers attach hooks to the modules that they move.
_HOOKS = ("_hf_hook", "_diffusers_hook")
# The attribute that holds the original model inside a compiled one.
_COMPILED_MODEL = "_orig_mod"


def raise_graph_limit(limit: int) -> None:
    """Raise torch's limit on graphs per function to `limit`, for functions of torch that have no such argument."""
    current = GRAPH_LIMIT.get()
    settings = importlib.import_module(GRAPH_LIMIT.module)
    setattr(settings, GRAPH_LIMIT.name_here(), max(current, limit))


def subtract_each(ours: list[torch.Tensor], theirs: list[torch.Tensor], share: float) -> None:
    """Compute ours -= share * (ours - theirs) for every pair of tensors, with a few kernels for all of them."""
    FOREACH_SUB_IN_PLACE.get()(ours, FOREACH_SUB.get()(ours, theirs), alpha=share)


def storage_address(tensor: torch.Tensor) -> int:
    """Return a number that identifies a tensor's storage while it is alive, also for fake tensors."""
    return int(getattr(tensor.untyped_storage(), STORAGE_ADDRESS.name.rpartition(".")[2]))


def replace_config(module: Any, config: Mapping[str, Any]) -> None:
    """Replace the (frozen) config of a diffusers model; `register_to_config` can add keys, but not remove any."""
    setattr(module, _CONFIG, config)


def is_hooked(modules: Iterable[Any]) -> bool:
    """Return whether hooks move or cast any of the modules (offloading, device maps, layerwise casting)."""
    return any(hasattr(module, name) for module in modules for name in _HOOKS)


def group_offload_folder(module: Any) -> str | None:
    """Return the folder where diffusers' group offloading keeps a module's weights on disk, None if it does not."""
    registry = getattr(module, _HOOKS[1], None)
    hook = None if registry is None else registry.get_hook("group_offloading")
    return None if hook is None else hook.config.offload_to_disk_path


def inside_of(model: Any) -> Any:
    """Return the model inside a compiled or distributed wrapper, or the model itself if it has none."""
    return getattr(model, _COMPILED_MODEL, getattr(model, "module", model))
