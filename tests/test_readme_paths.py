# SPDX-License-Identifier: Apache-2.0
"""What the README promises to somebody who has just installed the package: each thing in at most two commands.

The commands are those of the page; only numbers of steps and images are smaller, and the published model comes from a
local mirror, which has a small checkpoint of the same kind.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from tests.conversion.recorded_models import GOLDEN
from tests.doc_blocks import blocks_of, commands_in
from tests.served_page import first_page
from tests.training.tiny_run import write_images

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DRAW, WATCH, TUNE = "Generate images", "Watch every level on a web page", "Fine-tune on your images"
EVALUATE, FETCH = "Evaluate", "Fetch a published model"


def commands_of(section: str) -> list[list[str]]:
    """The commands of a section of the README, with their words."""
    start, lines = None, README.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if line.startswith("## ") and start is not None:
            found = [block for block in blocks_of(README) if start < block.line < number and block.language == "bash"]
            return [words for block in found for words in commands_in(block.text)]
        if line == f"## {section}":
            start = number
    raise AssertionError(f"The README has no section {section!r}")


def the_command(section: str, beginning: str) -> list[str]:
    """The one command of a section that begins with a text."""
    (found,) = (words for words in commands_of(section) if " ".join(words).startswith(beginning))
    return found


@pytest.mark.parametrize("section", [DRAW, WATCH, TUNE, EVALUATE, FETCH])
def test_two_commands_are_enough(section):
    assert 1 <= len(commands_of(section)) <= 2


@pytest.fixture
def clone(tmp_path) -> Path:
    """A folder with what a clone has, for commands that write beside it."""
    for name in ("model_cards", "training"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def environment() -> dict[str, str]:
    """Variables of a shell in which the package is installed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": path}


def run(words: list[str], folder: Path) -> str:
    """Run a command as the reader does; return what it prints."""
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr[-3000:]}"
    return done.stdout


def is_image(path: Path, side: int) -> bool:
    """Whether a file is an image of this side that shows something."""
    with Image.open(path) as image:
        return image.size == (side, side) and len(set(image.convert("L").tobytes())) > 16


@pytest.mark.slow
def test_images_are_generated(clone):
    run(the_command(DRAW, "diffusers-mdm generate"), clone)
    files = sorted((clone / "drawn").iterdir())
    assert len(files) == 2
    assert all(is_image(path, 64) for path in files)


@pytest.mark.slow
def test_a_published_model_is_fetched_and_generates(clone):
    mirror = clone / "mirror" / "flickr64"
    mirror.mkdir(parents=True)
    shutil.copy(GOLDEN / "nested_unet" / "vis_model.pth", mirror)
    # The small checkpoint reads features of 40 channels.
    small = T5Config(vocab_size=3000, d_model=40, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5EncoderModel(small).save_pretrained(clone / "t5")
    AutoTokenizer.from_pretrained(ROOT / "model_cards" / "mdm-emoji-64" / "tokenizer").save_pretrained(clone / "t5")
    local = ["--mirror", "mirror", "--text_encoder", "t5"]
    config = ["--config_path", str(GOLDEN / "nested_unet" / "config.yaml")]
    run([*the_command(FETCH, "diffusers-mdm fetch"), *local, *config], clone)
    run(
        [
            *the_command(FETCH, "diffusers-mdm generate"),
            "--output_dir",
            "fox",
            "--dtype",
            "float32",
        ],
        clone,
    )
    (path,) = (clone / "fox").iterdir()
    assert is_image(path, 32)


@pytest.mark.slow
def test_own_images_are_trained_on(clone):
    write_images(clone / "pictures")
    words = the_command(TUNE, "accelerate launch")
    words[words.index("--max_train_steps") + 1] = "2"
    run(words, clone)
    written = {path.name for path in (clone / "runs" / "my-lora").iterdir()}
    assert written >= {"pytorch_lora_weights.safetensors", "README.md"}
    adapted = ["--lora", "runs/my-lora", "--output_dir", "adapted"]
    run([*the_command(DRAW, "diffusers-mdm generate")[:-2], *adapted], clone)
    assert len(list((clone / "adapted").iterdir())) == 2


@pytest.mark.slow
def test_a_model_is_evaluated(clone):
    words = the_command(EVALUATE, "diffusers-mdm evaluate")
    words[words.index("--num_captions") + 1] = "4"
    assert "| nearest image has the same caption |" in run(words, clone)
    levels = json.loads((clone / "runs" / "scores" / "scores.json").read_text(encoding="utf-8"))["levels"]
    assert levels["64"]["retrieval_own_image"] >= 0.5  # the shipped model draws what its captions say


@pytest.mark.slow
def test_the_web_page_is_served(clone):
    words = the_command(WATCH, "diffusers-mdm demo")
    page = first_page(lambda port: [*words, "--port", str(port)], clone, environment())
    assert "Matryoshka Diffusion Models" in page
