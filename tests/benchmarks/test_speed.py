# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of speed run, at a size that says nothing about speed."""

import itertools
import json

import drawing
import forward
import import_time
import machine
import memory
import pytest
import torch
import training_step
from plain_unet import PlainUNet
from safetensors.torch import load_file

from diffusers_mdm import NestedUNetModel
from diffusers_mdm.conversion.apple_mdm import convert_apple_checkpoint
from tests.conversion.recorded_models import GOLDEN, checkpoint, config
from tests.models.tiny_models import TEXT_WIDTH, randomize, two_level_config
from tests.pipelines.tiny_pipeline import make_pipeline


def rows_of(path):
    return json.loads(path.read_text())["rows"]


def test_the_plain_form_computes_what_was_recorded_of_the_published_code():
    io = load_file(GOLDEN / "nested_unet_attn" / "io.safetensors")
    model = convert_apple_checkpoint(checkpoint("nested_unet_attn"), config("nested_unet_attn")).unet
    with torch.no_grad():
        predictions = PlainUNet(model)(
            [io["x_t.1"], io["x_t.0"]],
            io["times"],
            io["lm_outputs"],
            io["lm_mask"],
            {"scale": io["micros.scale"]},
        )
    for own, name in zip(predictions, ("pred.1", "pred.0"), strict=True):
        torch.testing.assert_close(own, io[name], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "change",
    [{}, {"use_cross_attention_mask": False}, {"num_text_layers": 0, "has_attention_ffn": (False, True)}],
    ids=["masked", "pads are seen", "no text layers"],
)
def test_the_plain_form_computes_the_same(change):
    model = randomize(NestedUNetModel(**{**two_level_config(), **change})).eval()
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = False
    inputs = {
        "sample": [torch.randn(3, 3, 8, 8), torch.randn(2, 3, 16, 16)],
        "timestep": torch.tensor([3, 500, 999]),
        "encoder_hidden_states": torch.randn(3, 5, TEXT_WIDTH) * mask[..., None],
        "encoder_attention_mask": mask,
        "added_cond_kwargs": {"scale": torch.tensor([8.0, 5.0, 16.0])},
    }
    with torch.no_grad():
        expected = model(**inputs).sample
        for own, level in zip(PlainUNet(model)(**inputs), expected, strict=True):
            torch.testing.assert_close(own, level, rtol=0, atol=2e-5)


@pytest.mark.parametrize("benchmark", [forward, memory, training_step], ids=lambda module: module.__name__)
def test_models_are_measured(benchmark, tiny_model, tmp_path, monkeypatch):
    for module in {benchmark, forward}:
        monkeypatch.setattr(module, "build", lambda name: tiny_model)
    rounds = [] if benchmark is memory else ["--rounds", "1"]
    benchmark.main(["--models", "emoji", "--batch_size", "2", "--output", str(tmp_path / "rows.json"), *rounds])
    row = rows_of(tmp_path / "rows.json")[0]
    assert row["rows"] == 2
    # Both variants compute the same function.
    assert all(float(value) < 1e-4 for name, value in row.items() if "difference" in name)


def test_levels_in_slices_take_less_memory(tiny_model):
    sample = [torch.randn(8, 3, side, side) for side in tiny_model.sample_sizes]
    inputs = (sample, 500, torch.randn(8, 3, 12))
    whole = memory.most_memory(lambda: tiny_model(*inputs))
    tiny_model.enable_level_slicing()
    assert memory.most_memory(lambda: tiny_model(*inputs)) < whole


def test_drawing(tmp_path):
    make_pipeline(micro_conditioning_keys=((), ()), micro_conditioning_defaults=((), ())).save_pretrained(tmp_path)
    words = ["--model", str(tmp_path), "--num_inference_steps", "2", "--rounds", "1", "--num_pictures", "1"]
    drawing.main([*words, "--output", str(tmp_path / "rows.json")])
    assert float(rows_of(tmp_path / "rows.json")[0]["largest difference of a pixel"]) < 1e-4


def test_the_class_of_a_processor_is_that_of_its_best_units():
    assert "amx_bf16" in machine.class_of_processor({"amx_bf16": True, "avx512_f": True})
    assert "emulated" in machine.class_of_processor({"amx_bf16": False, "avx2": True})
    assert machine.class_of_processor({}) == "unknown"


def test_operations_are_timed_alone():
    left, right = torch.randn(8, 8), torch.randn(8, 8)
    ticks = itertools.count()
    # Two products of one kind, each of which lasts one tick.
    assert machine.seconds_of_operations(lambda: left @ right @ right, lambda: float(next(ticks))) == 2


@pytest.mark.slow
def test_import(capsys):
    import_time.main(["--rounds", "1"])
    assert "diffusers_mdm after them" in capsys.readouterr().out
