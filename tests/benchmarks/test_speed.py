# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of speed run, at a size that says nothing about speed."""

import argparse
import copy
import itertools
import json

import drawing
import forward
import import_time
import machine
import measured_models
import memory
import pytest
import results_table
import torch
import training_step
import variants
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


@pytest.fixture
def only_tiny_models(tiny_model, monkeypatch):
    for module in (forward, memory, training_step, drawing):
        monkeypatch.setattr(module, "build", lambda name, device: copy.deepcopy(tiny_model))


@pytest.mark.parametrize("benchmark", [forward, memory, training_step], ids=lambda module: module.__name__)
def test_models_are_measured(benchmark, only_tiny_models, tmp_path):
    rounds = [] if benchmark is memory else ["--rounds", "1"]
    benchmark.main(["--models", "emoji", "--batch_size", "2", "--output", str(tmp_path / "rows.json"), *rounds])
    row = rows_of(tmp_path / "rows.json")[0]
    assert row["rows"] == 2
    # Both variants compute the same function.
    assert all(value < 1e-4 for name, value in row.items() if "difference" in name)


def test_a_training_step_that_recomputes_keeps_less(only_tiny_models, tmp_path):
    kept = []
    for levels in ([], ["0", "1"]):
        words = ["--models", "emoji", "--batch_size", "2", "--rounds", "1", "--output", str(tmp_path / "rows.json")]
        training_step.main([*words, "--gradient_checkpointing_levels", *levels])
        row = rows_of(tmp_path / "rows.json")[0]
        assert row["relative difference"] < 1e-4
        kept.append(row["ours, MiB kept for backward"] / row["plain, MiB kept for backward"])
    assert kept[1] < kept[0] < 1


def test_levels_in_slices_take_less_memory(tiny_model):
    sample = [torch.randn(8, 3, side, side) for side in tiny_model.sample_sizes]
    inputs = (sample, 500, torch.randn(8, 3, 12))
    whole = memory.most_memory(lambda: tiny_model(*inputs))
    tiny_model.enable_level_slicing()
    assert memory.most_memory(lambda: tiny_model(*inputs)) < whole


def test_drawing(tmp_path):
    make_pipeline(micro_conditioning_keys=((), ()), micro_conditioning_defaults=((), ())).save_pretrained(tmp_path)
    words = ["--models", str(tmp_path), "--num_inference_steps", "2", "--rounds", "1", "--num_images", "1"]
    drawing.main([*words, "--output", str(tmp_path / "rows.json")])
    assert rows_of(tmp_path / "rows.json")[0]["largest difference"] < 1e-4


def test_drawing_with_a_model_without_text_encoder(only_tiny_models, tmp_path):
    words = ["--models", "emoji", "--num_inference_steps", "2", "--rounds", "1", "--num_images", "2"]
    drawing.main([*words, "--output", str(tmp_path / "rows.json")])
    row = rows_of(tmp_path / "rows.json")[0]
    assert row["images"] == 2
    assert row["relative difference"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", [forward, training_step], ids=lambda module: module.__name__)
def test_compiled_models_in_low_precision(benchmark, only_tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(variants, "BACKEND", "eager")
    output = tmp_path / "rows.json"
    flags = ["--models", "emoji", "--batch_size", "2", "--rounds", "2", "--dtype", "bf16", "--output", str(output)]
    benchmark.main([*flags, "--compile", "regional", "full", "--commit", "abc"])
    assert json.loads(output.read_text())["machine"]["commit"] == "abc"
    for row, way in zip(rows_of(output), ("regional", "full"), strict=True):
        assert row["compile"] == way
        assert row["relative difference"] < 0.05
        assert row["graphs compiled after the first call"] == 0


def test_a_form_that_does_not_fit_into_memory_is_left_out():
    def too_large():
        raise torch.OutOfMemoryError("no")

    args = argparse.Namespace(device="cpu", rounds=1, rate=1e9)
    row = variants.compare({"plain": too_large, "ours": lambda: 1.0}, args, {"plain": 1, "ours": 1}, images=1)
    assert row["plain"] == "out of memory"
    assert row["ours"]["median"] > 0
    assert "plain / ours" not in row
    assert variants.compare({"ours": too_large}, args, {}, images=1) == {"ours": "out of memory"}


def test_a_row_that_fails_leaves_the_others(tmp_path, capsys):
    results = results_table.Results("A table", {}, str(tmp_path / "rows.json"))
    results.add({"row": 1}, lambda: {"value": 1.0})
    results.add({"row": 2}, lambda: {"value": 1 / 0})
    results.add({"row": 3}, lambda: {"value": 3.0})
    assert [row.get("value") for row in rows_of(tmp_path / "rows.json")] == [1.0, None, 3.0]
    with pytest.raises(SystemExit):
        results.finish()
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_operations_of_a_batch_follow_from_those_of_small_ones():
    rows = []

    def call_of(few):
        rows.append(few)
        return lambda: torch.randn(few, 3) @ torch.randn(3, 4)

    assert variants.flops_of_batch(call_of, 100) == 2 * 100 * 3 * 4
    assert rows == [1, 2]


def test_models_are_measured_in_the_memory_format_that_users_get():
    parser = argparse.ArgumentParser()
    variants.add_machine_flags(parser)
    layouts = [variants.layout_of(parser.parse_args(words)) for words in ([], ["--device", "cuda"])]
    assert layouts == [torch.channels_last, torch.contiguous_format]
    chosen = parser.parse_args(["--device", "cuda", "--channels_last"])
    assert variants.layout_of(chosen) is torch.channels_last


@pytest.mark.parametrize("name", measured_models.PUBLISHED_SIZES)
def test_models_of_published_sizes(name):
    model = measured_models.build(name, "meta")
    assert model.sample_sizes[-1] == int(name)
    parameters = sum(value.numel() for value in model.parameters())
    assert name == "1024" or parameters == {"64": 461_359_107, "256": 476_613_958}[name]


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
