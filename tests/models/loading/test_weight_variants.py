# SPDX-License-Identifier: Apache-2.0
"""A variant that is missing is answered with those that there are."""

import pytest

from diffusers_mdm import MDMPipeline, NestedUNetModel
from diffusers_mdm.models.loading.weight_variants import variant_advice, variants_among
from tests.pipelines.tiny_pipeline import make_pipeline


@pytest.mark.parametrize(
    ("names", "variants"),
    [
        (["config.json", "diffusion_pytorch_model.safetensors"], {None}),
        (["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.ema.bin"], {"fp16", "ema"}),
        (["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"], {"fp16"}),
        (["model-00001-of-00002.safetensors"], {None}),
        (["diffusion_pytorch_model.safetensors.index.fp16.json"], {"fp16"}),
        (["diffusion_pytorch_model.safetensors.index.json"], {None}),
        (["pytorch_lora_weights.safetensors", "tokenizer.json", "model_index.json"], set()),
    ],
)
def test_variants_are_read_off_the_names_of_files(names, variants):
    assert variants_among(names) == variants


@pytest.mark.parametrize("subfolder", ["", "unet"])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_missing_variant_says_which_exist(model, tmp_path, subfolder, sharded):
    sizes = {"max_shard_size": "100KB"} if sharded else {}
    model.save_pretrained(tmp_path / subfolder, **sizes)
    model.save_pretrained(tmp_path / subfolder, variant="ema", **sizes)
    with pytest.raises(OSError, match=r"no weights of the variant 'fp16'; it has .*omit `variant`.*'ema'"):
        NestedUNetModel.from_pretrained(tmp_path, subfolder=subfolder, variant="fp16")
    assert NestedUNetModel.from_pretrained(tmp_path, subfolder=subfolder, variant="ema").num_levels == 2


def test_weights_that_only_have_variants_are_not_loaded_without(model, tmp_path):
    model.save_pretrained(tmp_path, variant="fp16")
    with pytest.raises(OSError, match=r"no weights without a variant; it has variant='fp16'"):
        NestedUNetModel.from_pretrained(tmp_path)


def test_a_pipeline_says_which_variants_exist(tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no weights of the variant 'fp16'; it has weights without a variant"):
        MDMPipeline.from_pretrained(tmp_path, variant="fp16")


def test_other_failures_are_left_as_they_are(tmp_path):
    with pytest.raises(OSError, match=r"config\.json"):
        NestedUNetModel.from_pretrained(tmp_path, variant="fp16")
    assert variant_advice("fp16", tmp_path) is None
