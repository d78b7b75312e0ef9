# SPDX-License-Identifier: Apache-2.0
"""How the processes of one run find each other, and how they wait for one another."""

import datetime
import os
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState

# What launchers tell each process, in the order in which accelerate asks.
_WORLD_SIZE = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE")
_RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
# One process may encode captions or draw pictures for days while the others wait.
_PATIENCE = datetime.timedelta(days=30)


class OtherProcessEnded(RuntimeError):  # noqa: N818  what it says of another process is the cause, not a kind of error
    """Another process of the run has ended while this one waited for it."""


def num_launched() -> int:
    """The number of processes that the launcher started for this run; 1 without a launcher."""
    return _number(_WORLD_SIZE, 1)


def is_main_launched() -> bool:
    """Whether this is the first of the processes that were launched; true without a launcher."""
    return _number(_RANK, 0) == 0


def check_alone() -> None:
    """Refuse to be one of several processes, for work that is not shared among them.

    Raises:
        ValueError: says how to start the command.
    """
    if num_launched() > 1:
        raise ValueError(
            f"This command does all its work in one process, and {num_launched()} were launched: start it with python "
            "alone."
        )


def _number(names: tuple[str, ...], default: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), default)


def join_processes(**settings: Any) -> Accelerator:
    """Make this process' `Accelerator`, as one of all processes that were launched.

    Args:
        settings: for `Accelerator`.

    Raises:
        ValueError: there are more processes on this machine than GPUs, or they did not find each other.
    """
    accelerator = Accelerator(cpu=_on_cpu_together() or None, **settings)
    _check_together(accelerator.num_processes)
    return accelerator


def process_state() -> PartialState:
    """What this process is among all that were launched, for work without an `Accelerator`.

    Raises:
        ValueError: as `join_processes`.
    """
    state = PartialState(cpu=_on_cpu_together())
    _check_together(state.num_processes)
    return state


def _on_cpu_together() -> bool:
    """Whether accelerate has to be told to compute on the CPU, so that the processes find each other.

    On a machine without GPUs it looks for other processes only then. Neither `use_cpu: true` in its config nor
    torchrun tells it, so that each process would do the whole work by itself and write it into the same folder.
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
            f"{launched} processes were launched, but accelerate sees {found}, so that each would do the whole work "
            "by itself. Start them with `accelerate launch --config_file FILE`, with one of the files in "
            "training/accelerate; on CPU cores set ACCELERATE_USE_CPU=true; for a single process unset WORLD_SIZE."
        )


def _has_gpus() -> bool:
    """Whether this machine has accelerators that several processes can share out; Apple's is none of them."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found is not None and found.type != "mps"


def _check_devices(here: int) -> None:
    """Refuse more processes on this machine than it has GPUs, unless they were told to compute on CPU cores."""
    devices = torch.accelerator.device_count()
    if here > devices and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true", "yes"):
        raise ValueError(
            f"{here} processes were launched on a machine with {devices} GPU(s), and each needs one of its own: "
            f"launch {devices} (--num_processes {devices}), or set ACCELERATE_USE_CPU=true to use CPU cores."
        )


def wait_for_everyone(state: Accelerator | PartialState) -> None:
    """Wait until every process of the run has come here, for as long as that takes.

    The group that gradients are exchanged through gives up after some minutes of silence, which drawing or encoding on
    the main process may well take. This wait has a group of its own on the CPU, where a process that dies closes its
    connections and so ends the wait of the others at once.

    Raises:
        OtherProcessEnded: another process has ended, and will not come.
    """
    if state.num_processes == 1:
        return
    try:
        dist.barrier(group=_patient_group())
    except RuntimeError as error:
        raise OtherProcessEnded(
            "Another process of this run has ended while this one waited for it; its own message says why."
        ) from error


_group: dict[object, dist.ProcessGroup] = {}


def _patient_group() -> dist.ProcessGroup:
    """The group to wait in, made on the first call; every process has to make that call."""
    everyone = dist.group.WORLD
    if everyone not in _group:
        _group.clear()
        _group[everyone] = dist.new_group(backend="gloo", timeout=_PATIENCE)
    return _group[everyone]
