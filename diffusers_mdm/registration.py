# SPDX-License-Identifier: Apache-2.0
"""Registration of this package's classes with diffusers, so that it finds them as its own."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import torch
from diffusers.utils import logging

from diffusers_mdm.library_internals import LOADABLE_CLASSES, SINGLE_FILE_CLASSES, Internal
from diffusers_mdm.models import NestedUNetModel
from diffusers_mdm.models.loading.single_file import register_checkpoint_reader
from diffusers_mdm.pipelines import (
    MDMClassConditionalPipeline,
    MDMImg2ImgPipeline,
    MDMInpaintPipeline,
    MDMPipeline,
    MDMSuperResolutionPipeline,
    MDMUnconditionalPipeline,
    MDMUpscalePipeline,
    MDMVideoPipeline,
)
from diffusers_mdm.schedulers import MatryoshkaScheduler

logger = logging.get_logger(__name__)

PACKAGE = __name__.partition(".")[0]
AUTO_PIPELINES = "diffusers.pipelines.auto_pipeline"
# The name of the model in diffusers' auto pipelines.
AUTO_NAME = "mdm"
# diffusers' table for each task, and our pipeline for the task.
AUTO_TASKS = {
    "AUTO_TEXT2IMAGE_PIPELINES_MAPPING": MDMPipeline,
    "AUTO_IMAGE2IMAGE_PIPELINES_MAPPING": MDMImg2ImgPipeline,
    "AUTO_INPAINT_PIPELINES_MAPPING": MDMInpaintPipeline,
    "AUTO_TEXT2VIDEO_PIPELINES_MAPPING": MDMVideoPipeline,
}
# Tasks for which diffusers has no table.
OTHER_PIPELINES = (
    MDMClassConditionalPipeline,
    MDMUnconditionalPipeline,
    MDMUpscalePipeline,
    MDMSuperResolutionPipeline,
)
PIPELINES = (*AUTO_TASKS.values(), *OTHER_PIPELINES)
# Names of the methods that save and load a class, by the base class that diffusers looks up in the package root.
LOADABLE_BASES = ("ModelMixin", "SchedulerMixin", "DiffusionPipeline")


def register_with_diffusers() -> None:
    """Add the classes to the registries of diffusers. Calling it again changes nothing.

    Afterwards `DiffusionPipeline`, `AutoPipelineForText2Image`, `AutoPipelineForImage2Image`,
    `AutoPipelineForInpainting` and `AutoModel` load what this package has saved, `NestedUNetModel.from_single_file`
    reads published checkpoints, and Hub repositories that name this package are accepted.
    """
    for registered in (NestedUNetModel, MatryoshkaScheduler, *PIPELINES):
        setattr(diffusers, registered.__name__, registered)
    for pipeline in PIPELINES:
        setattr(diffusers.pipelines, pipeline.__name__, pipeline)
    _enter(LOADABLE_CLASSES, PACKAGE, {base: ["save_pretrained", "from_pretrained"] for base in LOADABLE_BASES})
    single_file = {
        "checkpoint_mapping_fn": _map_published_checkpoint,
        "config_mapping_fn": _map_published_config,
        "default_subfolder": "unet",
    }
    _enter(SINGLE_FILE_CLASSES, NestedUNetModel.__name__, single_file)
    register_checkpoint_reader(NestedUNetModel.__name__, _read_published_checkpoint)
    if AUTO_PIPELINES in sys.modules:
        _register_auto_pipeline(sys.modules[AUTO_PIPELINES])
    elif not any(isinstance(finder, _AutoPipelineFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AutoPipelineFinder())


def _enter(table: Internal, name: str, value: Any) -> None:
    """Add an entry to a table of diffusers; if the table has moved, warn and continue without it."""
    try:
        table.get()[name] = value
    except ImportError as error:
        logger.warning(str(error))


def _read_published_checkpoint(path: Path, state_dict_key: str | None = None) -> dict[str, Any]:
    from diffusers_mdm.conversion.apple_mdm import read_single_file

    return read_single_file(path, state_dict_key)


def _map_published_checkpoint(checkpoint: Mapping[str, Any], **kwargs: Any) -> dict[str, torch.Tensor]:
    from diffusers_mdm.conversion.apple_mdm import map_single_file_checkpoint

    return map_single_file_checkpoint(checkpoint, **kwargs)


def _map_published_config(original_config: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    from diffusers_mdm.conversion.apple_mdm import map_single_file_config

    return map_single_file_config(original_config, checkpoint)


def _register_auto_pipeline(module: Any) -> None:
    for table, pipeline in AUTO_TASKS.items():
        _enter(Internal(AUTO_PIPELINES, table, f"load {pipeline.__name__} by task"), AUTO_NAME, pipeline)
    # diffusers looks up the model's name by the class of the pipeline to convert, in any of its tables.
    if not isinstance(getattr(module, "SUPPORTED_TASKS_MAPPINGS", None), list):
        logger.warning(
            f"diffusers has no list `{AUTO_PIPELINES}.SUPPORTED_TASKS_MAPPINGS`; `from_pipe` of its auto pipelines "
            f"will not find the pipelines of diffusers_mdm."
        )
        return
    known = {pipeline for table in module.SUPPORTED_TASKS_MAPPINGS for pipeline in table.values()}
    module.SUPPORTED_TASKS_MAPPINGS += [{AUTO_NAME: other} for other in OTHER_PIPELINES if other not in known]


class _AutoPipelineFinder(importlib.abc.MetaPathFinder):
    """An import hook that registers the pipelines once diffusers' auto pipelines are imported.

    Importing those here would import every pipeline of diffusers, which takes longer than importing this package.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != AUTO_PIPELINES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    """A module loader that registers the pipelines in the module it has loaded."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _register_auto_pipeline(module)
