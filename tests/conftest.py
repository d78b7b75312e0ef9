# SPDX-License-Identifier: Apache-2.0
"""What every test starts from: no network, a fixed seed, few threads, and each device this machine has."""

import os

# Set before any Hugging Face library is imported, since they read these once, at import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gc
import random
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

FIXTURES = Path(__file__).parent / "fixtures"
# Parts of the paths of test files; the other files follow in alphabetical order.
LONGEST = ("tests/web/test_serving.py", "tests/training/loop/")
# Tiny tensors gain nothing from many threads and lose a lot when machines are shared, with other workers for example.
MAX_THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import all tests without garbage collection, and exempt what they and the libraries consist of from it later on.

    Otherwise half a million objects, which remain until the end, would be searched each time that a run frees memory.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no process is left alone with one of them in the end."""

    def place(item: pytest.Item) -> int:
        return next((place for place, part in enumerate(LONGEST) if part in item.nodeid), len(LONGEST))

    items.sort(key=place)


def available_devices() -> list:
    """Return a parameter for every kind of device on this machine; accelerators carry the `gpu` mark."""
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices.append(pytest.param("cuda", marks=pytest.mark.gpu))
    if torch.backends.mps.is_available():
        devices.append(pytest.param("mps", marks=pytest.mark.gpu))
    return devices


@pytest.fixture(params=available_devices())
def device(request: pytest.FixtureRequest) -> torch.device:
    """Give each device of this machine in turn."""
    return torch.device(request.param)


@pytest.fixture(scope="session", autouse=True)
def limit_threads() -> None:
    """Keep the thread count low and the same in every test."""
    torch.set_num_threads(min(MAX_THREADS, torch.get_num_threads()))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Start every test from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def whole_float32_on_gpus(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compute in float32, not in TF32, in tests of accelerators: TF32 has 11 bits, fewer than the tolerances need."""
    if request.node.get_closest_marker("gpu") is None:
        yield
        return
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Give the folder of recorded inputs and outputs."""
    return FIXTURES
