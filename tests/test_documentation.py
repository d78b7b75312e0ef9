# SPDX-License-Identifier: Apache-2.0
"""Every example on every page works: what a newcomer copies and pastes, in the order of the page.

- Python blocks run in order, in one namespace a page, in a folder that shows the repository's files and takes what the
  blocks write. Numbers of steps are cut down to one, and folders that long commands would have left are stood in for.
  Blocks marked `long` are run by `make test-slow` only; no other block needs what they make.
- Of commands, programs, scripts, flags and files are checked; `make test-slow` runs them, long ones with --dry_run.
- Recipes are read and their models built; of parts of recipes the names of the fields are checked.

A mark after the language of a block ("bash long") says that it is treated in another way: see `MARKS`.
"""

import argparse
import ast
import dataclasses
import importlib.util
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from peft import LoraConfig

from diffusers_mdm import MDMPipeline, MDMUnconditionalPipeline
from diffusers_mdm.cli.main import main as diffusers_mdm
from diffusers_mdm.models.level_config import LevelConfig
from diffusers_mdm.training.commands.dry_run import describe_run
from diffusers_mdm.training.commands.flags import read_command
from diffusers_mdm.training.commands.run_command import CLASS_CONDITIONAL, TEXT_TO_IMAGE, TEXT_TO_VIDEO, UNCONDITIONAL
from diffusers_mdm.training.modules.lora import save_lora
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.recipe import Recipe
from diffusers_mdm.training.recipe.stage import StageRecipe
from tests.doc_blocks import MARKS, PROGRAMS, Block, blocks_of, commands_in, commands_in_text
from tests.pipelines.tiny_pipeline import make_scheduler
from tests.pipelines.tiny_tasks import make_plain_unet
from tests.training.tiny_clips import write_clips
from tests.training.tiny_run import write_images

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "training" / "README.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "benchmarks" / "paper" / "README.md",
    ROOT / "benchmarks" / "paper" / "larger" / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "model_cards").glob("*/README.md")),
]
KINDS = {
    "train_text_to_image_mdm.py": TEXT_TO_IMAGE,
    "train_class_conditional_mdm.py": CLASS_CONDITIONAL,
    "train_text_to_video_mdm.py": TEXT_TO_VIDEO,
    "train_unconditional_mdm.py": UNCONDITIONAL,
}
# What readers bring along: pages say what these are.
THE_READERS_OWN = {
    "pictures", "clips", "my-frog", "vis_model_256x256.pth", "cc12m_256x256.yaml", "google/flan-t5-xl",
    "ILSVRC/imagenet-1k", "imagenet/train", "imagenet/validation",
}  # fmt: skip
# The shipped models, and what the commands that trained them call their folders.
LEFT = {
    "mdm-emoji-64": "emoji_64",
    "mdm-emoji-256": "emoji_256",
    "mdm-emoji-classes-64": "kinds",
    "mdm-emoji-clips-64": "emoji_clips_64",
}
OUTPUTS = {"output_dir", "output", "embeddings_dir", "class_data_dir"}
LANGUAGES = {"python", "bash", "yaml", "bibtex", "text"}


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(*languages: str) -> list:
    """Parameters of a test: page and block."""
    return [
        pytest.param(page, block, id=f"{page_name(page)}-{block.name}")
        for page in PAGES
        for block in blocks_of(page)
        if block.language in languages
    ]


def link_card(card: Path, link: Path) -> None:
    """A model's folder whose files are links, save that its own settings ask for one step in place of many."""
    link.mkdir(parents=True)
    for path in card.iterdir():
        (link / path.name).symlink_to(path)
    index = link / "model_index.json"
    text = with_fewer_steps(index.read_text(encoding="utf-8"))
    index.unlink()
    index.write_text(text, encoding="utf-8")


