# SPDX-License-Identifier: Apache-2.0
"""The texts that a run would train on are encoded as the run itself would encode them."""

import pytest
import torch

from diffusers_mdm import MDMPipeline
from diffusers_mdm.training.commands.caption_encoding import encode_captions, recipe_of_captions
from diffusers_mdm.training.data.sources import texts_of
from diffusers_mdm.training.data.text.features import TextEmbeddings


@pytest.fixture
def given(pipeline_dir, images_dir, tmp_path) -> dict[str, object]:
    return {
        "pretrained_model_name_or_path": str(pipeline_dir),
        "train_data_dir": str(images_dir),
        "validation_prompts": ("a red apple",),
    }


def test_every_text_has_the_features_that_the_pipeline_gives_it(given, pipeline_dir, tmp_path):
    encode_captions({**given, "captions_per_file": 5}, tmp_path / "features")
    features = TextEmbeddings(tmp_path / "features")
    texts = {*texts_of(recipe_of_captions(given)), ""}
    assert "a red apple" in texts
    assert len(features) == len(texts)
    embeds, _, mask, _ = MDMPipeline.from_pretrained(pipeline_dir).encode_prompt(
        "red line", do_classifier_free_guidance=False
    )
    found, found_mask = features.look_up(["red line"])
    assert torch.equal(found_mask, mask)
    torch.testing.assert_close(found.float(), embeds, rtol=1e-5, atol=1e-5)


def test_features_that_are_there_are_not_read_for_it(given, tmp_path):
    recipe = recipe_of_captions({**given, "embeddings_dir": str(tmp_path)})
    assert recipe.data.embeddings_dir is None


def test_flags_that_contradict_each_other_are_refused(given):
    with pytest.raises(ValueError, match="each name the training data"):
        recipe_of_captions({**given, "dataset_name": "somebody/pictures"})
