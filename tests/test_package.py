# SPDX-License-Identifier: Apache-2.0
"""The rules of the house that a machine can check: sizes, names, headers, the direction of imports, versions."""

import ast
import functools
import re
import subprocess
from pathlib import Path

from tests.tested_elsewhere import TESTED_ELSEWHERE

ROOT = Path(__file__).parents[1]
PACKAGE = "diffusers_mdm"
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
HEADER = "# SPDX-License-Identifier: Apache-2.0"
# A function without a home is a concept without a name.
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
# What each part may import from the package besides itself. A part that is missing here fails
# the test: give it a place.
ALLOWED_IMPORTS = {
    "checked_values": set(),
    "command_parsing": set(),
    "library_internals": set(),
    "config_reading": {"checked_values"},
    "pyramid": {"checked_values"},
    "rgb_images": set(),
    "processes": set(),
    "models": {"checked_values", "config_reading", "library_internals", "pyramid"},
    "schedulers": {"checked_values", "library_internals", "pyramid"},
    "loaders": {"library_internals", "pyramid", "models", "schedulers"},
    "pipelines": {"checked_values", "library_internals", "pyramid", "rgb_images", "models", "schedulers", "loaders"},
    "conversion": {"checked_values", "command_parsing", "config_reading", "pyramid", "models", "schedulers"},
    "registration": {"library_internals", "pyramid", "models", "schedulers", "loaders", "pipelines", "conversion"},
    "public_names": {"pyramid", "models", "schedulers", "loaders", "pipelines", "registration"},
    "modular": {"pyramid", "models", "schedulers", "loaders", "pipelines"},
    "demo": {"pyramid", "models", "schedulers", "loaders", "pipelines"},
    "evaluation": {"processes", "pyramid", "rgb_images", "models", "schedulers", "loaders", "pipelines"},
    "training": {
        "checked_values",
        "command_parsing",
        "config_reading",
        "library_internals",
        "public_names",
        "pyramid",
        "rgb_images",
        "models",
    }
    | {"schedulers", "loaders", "pipelines", "evaluation", "processes"},
    "fetching": set(),
    "web": {"checked_values", "pyramid", "rgb_images", "models", "schedulers", "pipelines"},
    "cli": {"command_parsing", "conversion", "fetching", "library_internals", "pipelines", "training", "public_names"}
    | {"web"},
    "__main__": {"cli"},
}
# What each room of the training package may import from the others. Modules beside the rooms are the ground for all.
ROOMS = {"recipe": set()} | {room: {"recipe"} for room in ("data", "modules", "loss", "extra_losses", "optimizers")}
ROOMS["state"] = {*ROOMS}
ROOMS["reports"] = {*ROOMS}
ROOMS["loop"] = {*ROOMS}
ROOMS["costs"] = {*ROOMS}
ROOMS["commands"] = {*ROOMS}
# Modules of pipelines by what they are, each of which may import what stands before it: what pipelines return and
# small files beside it, what a drawing is made of, the bases, and the tasks, which do not know one another.
PIPELINE_RANKS = (
    {"pipeline_output", "image_grid", "finder_file", "components"},
    {"drawing"},
    {"pipeline_base"},
    {"pipeline_class_base"},
)