def link_training(link: Path) -> None:
    """The folder `training`, whose files are links, with what `build_emoji_styles.py` builds from packages.

    The shipped data set stands in for that one, which has the same records with larger images.
    """
    for folder in (link, link / "recipes", link / "data"):
        folder.mkdir()
        for path in (ROOT / "training" / folder.relative_to(link)).iterdir():
            if path.name not in ("recipes", "data"):
                (folder / path.name).symlink_to(path)
    built = link / "data" / "emoji-styles-256"
    if not built.exists():
        built.symlink_to(ROOT / "training" / "data" / "emoji-styles-64")


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A folder with the repository's files, the reader's own ones, and what long commands would have left."""
    folder = tmp_path_factory.mktemp("clone")
    for path in ROOT.iterdir():
        if not path.name.startswith((".", "runs", "model_cards", "training")):
            (folder / path.name).symlink_to(path)
    (folder / "runs").mkdir()
    link_training(folder / "training")
    for path in (ROOT / "model_cards").iterdir():
        link_card(path, folder / "model_cards" / path.name)
    for model, left in LEFT.items():
        (folder / "runs" / left).symlink_to(folder / "model_cards" / model)
    # A Python block writes this recipe for the command below it; each of the two is tested by itself.
    tiny = (ROOT / "training" / "recipes" / "tiny.yaml").read_text(encoding="utf-8")
    (folder / "runs" / "tiny-latents.yaml").write_text(tiny, encoding="utf-8")
    for name in ("pictures", "my-frog"):
        write_images(folder / name)
    write_clips(folder / "clips")
    pipeline = MDMPipeline.from_pretrained(ROOT / "model_cards" / "mdm-emoji-64", dtype=torch.float32)
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    (folder / "runs" / "my-lora").mkdir()
    save_lora(pipeline.unet, folder / "runs" / "my-lora")
    plain = MDMUnconditionalPipeline(make_plain_unet(), make_scheduler())
    plain.save_pretrained(folder / "runs" / "emoji-unconditional")
    return folder


def workplace(page: Path, language: str, clone: Path) -> Path:
    """Where the blocks of a page are run: in the root of the repository, Python of a model card beside its folder."""
    return clone / "model_cards" if language == "python" and "model_cards" in page.parts else clone


def test_blocks_are_marked_as_the_rule_says():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text.count("\n```") % 2 == 0
        for block in blocks_of(page):
            assert block.language in LANGUAGES, (page_name(page), block.name)
            assert block.marks <= set(MARKS), (page_name(page), block.name)
        # Code that is only indented would not be looked at.
        lists = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        assert not re.search(r"\n\n    (python|pip|git|accelerate|sed) ", lists), page_name(page)


def test_the_map_names_what_is_there():
    """Files and functions of the map in CONTRIBUTING, which are named as `file.py`: `function` or `Class.method`."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## The map")[1].split("## Habits")[0]
    paths = re.findall(r"`([\w/]+\.py)`", text)
    assert len(paths) > 40
    for path in set(paths):
        assert (ROOT / "diffusers_mdm" / path).is_file() or (ROOT / path).is_file(), path
    for path, name in re.findall(r"`([\w/]+\.py)`:\s+`([\w.]+)`", text):
        assert name in names_defined_in(ROOT / "diffusers_mdm" / path), f"{path}: {name}"


def names_defined_in(path: Path) -> set[str]:
    """Functions, classes and methods of a module."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


# --- Python ---


def with_fewer_steps(code: str) -> str:
    """The same code with one step in place of many."""
    return re.sub(r"(num_(?:inference|inner)_steps\W{1,4})\d+", r"\g<1>1", code)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_python_of_a_page_runs_in_order(page, clone, tmp_path, monkeypatch):
    found = [block for block in blocks_of(page) if block.language == "python" and "long" not in block.marks]
    if not found:
        pytest.skip("no Python on this page")
    here = workplace(page, "python", clone)
    if here != clone:  # a card's examples write beside its folder, which is a link here
        here = tmp_path
        for path in (ROOT / "model_cards").iterdir():
            link_card(path, here / path.name)
    monkeypatch.chdir(here)
    namespace: dict = {"__name__": "example"}
    for block in found:
        code = compile(with_fewer_steps("\n" * block.line + block.text), page_name(page), "exec")
        if "network" in block.marks or ("optional" in block.marks and not has_all_packages(block.text)):
            continue
        if "accelerator" not in block.marks:
            exec(code, namespace)  # noqa: S102  the page's own code
            continue
        for name in re.findall(r"^(?:pipe|model)((?:\.\w+)+)\(", block.text, re.MULTILINE):
            value = namespace["pipe"]
            for part in name[1:].split("."):
                value = getattr(value, part)
            assert callable(value)


def has_all_packages(code: str) -> bool:
    """Whether everything that a block imports is installed."""
    imported = re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)
    return all(importlib.util.find_spec(name) is not None for name in imported)


# --- commands ---


class Parsed(Exception):  # noqa: N818  ends a script once its command line has been read
    pass


def arguments_read(run: Callable[[], object], name: str, monkeypatch) -> dict:
    """Let a program read its command line, and nothing more; gives what it has read.

    Args:
        run: runs the program.
        name: of the program.
    """
    parse = argparse.ArgumentParser.parse_known_args

    def parse_and_stop(self, args=None, namespace=None):
        read, left = parse(self, args, namespace)
        assert not left, f"{name} has no {left}"
        raise Parsed(vars(read))

    with monkeypatch.context() as patch:
        # What every other way of reading a command line ends in.
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_stop)
        try:
            run()
        except Parsed as parsed:
            return parsed.args[0]
    raise AssertionError(f"{name} reads no command line")


def parse_flags(script: Path, words: list[str], monkeypatch) -> dict:
    """What a script reads from its command line."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *words])
        patch.syspath_prepend(str(script.parent))
        return arguments_read(lambda: runpy.run_path(str(script), run_name="__main__"), script.name, monkeypatch)


