# SPDX-License-Identifier: Apache-2.0
"""Callbacks: what they return is taken over whole, for every image of the batch, or refused in a sentence."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback

from diffusers_mdm import MDMPipeline
from tests.pipelines.tiny_pipeline import TEXT_WIDTH, draw, make_pipeline, seed
from tests.pipelines.tiny_tasks import task

NAMES = ["prompt_embeds", "negative_prompt_embeds", "prompt_attention_mask", "negative_prompt_attention_mask"]
SHORT, LONG = "red", "a very very long picture of the sad dog"
# Rows of a batch differ from the same rows alone by rounding only.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pipe() -> MDMPipeline:
    return make_pipeline()


def at_first_step(change):
    """A callback that changes the tensors after the first step."""

    def callback(pipeline, step, timestep, tensors):
        return change(dict(tensors)) if step == 0 else tensors

    return callback


def swapped(pipe, first, then, seeds, guidance_scale=3.0):
    """Draw prompts, the others from the second step on."""
    new = pipe.encode_prompt(then, do_classifier_free_guidance=guidance_scale > 1)
    return draw(
        pipe,
        prompt=first,
        generator=[seed(number) for number in seeds],
        num_inference_steps=3,
        guidance_scale=guidance_scale,
        callback_on_step_end=at_first_step(lambda tensors: {**tensors, **dict(zip(NAMES, new, strict=True))}),
        callback_on_step_end_tensor_inputs=NAMES,
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_changed_prompts_do_not_depend_on_the_batch(masked, guidance_scale):
    pipe = make_pipeline(use_cross_attention_mask=masked)
    batch = swapped(pipe, [SHORT, LONG], [LONG, SHORT], [0, 1], guidance_scale)
    alone = [swapped(pipe, [SHORT], [LONG], [0], guidance_scale), swapped(pipe, [LONG], [SHORT], [1], guidance_scale)]
    torch.testing.assert_close(batch, torch.cat(alone), atol=TOLERANCE, rtol=0)
    assert not torch.allclose(batch[:1], draw(pipe, prompt=[SHORT], num_inference_steps=3), atol=1e-2)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
def test_pads_that_a_callback_puts_in_are_not_seen(masked, with_mask):
    pipe = make_pipeline(use_cross_attention_mask=masked)
    embeds, negatives, mask, _ = pipe.encode_prompt("a cat")

    def change(tensors):
        tensors |= {"prompt_embeds": F.pad(embeds, (0, 0, 0, 3)), "prompt_attention_mask": F.pad(mask, (0, 3))}
        if with_mask:
            return tensors
        # Only the features change, within the mask that is there.
        return {"prompt_embeds": embeds, "negative_prompt_embeds": negatives}

    settings = {"num_inference_steps": 3, "prompt": "a dog"}
    names = {"callback_on_step_end_tensor_inputs": NAMES}
    padded = draw(pipe, callback_on_step_end=at_first_step(change), **names, **settings)
    plain = {"prompt_embeds": embeds, "prompt_attention_mask": mask}
    expected = draw(
        pipe, callback_on_step_end=at_first_step(lambda tensors: {**tensors, **plain}), **names, **settings
    )
    torch.testing.assert_close(padded, expected, atol=TOLERANCE, rtol=0)


def test_a_mask_that_is_changed_in_place_hides_words(pipe):
    def hide(pipeline, step, timestep, tensors):
        tensors["prompt_attention_mask"][:, 0] = False

    changed = draw(pipe, callback_on_step_end=hide, callback_on_step_end_tensor_inputs=["prompt_attention_mask"])
    assert not torch.allclose(changed, draw(pipe), atol=1e-3)


@pytest.mark.parametrize("num_prompts", [1, 2, 3])
def test_the_cutoff_callback_of_diffusers_turns_guidance_off_for_every_prompt(pipe, num_prompts):
    prompts, generators = [SHORT, LONG, "a cat"][:num_prompts], [seed(number) for number in range(num_prompts)]
    calls = []
    handle = pipe.unet.register_forward_pre_hook(lambda module, args: calls.append(len(args[0][0])))
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0)
    settings = {"num_inference_steps": 3, "generator": generators}
    images = draw(pipe, prompt=prompts, callback_on_step_end=MultiPipelineCallbacks([cutoff]), **settings)
    handle.remove()
    assert sum(calls) == num_prompts * (2 + 1 + 1)
    for number, prompt in enumerate(prompts):
        alone = draw(pipe, prompt=prompt, callback_on_step_end=cutoff, num_inference_steps=3, generator=seed(number))
        torch.testing.assert_close(images[number : number + 1], alone, atol=TOLERANCE, rtol=0)


def test_nothing_returned_is_the_dict_as_the_callback_left_it(pipe):
    seen = []

    def blacken(pipeline, step, timestep, tensors):
        tensors["latents"] = [torch.full_like(level, -1.0) for level in tensors["latents"]]

    assert draw(pipe, callback_on_step_end=blacken).abs().max() == 0
    assert torch.equal(draw(pipe, callback_on_step_end=lambda *args: seen.append(args[1])), draw(pipe))
    assert seen == [0, 1]


def test_samples_come_back_in_their_precision(pipe):
    def to_double(pipeline, step, timestep, tensors):
        return {"latents": tuple(level.double() for level in tensors["latents"])}

    torch.testing.assert_close(draw(pipe, callback_on_step_end=to_double), draw(pipe))


WRONG_RETURNS = {
    "names": (("latents",), r"callback of step 0 returned \('latents',\); expected a dict of tensors by name"),
    "a tensor": (torch.zeros(1), "returned Tensor of shape"),
    "unknown": ({"prompt_embed": torch.zeros(1)}, r"returned \['prompt_embed'\]; expected only names in \['latents'"),
    "no samples": ({"latents": None}, r"levels of shape \[\], innermost first; expected \[\(1, 3, 8, 8\)"),
    "one level": ({"latents": torch.zeros(1, 3, 8, 8)}, "levels of shape"),
    "an array": ({"latents": np.zeros((1, 3, 8, 8))}, "`latents` has to be a tensor"),
    "array features": ({"prompt_embeds": np.zeros((1, 2, TEXT_WIDTH))}, "`prompt_embeds` has to be a tensor"),
    "rows": ({"prompt_embeds": torch.zeros(2, 4, TEXT_WIDTH)}, "shape|2 entries for 1 images"),
    "width": ({"prompt_embeds": torch.zeros(1, 4, 3)}, "has width 3, but the model expects"),
    "tokens without a mask": ({"prompt_embeds": torch.zeros(1, 9, TEXT_WIDTH)}, "expected a mask of shape"),
    "everything masked": ({"prompt_attention_mask": torch.zeros(1, 4)}, "masks every token"),
    "no features": ({"prompt_embeds": None}, "without `prompt_embeds`"),
}


@pytest.mark.parametrize("case", WRONG_RETURNS)
def test_what_does_not_fit_is_a_value_error(pipe, case):
    returned, message = WRONG_RETURNS[case]
    with pytest.raises(ValueError, match=message):
        draw(pipe, callback_on_step_end=lambda *args: returned)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 1], "2 labels for 1 images"), (torch.tensor([99]), "has 99"), (torch.tensor([0.5]), "type float")],
)
def test_labels_that_do_not_fit_are_value_errors(labels, message):
    classes = task("class")
    with pytest.raises(ValueError, match=message):
        classes.draw(classes.make(), callback_on_step_end=lambda *args: {"class_labels": labels})


def test_guidance_cannot_be_set_to_what_is_no_number(pipe):
    def spoil(pipeline, step, timestep, tensors):
        pipeline._guidance_scale = float("nan")

    with pytest.raises(ValueError, match=r"`guidance_scale` has to be a finite number.* but is nan"):
        draw(pipe, callback_on_step_end=spoil)
