# SPDX-License-Identifier: Apache-2.0
"""The model card of a run: what was trained, on which data, for how long, and how to use it."""

import contextlib
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from huggingface_hub import ModelCard, ModelCardData

from ... import __version__
from ...pipelines.drawing.latent_space import scale_factor
from ...pyramid import Size
from ..modules.classes import draws_classes_alone, is_unconditional, num_class_embeds, sees_text
from ..recipe.buckets import level_buckets
from ..recipe.clip_stages import has_clips, sources, stage_level_configs
from ..recipe.data import DataRecipe
from ..recipe.recipe import Recipe
from ..recipe.writing import FILE_NAME as RECIPE_FILE
from ..state.history import FILE_NAME as HISTORY_FILE
from ..state.history import History
from ..state.run import Run, RunOptions
from .card_example import usage
from .card_facts import is_hub_id, public_name, sides_of, subject_prompt
from .card_training import losses_text, metrics_text, settings_text, stages_table
from .curves import can_plot, plot_curves
from .described_settings import join_words
from .markdown import inline_code, plain_text
from .moving_grids import ANIMATION_SUFFIX
from .stage_results import stage_results, stretch_settings
from .validation_grid import grid_path

logger = logging.getLogger(__name__)

CARD_FILE, CURVES_FILE, SAMPLES_FILE = "README.md", "curves.png", "samples.png"
MOVING_SAMPLES_FILE = f"samples{ANIMATION_SUFFIX}"
MAX_CLASSES_TOLD = 20


def repository_name(options: RunOptions) -> str:
    """Return the name of the result: its repository on the Hub, or its folder."""
    return options.hub_model_id or options.output_dir.resolve().name


def write_model_card(run: Run, name: str | None = None) -> Path | None:
    """Write `README.md` with `curves.png` and `samples.png` into the output folder; on the main process.

    The model has already been saved, so a card or image that cannot be written is reported, but not fatal.

    Args:
        run: the finished run.
        name: name of the result in the example code; by default `repository_name`.

    Returns:
        The path of the card, or None if it could not be written.
    """
    folder, images = run.options.output_dir, list[str]()
    with reported("The latest samples could not be copied beside the model card"):
        images += copy_samples(run)
    with reported("The curves of the model card could not be plotted"):
        images += draw_curves(run)
    with reported("The model card could not be written; the model is complete"):
        content = f"---\n{card_data(run.recipe, run.options)}\n---\n\n{card_text(run, name, images)}"
        ModelCard(content).save(folder / CARD_FILE)
        return folder / CARD_FILE
    return None


@contextlib.contextmanager
def reported(what: str) -> Iterator[None]:
    """Log any error inside the block, which then ends; a full disk is logged in one line."""
    try:
        yield
    except OSError as error:
        logger.error("%s: %s", what, error)
    except Exception:
        logger.exception("%s:", what)


def copy_samples(run: Run) -> Iterator[str]:
    """Copy the sample grid of the finished model and its animation, if they exist, and return their new names."""
    for name in (SAMPLES_FILE, MOVING_SAMPLES_FILE):
        target = run.options.output_dir / name
        target.unlink(missing_ok=True)
        # Samples of earlier steps would show another model.
        grid = grid_path(run).with_suffix(target.suffix)
        if grid.exists():
            shutil.copyfile(grid, target)
            yield name


def draw_curves(run: Run) -> Iterator[str]:
    """Plot the losses of the run, if there are any and matplotlib is installed, and return the name of the image."""
    target = run.options.output_dir / CURVES_FILE
    target.unlink(missing_ok=True)
    if not can_plot():
        logger.info(
            "The model card has no plot of the losses; install matplotlib (pip install matplotlib) to get one."
        )
    elif plot_curves(history_of(run), target, sides_of(run.recipe, scale_factor(run.vae))):
        yield CURVES_FILE


def history_of(run: Run) -> History:
    """Return the history of the run."""
    return run.history or History(run.options.output_dir / HISTORY_FILE)


# --- metadata ---


