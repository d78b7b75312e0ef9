# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from diffusers_mdm import NestedUNetModel
from diffusers_mdm.models.level_config import LevelConfig
from diffusers_mdm.training.data.micro_conditioning import check_offsets, micro_conditioning_defaults, micro_values

SMALL = {"block_out_channels": (32,), "layers_per_block": (1,), "attention_layers_per_block": (0,)}


def level(**fields: object) -> LevelConfig:
    return LevelConfig(**SMALL, **fields)


def test_the_scale_is_the_shorter_side():
    assert micro_values({"scale": 64.0}, 48, {}, {}) == {"scale": 48.0}
    assert micro_values({}, 48, {"scale": 3}, {}) == {}


def test_other_conditions_come_from_the_data_or_are_the_default():
    defaults = {"scale": 64.0, "watermark": 0.5}
    assert micro_values(defaults, 48, {"watermark": 0.25, "other": 1}, {}) == {"scale": 48.0, "watermark": 0.25}
    assert micro_values(defaults, 48, {}, {})["watermark"] == 0.5


@pytest.mark.parametrize("value", ["much", True, [1.0]])
def test_conditions_are_numbers(value):
    with pytest.raises(ValueError, match="'watermark' must be a number"):
        micro_values({"watermark": 0.0}, 48, {"watermark": value}, {})


def test_offsets_are_added_and_nothing_falls_below_zero():
    assert micro_values({"scale": 64.0}, 48, {}, {"scale": 16.0}) == {"scale": 64.0}
    assert micro_values({"scale": 64.0}, 48, {}, {"scale": -60.0}) == {"scale": 0.0}
    check_offsets({"scale": 64.0}, {"scale": 1.0})
    with pytest.raises(ValueError, match="names 'size', but the micro-conditioning keys of this model are: scale"):
        check_offsets({"scale": 64.0}, {"size": 1.0})


def test_defaults_are_those_of_the_innermost_level_that_has_them():
    rows = [
        level(micro_conditioning_defaults=(16.0,)),
        level(micro_conditioning_keys=("scale", "watermark"), micro_conditioning_defaults=(64.0, 0.5)),
    ]
    assert micro_conditioning_defaults(rows) == {"scale": 16.0, "watermark": 0.5}
    none = level(micro_conditioning_keys=(), micro_conditioning_defaults=())
    assert micro_conditioning_defaults([none]) == {}


def test_large_images_are_what_the_model_assumes_and_small_ones_are_not():
    torch.manual_seed(0)
    unet = NestedUNetModel(sample_size=8, **LevelConfig.columns_from([level(micro_conditioning_defaults=(8.0,))]))
    sample, timestep = torch.randn(1, 3, 8, 8), torch.tensor([500])

    def predict(short_side: int) -> torch.Tensor:
        values = micro_values(
            micro_conditioning_defaults([level(micro_conditioning_defaults=(8.0,))]), short_side, {}, {}
        )
        conditions = {key: torch.tensor([value]) for key, value in values.items()}
        return unet(sample, timestep, added_cond_kwargs=conditions).sample

    with torch.no_grad():
        assumed = unet(sample, timestep).sample
        assert torch.equal(predict(8), assumed)
        assert torch.equal(predict(100), assumed)
        assert not torch.allclose(predict(4), assumed, atol=1e-3)
