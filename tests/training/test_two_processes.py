# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.mark.slow
def test_processes_stay_equal_through_growth(pictures_dir, tmp_path):
    """Different pictures and noise on each process, the same weights on all of them, old level and new."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, str(HERE / "train_on_two_processes.py"), str(pictures_dir), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    first, second = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    report = json.loads((tmp_path / "rank-0.json").read_text())
    # Four steps of four pictures, then four of twice four, on each of two processes.
    assert report == {"processes": 2, "images": 2 * (16 + 32)}
