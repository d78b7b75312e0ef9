# SPDX-License-Identifier: Apache-2.0
"""The flags of the training commands, named as in diffusers' scripts, and the field that each of them sets.

A field is written "options.seed" (of `RunOptions`), "data.path" (of a part of `Recipe`), "recipe.use_ema" (of the
recipe itself) or "stages.batch_size" (of every stage). Flags without a field are handled in flags.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from ..recipe.optimizer import OptimizerRecipe, Precision
from ..recipe.stage import PlateauRecipe, StageRecipe
from .data_flags import DATA, SUBJECT
from .flag_values import (
    Flag,
    choices_of,
    count,
    names,
    natural,
    naturals,
    number,
    numbers,
    per_level,
    seed,
    switch,
    tracker,
)

SAVE_PRECISIONS = ("fp32", "fp16", "bf16")


WHAT = (
    Flag(
        "recipe",
        None,
        "YAML file with model, data and stages, or the name of one that comes with the package, such as tiny; other "
        "flags override its fields, in every stage",
        Path,
    ),
    Flag(
        "pretrained_model_name_or_path",
        "pretrained.path",
        "saved pipeline to start from, folder or Hub id; it is fine-tuned unless there is a --recipe",
    ),
    Flag("revision", "pretrained.revision", "branch, tag or commit of the pipeline on the Hub"),
    Flag(
        "pretrained_vae_model_name_or_path",
        "vae.pretrained",
        "saved autoencoder on whose latents to train, folder or Hub id (default: the pipeline's, if it has one)",
    ),
    Flag("variant", "pretrained.variant", "variant of the pipeline's weight files, such as fp16"),
    Flag(
        "train_levels",
        None,
        "train the N innermost levels (default: all levels of the pipeline); with --recipe, only the stages up to "
        "N levels",
        count,
    ),
    Flag(
        "resolution",
        None,
        "the same as --train_levels, given as the side in pixels of the outermost level to train",
        count,
    ),
    Flag(
        "num_frames",
        None,
        "turn an image pipeline into a video pipeline for clips of N frames; not with --recipe, whose levels "
        "define their frames",
        count,
    ),
    switch("dry_run", None, "print what would be trained and how much memory it needs, and stop"),
)

STAGES = (
    Flag(
        "train_batch_size",
        "stages.batch_size",
        "images per forward pass and process (default 16; 4 with --instance_data_dir)",
        count,
    ),
    Flag("max_train_steps", "options.max_train_steps", "optimizer steps; with --recipe at most N per stage", count),
    Flag("num_train_epochs", None, "passes over the data, if --max_train_steps is not given", count),
    Flag(
        "joint_images",
        "stages.joint_images",
        "images to train on together with the clips, per forward pass: the recipe's `images`, or single frames "
        "of clips",
        natural,
        older_name="joint_pictures",
    ),
    Flag(
        "gradient_accumulation_steps", "stages.gradient_accumulation_steps", "forward passes per optimizer step", count
    ),
    Flag(
        "learning_rate",
        "stages.learning_rate",
        "(default 1e-5, with --rank 1e-4, with --instance_data_dir 5e-6, with --optimizer prodigy 1)",
        number,
    ),
    switch(
        "scale_lr", None, "multiply the learning rate by the images per step: processes, accumulation and batch size"
    ),
    Flag(
        "lr_scheduler",
        "stages.lr_scheduler",
        "(default constant)",
        choices=choices_of(StageRecipe, "lr_scheduler"),
    ),
    Flag("lr_warmup_steps", "stages.lr_warmup_steps", "optimizer steps of linear warm-up (default 0)", natural),
    Flag("lr_num_cycles", "stages.lr_num_cycles", "of cosine_with_restarts", count),
    Flag("lr_power", "stages.lr_power", "of polynomial", number),
    Flag(
        "level_learning_rate_scales",
        "stages.level_learning_rate_scales",
        "factor on the learning rate of each level, innermost first, e.g. 0.1,1",
        numbers,
    ),
    Flag("frozen_levels", "stages.frozen_levels", "do not train the N innermost levels", natural),
    switch("train_text_encoder", "text_encoder.train_text_encoder", "train the text encoder, too"),
    Flag("text_encoder_lr", None, "learning rate of the text encoder, if different", number),
    Flag("max_sequence_length", "text_encoder.max_sequence_length", "truncate captions after N tokens", count),
)

LOSS = (
    Flag("level_weights", "stages.level_weights", "loss weight of each level, innermost first, e.g. 1,1", numbers),
    Flag(
        "batch_fractions",
        "stages.batch_fractions",
        "fraction of the batch that each level is trained on, innermost first, e.g. 1,0.5",
        numbers,
    ),
    Flag(
        "prediction_type",
        None,
        "what the levels predict: v_prediction, epsilon or sample, outer ones also residual or sample_residual; one "
        "for all, or one per level, such as v_prediction,residual (default v_prediction, or that of the pipeline)",
        names,
    ),
    Flag(
        "loss_weighting",
        "stages.loss_weighting",
        "which error the loss measures: that of the noise, of v, of the clean image (sample), or of what each level "
        "predicts; or that of the noise weighted by a sigmoid of the log SNR (default epsilon)",
        choices=choices_of(StageRecipe, "loss_weighting"),
    ),
    Flag("sigmoid_bias", "stages.sigmoid_bias", "of the weighting sigmoid; lower: noisier (default 0)", per_level),
    Flag("snr_gamma", "stages.snr_gamma", "min-SNR weighting; the paper recommends 5", per_level),
    Flag("p2_gamma", "stages.p2_gamma", "P2 weighting; the paper recommends 1", per_level),
    Flag("p2_k", "stages.p2_k", "constant of the P2 weighting (default 1)", number),
    Flag(
        "alignment_encoder",
        "alignment.encoder",
        "align features of level 0 with those of a frozen image encoder (REPA): folder or Hub id, or inception",
    ),
    Flag("alignment_weight", "alignment.weight", "weight of this loss (default 0.5)", number),
    Flag(
        "perceptual_network",
        "perceptual.network",
        "add a perceptual loss on features of a frozen network: folder or Hub id, or inception",
    ),
    Flag("perceptual_weight", "perceptual.weight", "weight of this loss (default 0.1)", number),
    Flag("noise_offset", "stages.noise_offset", "scale of a random offset added to the noise", number),
    Flag(
        "proportion_empty_prompts",
        "stages.caption_dropout",
        "fraction of captions replaced by the empty one (default 0.1; 0 with --instance_data_dir)",
        number,
    ),
    Flag(
        "timestep_bias_strategy",
        "stages.timestep_bias_strategy",
        "which timesteps are sampled more often",
        choices=choices_of(StageRecipe, "timestep_bias_strategy"),
    ),
    Flag(
        "timestep_bias_portion", "stages.timestep_bias_portion", "fraction of the timesteps that is favoured", number
    ),
    Flag(
        "timestep_bias_multiplier",
        "stages.timestep_bias_multiplier",
        "how many times as often these are sampled",
        number,
    ),
)

OPTIMIZER = (
    Flag(
        "optimizer",
        "optimizer.name",
        "adamw (default), muon (matrices by Muon, the rest by AdamW) or prodigy (estimates the step size itself; the "
        "learning rate is then a factor on it, by default 1)",
        lambda text: text.lower(),
        choices=choices_of(OptimizerRecipe, "name"),
    ),
    switch("use_8bit_adam", "optimizer.use_8bit_adam", "keep the moments of AdamW in 8 bits (needs bitsandbytes)"),
    Flag("adam_beta1", "optimizer.adam_beta1", "(default 0.9)", number),
    Flag("adam_beta2", "optimizer.adam_beta2", "(default 0.999)", number),
    Flag("adam_epsilon", "optimizer.adam_epsilon", "(default 1e-8)", number),
    Flag("adam_weight_decay", "optimizer.adam_weight_decay", "(default 0, as in the published runs)", number),
    Flag("muon_momentum", "optimizer.muon_momentum", "(default 0.95)", number),
    Flag("prodigy_beta3", "optimizer.prodigy_beta3", "(default: the square root of --adam_beta2)", number),
    switch("prodigy_decouple", "optimizer.prodigy_decouple", "weight decay as in AdamW (default)"),
    switch("prodigy_use_bias_correction", "optimizer.prodigy_use_bias_correction", "as in Adam (default)"),
    switch(
        "prodigy_safeguard_warmup",
        "optimizer.prodigy_safeguard_warmup",
        "keep the learning rate of a warm-up out of the estimate (default)",
    ),
    Flag("max_grad_norm", "optimizer.max_grad_norm", "maximum norm of the gradient (default 2)", number),
    switch("use_ema", "recipe.use_ema", "average the weights (EMA); samples and the saved pipeline use the averages"),
    Flag("ema_max_decay", "stages.ema_decay", "upper limit of the averages' decay (default 0.9999)", number),
    switch(
        "post_hoc_ema",
        None,
        "also keep averages of which training/reconstruct_ema.py makes one of any width after training",
    ),
    Flag("post_hoc_ema_sigma_rels", "post_hoc_ema.sigma_rels", "their widths (default 0.05,0.1)", numbers),
    Flag(
        "post_hoc_ema_snapshot_steps",
        "post_hoc_ema.snapshot_steps",
        "write a snapshot of them every N steps (default 500)",
        count,
    ),
    Flag(
        "post_hoc_ema_snapshots_total_limit",
        "post_hoc_ema.snapshots_total_limit",
        "snapshots to keep, evenly over training (default 16)",
        count,
    ),
    switch("offload_ema", "options.offload_ema", "keep the averages in the CPU's memory"),
    switch("foreach_ema", "options.foreach_ema", "update the averages in one call (default)"),
)

LORA = (
    Flag("rank", "lora.rank", "train only LoRA matrices, of this rank", count),
    Flag("lora_alpha", "lora.alpha", "alpha of LoRA, whose scale is alpha / rank (default: the rank)", number),
    Flag("lora_dropout", "lora.dropout", "(default 0)", number),
    Flag(
        "lora_layers",
        "lora.target_modules",
        "layers that get LoRA, e.g. to_q,to_k (default: attention projections)",
        names,
    ),
)

VALIDATION = (
    Flag("validation_prompts", "validation.prompts", "prompts of the validation samples", is_list=True),
    Flag(
        "validation_prompt", "validation.prompts", "a single prompt for the validation samples", lambda text: (text,)
    ),
    Flag("num_validation_images", "validation.num_validation_images", "samples per prompt; 0 for none", natural),
    Flag(
        "validation_steps",
        "options.validation_steps",
        "generate samples and measure the validation loss every N steps",
        count,
    ),
    Flag(
        "validation_metrics",
        "validation.metrics",
        "metrics of images generated for held-out captions, such as fid,clip (also kid, retrieval)",
        lambda text: tuple(name.strip() for name in text.split(",")),
    ),
    Flag(
        "early_stopping_metric",
        None,
        "end a stage when this no longer improves, measured at validation steps: loss (held-out), or a metric",
        choices=choices_of(PlateauRecipe, "metric"),
    ),
    Flag("early_stopping_patience", None, "end it after N measurements without a gain (default 5)", count),
    Flag("early_stopping_threshold", None, "a gain is at least this fraction of the best value (default 0)", number),
    switch("skip_final_inference", "options.skip_final_inference", "generate no further samples when training ends"),
    Flag("num_metric_images", "validation.num_metric_images", "held-out captions to generate for them", count),
    Flag("clip_model", "validation.clip_model", "folder or Hub id of the CLIP model of the metric clip"),
    Flag("validation_epochs", None, "the same as --validation_steps, in passes over the data", count),
    Flag(
        "ddpm_num_inference_steps",
        "validation.num_inference_steps",
        "denoising steps of the validation samples (default 25)",
        count,
    ),
)

OUTPUT = (
    Flag("output_dir", "options.output_dir", "folder for checkpoints, samples, logs and the final pipeline", Path),
    Flag("seed", "options.seed", "seed of all random numbers (default 0)", seed),
    Flag("checkpointing_steps", "options.checkpointing_steps", "save a checkpoint every N steps (default 500)", count),
    Flag("save_model_epochs", None, "the same as --checkpointing_steps, in passes over the data", count),
    Flag("checkpoints_total_limit", "options.checkpoints_total_limit", "checkpoints to keep (default 2)", count),
    Flag(
        "resume_from_checkpoint",
        "options.resume_from_checkpoint",
        "latest (default), none, or the name or folder of a checkpoint",
    ),
    Flag("report_to", "options.report_to", "tracker: tensorboard (default), wandb, all or none", tracker),
    Flag("tracker_project_name", "options.tracker_project_name", "project name in the tracker"),
    Flag("logging_dir", "options.logging_dir", "folder of the tracker, inside --output_dir (default logs)"),
    Flag("logging_steps", "options.logging_steps", "report losses every N steps (default 50)", count),
    Flag("save_dtype", "options.save_dtype", "dtype of the final pipeline (default fp32)", choices=SAVE_PRECISIONS),
    switch("push_to_hub", "options.push_to_hub", "upload the final pipeline"),
    Flag("hub_model_id", "options.hub_model_id", "repository on the Hub (default: the output folder's name)"),
    Flag("hub_token", "options.hub_token", "token with write access; prefer `hf auth login`, which appears in no log"),
    switch("hub_private_repo", "options.hub_private_repo", "create a private repository"),
    Flag("license", "options.license", "licence of the result, for its model card, e.g. apache-2.0 (default: none)"),
)

SPEED = (
    Flag("mixed_precision", "options.mixed_precision", "(default: the recipe's, or no)", choices=get_args(Precision)),
    switch(
        "gradient_checkpointing",
        "options.gradient_checkpointing",
        "recompute activations in the backward pass to save memory",
    ),
    Flag(
        "gradient_checkpointing_levels",
        "options.gradient_checkpointing_levels",
        "do so in these levels only, e.g. 1,2 (--dry_run lists what it saves)",
        naturals,
    ),
    switch(
        "offload",
        "options.offload",
        "keep the frozen text encoder and autoencoder in CPU memory while they are not used",
    ),
    switch("allow_tf32", "options.allow_tf32", "faster matrix products in fp32 on NVIDIA GPUs"),
    switch("torch_compile", "options.torch_compile", "compile the U-Net, for captions of any length"),
    Flag(
        "attention_backend",
        "options.attention_backend",
        "attention backend of diffusers, e.g. _native_math, which is fast in bf16 on CPUs",
    ),
)

GROUPS: dict[str, tuple[Flag, ...]] = {
    "what is trained": WHAT,
    "images and captions": DATA,
    "stages": STAGES,
    "loss": LOSS,
    "optimizer and averages": OPTIMIZER,
    "LoRA": LORA,
    "subjects (DreamBooth)": SUBJECT,
    "validation": VALIDATION,
    "output": OUTPUT,
    "speed and memory": SPEED,
}
FLAGS: dict[str, Flag] = {flag.name: flag for group in GROUPS.values() for flag in group}


# Other names of flags, in diffusers' train_unconditional.py.
ALIASES: dict[str, str] = {
    "eval_batch_size": "num_validation_images",
    "logger": "report_to",
    "num_epochs": "num_train_epochs",
    "save_images_epochs": "validation_epochs",
}


def fields_of(part: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given values whose flags set a field of `part` ("data", "stages" …), by field name."""
    fields = {}
    for name, value in given.items():
        target = FLAGS[name].field if name in FLAGS else None
        if target is not None and target.startswith(f"{part}."):
            fields[target.removeprefix(f"{part}.")] = value
    return fields
