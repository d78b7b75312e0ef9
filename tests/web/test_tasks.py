# SPDX-License-Identifier: Apache-2.0
"""The tabs follow from what a model is conditioned on, and from its levels."""

from diffusers_mdm.web.tasks import CLASSES, CLIPS, EDIT, PLAIN, TEXT, UPSCALE, tasks_of, tasks_of_all
from tests.pipelines.tiny_pipeline import make_unet


def test_abilities_of_models(models):
    assert models["tiny"].tasks == (TEXT, UPSCALE, EDIT)
    assert models["kinds"].tasks == (CLASSES, UPSCALE, EDIT)
    assert models["moving"].tasks == (CLIPS,)
    assert models["free"].tasks == (PLAIN, UPSCALE, EDIT)
    assert models["cascade"].tasks == (UPSCALE,)


def test_a_single_level_cannot_upscale():
    one = make_unet().inner_model(1)
    assert tasks_of(one) == (TEXT, EDIT)


def test_tabs_are_in_one_order():
    assert tasks_of_all([(CLIPS,), (EDIT, TEXT)]) == (TEXT, EDIT, CLIPS)
