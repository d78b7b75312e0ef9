# SPDX-License-Identifier: Apache-2.0
import logging
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from accelerate import PartialState

from diffusers_mdm.training.data.skip_budget import Skip, SkipBudget


def test_each_sample_is_counted_and_logged_once(caplog):
    budget = SkipBudget(limit=2)
    with caplog.at_level(logging.WARNING):
        budget.add([Skip("a", "it is broken"), Skip("a", "it is broken"), Skip("b", "it is small")])
        budget.add([Skip("a", "it is broken")])
    assert budget.reasons == {"a": "it is broken", "b": "it is small"}
    assert len(budget) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "Skipped a: it is broken.",
        "Skipped b: it is small.",
    ]


def test_over_the_limit_ten_are_named():
    budget = SkipBudget(limit=12)
    skips = [Skip(f"row {number}", f"reason {number}") for number in range(20)]
    with pytest.raises(ValueError, match="13 samples") as error:
        budget.add(skips)
    message = str(error.value)
    assert "`max_skipped_images` allows 12" in message
    assert "row 0: reason 0; row 1: reason 1" in message
    assert "row 9: reason 9; and 3 more" in message
    assert "row 10" not in message


def test_without_a_budget_the_first_one_stops():
    with pytest.raises(ValueError, match="They are: a: it is broken"):
        SkipBudget(limit=0).add([Skip("a", "it is broken")])


def test_samples_that_several_sets_skipped_are_counted_once():
    first, second = SkipBudget(5), SkipBudget(5)
    first.add([Skip("a", "it is broken"), Skip("b", "it is broken")])
    second.add([Skip("b", "it is broken"), Skip("c", "it is broken")])
    assert SkipBudget.count_everywhere([first, second]) == 3
    assert SkipBudget.count_everywhere([]) == 0


def count_on_one(rank: int, port: int, folder: str) -> None:
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in told.items()}
    PartialState(cpu=True)
    budget = SkipBudget(5)
    budget.add([Skip("both", "it is broken"), Skip(f"process {rank} alone", "it is broken")])
    Path(folder, str(rank)).write_text(str(SkipBudget.count_everywhere([budget])))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_all_processes_are_counted(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(count_on_one, (port, str(tmp_path)), nprocs=2, start_method="spawn")
    assert [(tmp_path / name).read_text() for name in "01"] == ["3", "3"]
