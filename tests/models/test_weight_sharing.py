# SPDX-License-Identifier: Apache-2.0
"""Levels that run layers of the level inside them: fewer parameters, one place for each."""

import copy
import dataclasses

import pytest
import torch
from diffusers.training_utils import EMAModel
from peft import LoraConfig
from safetensors.torch import load_file

from diffusers_mdm import LevelConfig, NestedUNetModel
from diffusers_mdm.models.weight_sharing import borrowed_names
from tests.models.tiny_models import randomize, video_config

SAME = {"rtol": 0, "atol": 0}
ROUNDING = {"rtol": 0, "atol": 2e-5}
SHARED = {"share_time_embedding": (False, True), "share_blocks": (False, True)}


@pytest.fixture
def shared(config) -> NestedUNetModel:
    """Both levels have 32 channels at their coarser resolution, the inner one also at its finer."""
    return randomize(NestedUNetModel(**config, **SHARED)).eval()


def train_step(model: NestedUNetModel, inputs: dict) -> dict[str, torch.Tensor]:
    model.zero_grad()
    sum((level**2).mean() for level in model(**inputs).sample).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_what_agrees_is_shared_and_nothing_else(model, shared):
    places = [
        "embedding.time_embedding",
        "embedding.micro_embeddings.scale",
        "decoder.up_blocks.0.resnets.0",
        "decoder.up_blocks.0.upsamplers.0",
    ]
    borrowed = {f"levels.1.{place}": f"levels.0.{place}" for place in places}
    assert borrowed_names(shared) == borrowed
    ours, all_names = dict(shared.named_parameters()), dict(model.named_parameters())
    assert list(ours) == [name for name in all_names if not name.startswith(tuple(f"{one}." for one in borrowed))]
    assert list(shared.state_dict()) == list(ours)
    inner, outer = shared.levels[0], shared.levels[1]
    assert outer.embedding.layer("time_embedding") is inner.embedding.time_embedding
    shared_up = outer.decoder.up_blocks[0].layer("resnets", 0)
    assert shared_up is inner.decoder.up_blocks[0].resnets[0]
    # 16 channels come in there, 32 inside.
    own = outer.encoder.down_blocks[1].resnets[0]
    assert own is not None
    assert own is not inner.encoder.down_blocks[1].resnets[0]
    # Adapters, first and last convolutions are every level's own.
    for name in ("encoder.conv_in", "encoder.in_adapter", "decoder.out_adapter", "decoder.conv_out"):
        assert f"levels.1.{name}.weight" in ours


@torch.no_grad()
def test_copies_of_shared_layers_compute_the_same(shared, inputs):
    apart = shared.without_sharing()
    assert apart.config.share_blocks is None
    assert apart.num_parameters() > shared.num_parameters()
    torch.testing.assert_close(apart(**inputs).sample, shared(**inputs).sample, **SAME)
    apart.levels[0].embedding.time_embedding.linear_1.weight.mul_(2)
    assert not torch.equal(
        apart.levels[0].embedding.time_embedding.linear_1.weight,
        apart.levels[1].embedding.time_embedding.linear_1.weight,
    )


def test_gradients_are_the_sum_over_the_levels(shared, inputs):
    apart = shared.without_sharing()
    together, single = train_step(shared, inputs), train_step(apart, inputs)
    for name in ("embedding.time_embedding.linear_1.weight", "decoder.up_blocks.0.resnets.0.conv1.weight"):
        expected = single[f"levels.0.{name}"] + single[f"levels.1.{name}"]
        torch.testing.assert_close(together[f"levels.0.{name}"], expected, rtol=1e-4, atol=1e-6)
        assert single[f"levels.1.{name}"].abs().sum() > 0


