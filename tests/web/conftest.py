# SPDX-License-Identifier: Apache-2.0
"""Tiny models for the page, made once for all its tests."""

import pytest

from diffusers_mdm.web.served_model import ServedModel
from tests.pipelines.tiny_tasks import task

MODELS = {"tiny": "text", "kinds": "class", "moving": "video", "free": "unconditional", "cascade": "super-resolution"}


@pytest.fixture(scope="session")
def models() -> dict[str, ServedModel]:
    """A model of texts, one of classes, one of clips, one of neither, and one that enlarges."""
    return {name: ServedModel(name, task(kind).make()) for name, kind in MODELS.items()}


@pytest.fixture(scope="session")
def tiny(models) -> ServedModel:
    """The model of texts: levels of 8 and 16 pixels."""
    return models["tiny"]
