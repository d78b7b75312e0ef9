# SPDX-License-Identifier: Apache-2.0
"""How far a reader has to go: the modules that one call runs through, and the classes above a pipeline.

`python -m tests.pipelines.test_modules_of_a_call` prints the modules, and which functions of them ran.
"""

import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import diffusers_mdm
from diffusers_mdm.registration import PIPELINES
from tests.pipelines.tiny_pipeline import draw, make_pipeline

PACKAGE = Path(diffusers_mdm.__file__).parent
MAX_MODULES = 18
# Checks such as `is_number` can be understood without opening their module.
NOT_COUNTED = {"checked_values.py"}
MAX_CLASSES_ABOVE = 3


def functions_that_run(call: Callable[[], Any]) -> dict[str, set[str]]:
    """Names of the functions of the package that run during a call, by their module."""
    ran: dict[str, set[str]] = defaultdict(set)

    def note(frame: FrameType, event: str, argument: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            ran[path.relative_to(PACKAGE).as_posix()].add(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    return dict(ran)


def functions_of_one_drawing() -> dict[str, set[str]]:
    """The same of one drawing, guided, of two levels."""
    pipe = make_pipeline()
    draw(pipe)  # what is done once for all is done now
    return functions_that_run(lambda: draw(pipe))


def test_one_call_runs_through_few_modules():
    modules = sorted(set(functions_of_one_drawing()) - NOT_COUNTED)
    assert len(modules) <= MAX_MODULES, modules


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda entry: entry.__name__)
def test_few_classes_of_ours_stand_above_a_pipeline(pipeline):
    above = [entry for entry in pipeline.__mro__[1:] if entry.__module__.partition(".")[0] == PACKAGE.name]
    assert len(above) <= MAX_CLASSES_ABOVE, above


if __name__ == "__main__":
    found = functions_of_one_drawing()
    for module, names in sorted(found.items()):
        print(f"{module}: {', '.join(sorted(name for name in names if not name.startswith('<')))}")
    print(f"{len(found)} modules")
