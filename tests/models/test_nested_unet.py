# SPDX-License-Identifier: Apache-2.0
"""What the model computes, and what it refuses."""

import pytest
import torch

from diffusers_mdm import NestedUNetModel
from diffusers_mdm.models.nested_unet import NestedUNetOutput
from tests.models.tiny_models import two_level_config, video_config

SAME = {"rtol": 0, "atol": 0}
# Another batch size may choose another kernel; single precision then differs in the last bits.
ROUNDING = {"rtol": 0, "atol": 2e-5}


def narrow(inputs: dict, rows: slice, levels: int = 2) -> dict:
    """The same inputs for some rows and the inner levels only."""
    return {
        "sample": [level[rows] for level in inputs["sample"][:levels]],
        "timestep": inputs["timestep"][rows],
        "encoder_hidden_states": inputs["encoder_hidden_states"][rows],
        "encoder_attention_mask": inputs["encoder_attention_mask"][rows],
        "added_cond_kwargs": {"scale": inputs["added_cond_kwargs"]["scale"][rows]},
    }


@torch.no_grad()
def test_prediction_is_shaped_as_the_pyramid(model, inputs):
    output = model(**inputs)
    assert isinstance(output, NestedUNetOutput)
    assert [tuple(level.shape) for level in output.sample] == [(3, 3, 8, 8), (2, 3, 16, 16)]
    as_tuple = model(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple)
    torch.testing.assert_close(as_tuple[0], output.sample, **SAME)


def test_sizes_follow_from_the_columns(model):
    assert model.num_levels == 2
    assert model.level_ratios == (1, 2)
    assert model.sample_sizes == (8, 16)
    assert model.size_multiple == 2


@torch.no_grad()
def test_bare_tensor_is_level_zero(model, inputs):
    inner = narrow(inputs, slice(None), levels=1)
    pyramid = model(**inner).sample
    tensor = model(**{**inner, "sample": inner["sample"][0]}).sample
    assert isinstance(tensor, torch.Tensor)
    torch.testing.assert_close(tensor, pyramid[0], **SAME)


@torch.no_grad()
def test_partial_pyramid_runs_the_inner_model(model, inputs):
    inner = narrow(inputs, slice(None), levels=1)
    torch.testing.assert_close(model.inner_model(1)(**inner).sample, model(**inner).sample, **SAME)


@torch.no_grad()
def test_rows_do_not_see_each_other(model, inputs):
    whole = model(**narrow(inputs, slice(0, 2))).sample
    for row in range(2):
        alone = model(**narrow(inputs, slice(row, row + 1))).sample
        for level, single in zip(whole, alone, strict=True):
            torch.testing.assert_close(level[row : row + 1], single, **ROUNDING)


@torch.no_grad()
def test_missing_outer_rows_feed_zeros_inwards(model, inputs):
    mixed = model(**inputs).sample
    full = narrow(inputs, slice(0, 2))
    torch.testing.assert_close(mixed[1], model(**full).sample[1], **ROUNDING)
    lone = narrow(inputs, slice(2, 3), levels=1)
    torch.testing.assert_close(mixed[0][2:], model(**lone).sample[0], **ROUNDING)


@torch.no_grad()
def test_levels_inform_each_other_both_ways(model, inputs):
    before = model(**inputs).sample
    for changed, other in ((0, 1), (1, 0)):
        sample = [level + (1.0 if index == changed else 0.0) for index, level in enumerate(inputs["sample"])]
        sample[changed] = sample[changed] + torch.randn_like(sample[changed])
        after = model(**{**inputs, "sample": sample}).sample
        assert (after[other][:2] - before[other][:2]).abs().amax() > 1e-4


@torch.no_grad()
def test_scalar_timestep_equals_one_a_row(model, inputs):
    expected = model(**{**inputs, "timestep": torch.full((3,), 417)}).sample
    for timestep in (417, torch.tensor(417), torch.tensor([417]), 417.0):
        torch.testing.assert_close(model(**{**inputs, "timestep": timestep}).sample, expected, **SAME)


