# SPDX-License-Identifier: Apache-2.0
"""What all benchmarks of speed do with a plain and our own form of one computation, on a processor or a GPU.

Both take turns in one run. A form that does not fit into memory is left out, and the row says so.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from machine import clock_of, describe_machine, matrix_rate
from measured_models import NAMES
from measuring import count_flops, memory_format_on, ratio_of_medians, time_by_turns
from results_table import Results, summary

from diffusers_mdm import NestedUNetModel

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
WAYS_TO_COMPILE = ("none", "regional", "full", "cuda_graphs")
BACKEND = "inductor"
MIB = 2**20
OUT_OF_MEMORY = "out of memory"
COLUMNS = (  # of the printed table
    *("model", "images", "rows", "steps", "compile", "plain", "ours", "plain / ours"),
    *("ours, images/s", "plain, GFLOP", "ours, GFLOP", "share of the rate of its operations"),
    *("ours, share of the rate of matrix products", "plain, MiB beside the weights", "ours, MiB beside the weights"),
    *("plain, MiB kept for backward", "ours, MiB kept for backward"),
    *("first call, s", "graphs compiled after the first call", "relative difference", "failed"),
)


def add_flags(parser: argparse.ArgumentParser, models: Sequence[str], batch_sizes: Sequence[int], rounds: int) -> None:
    """Add the flags that all benchmarks of speed have."""
    parser.add_argument("--models", nargs="+", default=list(models), choices=NAMES)
    parser.add_argument("--batch_size", type=int, nargs="+", default=list(batch_sizes), help="one or several")
    parser.add_argument("--rounds", type=int, default=rounds, help="times that each form is timed, in turn")
    parser.add_argument("--compile", nargs="+", default=["none"], choices=WAYS_TO_COMPILE, help="a row for each")
    add_machine_flags(parser)


def add_machine_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the machine, the precision and the output."""
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--dtype",
        default="fp32",
        choices=list(DTYPES),
        help="fp32 multiplies in float32, tf32 (GPUs) in its matrix units' shorter format",
    )
    parser.add_argument(
        "--channels_last", action="store_true", help="ours in channels_last on GPUs too; on CPUs it always is"
    )
    parser.add_argument("--commit", help="of this code, where git cannot tell")
    parser.add_argument("--output", help="write the results as JSON, after each row")


def begin(title: str, args: argparse.Namespace) -> Results:
    """Set the precision, measure what the machine can do, and begin a table."""
    torch.manual_seed(0)
    if args.dtype != "bf16":
        torch.set_float32_matmul_precision("high" if args.dtype == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = args.dtype == "tf32"
    machine = describe_machine(args.device, args.commit)
    machine["memory format of ours"] = str(layout_of(args)).removeprefix("torch.")
    args.rate = matrix_rate(args.device, DTYPES[args.dtype])
    machine[f"matrix products in {args.dtype}, TFLOP/s"] = args.rate / 1e12
    return Results(f"{title}, {args.dtype}", machine, args.output, COLUMNS)


def layout_of(args: argparse.Namespace) -> torch.memory_format:
    """The memory format of our form: the one that users get, or that of `--channels_last`."""
    return memory_format_on(args.device, args.channels_last)


def compiled(model: NestedUNetModel, way: str) -> NestedUNetModel:
    """A copy of a model that is compiled in one of `WAYS_TO_COMPILE` at its first call; without, the model itself."""
    torch.compiler.reset()
    if way == "none":
        return model
    other = copy.deepcopy(model)
    if way == "regional":
        other.compile_repeated_blocks(backend=BACKEND, fullgraph=True)
    elif way == "full":
        other.compile(backend=BACKEND, fullgraph=True)
    else:
        other.compile(mode="reduce-overhead", fullgraph=True)
    return other


def num_graphs() -> int:
    """Number of graphs that torch has compiled since the last reset."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def flops_of_batch(call_of: Callable[[int], Callable[[], Any]], rows: int) -> int:
    """Operations of a batch, from those of batches of one and two, which fit into any memory.

    Args:
        call_of: the call for a number of samples.
        rows: number of samples.
    """
    one = count_flops(call_of(1))
    return one if rows == 1 else one + (rows - 1) * (count_flops(call_of(2)) - one)


def compare(
    calls: Mapping[str, Callable[[], Any]], args: argparse.Namespace, flops: Mapping[str, int], images: int
) -> dict[str, Any]:
    """Measure two forms of one computation: the end of a row.

    Args:
        calls: "plain" and "ours"; each returns a number, a tensor or a list of tensors.
        args: flags.
        flops: operations of each.
        images: how many images a call is for.
    """
    clock, row = clock_of(args.device), {}
    outputs: dict[str, list[torch.Tensor]] = {}
    fitting = dict(calls)
    for name, call in calls.items():
        try:
            outputs[name], first = first_call(call, clock)
            if name == "ours":
                row["first call, s"], compiled_before = first, num_graphs()
            # A second call, because the first one prepares workspaces, and CUDA graphs are recorded in it.
            row[f"{name}, MiB beside the weights"] = peak_of(call, args.device)
        except torch.OutOfMemoryError:
            row[name] = OUT_OF_MEMORY
            del fitting[name]
            outputs.pop(name, None)
        release(args.device)
    if "ours" not in fitting:
        return row
    seconds = time_by_turns(fitting, args.rounds, clock)
    row |= {name: summary(values) for name, values in seconds.items()}
    row["graphs compiled after the first call"] = num_graphs() - compiled_before
    if len(seconds) == 2:
        row["plain / ours"] = ratio_of_medians(seconds["plain"], seconds["ours"])
        row["largest difference"], row["relative difference"] = differences(outputs["plain"], outputs["ours"])
    for name, values in seconds.items():
        median = summary(values)["median"]
        row[f"{name}, images/s"] = images / median
        row[f"{name}, GFLOP"] = flops[name] / 1e9
        row[f"{name}, TFLOP/s"] = flops[name] / median / 1e12
        row[f"{name}, share of the rate of matrix products"] = flops[name] / median / args.rate
    return row


def first_call(call: Callable[[], Any], clock: Callable[[], float]) -> tuple[list[torch.Tensor], float]:
    """The output of a call as float32 on the CPU, and how many seconds it took."""
    start = clock()
    output = call()
    seconds = clock() - start
    levels = output if isinstance(output, (list, tuple)) else [torch.as_tensor(output)]
    return [level.detach().float().cpu().clone() for level in levels], seconds


def peak_of(call: Callable[[], Any], device: str) -> float | None:
    """MiB that a call takes at most beside what was there before; None on CPUs, where torch does not count it."""
    if device != "cuda":
        call()
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def release(device: str) -> None:
    """Give cached memory of a GPU back, so that one form does not take it from the other."""
    if device == "cuda":
        torch.cuda.empty_cache()


def differences(plain: Iterable[torch.Tensor], ours: Iterable[torch.Tensor]) -> tuple[float, float]:
    """The largest difference of a number, and the norm of all differences relative to that of the numbers."""
    one, other = (torch.cat([level.flatten() for level in levels]) for levels in (plain, ours))
    return (one - other).abs().max().item(), ((one - other).norm() / one.norm()).item()
