# SPDX-License-Identifier: Apache-2.0
"""The training command as `accelerate launch` starts it: two processes on CPU cores, with the documented config."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffusers_mdm import MDMPipeline
from diffusers_mdm.training.state.history import FILE_NAME, History
from diffusers_mdm.training.state.output_lock import LOCK_FILE

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


SCRIPT = (ROOT / "training" / "train_text_to_image_mdm.py",)
MODULE = ("-m", "diffusers_mdm", "train", "text-to-image")


def launch(*arguments: object, program: tuple[object, ...] = SCRIPT) -> subprocess.Popen:
    """Start the documented command. Nothing in the environment tells accelerate to use the CPU."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command += ["--config_file", ROOT / "training" / "accelerate" / "ddp_cpu.yaml"]
    command += [*program, *arguments]
    return subprocess.Popen(
        list(map(str, command)),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def tiny_run(output_dir: Path, *flags: object) -> tuple[object, ...]:
    recipe = ["--recipe", ROOT / "training" / "recipes" / "tiny.yaml", "--output_dir", output_dir]
    return (*recipe, "--report_to", "none", "--max_train_samples", 64, "--logging_steps", 1, *flags)


@pytest.mark.parametrize("program", [SCRIPT, MODULE], ids=["script", "module"])
def test_two_processes_are_one_run(program, tmp_path):
    process = launch(*tiny_run(tmp_path, "--max_train_steps", 2), program=program)
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    rows = [row for row in History(tmp_path / FILE_NAME).read() if "loss/level_0" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    batch = rows[0]["images"]
    assert rows[1]["images"] == 2 * batch  # of both processes
    assert said.count("Stage inner ended after 2 steps") == 1
    assert MDMPipeline.from_pretrained(tmp_path).unet.num_levels == 2
    assert not (tmp_path / LOCK_FILE).exists()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX systems")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_to_the_launcher_saves_and_ends_both(tmp_path, name):
    """The launcher hands the signal to its processes. Its own exit code then is 1, which is torch's doing."""
    flags = ("--lr_scheduler", "constant", "--num_train_epochs", 1000, "--checkpointing_steps", 2)
    process = launch(*tiny_run(tmp_path, *flags))
    until = time.monotonic() + 400
    while not list(tmp_path.glob("checkpoint-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(getattr(signal, name))
    said, _ = process.communicate(timeout=120)
    assert f"Stopped by {name}" in said
    assert "resume with" in said
    assert "accelerate.commands.launch" in said.split("resume with")[1]
    assert process.returncode == 1
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_mistake_ends_both_processes_with_its_sentence(tmp_path):
    """It is found by the main process alone, while the other one waits."""
    (tmp_path / LOCK_FILE).write_text('{"host": "elsewhere", "pid": 1, "started": 0}')
    process = launch(*tiny_run(tmp_path, "--max_train_steps", 1))
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "in use by another run (process 1 on elsewhere)" in said
