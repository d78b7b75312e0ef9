# SPDX-License-Identifier: Apache-2.0
"""Modules of the package without a test file of their own: the file that tests them, and why it does."""

_STRUCTURES = "one test walks through every entry of the table"
_GUIDANCE = "every method is put through the same tests"
_SOURCES = "what is read is compared with what other kinds of data give"
_FAMILIES = "all families of optimizers are put through the same tests"
_RUNS = "it is a few calls in order, which only a run shows to be right"
_BLOCKS = "blocks are tested by the images that they give together"
_FLAGS = "it passes flags on to what is tested there"
_DOORS = "it adds flags to what other tests run"

TESTED_ELSEWHERE = {
    "__main__.py": ("cli/test_main.py", "it calls the entry point, in a process"),
    "cli/generating/drawing.py": ("cli/test_generate.py", "it is the work of the command that is tested there"),
    "cli/convert.py": ("commands/test_convert.py", "the scripts are the same commands"),
    "cli/evaluate.py": ("training/commands/evaluation/test_measure.py", _DOORS),
    "fetching/card.py": ("cli/test_fetch.py", "it is written into the folder that is tested there"),
    "cli/generating/generate_flags.py": ("cli/test_generate.py", _STRUCTURES),
    "cli/info.py": ("cli/test_model_facts.py", _DOORS),
    "cli/training/precompute.py": ("commands/test_precompute_text_embeddings.py", "the script is the same command"),
    "cli/registry.py": ("commands/test_help.py", _STRUCTURES),
    "cli/training/train.py": ("commands/test_help.py", _DOORS),
    "evaluation/images.py": ("evaluation/test_reference.py", "references are computed from these sets of images"),
    "evaluation/report.py": ("evaluation/test_score.py", "it formats the scores that are computed there"),
    "modular/before_denoise.py": ("modular/test_pipeline.py", _BLOCKS),
    "modular/denoise.py": ("modular/test_pipeline.py", _BLOCKS),
    "modular/state.py": ("modular/test_pipeline.py", _BLOCKS),
    "cli/training/shards.py": ("training/data/shards/test_writer.py", _FLAGS),
    "cli/training/estimate.py": (
        "training/costs/test_compute_estimate.py",
        _FLAGS,
    ),
    "cli/training/autoencoder.py": ("training/loop/test_autoencoder.py", _FLAGS),
    "models/temporal.py": ("models/test_frames.py", "its layers run on the layouts that are tested there"),
    "pipelines/drawing/guidance/diffusers_guiders.py": ("pipelines/drawing/guidance/test_methods.py", _GUIDANCE),
    "pipelines/drawing/guidance/interval.py": ("pipelines/drawing/guidance/test_methods.py", _GUIDANCE),
    "pipelines/drawing/guidance/method.py": ("pipelines/drawing/guidance/test_methods.py", _GUIDANCE),
    "pipelines/drawing/guidance/projected.py": ("pipelines/drawing/guidance/test_methods.py", _GUIDANCE),
    "pipelines/drawing/guidance/registry.py": ("pipelines/drawing/guidance/test_methods.py", _GUIDANCE),
    "pipelines/drawing/guidance/weaker_model.py": ("pipelines/drawing/guidance/test_methods.py", _GUIDANCE),
    "pipelines/drawing/guidance/zero_star.py": ("pipelines/drawing/guidance/test_methods.py", _GUIDANCE),
    "schedulers/block_averages.py": (
        "pipelines/drawing/test_consistency.py",
        "it computes the averages there",
    ),
    "schedulers/scheduler_config.py": ("schedulers/test_refusals.py", "configs are refused where a scheduler is made"),
    "training/commands/evaluation/sheets.py": (
        "training/commands/evaluation/test_measure.py",
        "it runs on what the other verbs have written",
    ),
    "training/commands/evaluation/verbs.py": ("training/commands/evaluation/test_measure.py", _STRUCTURES),
    "training/commands/average_reconstruction.py": (
        "training/state/post_hoc/test_reconstruction.py",
        "it parses arguments for what is tested there",
    ),
    "training/commands/data_flags.py": ("training/commands/test_flags.py", _STRUCTURES),
    "training/commands/flag_table.py": ("training/commands/test_flags.py", _STRUCTURES),
    "training/commands/inapplicable_flags.py": ("training/commands/test_parser.py", _STRUCTURES),
    "training/commands/run_command.py": ("commands/test_help.py", "it decides what is imported when, in a process"),
    "training/extra_losses/extra_loss.py": ("training/extra_losses/test_perceptual.py", _STRUCTURES),
    "training/data/class_names.py": ("training/modules/test_classes.py", "names are looked up for models of classes"),
    "training/data/shards/source.py": ("training/data/test_sources.py", _SOURCES),
    "training/data/source.py": ("training/data/test_new_kind.py", "it is a protocol, which a new kind of data fills"),
    "training/data/tables/source.py": ("training/data/test_sources.py", _SOURCES),
    "training/loop/held_out.py": ("training/loop/test_latent_runs.py", _RUNS),
    "training/modules/small_images.py": ("training/loop/test_super_resolution_runs.py", "it is what these runs add"),
    "training/recipe/super_resolution.py": ("training/loop/test_super_resolution_runs.py", "its runs need it to fit"),
    "training/loop/stage_data.py": ("training/loop/test_engine.py", _RUNS),
    "training/optimizers/adamw.py": ("training/optimizers/test_registry.py", _FAMILIES),
    "training/optimizers/family.py": ("training/optimizers/test_registry.py", _FAMILIES),
    "training/recipe/clip_stages.py": ("training/recipe/test_clip_checks.py", "it is tested with recipes for clips"),
    "training/reports/card_example.py": ("training/reports/test_model_card.py", "it is a part of the card"),
    "training/reports/moving_grids.py": ("training/loop/test_video_runs.py", _RUNS),
    "training/state/checkpoints.py": ("training/loop/test_resuming.py", _RUNS),
    "training/state/post_hoc/run_averages.py": ("training/state/post_hoc/test_reconstruction.py", _RUNS),
    "training/state/resuming.py": ("training/loop/test_resuming.py", _RUNS),
    "training/state/run.py": (
        "training/loop/test_step.py",
        "it holds what steps change, and does nothing by itself",
    ),
    "web/form.py": ("web/test_handlers.py", "fields have no life without the events that fill them"),
    "web/page.py": ("web/test_serving.py", "a layout is tested where it is seen: in a browser"),
    "web/settings.py": ("web/test_settings_checks.py", "it holds values, which are checked there"),
}
