# SPDX-License-Identifier: Apache-2.0
r"""Build what would be published, and use it as somebody does who has nothing else.

make release-check

- sdist and wheel are built twice, from two copies of the tracked files, and must be equal to the last byte,
- their metadata and contents are checked,
- the wheel is installed alone into an empty environment, with the versions of constraints.txt, and there it generates,
  describes, converts and fetches; with its extra "training" it trains ten steps and generates with the result.

The files are left in `dist/`.
"""

import argparse
import email.parser
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "diffusers_mdm"
MAX_SDIST_BYTES = 2 * 2**20
# Nothing of these folders belongs into an sdist.
LARGE = ("tests/", "model_cards/", "training/data/", "benchmarks/")
IN_THE_WHEEL = ("py.typed", "cli/main.py", "fetching/configs/flickr1024.yaml", "training/recipes/tiny.yaml")
GOLDEN = ROOT / "tests" / "fixtures" / "golden" / "nested_unet"
MODEL = ROOT / "model_cards" / "mdm-emoji-64"
NUM_STEPS = 10


def run(*words: object, cwd: Path, environment: dict[str, str] | None = None) -> str:
    """Run a command; return what it prints. A failure ends the check with its output."""
    command = [str(word) for word in words]
    shown = ("…" if "\n" in word else Path(word).name if os.sep in word else word for word in command)
    print("$", " ".join(shown), flush=True)
    settings = {**os.environ, **(environment or {})}
    settings.pop("PYTHONPATH", None)  # the clone must not be imported
    done = subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\nThe command ended with exit code {done.returncode}.")
    return done.stdout


def expect(holds: bool, message: str) -> None:
    """End the check with a message unless something holds."""
    if not holds:
        sys.exit(f"release-check: {message}")


def copy_tracked(target: Path) -> Path:
    """Copy the files that git tracks, or would track, into a new folder."""
    names = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in names:
        # Nothing is built from these, and they are most of the bytes.
        if (ROOT / name).is_file() and not name.startswith(LARGE):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    return target


def build(source: Path, output: Path, epoch: str) -> list[Path]:
    """Build sdist and wheel; return their paths, the sdist first."""
    # The build has an environment of its own, with the pinned version of setuptools.
    environment = {"SOURCE_DATE_EPOCH": epoch, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    run(sys.executable, "-m", "build", "--outdir", output, source, cwd=source, environment=environment)
    return [next(output.glob("*.tar.gz")), next(output.glob("*.whl"))]


def sha256_of(path: Path) -> str:
    """Return the checksum of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def build_twice(workplace: Path) -> list[Path]:
    """Build from two copies of the files, and compare."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or run("git", "log", "-1", "--format=%ct", cwd=ROOT).strip()
    # Both copies first: the files may be edited while the first is built.
    sources = [copy_tracked(workplace / name / "source") for name in ("one", "two")]
    built = [build(source, source.with_name("dist"), epoch) for source in sources]
    for first, second in zip(*built, strict=True):
        expect(first.name == second.name, f"{first.name} and {second.name} are names of the same file.")
        expect(sha256_of(first) == sha256_of(second), f"{first.name} differs from one build to the next.")
        print(f"{first.name}: {first.stat().st_size:,} bytes, SHA-256 {sha256_of(first)}, built twice")
    return built[0]


def check_contents(sdist: Path, wheel: Path) -> None:
    """Check metadata, and which files are inside."""
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel, cwd=sdist.parent)
    expect(sdist.stat().st_size <= MAX_SDIST_BYTES, f"{sdist.name} has more than {MAX_SDIST_BYTES:,} bytes.")
    with tarfile.open(sdist) as archive:
        inside = [name.partition("/")[2] for name in archive.getnames()]
    wrong = [name for name in inside if name.startswith(LARGE)]
    expect(not wrong, f"{sdist.name} contains {wrong[:3]}.")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        texts = {name.rpartition("/")[2]: name for name in names if ".dist-info/" in name}
        metadata = email.parser.Parser().parsestr(archive.read(texts["METADATA"]).decode())
        entry = archive.read(texts["entry_points.txt"]).decode()
    wrong = [name for name in names if not name.startswith((f"{PACKAGE}/", f"{PACKAGE}-"))]
    expect(not wrong, f"{wheel.name} installs {wrong[:3]} beside the package.")
    missing = [name for name in IN_THE_WHEEL if f"{PACKAGE}/{name}" not in names]
    expect(not missing, f"{wheel.name} lacks {missing}.")
    code = (ROOT / PACKAGE / "__init__.py").read_text(encoding="utf-8")
    expect(f'__version__ = "{metadata["Version"]}"' in code, "the version of the wheel is not that of the package.")
    expect(metadata["License-Expression"] == "Apache-2.0" and "LICENSE" in texts, "the licence is missing.")
    expect("diffusers-mdm = diffusers_mdm.cli.main:main" in entry, "the program is missing.")


