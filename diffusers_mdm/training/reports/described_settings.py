# SPDX-License-Identifier: Apache-2.0
"""Settings of a recipe in words, for the model card and `--dry_run`: what the levels predict, losses, optimizer,
averages, and what is measured on held-out data.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ..loss.pyramid_loss import WEIGHTINGS
from ..optimizers.registry import family_of, is_installed
from ..recipe.optimizer import OptimizerRecipe, PostHocEmaRecipe
from ..recipe.recipe import Recipe
from ..recipe.stage import AlignmentRecipe, ExtraLossRecipe, PlateauRecipe, StageRecipe
from .card_facts import public_name

PREDICTIONS = {
    "v_prediction": "v",
    "epsilon": "the noise",
    "sample": "the clean image",
    "residual": "what the enlarged inner image lacks",
    "sample_residual": "the image, as a difference from the enlarged inner one",
}
MODIFIERS = ("snr_gamma", "p2_gamma", "p2_k", "sigmoid_bias")
DEFAULT_SCHEDULE = "squaredcos_cap_v2"


def join_words(words: Sequence[str]) -> str:
    """Join "a", "b" and "c" to "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def spell_numbers(numbers: float | Sequence[float]) -> str:
    """Return one number, or the numbers of the levels, innermost first: "2" or "2, 1"."""
    return ", ".join(f"{number:g}" for number in (numbers if isinstance(numbers, Sequence) else [numbers]))


def describe_prediction(scheduler: Mapping[str, Any]) -> str:
    """Describe what the levels predict, and the noise schedule if it is not the usual one.

    Args:
        scheduler: config of the scheduler; default values may be missing.
    """
    kinds = scheduler.get("prediction_type", "v_prediction")
    if isinstance(kinds, str):
        text = f"the levels predict {PREDICTIONS[kinds]}"
    else:
        text = join_words([f"level {level} predicts {PREDICTIONS[kind]}" for level, kind in enumerate(kinds)])
    schedule = scheduler.get("beta_schedule", DEFAULT_SCHEDULE)
    return text if schedule == DEFAULT_SCHEDULE else f"{text}; noise schedule {schedule}"


def weighting_settings(stage: StageRecipe) -> dict[str, Any]:
    """Return the fields of a stage that determine the weight of errors at different t, as they go into the history."""
    used = {name: getattr(stage, name) for name in ("loss_weighting", *MODIFIERS)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in used.items()}


def describe_weighting(settings: Mapping[str, Any]) -> str:
    """Describe the error that is minimised, from `weighting_settings`; modifiers may be missing."""
    kind = settings["loss_weighting"]
    text = f"squared error {WEIGHTINGS.get(kind, kind)}"
    if kind == "sigmoid":
        text += f" with bias {spell_numbers(settings.get('sigmoid_bias') or 0.0)}"
    gamma, p2_gamma = settings.get("snr_gamma"), settings.get("p2_gamma")
    if gamma is not None:
        text += f", weighted by min-SNR with gamma {spell_numbers(gamma)}"
    if p2_gamma is not None:
        text += f", weighted by P2 with gamma {spell_numbers(p2_gamma)} and k {settings.get('p2_k', 1.0):g}"
    return text


def describe_extra_losses(recipe: Recipe, stage: StageRecipe) -> list[str]:
    """Describe the losses of a stage besides that of the pyramid."""
    parts = recipe.extra_losses.values()
    return [_describe_extra_loss(part) for part in parts if part.stages is None or stage.name in part.stages]


def _describe_extra_loss(part: ExtraLossRecipe) -> str:
    if isinstance(part, AlignmentRecipe):
        return f"alignment of level 0 with {public_name(part.encoder)}, weight {part.weight:g}"
    which = "the outermost level"
    if part.levels is not None:
        numbers = join_words([str(level) for level in part.levels])
        which = f"level{'s' if len(part.levels) > 1 else ''} {numbers}"
    return f"perceptual loss of {which} by {public_name(part.network)}, weight {part.weight:g}"


def describe_optimizer(settings: OptimizerRecipe) -> str:
    """Describe the optimizer with the settings that are not the default, and whether it can be used here."""
    changed = [
        f"{field.name} {getattr(settings, field.name)}"
        for field in dataclasses.fields(settings)
        if field.name not in ("name", "use_8bit_adam") and getattr(settings, field.name) != field.default
    ]
    text = family_of(settings).title + (f" ({', '.join(changed)})" if changed else "")
    return text if is_installed(settings) else f"{text}, whose package {family_of(settings).package} is not installed"


def describe_post_hoc(settings: PostHocEmaRecipe) -> str:
    """Describe the averages whose width is chosen after training."""
    widths = join_words([f"{width:g}" for width in settings.sigma_rels])
    return f"power-function averages of widths {widths}, with a snapshot every {settings.snapshot_steps:,} steps"


def describe_plateau(plateau: PlateauRecipe) -> str:
    """Describe when measurements end a stage."""
    what = "the validation loss" if plateau.metric == "loss" else f"the metric {plateau.metric}"
    return f"until {plateau.patience} measurements of {what}, one every {plateau.every_steps} steps, bring no gain"


def describe_metrics(recipe: Recipe) -> str | None:
    """Describe the metrics of generated images that a run measures; None if there are none."""
    settings = recipe.validation
    if not settings.metrics:
        return None
    return f"{join_words(settings.metrics)} of {settings.num_metric_images} generated and as many held-out images"
