# SPDX-License-Identifier: Apache-2.0
"""What the processes of a run are told, and what ends their waiting."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate import Accelerator

from diffusers_mdm.processes import (
    check_alone,
    is_main_launched,
    join_processes,
    num_launched,
    process_state,
    wait_for_everyone,
)

ROOT = Path(__file__).parents[1]
LAUNCHERS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "RANK", "PMI_RANK")
# A rank that waits for the others, each for as long as its argument says; it tells how the waiting ended.
WAITING = """
import sys, time
from diffusers_mdm.processes import OtherProcessEnded, join_processes, wait_for_everyone
accelerator = join_processes()
wait_for_everyone(accelerator)
print("together", accelerator.num_processes, flush=True)
time.sleep(float(sys.argv[1 + accelerator.process_index]))
try:
    wait_for_everyone(accelerator)
    print("everyone is here", flush=True)
except OtherProcessEnded as ended:
    print(ended, flush=True)
"""


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def test_without_a_launcher_there_is_one_process():
    assert (num_launched(), is_main_launched()) == (1, True)
    assert join_processes().num_processes == 1


@pytest.mark.parametrize("size", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_processes_that_do_not_find_each_other_are_refused(monkeypatch, size):
    """Each of them would train a model of its own into the same folder."""
    Accelerator(cpu=True)  # this process computes alone already
    monkeypatch.setenv(size, "2")
    assert num_launched() == 2
    for join in (join_processes, process_state):
        with pytest.raises(ValueError, match=r"2 processes were launched, but accelerate sees 1.*accelerate launch"):
            join()


def test_what_one_process_does_alone_is_refused_to_several(monkeypatch):
    check_alone()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 were launched: start it with plain `python`"):
        check_alone()


def test_the_main_process_is_the_first(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    assert is_main_launched()
    monkeypatch.setenv("RANK", "1")
    assert not is_main_launched()


def test_one_process_does_not_wait():
    wait_for_everyone(Accelerator())


def start_two(*seconds: float) -> list[subprocess.Popen]:
    """Two processes that find each other, and then wait after so many seconds each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    told |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WAITING, *map(str, seconds)],
            env={**os.environ, **told, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [process.stdout.readline() for process in processes] == ["together 2\n"] * 2
    return processes


@pytest.mark.slow
def test_two_cpu_processes_wait_for_each_other():
    """Without a variable that tells accelerate to use the CPU, as torchrun and accelerate's launcher start them."""
    processes = start_two(0, 2)
    assert [process.communicate(timeout=120)[0] for process in processes] == ["everyone is here\n"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_waiting_of_the_other(killed):
    processes = start_two(*(300 if rank == killed else 0 for rank in range(2)))
    time.sleep(2)
    processes[killed].send_signal(signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
    said, _ = processes[1 - killed].communicate(timeout=60)
    assert "Another process of this run ended" in said
    processes[killed].communicate()
