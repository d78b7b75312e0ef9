# SPDX-License-Identifier: Apache-2.0
import dataclasses
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusers_mdm.pipelines.image_grid import GAP, MIN_CELL
from diffusers_mdm.training.recipe.recipe import ValidationRecipe
from diffusers_mdm.training.reports.trackers import start_trackers
from diffusers_mdm.training.reports.validation_grid import draw_prompts, draw_validation_grid
from diffusers_mdm.training.state.moving_average import Average
from diffusers_mdm.training.state.run import Run, RunOptions
from tests.pipelines.tiny_pipeline import make_pipeline
from tests.training.tiny_run import tiny_recipe

PROMPTS = ("a red apple", "sad cat")


class EncodedTexts:
    """Features of a few texts, as a folder of embeddings gives them."""

    def __init__(self, pipeline, texts):
        rows = [pipeline.encode_prompt(text, do_classifier_free_guidance=False) for text in texts]
        self.features = {text: row[0][0].detach() for text, row in zip(texts, rows, strict=True)}

    def __contains__(self, caption):
        return caption in self.features

    def look_up(self, captions):
        rows = [self.features[caption] for caption in captions]
        mask = torch.arange(max(map(len, rows))) < torch.tensor([[len(row)] for row in rows])
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), mask


def settings(**changes) -> ValidationRecipe:
    return ValidationRecipe(**{"prompts": PROMPTS, "num_inference_steps": 2, **changes})


def new_run(tmp_path, pipeline=None, accelerator=None, **changes) -> Run:
    recipe = dataclasses.replace(tiny_recipe(tmp_path), validation=settings(**changes))
    pipeline = pipeline or make_pipeline()
    run = Run(
        recipe,
        RunOptions(output_dir=tmp_path, report_to=None),
        accelerator or Accelerator(cpu=True),
        pipeline.unet,
        pipeline.text_encoder,
        pipeline.tokenizer,
        pipeline.scheduler,
    )
    run.progress.total_steps = 7
    return run


def differences(first, second) -> list[int]:
    """Largest difference of two images' values in 0..255, for each pair."""
    pairs = zip(first, second, strict=True)
    return [int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max()) for one, other in pairs]


def test_grid_has_a_column_an_image_and_a_row_a_level(tmp_path):
    path = draw_validation_grid(new_run(tmp_path, num_validation_images=2))
    assert path == tmp_path / "samples" / "step-0000007.png"
    with Image.open(path) as grid:
        cell = MIN_CELL + GAP
        assert 4 * cell < grid.width < 5 * cell
        assert 2 * cell < grid.height < 3 * cell


def test_images_are_those_of_the_averaged_weights_and_training_goes_on_as_before(tmp_path):
    run, average = new_run(tmp_path), make_pipeline(sample_size=8).unet
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(0.5)
    run.ema["unet"] = Average(average.state_dict())
    run.unet.train()
    before, random_state = [value.clone() for value in run.unet.parameters()], torch.get_rng_state()
    path = draw_validation_grid(run)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert run.unet.training
    assert all(torch.equal(*pair) for pair in zip(run.unet.parameters(), before, strict=True))

    expected = new_run(tmp_path / "expected")
    expected.unet.load_state_dict(average.state_dict())
    with Image.open(path) as drawn, Image.open(draw_validation_grid(expected)) as wanted:
        assert drawn.tobytes() == wanted.tobytes()
    with Image.open(path) as drawn, Image.open(draw_validation_grid(new_run(tmp_path / "trained"))) as other:
        assert drawn.tobytes() != other.tobytes()


def test_an_image_has_the_same_noise_every_time_and_in_every_batch():
    pipeline = make_pipeline()
    three = draw_prompts(pipeline, settings(num_validation_images=3))
    assert [len(level) for level in three] == [6, 6]
    assert max(differences(three[1], draw_prompts(pipeline, settings(num_validation_images=3))[1])) == 0
    # Images 0 to 2 are of the first prompt with seeds 0 to 2.
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        alone = pipeline(PROMPTS[0], num_inference_steps=2, guidance_scale=3.0, generator=generator).images
        assert max(differences(alone, three[1][seed : seed + 1])) <= 1  # batches of other sizes may round differently


def test_large_images_are_drawn_in_smaller_batches(monkeypatch):
    pipeline, sizes = make_pipeline(), []
    monkeypatch.setattr("diffusers_mdm.training.reports.validation_grid.MAX_BATCH_PIXELS", 3 * 16 * 16)
    forward = pipeline.unet.forward
    monkeypatch.setattr(
        pipeline.unet,
        "forward",
        lambda sample, *rest, **named: sizes.append(len(sample[0])) or forward(sample, *rest, **named),
    )
    levels = draw_prompts(pipeline, settings(prompts=("sad cat",) * 4, guidance_scale=1.0, num_inference_steps=1))
    assert sizes == [3, 1]
    assert [len(level) for level in levels] == [4, 4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_text_encoders_of_half_precision_draw(tmp_path, dtype):
    run = new_run(tmp_path)
    run.text_encoder.to(dtype)
    assert draw_validation_grid(run).is_file()
    assert run.unet.dtype == torch.float32


def test_encoded_prompts_give_the_images_of_the_text_encoder():
    pipeline = make_pipeline()
    features = EncodedTexts(pipeline, (*PROMPTS, ""))
    expected = draw_prompts(pipeline, settings(num_validation_images=2))
    pipeline.text_encoder = pipeline.tokenizer = None
    drawn = draw_prompts(pipeline, settings(num_validation_images=2), features=features)
    for one, other in zip(drawn, expected, strict=True):
        assert max(differences(one, other)) <= 1


def test_without_text_encoder_prompts_that_are_not_encoded_are_not_drawn(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    pipeline, run = make_pipeline(), new_run(tmp_path)
    run.text_encoder = run.tokenizer = None
    assert draw_validation_grid(run, EncodedTexts(pipeline, PROMPTS)) is None
    (line,) = [record.getMessage() for record in caplog.records]
    assert "''" in line  # the empty text, which guidance needs
    assert draw_validation_grid(run, EncodedTexts(pipeline, (*PROMPTS, ""))).is_file()


def test_nothing_is_drawn_without_prompts_or_on_other_processes(tmp_path):
    assert draw_validation_grid(new_run(tmp_path, prompts=())) is None
    other = SimpleNamespace(is_main_process=False, distributed_type="MULTI_CPU")
    assert draw_validation_grid(new_run(tmp_path, accelerator=other)) is None
    assert not (tmp_path / "samples").exists()


def test_tensorboard_gets_the_grid_and_every_level(tmp_path):
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path)
    start_trackers(accelerator, "test", {"seed": 0})
    path = draw_validation_grid(new_run(tmp_path, accelerator=accelerator))
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "test")).Reload()
    grid_tag, *levels = sorted(events.Tags()["images"])
    (event,) = events.Images(grid_tag)
    with Image.open(path) as grid:
        assert (event.step, event.width, event.height) == (7, *grid.size)
    for level, tag in enumerate(levels):  # the images of each level at their own size
        assert tag.startswith(f"validation/level_{level}_")
        assert events.Images(tag)[0].height >= int(tag.rpartition("_")[2].removesuffix("px"))
    assert len(levels) == 2


def test_a_folder_that_cannot_be_written_does_not_stop_training(tmp_path, caplog):
    (tmp_path / "samples").write_text("a file where the folder should be")
    assert draw_validation_grid(new_run(tmp_path)) is None
    assert "training continues" in caplog.text
