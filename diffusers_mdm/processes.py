# SPDX-License-Identifier: Apache-2.0
"""Starting a run of several processes, and waiting for all of them."""

import datetime
import os
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState

# Environment variables that launchers set for each process, in the order in which accelerate reads them.
_WORLD_SIZE = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE")
_RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
# One process may encode captions or generate images for days while the others wait.
_PATIENCE = datetime.timedelta(days=30)


class OtherProcessEnded(RuntimeError):  # noqa: N818  what it says of another process is the cause, not a kind of error
    """Another process of the run ended while this one was waiting for it."""


def num_launched() -> int:
    """Return the number of processes that the launcher started for this run; 1 without a launcher."""
    return _number(_WORLD_SIZE, 1)


def is_main_launched() -> bool:
    """Return whether this is the first of the launched processes; True without a launcher."""
    return _number(_RANK, 0) == 0


def check_alone() -> None:
    """Refuse to run as one of several processes, for commands that do not share out their work.

    Raises:
        ValueError: says how to start the command.
    """
    if num_launched() > 1:
        raise ValueError(
            f"This command does all its work in one process, but {num_launched()} were launched: start it with "
            f"plain `python`."
        )


def _number(names: tuple[str, ...], default: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), default)


def join_processes(**settings: Any) -> Accelerator:
    """Create this process's `Accelerator`, as one of all processes that were launched.

    Args:
        settings: passed to `Accelerator`.

    Raises:
        ValueError: there are more processes on this machine than GPUs, or they did not find each other.
    """
    accelerator = Accelerator(cpu=_on_cpu_together() or None, **settings)
    _check_together(accelerator.num_processes)
    return accelerator


def process_state() -> PartialState:
    """Return the state of this process (rank, number of processes, device), for work without an `Accelerator`.

    Raises:
        ValueError: as `join_processes`.
    """
    state = PartialState(cpu=_on_cpu_together())
    _check_together(state.num_processes)
    return state


def _on_cpu_together() -> bool:
    """Return whether accelerate must be told to use the CPU for the processes to find each other.

    On a machine without GPUs, it looks for other processes only then. Neither `use_cpu: true` in its config nor
    torchrun has this effect: each process would do all the work by itself and write to the same folder.
    """
    if num_launched() == 1:
        return False
    if not _has_gpus():
        return True
    _check_devices(_number(("LOCAL_WORLD_SIZE",), 1))
    return False


def _check_together(found: int) -> None:
    launched = num_launched()
    if found != launched:
        raise ValueError(
            f"{launched} processes were launched, but accelerate sees {found}, so each would do all the work by "
            f"itself. Start them with `accelerate launch --config_file FILE`, with one of the files in "
            "training/accelerate; on CPU cores set ACCELERATE_USE_CPU=true; for a single process unset WORLD_SIZE."
        )


def _has_gpus() -> bool:
    """Return whether this machine has accelerators that can be assigned to processes; Apple's GPU cannot."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found is not None and found.type != "mps"


def _check_devices(here: int) -> None:
    """Refuse to run more processes than GPUs on this machine, unless they were told to use CPU cores."""
    devices = torch.accelerator.device_count()
    if here > devices and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true", "yes"):
        raise ValueError(
            f"{here} processes were launched on a machine with {devices} GPU(s), and each needs one of its own: "
            f"launch {devices} (--num_processes {devices}), or set ACCELERATE_USE_CPU=true to use CPU cores."
        )


def wait_for_everyone(state: Accelerator | PartialState) -> None:
    """Wait until every process of the run has reached this point, without a time limit.

    The process group that exchanges gradients times out after some minutes, and generating or encoding on the main
    process may well take longer. This wait uses a separate group on the CPU. A process that dies closes its
    connections, which ends the wait of the others at once.

    Raises:
        OtherProcessEnded: another process has ended and will never arrive.
    """
    if state.num_processes == 1:
        return
    try:
        dist.barrier(group=_patient_group())
    except RuntimeError as error:
        raise OtherProcessEnded(
            "Another process of this run ended while this one was waiting for it; the message of that process says "
            "why."
        ) from error


_group: dict[object, dist.ProcessGroup] = {}


def _patient_group() -> dist.ProcessGroup:
    """Return the process group to wait in, created by the first call, which every process must make."""
    everyone = dist.group.WORLD
    if everyone not in _group:
        _group.clear()
        _group[everyone] = dist.new_group(backend="gloo", timeout=_PATIENCE)
    return _group[everyone]
