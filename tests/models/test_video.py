# SPDX-License-Identifier: Apache-2.0
"""A model of clips: levels that grow in frames, in pixels, or not at all."""

import json

import pytest
import torch

from diffusers_mdm import LevelConfig, NestedUNetModel
from diffusers_mdm.models.frames import on_tiled_frames
from tests.models.tiny_models import randomize, video_config

SAME = {"rtol": 0, "atol": 0}
# Another batch size may choose another kernel; single precision then differs in the last bits.
ROUNDING = {"rtol": 0, "atol": 2e-5}


def rows_of(inputs: dict, rows: slice, levels: int) -> dict:
    """The same inputs for some rows and the inner levels only."""
    return {
        "sample": [level[rows] for level in inputs["sample"][:levels]],
        "timestep": inputs["timestep"][rows],
        "encoder_hidden_states": inputs["encoder_hidden_states"][rows],
        "encoder_attention_mask": inputs["encoder_attention_mask"][rows],
        "added_cond_kwargs": {"scale": inputs["added_cond_kwargs"]["scale"][rows]},
    }


def with_level(inputs: dict, index: int, level: torch.Tensor) -> dict:
    return {**inputs, "sample": [*inputs["sample"][:index], level, *inputs["sample"][index + 1 :]]}


def test_sizes_follow_from_the_columns(video_model):
    assert video_model.level_frames == (1, 4, 4)
    assert video_model.level_ratios == (1, 1, 2)
    assert video_model.sample_sizes == (8, 8, 16)
    # Level 1 halves its 8 pixels once, for its attention among frames; so does level 2, at 8 pixels.
    assert video_model.size_multiple == 2


@torch.no_grad()
def test_clips_and_images_run_in_one_batch(video_model, video_inputs):
    """Rows that are images only (the third) and clips without all pixels (the second) are as if alone."""
    joint = video_model(**video_inputs).sample
    assert [tuple(level.shape) for level in joint] == [(3, 3, 1, 8, 8), (2, 3, 4, 8, 8), (1, 3, 4, 16, 16)]
    for rows, levels in ((slice(0, 1), 3), (slice(1, 2), 2), (slice(2, 3), 1)):
        alone = video_model(**rows_of(video_inputs, rows, levels)).sample
        for level, single in zip(joint, alone, strict=False):
            torch.testing.assert_close(level[rows], single, **ROUNDING)


@torch.no_grad()
def test_partial_pyramid_runs_the_inner_model(video_model, video_inputs):
    for levels in (1, 2):
        inner = rows_of(video_inputs, slice(0, 1), levels)
        expected = video_model(**inner).sample
        torch.testing.assert_close(video_model.inner_model(levels)(**inner).sample, expected, **SAME)


@torch.no_grad()
def test_level_of_single_frames_takes_images(video_model, video_inputs):
    inner = rows_of(video_inputs, slice(None), 1)
    clips = video_model(**inner).sample[0]
    images = video_model(**with_level(inner, 0, inner["sample"][0][:, :, 0])).sample[0]
    torch.testing.assert_close(images, clips[:, :, 0], **SAME)
    bare = video_model(**{**inner, "sample": inner["sample"][0]}).sample
    torch.testing.assert_close(bare, clips, **SAME)


@torch.no_grad()
@pytest.mark.parametrize("changed", [0, 1, 2])
def test_frames_and_levels_inform_each_other(video_model, video_inputs, changed):
    """One frame of one level reaches every frame of every level."""
    before = video_model(**video_inputs).sample
    level = video_inputs["sample"][changed].clone()
    level[0, :, -1] = torch.randn(level[0, :, -1].shape)
    after = video_model(**with_level(video_inputs, changed, level)).sample
    for one, other in zip(before, after, strict=True):
        per_frame = (one[0] - other[0]).abs().amax(dim=(0, 2, 3))
        assert (per_frame > 1e-5).all()
        torch.testing.assert_close(one[1:], other[1:], **ROUNDING)


@torch.no_grad()
def test_text_encoded_once_changes_no_number(video_model, video_inputs):
    expected = video_model(**video_inputs).sample
    states, mask = video_inputs.pop("encoder_hidden_states"), video_inputs.pop("encoder_attention_mask")
    text = video_model.encode_text(states, mask, with_keys_values=True)
    torch.testing.assert_close(video_model(**video_inputs, encoder_hidden_states=text).sample, expected, **ROUNDING)


@torch.no_grad()
def test_each_frame_is_normalised_alone(video_model, video_inputs):
    """Scaling one frame of an outer level changes nothing, because its scale is divided out."""
    expected = video_model(**video_inputs).sample
    level = video_inputs["sample"][1].clone()
    level[:, :, 2] *= 4.0
    after = video_model(**with_level(video_inputs, 1, level)).sample
    torch.testing.assert_close(after, expected, **ROUNDING)


