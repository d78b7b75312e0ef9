# SPDX-License-Identifier: Apache-2.0
"""What `--dry_run` says."""

import dataclasses
import re
from pathlib import Path

import pytest

from diffusers_mdm.training.commands import dry_run
from diffusers_mdm.training.commands.dry_run import GIB, describe_checkpointing, describe_run
from diffusers_mdm.training.costs import compute_estimate
from diffusers_mdm.training.loop.start import build_unet
from diffusers_mdm.training.modules.text_encoder import build_text_encoder, count_text_parameters
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.optimizer import OptimizerRecipe, PostHocEmaRecipe
from diffusers_mdm.training.recipe.recipe import LoraRecipe, PretrainedRecipe
from diffusers_mdm.training.recipe.stage import AlignmentRecipe, PlateauRecipe
from diffusers_mdm.training.recipe.text_encoder import TextEncoderRecipe
from diffusers_mdm.training.state.run import RunOptions
from tests.pipelines.tiny_pipeline import make_text_encoder
from tests.training.tiny_run import RECIPES

TINY = load_recipe(RECIPES / "tiny.yaml")


def count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def text() -> str:
    return describe_run(TINY, num_processes=2)


def test_it_counts_the_parameters_that_a_run_has(text):
    whole, inner = build_unet(TINY, 2), build_unet(TINY, 1)
    assert f"U-Net up to it: {count(inner):,}" in text
    assert f"level 1: 16 pixels, {count(whole.levels[1]):,} parameters; U-Net up to it: {count(whole):,}" in text
    encoder, _ = build_text_encoder(TINY.text_encoder, [f"word{number} {number}" for number in range(2000)])
    assert f"text encoder: {count(encoder):,} parameters, trained" in text


def test_it_says_when_stages_end_and_what_a_step_is(text):
    assert "stage inner: levels 0-0, 8 pixels, 4 steps x 8 = 32 images" in text
    assert "a step: 16 images = 2 process(es) x 2 accumulated x 4" in text
    assert "batch per level [4, 2], weights [1.0, 2.0], lr 0.001 cosine" in text


def test_it_estimates_the_time_of_every_stage(text):
    lines = [line for line in text.splitlines() if line.startswith("    compute: ")]
    assert [line.split(" images")[0] for line in lines] == ["    compute: 32", "    compute: 64"]
    assert all(line.endswith(" days") for line in lines)
    assert "GPUs of 800 TFLOP/s, of which 0.1 is used" in text


def test_an_end_by_metric_is_said(no_forward):
    plateau = PlateauRecipe(every_steps=50, patience=3)
    stage = dataclasses.replace(
        TINY.stages[0], steps=None, until_plateau=plateau, lr_scheduler="constant", lr_warmup_steps=0
    )
    data = dataclasses.replace(TINY.data, validation_split="test")
    described = describe_run(dataclasses.replace(TINY, stages=(stage,), data=data))
    assert "until 3 measurements of the validation loss, one every 50 steps, bring no gain, batch per" in described


def test_settings_of_the_whole_run_and_losses_of_each_stage_are_described(text):
    for line in ("conditions: captions", "prediction: the levels predict v", "optimizer: AdamW"):
        assert f"  {line}\n" in text
    assert "  averages of the weights: EMA, with which the pipeline is saved\n" in text
    assert text.count("    loss: squared error of the noise\n") == 2
    assert "added loss" not in text
    assert "validation metrics" not in text
    recipe = dataclasses.replace(
        TINY,
        alignment=AlignmentRecipe("inception", stages=("outer",)),
        optimizer=OptimizerRecipe(name="muon"),
        post_hoc_ema=PostHocEmaRecipe(),
        use_ema=False,
        validation=dataclasses.replace(TINY.validation, metrics=("fid", "kid")),
        stages=(dataclasses.replace(TINY.stages[0], loss_weighting="v"), TINY.stages[1]),
    )
    described = describe_run(recipe, RunOptions(Path("run"), validation_steps=100))
    assert "  optimizer: Muon for matrices and AdamW for the rest\n" in described
    assert "  averages of the weights: power-function averages of widths 0.05 and 0.1, with a snap" in described
    assert "  validation metrics: fid and kid of 64 generated and as many held-out images, every 100" in described
    inner, outer = described.split("  stage ")[1:]
    assert "    loss: squared error of v\n" in inner
    assert "added loss" not in inner
    assert "    added loss: alignment of level 0 with inception, weight 0.5; its network is not counted" in outer


