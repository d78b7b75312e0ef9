# SPDX-License-Identifier: Apache-2.0
"""Flags: each lands in its field, those left out change nothing, and those that do not fit say so in one line."""

import argparse
import dataclasses
import functools

import pytest

from diffusers_mdm.training.commands.flag_table import ALIASES, FLAGS, fields_of
from diffusers_mdm.training.commands.flags import override, override_prior, read_command, run_options
from diffusers_mdm.training.commands.inapplicable_flags import ALWAYS_SO, REASONS
from diffusers_mdm.training.commands.parser import build_parser, given_flags
from diffusers_mdm.training.recipe.data import DATA_KINDS, DataRecipe, ShardData, TableData
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.optimizer import PostHocEmaRecipe
from diffusers_mdm.training.recipe.pretrained import VaeRecipe
from diffusers_mdm.training.recipe.recipe import (
    LoraRecipe,
    OptimizerRecipe,
    PretrainedRecipe,
    PriorRecipe,
    Recipe,
    ValidationRecipe,
)
from diffusers_mdm.training.recipe.stage import AlignmentRecipe, PerceptualRecipe, PlateauRecipe, StageRecipe
from diffusers_mdm.training.recipe.text_encoder import TextEncoderRecipe
from diffusers_mdm.training.state.run import RunOptions
from tests.training.tiny_run import RECIPES

PARTS = {
    "alignment": AlignmentRecipe,
    "perceptual": PerceptualRecipe,
    "options": RunOptions,
    "recipe": Recipe,
    "data": DataRecipe,
    "stages": StageRecipe,
    "text_encoder": TextEncoderRecipe,
    "optimizer": OptimizerRecipe,
    "validation": ValidationRecipe,
    "pretrained": PretrainedRecipe,
    "vae": VaeRecipe,
    "lora": LoraRecipe,
    "prior_preservation": PriorRecipe,
    "post_hoc_ema": PostHocEmaRecipe,
}
WITH_FIELD = [name for name, flag in FLAGS.items() if flag.field is not None]
# The flags of diffusers' train_text_to_image{,_lora,_sdxl,_lora_sdxl}, train_dreambooth{,_lora,_lora_flux,_lora_flux2}
# and train_unconditional.
DIFFUSERS_FLAGS = """
adam_beta1 adam_beta2 adam_epsilon adam_weight_decay adam_weight_decay_text_encoder allow_tf32
bnb_quantization_config_path cache_dir cache_latents do_fp8_training fsdp_text_encoder offload remote_text_encoder
skip_final_inference
caption_column center_crop checkpointing_steps checkpoints_total_limit class_data_dir class_labels_conditioning
class_prompt dataloader_num_workers dataset_config_name dataset_name ddpm_beta_schedule ddpm_num_inference_steps
ddpm_num_steps debug_loss dream_detail_preservation dream_training ema_inv_gamma ema_max_decay ema_power
enable_npu_flash_attention enable_xformers_memory_efficient_attention eval_batch_size foreach_ema
gradient_accumulation_steps gradient_checkpointing guidance_scale hub_model_id hub_private_repo hub_token image_column
image_interpolation_mode input_perturbation instance_data_dir instance_prompt learning_rate local_rank logger
logging_dir logit_mean logit_std lora_alpha lora_dropout lora_layers lr_num_cycles lr_power lr_scheduler
lr_warmup_steps max_grad_norm max_sequence_length max_train_samples max_train_steps mixed_precision mode_scale
model_config_name_or_path noise_offset non_ema_revision num_class_images num_epochs num_train_epochs
num_validation_images offload_ema offset_noise optimizer output_dir overwrite_output_dir pre_compute_text_embeddings
prediction_type preserve_input_precision pretrained_model_name_or_path pretrained_vae_model_name_or_path
prior_generation_precision prior_loss_weight prodigy_beta3 prodigy_decouple prodigy_safeguard_warmup
prodigy_use_bias_correction proportion_empty_prompts push_to_hub random_flip rank repeats report_to resolution
resume_from_checkpoint revision sample_batch_size save_images_epochs save_model_epochs scale_lr seed
set_grads_to_none skip_save_text_encoder snr_gamma text_encoder_lr text_encoder_use_attention_mask
timestep_bias_begin timestep_bias_end timestep_bias_multiplier timestep_bias_portion timestep_bias_strategy
tokenizer_max_length tokenizer_name tracker_project_name train_batch_size train_data_dir train_text_encoder
upcast_before_saving use_8bit_adam use_ema validation_epochs validation_images validation_prompt validation_prompts
validation_scheduler validation_steps variant weighting_scheme with_prior_preservation
"""


