# SPDX-License-Identifier: Apache-2.0
"""Classes by number and by name, and what the class-conditional pipeline makes of them."""

import json

import pytest
import torch
from diffusers.utils import logging as host_logging

from diffusers_mdm import MDMClassConditionalPipeline, MDMImg2ImgPipeline, MDMPipeline
from tests.pipelines.tiny_pipeline import make_pipeline, make_scheduler, make_unet, seed
from tests.pipelines.tiny_tasks import ID2LABEL, NUM_CLASSES, eight_bit_images, make_class_unet, task

TASK = task("class")


@pytest.fixture
def pipe() -> MDMClassConditionalPipeline:
    return TASK.make()


def draw(pipe, class_labels, **changes) -> torch.Tensor:
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "generator": seed(0), "output_type": "pt"}
    return pipe(class_labels, **{**settings, **changes}).images


def test_names_and_numbers_mean_the_same(pipe):
    by_number = draw(pipe, 0)
    for label in ("cat", "tabby", [0], ["tabby"], torch.tensor([0])):
        assert torch.equal(draw(pipe, label), by_number)
    assert not torch.equal(draw(pipe, 1), by_number)
    assert draw(pipe, ["dog", 2, "cat"], num_images_per_label=2).shape == (6, 3, 16, 16)


def test_labels_as_diffusers_lists_them(pipe):
    assert pipe.labels == {"cat": 0, "dog": 1, "house": 3, "red apple": 2, "tabby": 0}
    assert list(pipe.labels) == sorted(pipe.labels)
    assert pipe.get_label_ids(["dog", "cat"]) == [1, 0]
    assert pipe.id2label == ID2LABEL


def test_guidance_pushes_away_from_the_null_class(pipe):
    guided = draw(pipe, 1)
    assert pipe.null_class == NUM_CLASSES - 1
    assert torch.equal(draw(pipe, 1, negative_class_labels=pipe.null_class), guided)
    assert not torch.equal(draw(pipe, 1, negative_class_labels="cat"), guided)
    # Pushed away from itself, a label is drawn as without guidance, up to rounding.
    plain = draw(pipe, 1, guidance_scale=1.0)
    torch.testing.assert_close(draw(pipe, 1, negative_class_labels=1), plain, atol=1e-5, rtol=0)


def test_callback_changes_labels(pipe):
    def swap(pipeline, step, timestep, tensors):
        return {"class_labels": torch.full_like(tensors["class_labels"], 2)}

    changed = draw(pipe, 1, callback_on_step_end=swap, callback_on_step_end_tensor_inputs=["class_labels"])
    assert not torch.equal(changed, draw(pipe, 1))


def test_names_are_saved_as_text_keys(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["id2label"] == {str(number): name for number, name in ID2LABEL.items()}
    loaded = MDMClassConditionalPipeline.from_pretrained(tmp_path)
    assert loaded.id2label == ID2LABEL
    named = MDMClassConditionalPipeline.from_pretrained(tmp_path, id2label={0: "other"})
    assert named.labels == {"other": 0}


def test_saved_names_load_without_a_warning(pipe, tmp_path, caplog):
    pipe.save_pretrained(tmp_path)
    host_logging.add_handler(caplog.handler)  # diffusers' loggers do not propagate to the root
    try:
        MDMClassConditionalPipeline.from_pretrained(tmp_path)
    finally:
        host_logging.remove_handler(caplog.handler)
    assert "Expected types" not in caplog.text


def test_a_model_of_texts_and_classes_takes_both():
    unet = make_unet(num_class_embeds=3)
    parts = {**make_pipeline().components, "unet": unet, "scheduler": make_scheduler()}
    pipe = MDMClassConditionalPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    both = draw(pipe, [0, 1], prompt="a cat", generator=[seed(0), seed(0)])
    torch.testing.assert_close(both[:1], draw(pipe, 0, prompt="a cat"), atol=1e-4, rtol=0)
    assert not torch.equal(both[0], both[1])
    with pytest.raises(ValueError, match="Neither `prompt`"):
        draw(pipe, 0)
    with pytest.raises(ValueError, match="takes no `class_labels`"):
        MDMPipeline.from_pipe(pipe)("a cat")


BAD_INPUTS = {
    "none": (None, {}, "pass `class_labels`, numbers from 0 to 3 or names"),
    "number": (5, {}, "has 5, but this model has the classes 0 to 3, and 4 for none"),
    "negative number": (-1, {}, "has -1"),
    "name": ("dgo", {}, r"No class is called 'dgo'; did you mean 'dog'\?.* all 5 names"),
    "far name": ("zzz", {}, "there is no similar name"),
    "empty": ([], {}, "`class_labels` is an empty list"),
    "bool": ([True], {}, "entry of type bool"),
    "float": ([1.5], {}, "entry of type float"),
    "negatives": ([0], {"negative_class_labels": [0, 1]}, "2 negative labels for 1 labels"),
    "negatives of two": ([0, 1, 2], {"negative_class_labels": [0, 1]}, "2 in `negative_class_labels`"),
    "negative name": (0, {"negative_class_labels": "mouse"}, "No class is called 'mouse'"),
    "text": (0, {"prompt": "a cat"}, "reads no text .* pass `class_labels`"),
    "size": (0, {"height": 12}, "No level of this model has 12 x 12"),
    "count": (0, {"num_images_per_label": 0}, "`num_images_per_label` has to be"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_labels_are_value_errors(pipe, case):
    label, changes, message = BAD_INPUTS[case]
    with pytest.raises(ValueError, match=message):
        draw(pipe, label, **changes)


def test_names_that_several_classes_bear():
    pipe = MDMClassConditionalPipeline(make_class_unet(), make_scheduler(), id2label={0: "crane", 1: "crane, bird"})
    assert pipe.labels == {"bird": 1}
    with pytest.raises(ValueError, match="Classes 0 and 1 are all called 'crane'"):
        pipe.get_label_ids("crane")


def test_without_names_only_numbers():
    pipe = MDMClassConditionalPipeline(make_class_unet(), make_scheduler())
    pipe.set_progress_bar_config(disable=True)
    assert pipe.labels == {}
    assert draw(pipe, 3).shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="have no names"):
        draw(pipe, "cat")


@pytest.mark.parametrize("id2label", [{"zero": "cat"}, {0: 5}, {-1: "cat"}])
def test_bad_names_are_refused(id2label):
    with pytest.raises(ValueError, match="`id2label` has the entry"):
        MDMClassConditionalPipeline(make_class_unet(), make_scheduler(), id2label=id2label)


def test_pipelines_of_texts_refuse_classes_and_the_other_way_round(pipe):
    with pytest.raises(ValueError, match=r"takes no text .* MDMClassConditionalPipeline"):
        MDMPipeline.from_pipe(pipe)("a cat")
    of_texts = MDMClassConditionalPipeline.from_pipe(make_pipeline())
    with pytest.raises(ValueError, match=r"has no classes .* pass `prompt`"):
        of_texts(0)
    img2img = MDMImg2ImgPipeline.from_pipe(make_pipeline())
    with pytest.raises(ValueError, match="has no classes"):
        img2img("a cat", eight_bit_images(16)[0], class_labels=0)
