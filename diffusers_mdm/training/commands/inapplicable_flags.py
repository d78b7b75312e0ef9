# SPDX-License-Identifier: Apache-2.0
"""Flags of diffusers' training scripts that do not apply here: each is an error that says what to use instead."""

_FLOW = "the model is trained with a discrete noise schedule; use --timestep_bias_strategy to favour timesteps"
_SCHEDULE = "the noise schedule belongs to the model; set `scheduler` in a recipe"
_DREAM = "DREAM is not implemented here; --snr_gamma is"
_RANGE = "timesteps can be favoured at one end of the range; use --timestep_bias_strategy and --timestep_bias_portion"

REASONS: dict[str, str] = {
    "adam_weight_decay_text_encoder": "there is one weight decay for all parts; use --adam_weight_decay",
    "bnb_quantization_config_path": "most weights are those of convolutions, which bitsandbytes does not quantise; "
    "--rank with --mixed_precision bf16 keeps the frozen weights in 16 bits, --gradient_checkpointing saves more",
    "cache_latents": "images are cropped, flipped and encoded anew every time",
    "class_labels_conditioning": "the model is conditioned by the text encoder; use --instance_prompt and "
    "--class_prompt",
    "ddpm_beta_schedule": _SCHEDULE,
    "ddpm_num_steps": _SCHEDULE,
    "debug_loss": "the loss of every level is always reported; use --logging_steps",
    "do_fp8_training": "most of the arithmetic is in convolutions, for which there are no fp8 kernels; use "
    "--mixed_precision bf16",
    "dream_detail_preservation": _DREAM,
    "dream_training": _DREAM,
    "ema_inv_gamma": "the averages' warm-up is fixed; use --ema_max_decay",
    "ema_power": "the averages' warm-up is fixed; use --ema_max_decay",
    "enable_npu_flash_attention": "use --attention_backend _native_npu",
    "enable_xformers_memory_efficient_attention": "PyTorch's own attention saves as much memory; see "
    "--attention_backend",
    "fsdp_text_encoder": "a frozen text encoder can be kept out of memory altogether; use "
    "--pre_compute_text_embeddings, or --offload",
    "guidance_scale": "the model has no guidance input; set `validation.guidance_scale` in a recipe for validation "
    "samples",
    "input_perturbation": "it is not implemented here; --noise_offset is",
    "logit_mean": _FLOW,
    "logit_std": _FLOW,
    "mode_scale": _FLOW,
    "model_config_name_or_path": "the architecture is defined in a recipe, under `model` and `levels`; use --recipe",
    "non_ema_revision": "a pipeline has one set of weights; use --revision",
    "offset_noise": "use --noise_offset 0.1",
    "overwrite_output_dir": "a run resumes from its folder; use a new --output_dir, or --resume_from_checkpoint none",
    "preserve_input_precision": "images are read with 8 bits per channel",
    "remote_text_encoder": "captions are encoded on this machine, once with --pre_compute_text_embeddings; or encode "
    "them elsewhere with training/precompute_text_embeddings.py, and pass --embeddings_dir",
    "repeats": "the data is repeated without end; use --max_train_steps or --num_train_epochs",
    "skip_save_text_encoder": "the saved pipeline has to be complete; delete its folder text_encoder afterwards",
    "timestep_bias_begin": _RANGE,
    "timestep_bias_end": _RANGE,
    "tokenizer_max_length": "use --max_sequence_length",
    "tokenizer_name": "the tokenizer is that of the pipeline",
    "validation_images": "the model generates from text; use --validation_prompts",
    "validation_scheduler": "validation uses the pipeline's own scheduler",
    "weighting_scheme": _FLOW,
}

# What these request is always the case; they are accepted, and change nothing.
ALWAYS_SO: dict[str, str] = {
    "set_grads_to_none": "gradients are set to none between steps",
    "text_encoder_use_attention_mask": "the attention mask is always used with the captions",
    "upcast_before_saving": "LoRA weights are trained and saved in fp32; for pipelines see --save_dtype",
}