def test_memory_is_a_sum_and_follows_the_options(monkeypatch):
    monkeypatch.setattr(compute_estimate, "pass_flops", lambda *arguments: 1e9)
    big = dataclasses.replace(TINY, stages=(dataclasses.replace(TINY.stages[0], batch_size=4096),))

    def activations(**fields) -> float:
        described = describe_run(big, RunOptions(output_dir=Path("out"), **fields))
        total, sum_ = re.search(r"memory a process: ([\d.]+) GiB = (.*)", described).groups()
        parts = {part.rsplit(" ", 1)[0]: float(part.rsplit(" ", 1)[1]) for part in sum_.split(" + ")}
        assert float(total) == pytest.approx(sum(parts.values()), abs=0.03)
        return parts["activations"]

    assert activations() > activations(gradient_checkpointing=True) > 0
    assert activations(gradient_checkpointing=True) == activations(gradient_checkpointing_levels=(0,))


def test_checkpointing_that_fits_is_suggested():
    choices = {(): 100 * GIB, (2,): 70 * GIB, (1, 2): 30 * GIB, (0, 1, 2): 20 * GIB}

    def said(available: float | None) -> list[str]:
        return list(describe_checkpointing(choices, None if available is None else int(available * GIB)))

    assert said(None) == [
        "    total by --gradient_checkpointing_levels: none: 100.00 GiB; 2: 70.00 GiB; 1,2: 30.00 GiB; 0,1,2: "
        "20.00 GiB"
    ]
    for available, end in (
        (130, "enough without gradient checkpointing"),
        (90, "take --gradient_checkpointing_levels 2"),
        (40, "take --gradient_checkpointing_levels 1,2"),
        (10, "too little even with gradient checkpointing of all levels; lower the batch size"),
    ):
        assert said(available)[1].endswith(f"{available} GiB, of which 80% can be planned: {end}")


def test_a_saved_text_encoder_is_counted_where_it_lies(no_forward, pipeline_dir, tmp_path):
    pretrained = PretrainedRecipe(str(pipeline_dir))
    recipe = dataclasses.replace(TINY, pretrained=pretrained, text_encoder=TextEncoderRecipe(from_pipeline=True))
    assert count_text_parameters(recipe) == count(make_text_encoder())
    assert f"starts from {pipeline_dir}" in describe_run(recipe)
    named = TextEncoderRecipe(pretrained=str(pipeline_dir / "text_encoder"))
    assert count_text_parameters(dataclasses.replace(TINY, text_encoder=named)) == count(make_text_encoder())


def test_one_that_is_not_here_is_not_counted(no_forward):
    recipe = dataclasses.replace(TINY, text_encoder=TextEncoderRecipe(pretrained="nobody/has-this-encoder"))
    assert count_text_parameters(recipe) is None
    described = describe_run(recipe)
    assert "text encoder of nobody/has-this-encoder: not on this machine, not counted" in described
    assert "text encoder unknown" in described


def test_encoded_captions_and_classes_need_none(no_forward, pipeline_dir):
    recipe = dataclasses.replace(
        TINY,
        text_encoder=TextEncoderRecipe(pretrained=str(pipeline_dir / "text_encoder")),
        data=dataclasses.replace(TINY.data, embeddings_dir="features"),
    )
    assert count_text_parameters(recipe) == 0
    assert "text encoder: none in memory" in describe_run(recipe)
    assert count_text_parameters(load_recipe(RECIPES / "imagenet_64.yaml")) == 0


def test_adapters_and_frozen_levels_show_in_what_learns(no_forward, pipeline_dir):
    recipe = dataclasses.replace(
        TINY,
        stages=TINY.stages[1:],
        pretrained=PretrainedRecipe(str(pipeline_dir)),
        text_encoder=TextEncoderRecipe(from_pipeline=True),
        lora=LoraRecipe(rank=2),
    )
    described = describe_run(recipe)
    adapters = re.search(r"LoRA of rank 2: ([\d,]+) parameters", described).group(1)
    assert f"{adapters} parameters of the U-Net trained" in described
    assert f"U-Net up to it: {count(build_unet(TINY, 2)):,}" in described  # without the adapters
    frozen = dataclasses.replace(TINY, stages=(dataclasses.replace(TINY.stages[1], frozen_levels=1),))
    outer = build_unet(TINY, 2).levels[1]
    trained = count(outer) - count(outer.encoder.in_adapter)  # which would change what the frozen level predicts
    assert f"{trained:,} parameters of the U-Net trained" in describe_run(frozen)


def test_the_published_sizes(no_forward):
    """461,359,107 and 476,613,958 parameters, as the published checkpoints have."""
    described = describe_run(load_recipe(RECIPES / "cc12m_256.yaml"))
    assert "U-Net up to it: 461,359,107" in described
    assert "U-Net up to it: 476,613,958" in described


@pytest.mark.parametrize("emulated", [True, False])
def test_it_says_that_bf16_would_be_emulated(no_forward, emulated, monkeypatch):
    monkeypatch.setattr(dry_run, "emulates_bf16", lambda: emulated)
    half = RunOptions(output_dir=Path("run"), mixed_precision="bf16")
    assert ("emulates it" in describe_run(TINY, half)) == emulated
    assert "emulates it" not in describe_run(TINY)
