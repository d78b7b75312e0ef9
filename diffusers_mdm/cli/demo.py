# SPDX-License-Identifier: Apache-2.0
"""`diffusers-mdm demo`: a web page on which every level of a drawing can be watched, or a Hugging Face Space of it."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..command_parsing import command_parser
from ..training.commands.flag_values import count

DESCRIPTION = """\
Open a web page that draws with saved models, and shows all levels side by side at every step.

  {0} my-model
  {0} my-model my-classes my-clips --max_steps 100
  {0} my-model --write_space my-space

The page has a tab for each task that one of the models can do: text to image, classes, upscaling, editing, clips. One
drawing runs at a time; others wait. Only this machine can connect, unless --host says otherwise, and nothing is
reported to anybody. Ctrl-C ends it.
"""
LOOPBACK = "127.0.0.1"
DTYPES = ("float32", "bfloat16", "float16")
# Flags of limits, and the fields of `Limits` that they set.
LIMITS = {
    "max_steps": ("steps", "denoising steps (default 250)"),
    "max_side": ("side", "pixels along a side; levels beyond it are not offered (default 1024)"),
    "max_images": ("images", "images per drawing (default 4)"),
    "max_prompt_length": ("prompt_length", "characters of a prompt (default 500)"),
    "max_waiting": ("waiting", "drawings in the queue; further ones are turned away (default 16)"),
    "max_upload": ("upload_megabytes", "megabytes of an uploaded image (default 20)"),
}


def build_parser(program: str) -> argparse.ArgumentParser:
    """Return the parser."""
    parser = command_parser(program, DESCRIPTION.format(program), max_help_position=32)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="pipeline folders or Hub ids")
    server = parser.add_argument_group("server")
    server.add_argument(
        "--host", default=LOOPBACK, metavar="ADDRESS", help="0.0.0.0 lets other machines connect (default 127.0.0.1)"
    )
    server.add_argument("--port", type=count, metavar="N", help="(default: the first free one from 7860)")
    server.add_argument("--open_browser", action="store_true", help="open the page in a browser")
    server.add_argument(
        "--write_space", type=Path, metavar="FOLDER", help="write a Hugging Face Space instead of starting a server"
    )
    limits = parser.add_argument_group("limits for one visitor")
    for name, (_, text) in LIMITS.items():
        limits.add_argument(f"--{name}", type=count, metavar="N", help=text)
    machine = parser.add_argument_group("models and machine")
    machine.add_argument("--dtype", choices=DTYPES, default="float32", help="of the models (default float32)")
    machine.add_argument("--device", metavar="NAME", help="cuda, mps or cpu, for example (default: an accelerator)")
    return parser


def run(program: str, arguments: Sequence[str]) -> int:
    """Serve the page until it is interrupted, or write a Space."""
    args = build_parser(program).parse_args(arguments)
    if args.write_space is not None:
        from .space_folder import write_space

        write_space(args.write_space, args.models)
        print(f"Wrote {args.write_space}; push it to a Space of kind Gradio.")
        return 0
    from ..web.serving import serve

    given = {field: getattr(args, name) for name, (field, _) in LIMITS.items() if getattr(args, name) is not None}
    limits = _limits(given)
    models = open_models(args.models, limits, args.dtype, args.device)
    serve(models, limits, args.host, args.port, inbrowser=args.open_browser)
    return 0


def _limits(given: dict[str, int]) -> Any:
    from ..web.limits import Limits

    return Limits(**given)


def open_models(
    sources: Sequence[str], limits: Any, dtype: str = "float32", device: str | None = None
) -> dict[str, Any]:
    """Load models for the page.

    Args:
        sources: pipeline folders or Hub ids.
        limits: `Limits` of the page.
        dtype: of all components, by its name in PyTorch.
        device: None for the accelerator of this machine, else the CPU.

    Returns:
        A `ServedModel` for each, by the last part of its path.

    Raises:
        ValueError: one is not a pipeline of this package, or two have the same name.
    """
    import torch

    from ..web.served_model import ServedModel
    from .saved_pipelines import default_device, open_pipeline

    models: dict[str, Any] = {}
    for source in sources:
        name = Path(source).resolve().name if Path(source).is_dir() else source.rpartition("/")[2]
        if name in models:
            raise ValueError(f"Two models are called {name!r}; rename one of the folders.")
        pipeline = open_pipeline(source, getattr(torch, dtype)).to(device or default_device())
        models[name] = ServedModel(name, pipeline, limits)
    return models
