# SPDX-License-Identifier: Apache-2.0
"""A written Space is complete, and appears only then."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from diffusers_mdm.cli.main import main
from diffusers_mdm.cli.space_folder import SPACE, requirements, write_space
from tests.served_page import first_page

ROOT = Path(__file__).parents[2]
# A Space is written with what the installed package requires.
pytestmark = pytest.mark.skipif(
    not list(metadata.distributions(name="diffusers-mdm")), reason="diffusers-mdm is imported without being installed"
)


def front_matter(page: Path) -> dict:
    return yaml.safe_load(page.read_text(encoding="utf-8").split("---")[1])


def test_a_space_has_everything_it_needs(model_dir, tmp_path):
    space = tmp_path / "spaces" / "mine"
    assert main(["demo", str(model_dir), "--write_space", str(space)]) == 0
    assert (space / "models" / model_dir.name / "model_index.json").is_file()
    assert front_matter(space / "README.md")["app_file"] == "app.py"
    assert (space / "diffusers_mdm" / "web" / "page.css").is_file()
    assert not list(space.rglob("__pycache__"))
    shutil.rmtree(space / "models")
    done = subprocess.run([sys.executable, "app.py"], cwd=space, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "set its variable MODELS" in done.stderr


@pytest.mark.slow  # imports everything in another process
def test_a_space_runs_by_itself(model_dir, tmp_path):
    space = tmp_path / "space"
    write_space(space, [str(model_dir)])
    page = space / "diffusers_mdm" / "web" / "page.py"
    page.write_text(page.read_text(encoding="utf-8").replace("Matryoshka Diffusion Models", "The copy in the Space"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    assert "The copy in the Space" in first_page(lambda _: [sys.executable, "app.py"], space, environment)


def test_nothing_is_overwritten_or_half_written(model_dir, tmp_path):
    with pytest.raises(ValueError, match="already exists"):
        write_space(tmp_path, [str(model_dir)])
    with pytest.raises(ValueError, match="neither a pipeline folder"):
        write_space(tmp_path / "space", [str(tmp_path)])
    with pytest.raises(ValueError, match="same name"):
        write_space(tmp_path / "space", [str(model_dir), str(model_dir)])
    assert list(tmp_path.iterdir()) == []


def test_requirements_are_those_of_the_package():
    names = {line.split(">")[0] for line in requirements()}
    assert {"torch", "diffusers", "tqdm"} <= names
    assert not {"pytest", "datasets", "mypy"} & names


def test_the_files_of_the_space_agree_with_the_package():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    settings = front_matter(SPACE / "README.md")
    assert f"gradio=={settings['sdk_version']}" in pins
    assert settings["sdk"] == "gradio"
    assert (SPACE / settings["app_file"]).is_file()
    assert (SPACE / "requirements.txt").read_text(encoding="utf-8") == "diffusers-mdm[demo]\n"
