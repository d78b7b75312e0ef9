# SPDX-License-Identifier: Apache-2.0
"""Measure how much code a reader has to follow: the modules behind one pipeline call, one optimizer step, and more.

    python benchmarks/reading_paths.py

Prints the modules of the package, and their functions, that run in one call of `MDMPipeline` and in one training step,
in the order in which they are entered; the largest folders; and the base classes of each pipeline. The limits are
enforced by `tests/test_reading_paths.py` and `tests/pipelines/test_modules_of_a_call.py`.
"""

import argparse
import ast
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import diffusers_mdm
from diffusers_mdm import MDMPipeline

PACKAGE = "diffusers_mdm"
ROOT = Path(__file__).parents[1]
MODEL = ROOT / "model_cards" / "mdm-emoji-64"


@contextlib.contextmanager
def modules_entered(entered: dict[str, list[str]], inside: str | None = None) -> Iterator[None]:
    """Collect the package's modules whose functions are called in the block, in the order of the first call.

    Args:
        entered: maps their names, without the name of the package, to the names of the functions that were called.
        inside: count only while the function of this name runs.
    """
    depth = 0

    def look(frame: FrameType, event: str, _: Any) -> None:
        nonlocal depth
        module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        if not module.startswith(f"{PACKAGE}."):
            return
        if function == inside:
            depth += {"call": 1, "return": -1}.get(event, 0)
        if event != "call" or (inside is not None and not depth) or is_import(frame) or is_generated(frame):
            return
        functions = entered.setdefault(module.removeprefix(f"{PACKAGE}."), [])
        if function not in functions:
            functions.append(function)

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(before)


def is_import(frame: FrameType) -> bool:
    """Whether a module is being imported, or looked for: what is imported on the way does not count."""
    caller = frame.f_back
    by_importlib = caller is not None and caller.f_globals.get("__name__", "").startswith("importlib.")
    return frame.f_code.co_name == "<module>" or by_importlib


def is_generated(frame: FrameType) -> bool:
    """Whether a function has no line in any file, like the constructor that `dataclass` writes: there is nothing to
    read.
    """
    return frame.f_code.co_filename == "<string>"


def modules_of_a_drawing(pipeline: MDMPipeline, prompt: str) -> dict[str, list[str]]:
    """Return the modules, and their functions, that a guided pipeline call of two steps runs through, apart from work
    that is done only once.
    """
    pipeline.set_progress_bar_config(disable=True)
    entered: dict[str, list[str]] = {}
    for counted in ({}, entered):
        with modules_entered(counted):
            pipeline(prompt, num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    return entered


def modules_of_a_step(train: Callable[[], object]) -> dict[str, list[str]]:
    """Return the modules, and their functions, that `optimizer_step` runs through, from batches to new weights and
    averages, while `train` runs.
    """
    entered: dict[str, list[str]] = {}
    with modules_entered(entered, inside="optimizer_step"):
        train()
    return entered


def folder_sizes() -> dict[str, int]:
    """Count the modules in each folder of the package, without `__init__.py`."""
    found: dict[str, int] = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        if path.name != "__init__.py":
            folder = path.parent.relative_to(ROOT / PACKAGE).as_posix()
            found[folder] = found.get(folder, 0) + 1
    return found


def classes_above(cls: type) -> list[str]:
    """Return the package's own classes that a class inherits from."""
    return [base.__name__ for base in cls.__mro__[1:] if base.__module__.split(".")[0] == PACKAGE]


def pipelines() -> list[type]:
    """Return the public pipelines."""
    return [
        getattr(diffusers_mdm, name)
        for name in diffusers_mdm.__all__
        if name.startswith("MDM") and name.endswith("Pipeline")
    ]


def import_graph() -> dict[str, set[str]]:
    """Map each module of the package to those it imports anywhere: at the top, for type checking, in functions."""
    files = {module_name(path): path for path in (ROOT / PACKAGE).rglob("*.py")}
    return {name: set(_imported(name, path, files)) - {name} for name, path in files.items()}


def module_name(path: Path) -> str:
    """Return the name of a module in the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(name: str, path: Path, files: dict[str, Path]) -> Iterator[str]:
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                inside = f"{source}.{alias.name}"
                if inside in files or source in files:
                    yield inside if inside in files else source


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the import cycles: groups of modules that all import each other, directly or indirectly."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting += graph[module]
        reach[start] = seen
    groups = {tuple(sorted(other for other in reach[name] if name in reach[other])) for name in graph}
    return [list(group) for group in sorted(groups) if group]


def train_tiny(output_dir: Path) -> None:
    """Train two steps of each stage of the shipped tiny recipe."""
    from diffusers_mdm.training.loop.engine import run_recipe
    from diffusers_mdm.training.recipe.loading import load_recipe
    from diffusers_mdm.training.state.run import RunOptions

    options = RunOptions(output_dir=output_dir, report_to=None, max_train_steps=2, logging_steps=1)
    run_recipe(load_recipe(ROOT / "training" / "recipes" / "tiny.yaml"), options)


def main() -> None:
    """Measure and print."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    drawing = modules_of_a_drawing(MDMPipeline.from_pretrained(MODEL, dtype=torch.float32), "strawberry, 3d render")
    with tempfile.TemporaryDirectory() as folder:
        step = modules_of_a_step(lambda: train_tiny(Path(folder) / "run"))
    for what, modules in (("one call of MDMPipeline", drawing), ("one optimizer step", step)):
        print(f"{what} runs through {len(modules)} modules:")
        for module, functions in modules.items():
            print(f"  {module}: {', '.join(name for name in functions if not name.startswith('<'))}")
    largest = sorted(folder_sizes().items(), key=lambda entry: -entry[1])[:5]
    print("largest folders: " + ", ".join(f"{folder} {size}" for folder, size in largest))
    for pipeline in pipelines():
        print(f"above {pipeline.__name__}: {', '.join(classes_above(pipeline)) or 'nothing of ours'}")
    print(f"circles of imports: {circles(import_graph()) or 'none'}")


if __name__ == "__main__":
    main()