@functools.cache
def frozen_recipe() -> Recipe:
    """The tiny recipe's outer stage with the text encoder of a saved pipeline, so that every flag can be given."""
    tiny = load_recipe(RECIPES / "tiny.yaml")
    return dataclasses.replace(
        tiny,
        stages=tiny.stages[1:],
        pretrained=PretrainedRecipe("somewhere"),
        text_encoder=TextEncoderRecipe(from_pipeline=True),
    )


def test_older_names_of_flags_are_read():
    for flag in FLAGS.values():
        if flag.older_name is not None:
            assert parse(f"--{flag.older_name}", "3") == parse(f"--{flag.name}", "3")


def recipe_for(name: str) -> Recipe:
    """A recipe in which the flag makes sense."""
    recipe = frozen_recipe()
    field = FLAGS[name].field or ""
    if name == "label_column":
        data = dataclasses.replace(recipe.data, label_column="kind")
        return dataclasses.replace(recipe, model={**recipe.model, "num_class_embeds": 4}, data=data)
    if name == "validation_shards":
        return dataclasses.replace(recipe, data=DataRecipe(shards=("a.tar",)))
    if name == "frame_stride":
        return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, video_column="video"))
    if name == "joint_images":
        clips = load_recipe(RECIPES / "tiny_video.yaml")
        return dataclasses.replace(clips, stages=clips.stages[1:])
    if name == "sigmoid_bias":
        stages = tuple(dataclasses.replace(stage, loss_weighting="sigmoid") for stage in recipe.stages)
        return dataclasses.replace(recipe, stages=stages)
    if field.startswith("alignment."):
        return dataclasses.replace(recipe, alignment=AlignmentRecipe("inception"))
    if field.startswith("perceptual."):
        return dataclasses.replace(recipe, perceptual=PerceptualRecipe())
    if field.startswith("post_hoc_ema."):
        return dataclasses.replace(recipe, post_hoc_ema=PostHocEmaRecipe())
    if field.startswith("lora."):
        return dataclasses.replace(recipe, lora=LoraRecipe())
    for optimizer in ("muon", "prodigy"):
        if field.startswith(f"optimizer.{optimizer}_"):
            stages = tuple(dataclasses.replace(stage, learning_rate=1.0) for stage in recipe.stages)
            return dataclasses.replace(recipe, optimizer=OptimizerRecipe(name=optimizer), stages=stages)
    if field.startswith("prior_preservation."):
        return dataclasses.replace(recipe, prior_preservation=PriorRecipe("dogs", "a dog"))
    return recipe


def words_for(name: str) -> list[str]:
    """The flag with a value that is not its default."""
    flag = FLAGS[name]
    if flag.convert is None:
        is_on = default_of(name)
        return [f"--no-{name}" if is_on else f"--{name}"]
    if name == "prior_generation_precision":
        return [f"--{name}", "fp16"]  # "no" is another word for fp32
    if flag.choices is not None:
        return [f"--{name}", next(choice for choice in flag.choices if choice != default_of(name))]
    if flag.is_list:
        return [f"--{name}", "one", "two"]
    special = {"frozen_levels": "1", "lora_layers": "to_q, to_k", "timestep_bias_portion": "0.5"}
    special["validation_metrics"] = "clip, retrieval"
    special["gradient_checkpointing_levels"] = "0"
    special["other_caption_columns"] = "label=0.15"
    special["post_hoc_ema_sigma_rels"] = "0.02,0.2"
    special["aspect_ratio_buckets"] = "16,12;12,16"
    lists = ("level_weights", "batch_fractions", "level_learning_rate_scales")
    by_type = dict.fromkeys(("natural", "count", "seed"), "7") | dict.fromkeys(("number", "per_level"), "0.25")
    return [f"--{name}", special.get(name, "1,0.5" if name in lists else by_type.get(flag.convert.__name__, "one"))]


