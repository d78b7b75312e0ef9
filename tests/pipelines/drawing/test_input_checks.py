# SPDX-License-Identifier: Apache-2.0
"""Bad input is refused before anything is computed, and the message teaches."""

import pytest
import torch

from diffusers_mdm import MDMPipeline
from diffusers_mdm.pipelines.drawing.input_checks import check_batch
from diffusers_mdm.pipelines.drawing.request import Request
from tests.pipelines.tiny_pipeline import TEXT_WIDTH, draw, make_pipeline, seed


@pytest.fixture(scope="module")
def pipe() -> MDMPipeline:
    return make_pipeline()


FEATURES = torch.zeros(1, 4, TEXT_WIDTH)
MASK = torch.ones(1, 4)

BAD_INPUTS = {
    "no prompt": ({"prompt": None}, "Neither `prompt` nor `prompt_embeds`"),
    "empty list": ({"prompt": []}, "`prompt` is an empty list"),
    "no text": ({"prompt": 3}, "has to be a `str` or a `list`"),
    "no texts": ({"prompt": ["a", None]}, "entries of type NoneType"),
    "prompt twice": ({"prompt": "a", "prompt_embeds": FEATURES}, "Both `prompt` and `prompt_embeds`"),
    "negative twice": (
        {"negative_prompt": "a", "negative_prompt_embeds": FEATURES},
        "Both `negative_prompt` and `negative_prompt_embeds`",
    ),
    "empty negatives": ({"prompt": ["a"], "negative_prompt": []}, "`negative_prompt` is an empty list"),
    "too few negatives": ({"prompt": ["a", "b"], "negative_prompt": ["c"]}, "1 negative prompts for 2 prompts"),
    "flat features": ({"prompt_embeds": FEATURES[0]}, r"shape \(4, 16\); expected \(batch, tokens, width\)"),
    "no features": ({"prompt_embeds": FEATURES[:0]}, "none of them 0"),
    "narrow features": ({"prompt_embeds": FEATURES[..., :5]}, "has width 5, but the model expects .* width 16"),
    "unequal features": (
        {"prompt_embeds": FEATURES, "negative_prompt_embeds": FEATURES[:, :2]},
        "must have the same shape",
    ),
    "mask alone": ({"prompt_attention_mask": MASK}, "without `prompt_embeds`"),
    "mask of wrong shape": (
        {"prompt_embeds": FEATURES, "prompt_attention_mask": MASK[:, :3]},
        r"expected a mask of shape \(1, 4\)",
    ),
    "everything masked": (
        {"prompt_embeds": FEATURES, "prompt_attention_mask": 0 * MASK},
        "masks every token of a prompt",
    ),
    "size of no level": ({"height": 12}, r"No level of this model has 12 x 12 .* 8, 16"),
    "height 0": ({"height": 0}, "No level of this model has 0 x 0"),
    "odd width": ({"height": 16, "width": 10}, r"positive multiples of 4 .* are 16 and 10"),
    "negative width": ({"height": 16, "width": -4}, "positive multiples of 4"),
    "too few levels": ({"latents": [torch.zeros(1, 3, 8, 8)], "height": 16}, r"1 level\(s\) .* expected 2 level"),
    "bare tensor for two levels": ({"latents": torch.zeros(1, 3, 16, 16)}, "expected 2 level"),
    "wrong ratio": (
        {"latents": [torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 16, 16)]},
        r"expected 2 level\(s\), innermost first, of shape \[\(1, 3, 8, 8\), \(1, 3, 16, 16\)\]",
    ),
    "wrong batch": ({"latents": torch.zeros(2, 3, 8, 8)}, r"\[\(1, 3, 8, 8\)\]"),
    "empty pyramid": ({"latents": []}, r"0 level\(s\)"),
    "no tensors": ({"latents": [1, 2], "height": 16}, r"`latents` has to be a tensor .* but is \[1, 2\]"),
    "generators": ({"generator": [seed(0), seed(1)]}, "list of 2 generators for 1"),
    "no picture": ({"num_images_per_prompt": 0}, "at least 1, but is 0"),
    "output type": ({"output_type": "jpg"}, "one of pil, np, pt, latent, but is 'jpg'"),
    "callback names": (
        {"callback_on_step_end_tensor_inputs": ["latent"]},
        r"has to be in .*'latents'.* but found \['latent'\]",
    ),
    "micro-condition": ({"micro_conditioning": {"size": 3}}, "no micro-condition 'size'; it has scale"),
    "micro rows": (
        {"micro_conditioning": {"scale": [1.0, 2.0, 3.0]}},
        r"3 numbers; pass one number, 1 \(one per image\) or 2",
    ),
    "no steps": ({"num_inference_steps": 0}, "num_inference_steps"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_a_value_error(pipe, case):
    changes, message = BAD_INPUTS[case]
    if "prompt_embeds" in changes and "prompt" in changes:
        with pytest.raises(ValueError, match=message):
            pipe(**changes)
        return
    with pytest.raises(ValueError, match=message):
        draw(pipe, **changes)


def test_prompts_of_different_types_are_a_type_error(pipe):
    with pytest.raises(TypeError, match="same type as `prompt`"):
        draw(pipe, prompt=["a"], negative_prompt="b")
    with pytest.raises(TypeError, match="same type as `prompt`"):
        draw(pipe, prompt="a", negative_prompt=["b"])


def test_output_that_is_not_finite_names_the_timestep(pipe):
    with pytest.raises(ValueError, match=r"t(imestep)?\D{0,20}\d+"):
        draw(pipe, latents=[torch.full((1, 3, 8, 8), float("nan")), torch.zeros(1, 3, 16, 16)])


def test_one_entry_for_all_or_one_each():
    assert check_batch({"prompt": 1, "image": 3}, Request(copies=2)) == 6
    with pytest.raises(ValueError, match="2 in `prompt`, 3 in `image`"):
        check_batch({"prompt": 2, "image": 3}, Request())
    with pytest.raises(ValueError, match=r"`num_images_per_prompt=30000` are more than the 65536 images"):
        check_batch({"prompt": 3}, Request(copies=30_000))