@torch.no_grad()
def test_padding_is_hidden_from_attention_and_pooling(model, inputs):
    noisy_padding = inputs["encoder_hidden_states"].clone()
    noisy_padding[1, 3:] = 7.0
    expected, changed = model(**inputs).sample, model(**{**inputs, "encoder_hidden_states": noisy_padding}).sample
    torch.testing.assert_close(changed, expected, **ROUNDING)
    shorter = narrow(inputs, slice(1, 2))
    shorter["encoder_hidden_states"] = shorter["encoder_hidden_states"][:, :3]
    shorter["encoder_attention_mask"] = None
    torch.testing.assert_close(model(**shorter).sample[0], expected[0][1:2], **ROUNDING)


@torch.no_grad()
def test_published_attention_sees_padding_but_pooling_does_not(config, inputs):
    model = NestedUNetModel(**{**config, "use_cross_attention_mask": False, "num_text_layers": 0}).eval()
    mask = inputs["encoder_attention_mask"]
    text = model.encode_text(inputs["encoder_hidden_states"], mask)
    assert text.attention_mask is None
    noisy_padding = inputs["encoder_hidden_states"].clone()
    noisy_padding[1, 3:] = 7.0
    torch.testing.assert_close(model.encode_text(noisy_padding, mask).pooled, text.pooled, **ROUNDING)
    assert not torch.allclose(model.encode_text(noisy_padding).pooled, text.pooled)


@torch.no_grad()
def test_all_padding_gives_finite_numbers(model, inputs):
    output = model(**{**inputs, "encoder_attention_mask": torch.zeros(3, 5, dtype=torch.bool)})
    assert all(level.isfinite().all() for level in output.sample)


@torch.no_grad()
@pytest.mark.parametrize("with_keys_values", [False, True])
def test_text_encoded_once_changes_no_number(model, inputs, with_keys_values):
    expected = model(**inputs).sample
    states, mask = inputs.pop("encoder_hidden_states"), inputs.pop("encoder_attention_mask")
    text = model.encode_text(states, mask, with_keys_values=with_keys_values)
    torch.testing.assert_close(model(**inputs, encoder_hidden_states=text).sample, expected, **SAME)


@torch.no_grad()
@pytest.mark.parametrize("sliced", [False, True])
def test_steps_embedded_at_once_change_no_number(model, inputs, sliced):
    text = model.encode_text(inputs["encoder_hidden_states"], inputs["encoder_attention_mask"])
    given = {"encoder_hidden_states": text, "added_cond_kwargs": inputs["added_cond_kwargs"]}
    timesteps = torch.tensor([900, 30, 0])
    steps = model.embed_timesteps(timesteps, 3, **given)
    assert len(steps) == 3
    if sliced:
        model.enable_level_slicing()
    try:
        for timestep, step in zip(timesteps, steps, strict=True):
            expected = model(inputs["sample"], timestep, **given).sample
            for ours, theirs in zip(model(inputs["sample"], step, **given).sample, expected, strict=True):
                torch.testing.assert_close(ours, theirs, **ROUNDING)
    finally:
        model.disable_level_slicing()


@torch.no_grad()
def test_steps_of_a_model_of_classes_and_of_clips_are_embedded_at_once():
    plain = {"cross_attention_dim": None, "encoder_hid_dim": None, "num_text_layers": 0}
    for config in ({**two_level_config(), "num_class_embeds": 4}, {**video_config(), "num_class_embeds": 4}):
        model = NestedUNetModel(**{**config, **plain}).eval()
        labels = {"class_labels": torch.tensor([0, 3])}
        frames = [(frames,) if max(model.level_frames) > 1 else () for frames in model.level_frames]
        sample = [torch.randn(2, 3, *f, side, side) for f, side in zip(frames, model.sample_sizes, strict=True)]
        step = model.embed_timesteps(torch.tensor([500, 250]), 2, **labels)[1]
        for ours, theirs in zip(
            model(sample, step, **labels).sample, model(sample, 250, **labels).sample, strict=True
        ):
            torch.testing.assert_close(ours, theirs, **ROUNDING)


def test_embedded_steps_are_for_their_batch_and_conditions(model, inputs):
    text = model.encode_text(inputs["encoder_hidden_states"])
    with pytest.raises(ValueError, match="takes text"):
        model.embed_timesteps(torch.tensor([1]), 3)
    step = model.embed_timesteps(torch.tensor([1]), 3, text)[0]
    with pytest.raises(ValueError, match="`timestep` has shape"):
        model([level[:2] for level in inputs["sample"]], step, text.first_samples(2))