def card_data(recipe: Recipe, options: RunOptions) -> str:
    """Return the card's metadata as YAML, without local folders where the Hub expects its own ids."""
    task = task_of(recipe)
    tags = [task, "diffusers", "diffusers-mdm", "diffusers-training", "matryoshka"]
    tags += ["class-conditional"] if num_class_embeds(recipe) is not None else []
    tags += ["lora"] if recipe.lora is not None else []
    tags += ["dreambooth"] if subject_prompt(recipe) is not None else []
    base = recipe.pretrained.path if recipe.pretrained is not None else None
    has_base_id = base is not None and is_hub_id(base)
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag=task,
        license=options.license,
        base_model=base if has_base_id else None,
        base_model_relation=("finetune" if recipe.lora is None else "adapter") if has_base_id else None,
        datasets=[name for data in sources(recipe) for name in hub_ids(data)] or None,
        instance_prompt=subject_prompt(recipe),
        tags=tags,
    )
    return data.to_yaml()


def task_of(recipe: Recipe) -> str:
    """Return the model's task in the Hub's terms."""
    if not sees_text(recipe):
        return "unconditional-image-generation"
    return "text-to-video" if has_clips(recipe) else "text-to-image"


# --- text ---


def card_text(run: Run, name: str | None, images: Sequence[str]) -> str:
    """Return the text of the card below its metadata."""
    recipe, factor = run.recipe, scale_factor(run.vae)
    name = name or repository_name(run.options)
    entries = history_of(run).read()
    results = stage_results(recipe.stages, entries, run.progress.stage_ends, settings_of(run))
    parts = [f"# {plain_text(name.rpartition('/')[2])}", summary(recipe, factor)]
    if SAMPLES_FILE in images:
        shown = MOVING_SAMPLES_FILE if MOVING_SAMPLES_FILE in images else SAMPLES_FILE
        what = "Clips" if has_clips(recipe) else "Images"
        what = "Validation samples" if is_unconditional(recipe) else f"{what} of the validation {asked_for(recipe)}"
        parts += [f"![{what}]({shown})", samples_caption(recipe)]
    parts += [
        "## Use",
        usage(recipe, name, run.id2label, factor),
        *classes_text(recipe, run.id2label),
        "## Training",
        *(data_text(data, bucket_sizes(recipe, data, factor)) for data in sources(recipe)),
    ]
    parts += [stages_table(recipe, results, factor), settings_text(run, results)]
    parts += [*losses_text(entries, sides_of(recipe, factor)), *metrics_text(recipe, entries)]
    if CURVES_FILE in images:
        parts.append(f"![Loss of each level over the images seen]({CURVES_FILE})")
    parts.append(
        f"[`{RECIPE_FILE}`]({RECIPE_FILE}) is the whole recipe, as the training command reads it with `--recipe`. "
        f"Versions: diffusers-mdm {__version__}, diffusers {diffusers.__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}."
    )
    unsaid = ["what the model is intended for", "its limitations"]
    unsaid += [] if run.options.license else ["its licence"]
    parts.append(f"*This card was generated from the records of the run. Its author should add {join_words(unsaid)}.*")
    return "\n\n".join(parts) + "\n"


def settings_of(run: Run) -> dict[str, dict[str, Any]]:
    """Return how the recipe's stages would be trained now, by name."""
    processes, precision = run.accelerator.num_processes, str(run.accelerator.mixed_precision)
    return {
        stage.name: stretch_settings(run.recipe, stage, processes, precision, run.options.seed)
        for stage in run.recipe.stages
    }


def summary(recipe: Recipe, factor: int = 1) -> str:
    """Return one or two sentences that describe the result."""
    sides = join_words([str(side) for side in sides_of(recipe, factor)])
    base = inline_code(public_name(recipe.pretrained.path)) if recipe.pretrained is not None else None
    kind = "An unconditional Matryoshka" if is_unconditional(recipe) else "A Matryoshka"
    if recipe.lora is not None:
        text = f"LoRA weights of rank {recipe.lora.rank} for the Matryoshka diffusion model {base}"
    elif base is not None:
        text = f"{kind} diffusion model, fine-tuned from {base}"
    else:
        text = f"{kind} diffusion model, trained from scratch"
    text += f", for {kind_of(recipe)} of {sides} pixels"
    text += ", generated together." if len(sides_of(recipe)) > 1 else "."
    if recipe.vae is not None:
        source = recipe.vae.pretrained
        whose = (
            "the base model's autoencoder" if source is None else f"the autoencoder {inline_code(public_name(source))}"
        )
        text += f" It works on the latents of {whose}, {factor} times smaller than the images."
    subject = subject_prompt(recipe)
    if subject is not None:
        text += f" It was trained on a subject, which {inline_code(subject)} stands for."
    return text