def kinds_of(part: str) -> list[type]:
    return DATA_KINDS if part == "data" else [PARTS[part]]


def default_of(name: str) -> object:
    part, field = FLAGS[name].field.split(".")
    return next(entry.default for kind in kinds_of(part) for entry in dataclasses.fields(kind) if entry.name == field)


@functools.cache
def parser() -> argparse.ArgumentParser:
    return build_parser()


def parse(*words: str) -> dict:
    return given_flags(parser(), ["--output_dir", "out", *words])


def values_at(place: str, recipe: Recipe, options: RunOptions) -> list[object]:
    part, field = place.split(".")
    if part == "stages":
        return [getattr(stage, field) for stage in recipe.stages]
    owner = {"options": options, "recipe": recipe}.get(part) or getattr(recipe, part)
    return [getattr(owner, field)]


def errors_of(capsys, *words: str) -> str:
    """What the command prints for a mistake: one line, and the exit status of argparse."""
    with pytest.raises(SystemExit) as ended:
        read_command(list(words))
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


@pytest.mark.parametrize("name", WITH_FIELD)
def test_a_flag_names_a_field_and_its_value_lands_there(name):
    place = FLAGS[name].field
    part, field = place.split(".")
    assert field in {entry.name for kind in kinds_of(part) for entry in dataclasses.fields(kind)}
    given = parse(*words_for(name)) if name != "output_dir" else parse()
    recipe = override(recipe_for(name), given)
    found = values_at(place, recipe, run_options(recipe, given))
    assert found == [given[name]] * len(found)
    assert found[0] != default_of(name) or name == "output_dir"


@pytest.mark.parametrize("name", ["tiny", "emoji_64", "emoji_256", "imagenet_256", "cc12m_1024"])
def test_flags_that_are_left_out_change_nothing(name):
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    given = parse("--recipe", str(RECIPES / f"{name}.yaml"))
    assert override(recipe, given) == recipe
    assert run_options(recipe, given) == RunOptions(output_dir=given["output_dir"])


@pytest.mark.parametrize(
    ("words", "expected"), [("epsilon", "epsilon"), ("v_prediction,residual", ["v_prediction", "residual"])]
)
def test_levels_predict_one_thing_or_one_each(words, expected):
    recipe = load_recipe(RECIPES / "tiny.yaml")
    given = parse("--recipe", str(RECIPES / "tiny.yaml"), "--prediction_type", words)
    assert override(recipe, given).scheduler == {**recipe.scheduler, "prediction_type": expected}


@pytest.mark.parametrize(("words", "gamma"), [("5", 5.0), ("5,2", (5.0, 2.0))])
def test_a_weighting_is_one_number_or_one_for_each_level(words, gamma):
    given = parse("--recipe", str(RECIPES / "tiny.yaml"), "--snr_gamma", words)
    inner, outer = override(load_recipe(RECIPES / "tiny.yaml"), given).stages
    assert outer.snr_gamma == gamma
    assert inner.snr_gamma == (gamma if isinstance(gamma, float) else gamma[:1])


def test_flags_for_early_stopping_add_a_plateau_and_its_metric():
    tiny = load_recipe(RECIPES / "tiny.yaml")
    recipe = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, validation_split="validation"))
    words = ("--early_stopping_metric", "retrieval", "--early_stopping_patience", "3", "--validation_steps", "7")
    changed = override(recipe, parse("--recipe", "tiny.yaml", *words))
    expected = PlateauRecipe(every_steps=7, patience=3, min_gain=0.0, smoothing=0.0, metric="retrieval")
    assert {stage.until_plateau for stage in changed.stages} == {expected}
    assert changed.validation.metrics == ("retrieval",)
    further = override(changed, parse("--recipe", "tiny.yaml", "--early_stopping_threshold", "0.05"))
    assert further.stages[0].until_plateau == dataclasses.replace(expected, min_gain=0.05)
    with pytest.raises(ValueError, match="validation_split"):
        override(tiny, parse("--recipe", "tiny.yaml", "--early_stopping_patience", "3"))


