# SPDX-License-Identifier: Apache-2.0
"""What a model card says about the training: the stages as they were trained, settings, final losses and metrics."""

from collections.abc import Iterator, Sequence

from ..optimizers.registry import family_of
from ..recipe.clip_stages import has_clips, stage_frames
from ..recipe.recipe import Recipe
from ..state.run import Run
from .card_facts import sides_of
from .described_settings import (
    describe_metrics,
    describe_post_hoc,
    describe_prediction,
    describe_weighting,
    join_words,
)
from .markdown import inline_code, plain_text, table_row
from .stage_results import Stretch, final_losses, final_metrics


def stages_table(recipe: Recipe, results: Sequence[Stretch], factor: int = 1) -> str:
    """Return the stages in order, as they were trained, as a Markdown table with a line per stretch."""
    sides = sides_of(recipe, factor)
    lines = [
        "| stage | levels (pixels) | optimizer steps | images seen | images per step | learning rate | why it ended |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    for position, stretch in enumerate(results):
        stage, settings = stretch.stage, stretch.settings
        shown = ", ".join(f"{side}" for side in sides[: stage.levels])
        if has_clips(recipe):
            frames = stage_frames(recipe, stage)
            shown += f"; clips of {frames} frames" if frames > 1 else "; images"
            joint = settings["joint_images"]
            shown += f", with {joint} images for every {settings['batch_size']} of them" if joint else ""
        goes_on = results[position + 1 : position + 2] and results[position + 1].stage is stage
        why = stretch.why_ended or ("continued with other settings" if goes_on else "–")
        cells = [inline_code(stage.name), shown, spell(stretch.steps), spell(stretch.images)]
        cells += [spell(settings["images_per_step"])]
        cells += [f"{settings['learning_rate']:g}, {settings['lr_scheduler']}", plain_text(why)]
        lines.append(table_row(cells))
    return "\n".join(lines)


def settings_text(run: Run, results: Sequence[Stretch]) -> str:
    """Return the settings of the training that are not in the table of stages."""
    recipe = run.recipe

    def told(name: str) -> list[str]:
        return list(dict.fromkeys(str(stretch.settings[name]) for stretch in results))

    encoder = "trained as well" if recipe.trains_text_encoder else "frozen"
    processes = told("num_processes")
    lines = [
        f"- {join_words(processes)} process{'es' if processes != ['1'] else ''}, mixed precision "
        f"{join_words([inline_code(precision) for precision in told('mixed_precision')])}, "
        f"optimizer {family_of(recipe.optimizer).title}, seed "
        f"{join_words(told('seed'))}",
        f"- {plain_text(describe_prediction(run.scheduler.config))}",
        *loss_lines(results),
        f"- the model's weights are {'averages (EMA)' if recipe.use_ema else 'those of the last step'}, saved in "
        f"`{run.options.save_dtype if recipe.lora is None else 'fp32'}`",
    ]
    if recipe.post_hoc_ema is not None:
        lines.append(
            f"- besides, {describe_post_hoc(recipe.post_hoc_ema)}, were kept, from which "
            "`diffusers-mdm reconstruct-ema` makes averages of other widths"
        )
    if recipe.text_encoder is not None:
        lines.append(f"- the text encoder was {encoder}")
    if recipe.vae is not None:
        lines.append("- the autoencoder was frozen; latents for training were sampled from its posterior")
    if recipe.prior_preservation is not None:
        prior = recipe.prior_preservation
        lines.append(
            f"- prior preservation: {prior.num_class_images} images of {inline_code(prior.class_prompt)}, "
            f"weight {prior.weight:g}"
        )
    if run.progress.skipped_steps:
        lines.append(f"- {run.progress.skipped_steps} steps were skipped because a gradient was not finite")
    return "\n".join(lines)


def loss_lines(results: Sequence[Stretch]) -> Iterator[str]:
    """Describe what was minimised, one loss per line, each with its stages unless all had it."""
    found: dict[str, list[str]] = {}
    for stretch in results:
        texts = [f"loss of every level: {describe_weighting(stretch.settings)}"]
        texts += [f"added loss: {loss}" for loss in stretch.settings.get("extra_losses", [])]
        for text in texts:
            found.setdefault(text, []).append(inline_code(stretch.stage.name))
    for text, names in found.items():
        where = "" if len(names) == len(results) else f", in {join_words(list(dict.fromkeys(names)))}"
        yield f"- {plain_text(text)}{where}"


def losses_text(entries: Sequence[dict[str, object]], sides: Sequence[int]) -> Iterator[str]:
    """Return the final losses of the levels as a table; empty if nothing was measured."""
    losses = final_losses(entries, len(sides))
    if all(loss.training is None for loss in losses):
        return
    yield (
        "Final losses. Training losses are means since the previous report, with the weights of the last stage; "
        "validation losses are the unweighted squared error of v on held-out data."
    )
    lines = ["| level | pixels | training loss | validation loss |", "|--:|--:|--:|--:|"]
    for level, (side, loss) in enumerate(zip(sides, losses, strict=True)):
        lines.append(f"| {level} | {side} | {spell(loss.training)} | {spell(loss.validation)} |")
    yield "\n".join(lines)


def metrics_text(recipe: Recipe, entries: Sequence[dict[str, object]]) -> Iterator[str]:
    """Return the last values of the validation metrics as a table; empty if none were measured."""
    metrics = final_metrics(entries)
    described = describe_metrics(recipe)
    if not metrics or described is None:
        return
    sides = sorted({side for values in metrics.values() for side in values})
    lines = [table_row(["metric", *(f"{side} pixels" for side in sides)]), f"|---|{'--:|' * len(sides)}"]
    lines += [table_row([name, *(spell(values.get(side)) for side in sides)]) for name, values in metrics.items()]
    yield f"Last validation metrics ({described}), which are not comparable with those of larger evaluations."
    yield "\n".join(lines)


def spell(number: float | None) -> str:
    """Format a number for a table; a dash if it is unknown."""
    if number is None:
        return "–"
    return f"{number:,}" if isinstance(number, int) else f"{number:.4g}"