def kind_of(recipe: Recipe) -> str:
    """Describe what the model generates: images, or clips with the number of frames at each level."""
    frames = [level.num_frames for level in stage_level_configs(recipe, recipe.stages[-1])]
    if max(frames) == 1:
        return "images"
    told = frames[:1] if len(set(frames)) == 1 else frames
    return f"clips of {join_words([str(count) for count in told])} frames,"


def samples_caption(recipe: Recipe) -> str:
    """Return the caption of `samples.png`."""
    settings = recipe.validation
    weights = "averaged (EMA)" if recipe.use_ema else "final"
    frames = f" [`{SAMPLES_FILE}`]({SAMPLES_FILE}) has the frames side by side." if has_clips(recipe) else ""
    how = f"generated with the {weights} weights in {settings.num_inference_steps} steps"
    if is_unconditional(recipe):
        shown = f"The samples of seeds 0 to {settings.num_validation_images - 1}, {how}"
    else:
        shown = f"The validation {asked_for(recipe)}, {how} at guidance {settings.guidance_scale:g}"
    return (
        f"{shown}: one row per level, the smallest on top, all enlarged to "
        f"the same size.{frames} The samples were not selected by hand."
    )


def asked_for(recipe: Recipe) -> str:
    """Return what the model's inputs are called."""
    return "classes" if draws_classes_alone(recipe) else "prompts"


def classes_text(recipe: Recipe, id2label: Mapping[int, str]) -> Iterator[str]:
    """Describe the classes; empty for a model without classes."""
    embeddings = num_class_embeds(recipe)
    if embeddings is None:
        return
    told = list(id2label.items())[:MAX_CLASSES_TOLD]
    names = ", ".join(f"{number} {inline_code(name)}" for number, name in told)
    more = f" and {len(id2label) - len(told):,} more, which `pipe.id2label` lists" if len(told) < len(id2label) else ""
    yield (
        f"Classes are numbered from 0 to {embeddings - 2:,}"
        + (f": {names}{more}." if told else "; they have no names.")
        + f" {embeddings - 1:,} stands for none of them, which guidance pushes away from."
    )


def hub_ids(data: DataRecipe) -> list[str]:
    """Return the Hub data sets among the training data."""
    origin = data.origin()
    return [name for name in origin.names if origin.what is None and is_hub_id(name)]


def bucket_sizes(recipe: Recipe, data: DataRecipe, factor: int) -> Sequence[Size]:
    """Return height and width of the buckets of some training data, at the outermost level; empty without buckets."""
    return level_buckets(recipe, recipe.stages[-1].levels, factor) if data is recipe.data else ()


def data_text(data: DataRecipe, sizes: Sequence[Size] = ()) -> str:
    """Describe the training data; `sizes` are its aspect-ratio buckets."""
    origin = data.origin()
    kind = origin.what or ("the data set" if is_hub_id(origin.names[0]) else "the folder")
    shown = public_name if origin.what is None else (lambda file: file if "://" in file else Path(file).name)
    names = [shown(name) for name in origin.names]
    source = f"{kind} {join_words([inline_code(name) for name in names])}"
    if origin.split is not None:
        source += f", split {inline_code(origin.split)}"
    if origin.limit is not None:
        source += f", at most {origin.limit:,} images of it"
    captions = f"the captions in {inline_code(data.caption_column)}"
    if data.other_caption_columns:
        others = (f"{inline_code(name)} ({share:.3g})" for name, share in data.other_caption_columns.items())
        captions += f" (a fraction of the samples with those in {join_words(list(others))})"
    if data.caption:
        captions = f"the caption {inline_code(data.caption)}"
    if data.label_column is not None:
        captions = f"the classes in {inline_code(data.label_column)}"
    used = f"with {captions}" if data.caption != "" or data.label_column is not None else "without captions"
    crop = "centre" if data.center_crop else "random"
    flipped = ", half of them mirrored" if data.random_flip else ""
    what = "Images" if data.video_column is None else "Clips"
    shape = "squares"
    if sizes:
        listed = join_words([f"{height} x {width}" for height, width in sizes])
        shape = f"the size with the nearest aspect ratio of {listed} pixels (height x width)"
    return f"Data: {source}, {used}. {what} are cropped to {shape} ({crop} crop){flipped}."