def test_gradient_checkpointing_gives_the_same_gradients(shared, inputs):
    expected = train_step(shared, inputs)
    shared.enable_gradient_checkpointing()
    torch.testing.assert_close(train_step(shared, inputs), expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("save", [{}, {"max_shard_size": "100KB"}])
def test_files_hold_each_tensor_once(shared, inputs, tmp_path, save):
    shared.save_pretrained(tmp_path, **save)
    saved = [name for path in sorted(tmp_path.glob("*.safetensors")) for name in load_file(path)]
    assert sorted(saved) == sorted(name for name, _ in shared.named_parameters())
    loaded = NestedUNetModel.from_pretrained(tmp_path).eval()
    assert loaded.levels[1].embedding.layer("time_embedding") is loaded.levels[0].embedding.time_embedding
    torch.testing.assert_close(loaded(**inputs).sample, shared(**inputs).sample, **SAME)


@torch.no_grad()
def test_copies_share_among_themselves(shared, inputs):
    expected = shared(**inputs).sample
    other = copy.deepcopy(shared)
    for parameter in shared.parameters():
        parameter.zero_()
    torch.testing.assert_close(other(**inputs).sample, expected, **SAME)
    other.levels[0].embedding.time_embedding.linear_2.weight.zero_()
    assert not other.levels[1].embedding.layer("time_embedding").linear_2.weight.any()


@torch.no_grad()
def test_model_grows_by_a_sharing_level(model, inputs):
    row = LevelConfig((16, 32), (1, 1), (0, 1), norm_num_groups=8, share_time_embedding=True, share_blocks=True)
    grown = model.add_level(row)
    before = model(**inputs).sample
    after = grown(**{**inputs, "sample": [*inputs["sample"], torch.randn(1, 3, 32, 32)]}).sample
    torch.testing.assert_close(after[:2], before, **SAME)
    assert torch.equal(after[2], torch.zeros(1, 3, 32, 32))
    old, new = dict(model.named_parameters()), dict(grown.named_parameters())
    assert list(new)[: len(old)] == list(old)
    assert all(torch.equal(new[name], parameter) for name, parameter in old.items())
    # Both levels are alike, so only what is never shared is new.
    assert {".".join(name.split(".")[2:4]) for name in list(new)[len(old) :]} == {
        "encoder.conv_in",
        "encoder.in_adapter",
        "decoder.out_adapter",
        "decoder.norm_out",
        "decoder.conv_out",
    }
    average = EMAModel(model.parameters())
    assert [shadow.shape for shadow in average.shadow_params] == [p.shape for p in list(new.values())[: len(old)]]


@torch.no_grad()
def test_sharing_reaches_through_several_levels(model, inputs):
    row = LevelConfig((16, 32), (1, 1), (0, 1), norm_num_groups=8, share_time_embedding=True, share_blocks=True)
    grown = model.add_level(row).add_level(row)
    owner = grown.levels[1].embedding.time_embedding
    assert grown.levels[2].embedding.layer("time_embedding") is owner
    assert grown.levels[3].embedding.layer("time_embedding") is owner
    torch.testing.assert_close(grown(**inputs).sample, model(**inputs).sample, **SAME)
    torch.testing.assert_close(grown.inner_model(3)(**inputs).sample, model(**inputs).sample, **SAME)
    sample = [torch.randn(1, 3, 8 * 2**index, 8 * 2**index) for index in range(4)]
    given = {**inputs, "sample": sample, "timestep": 7, "added_cond_kwargs": None}
    given["encoder_hidden_states"] = inputs["encoder_hidden_states"][:1]
    given["encoder_attention_mask"] = inputs["encoder_attention_mask"][:1]
    randomize(grown)
    torch.testing.assert_close(grown.without_sharing()(**given).sample, grown(**given).sample, **SAME)


@torch.no_grad()
def test_default_values_stay_each_levels_own(shared, inputs):
    """The inner level caps the scale at 8, the outer one at 16, with the same weights."""

    def predict(scale: float) -> list[torch.Tensor]:
        return shared(**{**inputs, "added_cond_kwargs": {"scale": torch.tensor(scale)}}).sample

    assert not torch.equal(predict(8.0)[1], predict(16.0)[1])
    inner = {**inputs, "sample": inputs["sample"][:1]}
    for scale in (8.0, 16.0):
        inner["added_cond_kwargs"] = {"scale": torch.tensor(scale)}
        torch.testing.assert_close(shared(**inner).sample, shared(**{**inner, "added_cond_kwargs": None}).sample)


@torch.no_grad()
def test_methods_of_diffusers_reach_shared_layers_once(shared, inputs):
    expected = shared(**inputs).sample
    text = shared.encode_text(inputs["encoder_hidden_states"], inputs["encoder_attention_mask"], with_keys_values=True)
    given = {**inputs, "encoder_hidden_states": text, "encoder_attention_mask": None}
    torch.testing.assert_close(shared(**given).sample, expected, **SAME)
    shared.fuse_qkv_projections()
    torch.testing.assert_close(shared(**inputs).sample, expected, **ROUNDING)
    shared.unfuse_qkv_projections()
    shared.add_adapter(LoraConfig(r=2, target_modules=["to_q", "linear_1", "conv1"], init_lora_weights=False))
    assert not torch.allclose(shared(**inputs).sample[1], expected[1], atol=1e-4)
    shared.unload_lora()
    torch.testing.assert_close(shared(**inputs).sample, expected, **SAME)


@pytest.mark.slow
@torch.no_grad()
def test_shared_layers_compile_into_one_graph(shared, inputs):
    expected = shared(**inputs).sample
    compiled = torch.compile(shared, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs).sample, expected, **ROUNDING)