class Environment:
    """An empty virtual environment, in a folder without the clone.

    Args:
        folder: folder for the environment and what it makes.
    """

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        venv.create(folder / "venv", with_pip=True)
        self.programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")

    def install(self, wheel: Path, extra: str = "") -> None:
        """Install the wheel, with an extra."""
        wanted = f"{wheel}[{extra}]" if extra else str(wheel)
        pip = (self.programs / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt")
        run(*pip, wanted, cwd=self.home)

    def python(self, code: str) -> str:
        """Run Python code."""
        return run(self.programs / "python", "-c", code, cwd=self.home)

    def mdm(self, *words: object) -> str:
        """Run `diffusers-mdm`; models and data are local."""
        offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
        return run(self.programs / "diffusers-mdm", *words, cwd=self.home, environment=offline)


def use_without_extras(here: Environment) -> None:
    """Generate, describe, convert and fetch."""
    where = here.python(f"import {PACKAGE}; print({PACKAGE}.__file__)").strip()
    expect(Path(where).is_relative_to(here.programs.parent), f"{PACKAGE} was imported from {where}.")
    here.mdm("--version")
    here.mdm("generate", MODEL, "--prompts", "strawberry, 3d render", "--all_levels", "--output_dir", "drawn")
    files = sorted(path.name for path in (here.home / "drawn").iterdir())
    expect(files == ["000-strawberry_3d_render-16.png", "000-strawberry_3d_render-64.png"], f"drawn: {files}")
    facts = json.loads(here.mdm("info", MODEL, "--json"))
    expect([level["side"] for level in facts["levels"]] == [16, 64], "info counts the levels wrongly.")
    checkpoint = ["--checkpoint_path", GOLDEN / "vis_model.pth", "--config_path", GOLDEN / "config.yaml"]
    here.mdm("convert", "apple", *checkpoint, "--output_dir", "converted")
    here.mdm("convert", "to-apple", "--model_path", "converted", "--output_path", "back.pth")
    mirror = here.home / "mirror" / "flickr256"
    mirror.mkdir(parents=True)
    shutil.copyfile(GOLDEN / "vis_model.pth", mirror / "vis_model.pth")
    # The recorded checkpoint is a small one of the same kind as flickr256, with its own config.
    fetch = ["--mirror", "mirror", "--without_text_encoder", "--config_path", GOLDEN / "config.yaml"]
    here.mdm("fetch", "flickr256", *fetch, "--output_dir", "fetched")
    expect((here.home / "fetched" / "README.md").is_file(), "fetch wrote no card.")


PICTURES = """
import json, pathlib
from PIL import Image
folder = pathlib.Path("pictures"); folder.mkdir()
lines = []
for number, color in enumerate(("red", "lime", "blue", "yellow") * 4):
    Image.new("RGB", (16, 16), color).save(folder / f"{number}.png")
    lines.append(json.dumps({"file_name": f"{number}.png", "text": f"a {color} square"}))
(folder / "metadata.jsonl").write_text("\\n".join(lines))
"""


def use_with_training(here: Environment) -> None:
    """Train both stages of a recipe of the wheel for a step each, fine-tune for ten steps, and generate."""
    here.python(PICTURES)
    data = ["--train_data_dir", "pictures", "--report_to", "none"]
    here.mdm("train", "text-to-image", "--recipe", "tiny", "--max_train_steps", 1, *data, "--output_dir", "trained")
    stages = json.loads((here.home / "trained" / "recipe.json").read_text(encoding="utf-8"))["stages"]
    expect(len(stages) == 2, "the recipe of the run has lost a stage.")
    start = ["--pretrained_model_name_or_path", "trained", "--max_train_steps", NUM_STEPS, "--train_batch_size", 4]
    here.mdm("train", "text-to-image", *start, *data, "--output_dir", "tuned")
    expect((here.home / "tuned" / f"checkpoint-{NUM_STEPS}").is_dir(), f"training did not last {NUM_STEPS} steps.")
    here.mdm("generate", "tuned", "--prompts", "a red square", "--num_inference_steps", 2, "--output_dir", "own")
    expect((here.home / "own" / "000-a_red_square.png").is_file(), "the trained model generated nothing.")


def main() -> None:
    """Run all checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder for sdist and wheel (default dist)")
    parser.add_argument("--only_build", action="store_true", help="do not install and use the wheel")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workplace = Path(folder).resolve()
        sdist, wheel = build_twice(workplace)
        check_contents(sdist, wheel)
        if not args.only_build:
            here = Environment(workplace / "user")
            here.install(wheel)
            use_without_extras(here)
            here.install(wheel, "training")
            use_with_training(here)
        args.output.mkdir(parents=True, exist_ok=True)
        for path in (sdist, wheel):
            shutil.copyfile(path, args.output / path.name)
    print(f"All checks passed; sdist and wheel are in {args.output}.")


if __name__ == "__main__":
    main()