def test_every_flag_of_diffusers_scripts_is_known_or_refused_with_a_reason():
    known = {*FLAGS, *ALIASES, *REASONS, *ALWAYS_SO, "local_rank"}
    assert set(DIFFUSERS_FLAGS.split()) - known == set()
    assert FLAGS.keys() & REASONS.keys() == FLAGS.keys() & ALIASES.keys() == ALIASES.keys() & REASONS.keys() == set()
    assert set(REASONS) <= set(DIFFUSERS_FLAGS.split())


@pytest.mark.parametrize("name", ALIASES)
def test_other_names_set_the_same_flag(name, capsys):
    value = "wandb" if name == "logger" else "3"
    assert parse(f"--{name}", value) == parse(f"--{ALIASES[name]}", value)
    error = errors_of(capsys, *START, "--train_data_dir", "a", f"--{name}", value, f"--{ALIASES[name]}", value)
    assert f"--{name} and --{ALIASES[name]} mean the same" in error


def test_checkpoints_by_passes_over_the_data(images_dir):
    recipe = frozen_recipe()
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, path=str(images_dir)))
    per_step = recipe.stages[0].images_per_step
    options = run_options(recipe, parse("--save_model_epochs", "2"))
    assert options.checkpointing_steps == -(-2 * 12 // per_step)


START = ["--output_dir", "out", "--pretrained_model_name_or_path", "model"]
SUBJECT = ["--instance_data_dir", "me", "--instance_prompt", "a sks dog"]
CONTRADICTIONS = [
    (["--output_dir", "out"], "--recipe"),
    (START, "--train_data_dir"),
    ([*START, "--dataset_name", "a", "--train_data_dir", "b"], "--dataset_name and --train_data_dir"),
    ([*START, "--instance_data_dir", "me"], "--instance_prompt"),
    ([*START, *SUBJECT, "--validation_prompt", "a", "--validation_prompts", "b"], "--validation_prompt"),
    ([*START, *SUBJECT, "--validation_steps", "3", "--validation_epochs", "1"], "--validation_epochs"),
    ([*START, *SUBJECT, "--checkpointing_steps", "3", "--save_model_epochs", "1"], "--save_model_epochs"),
    ([*START, "--train_data_dir", "a", "--train_batch_size", "0"], "--train_batch_size"),
    ([*START, "--train_data_dir", "a", "--lr_scheduler", "sine"], "--lr_scheduler"),
    ([*START, "--train_data_dir", "a", "--lerning_rate", "1"], "--lerning_rate"),
    (["--recipe", "missing.yaml", "--output_dir", "out"], "missing.yaml"),
    (["--train_data_dir", "a"], "--output_dir"),
]


@pytest.mark.parametrize(("words", "named"), CONTRADICTIONS, ids=lambda part: str(part)[-30:])
def test_contradictions_are_one_line(words, named, capsys):
    assert named in errors_of(capsys, *words)


RECIPE_MISTAKES = [
    (["--lora_alpha", "3"], "--lora_alpha needs --rank"),
    (["--rank", "4"], "`lora`"),
    (["--revision", "main"], "--revision needs --pretrained_model_name_or_path"),
    (["--class_prompt", "a dog"], "--class_prompt needs --with_prior_preservation"),
    (["--with_prior_preservation", "--class_prompt", "a dog"], "--class_data_dir"),
    (["--text_encoder_lr", "1e-6", "--no-train_text_encoder"], "train_text_encoder"),
    (["--train_levels", "3"], "--train_levels is 3"),
    (["--resolution", "12"], "8, 16 pixels"),
    (["--resolution", "8", "--train_levels", "2"], "--train_levels is 2"),
    (["--level_weights", "1,2,3"], "--level_weights needs 2 entries"),
    (["--validation_epochs", "1"], "--validation_epochs needs stages with the same batch size"),
    (["--embeddings_dir", "features"], "data.embeddings_dir"),
    (["--pre_compute_text_embeddings"], "data.embeddings_dir"),
    (["--shards", "a.tar", "--num_train_epochs", "3"], "--num_train_epochs counts passes"),
    (["--snr_gamma", "-1"], "snr_gamma"),
    (["--gradient_checkpointing_levels", "1,2"], "names level 2; the levels of this recipe are 0 to 1"),
]


@pytest.mark.parametrize(("words", "named"), RECIPE_MISTAKES, ids=lambda part: str(part)[-30:])
def test_flags_that_do_not_fit_a_recipe_are_one_line(words, named, capsys):
    start = ["--recipe", str(RECIPES / "tiny.yaml"), "--output_dir", "out"]
    assert named in errors_of(capsys, *start, *words)


def test_lists_are_cut_to_the_levels_of_a_stage():
    recipe = load_recipe(RECIPES / "tiny.yaml")
    changed = override(recipe, parse("--level_weights", "1,3", "--learning_rate", "1e-5"))
    assert [stage.level_weights for stage in changed.stages] == [(1.0,), (1.0, 3.0)]
    assert [stage.learning_rate for stage in changed.stages] == [1e-5, 1e-5]


@pytest.mark.parametrize("words", [("--train_levels", "1"), ("--resolution", "8")])
def test_of_a_recipe_the_stages_up_to_a_level_are_trained(words):
    recipe = load_recipe(RECIPES / "tiny.yaml")
    assert override(recipe, parse(*words)).stages == recipe.stages[:1]


def test_the_learning_rate_grows_with_the_images_of_a_step(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    recipe = override(load_recipe(RECIPES / "tiny.yaml"), parse("--scale_lr", "--learning_rate", "1e-4"))
    # 4 images, and 4 x 2 accumulated, on 3 processes.
    assert [stage.learning_rate for stage in recipe.stages] == pytest.approx([12e-4, 24e-4])


def test_the_text_encoder_has_a_rate_of_its_own():
    recipe = override(frozen_recipe(), parse("--train_text_encoder", "--text_encoder_lr", "2e-5"))
    assert recipe.text_encoder.learning_rate_scale * recipe.stages[0].learning_rate == pytest.approx(2e-5)


def test_another_source_of_images_takes_the_place_of_the_recipes():
    recipe = frozen_recipe()
    streamed = override(recipe, parse("--shards", "a-{0..3}.tar"))
    assert isinstance(streamed.data, ShardData)
    assert streamed.data.shards == ("a-{0..3}.tar",)
    back = override(streamed, parse("--train_data_dir", "images"))
    assert isinstance(back.data, TableData)
    assert back.data.path == "images"
    subject = override(recipe, parse("--instance_data_dir", "me", "--instance_prompt", "a sks dog"))
    assert (subject.data.path, subject.data.caption) == ("me", "a sks dog")


def test_prior_preservation_is_made_changed_and_dropped():
    words = ["--with_prior_preservation", "--class_data_dir", "dogs", "--class_prompt", "a dog"]
    made = override_prior(None, parse(*words, "--prior_generation_precision", "no"))
    assert made == PriorRecipe("dogs", "a dog", precision="fp32")
    assert override_prior(made, parse("--prior_loss_weight", "0.5")).weight == 0.5
    assert override_prior(made, parse("--no-with_prior_preservation")) is None
    with_prior = override(frozen_recipe(), parse(*words, "--train_batch_size", "3"))
    assert with_prior.stages[0].batch_size == 6  # as many of the class again


def test_fields_are_grouped_by_the_part_that_they_set():
    given = parse("--seed", "3", "--rank", "2", "--learning_rate", "1e-4", "--dry_run")
    assert fields_of("lora", given) == {"rank": 2}
    assert fields_of("stages", given) == {"learning_rate": 1e-4}
    assert fields_of("options", given).keys() == {"output_dir", "seed"}


def test_no_tracker_is_a_choice():
    assert run_options(frozen_recipe(), parse("--report_to", "none")).report_to is None
    assert run_options(frozen_recipe(), parse("--report_to", "wandb")).report_to == "wandb"


def test_embeddings_of_the_run_itself_lie_in_its_folder():
    recipe = override(frozen_recipe(), parse("--pre_compute_text_embeddings"))
    assert recipe.data.embeddings_dir == "out/text_embeddings"
    with pytest.raises(ValueError, match="--embeddings_dir"):
        override(frozen_recipe(), parse("--pre_compute_text_embeddings", "--embeddings_dir", "features"))