@torch.no_grad()
def test_levels_stay_together_on_one_device(shared, inputs, tmp_path):
    expected = shared(**inputs).sample
    shared.save_pretrained(tmp_path)
    dispatched = NestedUNetModel.from_pretrained(tmp_path, device_map={"": "cpu"}).eval()
    torch.testing.assert_close(dispatched(**inputs).sample, expected, **SAME)
    assert "ModuleList" in shared._get_no_split_modules("auto")
    with pytest.raises(ValueError, match="group offloading"):
        shared.enable_group_offload(torch.device("cpu"))


@torch.no_grad()
def test_video_levels_share_temporal_layers(video_inputs):
    rows = list(LevelConfig.levels_from(NestedUNetModel(**video_config()).config))
    more = dataclasses.replace(rows[1], num_frames=16, share_blocks=True, share_time_embedding=True)
    frames = NestedUNetModel(**{**video_config(), **LevelConfig.columns_from((rows[0], rows[1], more))}).eval()
    randomize(frames)
    inner, outer = frames.levels[1], frames.levels[2]
    for kind in ("temporal_attentions", "downsamplers", "resnets"):
        block = outer.encoder.down_blocks[0]
        assert block.layer(kind, 0) is getattr(inner.encoder.down_blocks[0], kind)[0]
    sample = [video_inputs["sample"][0], video_inputs["sample"][1], torch.randn(1, 3, 16, 8, 8)]
    given = {**video_inputs, "sample": sample}
    torch.testing.assert_close(frames.without_sharing()(**given).sample, frames(**given).sample, **SAME)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share_blocks": (True, True)}, "level 0 has none"),
        ({"share_time_embedding": (True, False)}, "level 0 has none"),
        ({"share_blocks": (False, True), "norm_num_groups": (8, 16)}, r"norm_num_groups\[1\] = 16 and .*\[0\] = 8"),
        ({"share_blocks": (False, True), "dropout": (0.0, 0.1)}, r"dropout\[1\] = 0\.1"),
        ({"share_blocks": (False, True), "block_out_channels": ((32, 32), (16, 16))}, "no layer of level 1"),
        ({"share_blocks": (True,)}, "one entry for each"),
    ],
)
def test_impossible_sharing_is_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        NestedUNetModel(**{**config, **change})