def check_command(words: list[str], monkeypatch, made: set[str]) -> None:
    """Check the program, script, flags and files of a command line; `made` gets what it would leave."""
    program = words[0]
    assert program in PROGRAMS or re.fullmatch(r"[\w./-]*(python[\d.]*|pip|sed)", program), program
    if program == "pip":
        extras = re.findall(r"^([a-z]+) = \[$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
        asked = {extra for word in words for group in re.findall(r"\[(.*)\]", word) for extra in group.split(",")}
        assert asked <= set(extras)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
    if program == "accelerate":
        launch = launch_command_parser().parse_args(words[2:])
        assert launch.config_file is None or Path(launch.config_file).is_file()
        words = ["python", launch.training_script, *launch.training_script_args]
    if program == "diffusers-mdm" and "--help" not in words:
        check_files(arguments_read(lambda: diffusers_mdm(words[1:]), " ".join(words[:2]), monkeypatch), made)
    if words[0] == "python" and words[1].endswith(".py"):
        read = parse_flags(Path(words[1]).resolve(), words[2:], monkeypatch)
        if Path(words[1]).name in KINDS:
            read_command(words[2:], KINDS[Path(words[1]).name])
        check_files(read, made)


def check_files(read: dict, made: set[str]) -> None:
    """Every file and folder that is named exists, is the reader's own, or is left by an earlier command."""
    for name, value in read.items():
        if name in OUTPUTS:
            made.add(str(value))
        for path in value if isinstance(value, (list, tuple)) else [value]:
            is_path = isinstance(path, Path) or (isinstance(path, str) and re.fullmatch(r"[\w.-]+(/[\w.-]+)+", path))
            if is_path and not Path(path).exists():
                assert str(path) in made | THE_READERS_OWN, f"--{name} {path} does not exist"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_of_a_page_name_what_exists(page, clone, monkeypatch):
    monkeypatch.chdir(clone)
    made: set[str] = set()
    commands = [words for b in blocks_of(page) if b.language == "bash" for words in commands_in(b.text)]
    for words in [*commands, *commands_in_text(page)]:
        try:
            check_command(words, monkeypatch, made)
        except SystemExit as wrong:
            raise AssertionError(f"{' '.join(words)}: {wrong}") from wrong


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_a_walk_through_the_page_by_copy_and_paste(page, clone, tmp_path):
    """Everything but what needs a network or a GPU, in a shell, in the order of the page."""
    walk = [block for block in blocks_of(page) if block.language in ("bash", "python")]
    walk = [block for block in walk if not block.marks & {"network", "accelerator"}]
    walk = [block for block in walk if "optional" not in block.marks or has_all_packages(block.text)]
    if not walk:
        pytest.skip("nothing to run on this page")
    code = ""
    for block, following in zip(walk, [*walk[1:], None], strict=True):
        if block.language == "python":
            code += with_fewer_steps(block.text) + "\n"
            # Blocks that follow each other run in one process.
            if following is None or following.language != "python":
                run_in(workplace(page, block.language, clone), [sys.executable, "-c", code], block)
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            words = commands_in(line)
            if not words or ("long" in block.marks and not re.search(r"train_|diffusers-mdm train", line)):
                continue  # a comment, or a long command that cannot be tried out
            line = line.split("  #")[0] + (" --dry_run" if "long" in block.marks else "")
            run_in(workplace(page, block.language, clone), ["bash", "-ec", line], block)


def run_in(folder: Path, command: list[str], block: Block) -> None:
    """Run a command of a page as its reader does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{block.name}: {command[-1]}\n{done.stderr[-3000:]}"


# --- recipes ---

PARTS = {"model", "levels", "stages", "data", "images", "vae"}


@pytest.mark.parametrize(("page", "block"), blocks("yaml"))
def test_recipes_can_be_read_and_their_models_built(page, block, tmp_path):
    fields = yaml.safe_load(block.text)
    if "part" in block.marks:
        check_part(fields)
        return
    text = block.text.replace("../data/", f"{ROOT / 'training' / 'data'}/")
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert "pixels" in describe_run(recipe)


def check_part(fields: dict) -> None:
    """Every field of a part of a recipe is one."""
    known = {field.name: field for field in dataclasses.fields(Recipe)}
    assert set(fields) <= set(known)
    rows = {field.name for field in dataclasses.fields(LevelConfig)}
    assert {name for row in fields.get("levels", []) for name in row} <= rows
    stage_fields = {field.name for field in dataclasses.fields(StageRecipe)}
    assert {name for stage in fields.get("stages", []) for name in stage} <= stage_fields