@torch.no_grad()
def test_micro_conditioning_has_defaults_and_an_upper_bound(model, inputs):
    def predict(scale: list[float] | None) -> torch.Tensor:
        given = None if scale is None else {"scale": torch.tensor(scale)}
        return model(**{**inputs, "added_cond_kwargs": given}).sample[0]

    # The inner level's default is 8; what is above is clamped to it. The outer level's is 16.
    torch.testing.assert_close(predict(None), predict([16.0, 16.0, 16.0]), **SAME)
    torch.testing.assert_close(predict([16.0] * 3), predict([99.0] * 3), **SAME)
    assert (predict([16.0] * 3) - predict([3.0] * 3)).abs().amax() > 1e-4


@torch.no_grad()
def test_non_square_images(model, inputs):
    sample = [torch.randn(2, 3, 8, 12), torch.randn(2, 3, 16, 24)]
    output = model(**{**narrow(inputs, slice(0, 2)), "sample": sample}).sample
    assert [tuple(level.shape[2:]) for level in output] == [(8, 12), (16, 24)]


@torch.no_grad()
def test_class_labels_condition_and_can_go_without_text(config, inputs):
    config.update(encoder_hid_dim=None, cross_attention_dim=None, num_text_layers=0, num_class_embeds=4)
    model = NestedUNetModel(**config).eval()
    sample, timestep = inputs["sample"], inputs["timestep"]
    first = model(sample, timestep, class_labels=torch.tensor([0, 1, 2])).sample
    second = model(sample, timestep, class_labels=torch.tensor([3, 1, 2])).sample
    assert not torch.allclose(first[0][0], second[0][0])
    torch.testing.assert_close(first[0][1:], second[0][1:], **ROUNDING)
    with pytest.raises(ValueError, match="class_labels"):
        model(sample, timestep)


@torch.no_grad()
def test_output_bound(config, inputs):
    inner = {name: column[:1] if isinstance(column, tuple) else column for name, column in config.items()}
    model = NestedUNetModel(**inner, output_bound=0.01).eval()
    assert model(**narrow(inputs, slice(None), levels=1)).sample[0].abs().max() <= 0.01
    with pytest.raises(ValueError, match="output_bound"):
        NestedUNetModel(**config, output_bound=1.0)


def test_constant_level_does_not_become_nan(model, inputs):
    sample = [inputs["sample"][0], torch.zeros_like(inputs["sample"][1])]
    assert all(level.isfinite().all() for level in model(**{**inputs, "sample": sample}).sample)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": []}, "empty pyramid"),
        ({"sample": [torch.zeros(3, 3, 8)]}, "batch, channels, height, width"),
        ({"sample": [torch.zeros(3, 3, 8, 8), torch.zeros(2, 3, 24, 24)]}, "2 times larger"),
        ({"sample": [torch.zeros(2, 3, 16, 16), torch.zeros(3, 3, 8, 8)]}, "innermost"),
        ({"sample": [torch.zeros(3, 3, 8, 8), torch.zeros(2, 3, 16, 16), torch.zeros(1, 3, 32, 32)]}, "3 levels"),
        ({"sample": [torch.zeros(3, 3, 7, 8)]}, "multiples of 2"),
        ({"sample": [torch.zeros(3, 4, 8, 8)]}, "4 channels"),
        ({"sample": "picture"}, "list of tensors"),
        ({"timestep": torch.tensor([1, 2])}, "timestep"),
        ({"encoder_hidden_states": None}, "encoder_hidden_states"),
        ({"encoder_hidden_states": torch.zeros(3, 5, 99)}, "text encoder"),
        ({"encoder_hidden_states": torch.zeros(2, 5, 12), "encoder_attention_mask": None}, "a batch of 2"),
        ({"encoder_attention_mask": torch.ones(3, 1, 5)}, "encoder_attention_mask"),
        ({"added_cond_kwargs": {"sharpness": torch.zeros(3)}}, "sharpness"),
        ({"added_cond_kwargs": {"scale": torch.zeros(2)}}, "scale"),
        ({"class_labels": torch.zeros(3, dtype=torch.long)}, "num_class_embeds"),
    ],
)
def test_bad_input_teaches(model, inputs, change, message):
    with pytest.raises(ValueError, match=message):
        model(**{**inputs, **change})