@torch.no_grad()
def test_adapters_of_published_models_see_tiled_frames(video_inputs):
    config = {**video_config(), "tiled_adapters": (False, False, True)}
    model = randomize(NestedUNetModel(**config)).eval()
    encoder, decoder = model.levels[2].encoder, model.levels[2].decoder
    rows = torch.randn(4, 32, 8, 8)
    expected = on_tiled_frames(encoder.in_adapter, rows, 4)
    torch.testing.assert_close(encoder.towards_inner(rows, 4), expected, **SAME)
    assert not torch.allclose(expected, encoder.in_adapter(rows), atol=1e-4)
    torch.testing.assert_close(decoder.from_inner(rows, 4), on_tiled_frames(decoder.out_adapter, rows, 4), **SAME)
    plain = NestedUNetModel(**video_config()).eval()
    plain.load_state_dict(model.state_dict())
    tiled, alone = model(**video_inputs).sample, plain(**video_inputs).sample
    assert not torch.allclose(tiled[2], alone[2], atol=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients(video_model, video_inputs):
    def gradients() -> dict[str, torch.Tensor]:
        video_model.zero_grad()
        sum((level**2).mean() for level in video_model(**video_inputs).sample).backward()
        return {name: parameter.grad.clone() for name, parameter in video_model.named_parameters()}

    expected = gradients()
    for place in ("1.encoder.down_blocks.0", "1.decoder.up_blocks.2", "2.encoder.down_blocks.1"):
        assert expected[f"levels.{place}.temporal_attentions.0.attn.to_q.weight"].abs().sum() > 0
    video_model.enable_gradient_checkpointing()
    torch.testing.assert_close(gradients(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@torch.no_grad()
def test_compiles_as_one_graph(video_model, video_inputs):
    expected = video_model(**video_inputs).sample
    compiled = torch.compile(video_model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**video_inputs).sample, expected, **ROUNDING)


@torch.no_grad()
def test_save_and_load_keep_every_bit(video_model, video_inputs, tmp_path):
    video_model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["num_frames"] == [1, 4, 4]
    loaded = NestedUNetModel.from_pretrained(tmp_path).eval()
    weights = loaded.state_dict()
    assert all(torch.equal(weights.pop(name), value) for name, value in video_model.state_dict().items())
    assert not weights
    # Loaded weights lie elsewhere in memory, where libraries may add up in another order.
    torch.testing.assert_close(loaded(**video_inputs).sample, video_model(**video_inputs).sample, **ROUNDING)


@torch.no_grad()
def test_bfloat16_is_near(video_model, video_inputs):
    expected = video_model(**video_inputs).sample
    half = video_model.to(torch.bfloat16)
    given = {**video_inputs, "sample": [level.bfloat16() for level in video_inputs["sample"]]}
    given["encoder_hidden_states"] = given["encoder_hidden_states"].bfloat16()
    for level, reference in zip(half(**given).sample, expected, strict=True):
        assert level.dtype == torch.bfloat16
        assert (level.float() - reference).abs().max() < 0.1 * reference.abs().max()


@pytest.mark.parametrize(
    ("index", "shape", "message"),
    [
        (1, (2, 3, 3, 8, 8), r"has \(1, 3, 4\) frames, innermost level first; this model takes \(1, 4, 4\)"),
        (1, (2, 3, 2, 8, 8), r"has \(1, 2, 4\) frames"),
        (1, (2, 3, 8, 8, 8), "not larger"),
        (0, (3, 3, 8, 8), "dimensions"),
        (2, (1, 3, 4, 24, 24), "2 times larger"),
        (0, (3, 3, 1, 7, 8), "multiples of 2"),
    ],
)
def test_clips_of_other_sizes_are_refused(video_model, video_inputs, index, shape, message):
    with pytest.raises(ValueError, match=message):
        video_model(**with_level(video_inputs, index, torch.zeros(shape)))


def test_images_do_not_go_through_a_level_that_resamples_frames(video_model, video_inputs):
    sample = [torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 16, 16)]
    with pytest.raises(ValueError, match="expected 8 x 8"):
        video_model(**{**rows_of(video_inputs, slice(0, 1), 1), "sample": sample})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": (1, 16, 16)}, r"num_frames\[1\] = 16, but level 0 has 1 .* expected 4"),
        ({"num_frames": (1, 4, 8)}, r"num_frames\[2\] = 8, but level 1 has 4"),
        ({"num_frames": (1, 4.0, 4)}, "whole number"),
        ({"num_frames": (0, 4, 4)}, "whole number"),
        ({"temporal_downsample": (True, True, False)}, "level 0 "),
        ({"tiled_adapters": (True, False, False)}, "level 0 "),
        ({"temporal_layers_per_block": (None, (1, 1, 0), None), "temporal_rotary": None}, r"\[16\] channels"),
        ({"temporal_layers_per_block": ((1, 0), (1, 0, 0), None)}, "needs several"),
        ({"temporal_layers_per_block": (None, (1, -1, 0), None)}, "0 for none"),
        ({"temporal_layers_per_block": (None, (1, 0), (0, 1))}, "3 resolutions"),
        ({"temporal_layers_per_block": (None, None, (0, 1))}, r"temporal_rotary\[1\]"),
    ],
)
def test_contradictions_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        NestedUNetModel(**{**video_config(), **change})


def test_tiles_need_a_square_of_frames():
    rows = list(LevelConfig.levels_from(NestedUNetModel(**video_config()).config))
    rows[1:] = [
        LevelConfig((32, 32), (1, 1), (0, 0), norm_num_groups=8, num_frames=2, temporal_downsample=True),
        LevelConfig((16, 32), (1, 1), (0, 0), norm_num_groups=8, num_frames=2, tiled_adapters=True),
    ]
    with pytest.raises(ValueError, match=r"tiled_adapters\[2\] is True, but level 1 has 2 frames"):
        NestedUNetModel(**{**video_config(), **LevelConfig.columns_from(tuple(rows))})