def tracked_files() -> list[Path]:
    """List what git tracks and what it would track, or everything outside hidden folders in a plain copy."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode == 0 and (ROOT / ".git").exists():
        files = [ROOT / name for name in listing.stdout.splitlines()]
    else:
        files = [path for path in ROOT.rglob("*") if not any(part.startswith(".venv") for part in path.parts)]
    return sorted(path for path in files if path.is_file())


FILES = tracked_files()
# What a model folder holds beside its weights is written by `save_pretrained`, not by hand.
SAVED = (ROOT / "model_cards", ROOT / "tests" / "fixtures")
SOURCES = [path for path in FILES if path.suffix == ".py" and not any(map(path.is_relative_to, SAVED))]
MODULES = [path for path in SOURCES if path.is_relative_to(ROOT / PACKAGE)]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def function_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function without its decorators and its docstring."""
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def part_of(path: Path) -> str:
    """Name the part of the package that a module belongs to: its folder, or its own stem at the root."""
    first = path.relative_to(ROOT / PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_names(path: Path) -> set[tuple[str, ...]]:
    """List what a module imports from the package, as paths inside it, wherever in the file it does.

    What stands under `TYPE_CHECKING` counts, too: who has to be read to understand a module is the question.
    """
    package = [PACKAGE, *path.relative_to(ROOT / PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            targets = [[*base, alias.name] for alias in node.names]
        else:
            continue
        found |= {tuple(target[1:]) for target in targets if target[0] == PACKAGE and len(target) > 1}
    return found


def imported_parts(path: Path) -> set[str]:
    """Name the parts of the package that a module imports."""
    return {name[0] for name in imported_names(path)}


def test_files_have_a_licence_header():
    missing = [name_of(path) for path in SOURCES if not path.read_text(encoding="utf-8").startswith(HEADER)]
    assert not missing


def test_files_are_short():
    lines = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert not {name: number for name, number in lines.items() if number > MAX_FILE_LINES}


def test_functions_are_short():
    long = {}
    for path in SOURCES:
        # A pipeline's __call__ tells the whole story in one place, as in diffusers' pipelines.
        story = "__call__" if path.is_relative_to(ROOT / PACKAGE / "pipelines") else None
        for node in ast.walk(parse(path)):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or node.name == story:
                continue
            if (lines := function_lines(node)) > MAX_FUNCTION_LINES:
                long[f"{name_of(path)}: {node.name}"] = lines
    assert not long


def test_names_say_what_is_inside():
    vague = {}
    for path in SOURCES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if found := VAGUE_NAMES & {word for part in parts for word in part.split("_")}:
            vague[name_of(path)] = found
    assert not vague


def test_imports_run_one_way():
    wrong = {}
    for path in MODULES:
        part = part_of(path)
        if part == "__init__":
            continue
        assert part in ALLOWED_IMPORTS, f"say in ALLOWED_IMPORTS what '{part}' may import"
        outside = {name for name in imported_parts(path) if name in ALLOWED_IMPORTS and name != part}
        if not outside <= ALLOWED_IMPORTS[part]:
            wrong[name_of(path)] = outside - ALLOWED_IMPORTS[part]
    assert not wrong


def test_the_rooms_of_training_are_entered_one_way():
    wrong = {}
    for path in MODULES:
        folders = path.relative_to(ROOT / PACKAGE).parts[:-1]
        if folders[:1] != ("training",):
            continue
        imported = {name[1] for name in imported_names(path) if name[0] == "training" and name[1:2]}
        room = folders[1] if len(folders) > 1 else "the ground"
        assert len(folders) == 1 or room in ROOMS, f"say in ROOMS what '{room}' may import"
        outside = (imported & ROOMS.keys()) - {room} - ROOMS.get(room, set())
        if outside:
            wrong[name_of(path)] = outside
    assert not wrong


def pipeline_rank(name: str) -> int:
    """Place of a module or folder of pipelines in the order of imports; tasks come last."""
    ranks = [rank for rank, names in enumerate(PIPELINE_RANKS) if name in names]
    return ranks[0] if ranks else len(PIPELINE_RANKS)


def test_pipelines_are_built_from_the_drawing_up():
    wrong = {}
    for path in MODULES:
        inside = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        if inside[0] != "pipelines" or inside[1] == "__init__":
            continue
        own = inside[1]
        imported = {name[1] for name in imported_names(path) if name[0] == "pipelines" and name[1:2]}
        outside = {name for name in imported - {own} if pipeline_rank(name) >= pipeline_rank(own)}
        if outside:
            wrong[name_of(path)] = outside
    assert not wrong


def test_import_table_has_no_cycle():
    for part, allowed in ALLOWED_IMPORTS.items():
        assert all(part not in ALLOWED_IMPORTS[other] for other in allowed)


# Inside `models/`: what a module may import are modules of earlier lines, whatever the import is for.
MODEL_LAYERS = (
    {"frames"},
    {"level_config", "loading", "compilation", "adapter_strengths", "inner_level_cache"},
    {"level_geometry", "config_checks"},
    {"forward_inputs"},
    {"layers", "level_slicing"},
    {"temporal"},
    {"blocks"},
    {"level"},
    {"weight_sharing"},
    {"growth"},
    {"nested_unet"},
)


def test_model_imports_run_one_way():
    wrong, folder = {}, ROOT / PACKAGE / "models"
    below: set[str] = set()
    for layer in MODEL_LAYERS:
        for name in layer - {"loading"}:
            tree = parse(folder / f"{name}.py")
            found = {
                (node.module or "").split(".")[0]
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom) and node.level == 1
            }
            if not found <= below:
                wrong[name] = found - below
        below |= layer
    assert not wrong
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == below - {"loading"}


def test_every_module_has_its_tests():
    """In the file that mirrors it, or in one that `tested_elsewhere` names, with the reason."""
    tests, without = ROOT / "tests", []
    names = {path.relative_to(ROOT / PACKAGE) for path in MODULES if path.name != "__init__.py"}
    for name in sorted(names):
        mirrored = (tests / name).with_name(f"test_{name.name}").is_file()
        if mirrored == (name.as_posix() in TESTED_ELSEWHERE):
            without.append(f"{name.as_posix()}: {'needs no reason' if mirrored else 'needs tests, or a reason'}")
    assert not without
    assert {Path(name) for name in TESTED_ELSEWHERE} <= names
    assert all((tests / file).is_file() and reason for file, reason in TESTED_ELSEWHERE.values())


def test_version_is_the_newest_of_the_changelog():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    newest = re.search(r"^## \[?(\d+\.\d+\.\d+)", changelog, re.MULTILINE).group(1)
    assert re.search(r'^version = "(.+)"$', project, re.MULTILINE).group(1) == newest


def test_package_knows_its_version():
    import diffusers_mdm

    assert f'version = "{diffusers_mdm.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_no_machine_paths_or_package_indexes():
    forbidden = re.compile(r"(?<![\w.~])/(?:work|home|Users|root|tmp)/")
    index = re.compile(r"(?:extra-)?index[-_]url|find[-_]links|/simple/|pypi[.]org")
    text_types = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".cfg", ""}
    found = []
    for path in FILES:
        if path == Path(__file__) or path.suffix not in text_types or path.stat().st_size > 2**20:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="ignore").splitlines(), start=1):
            if forbidden.search(line) or index.search(line):
                found.append(f"{name_of(path)}:{number}")
    assert not found


def test_every_dependency_is_pinned_for_tests():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    ranges = re.findall(r'^    "([A-Za-z0-9_.-]+)>=([0-9.]+)"', project, re.MULTILINE)
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {normal(line.split("==")[0]): line.split("==")[1].split(";")[0] for line in lines if "==" in line}
    assert ranges
    for name, lower in ranges:
        assert as_numbers(pins[normal(name)]) >= as_numbers(lower), name


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
