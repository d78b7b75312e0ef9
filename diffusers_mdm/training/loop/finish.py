# SPDX-License-Identifier: Apache-2.0
"""The end of a run: saving, describing and uploading the pipeline."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ...processes import wait_for_everyone
from ..modules.autoencoder import open_vae
from ..modules.classes import TrainedPipeline
from ..modules.lora import save_lora
from ..modules.saved_configs import forget_last_call, forget_origin
from ..modules.text_encoder import frozen_text_encoder
from ..precision import DTYPES
from ..reports.hub import push_output
from ..reports.model_card import write_model_card
from ..state.averages import keep_averages
from ..state.checkpoints import WRITE_ERRORS
from ..state.finished_files import finished_files
from ..state.run import Run

logger = logging.getLogger(__name__)


def save_pipeline(run: Run) -> Path:
    """Save the pipeline with averaged weights in `save_dtype`, or the adapter's weights, at the end of a run.

    Afterwards the run's modules have the averaged and rounded weights; its last checkpoint has the exact ones.

    Raises:
        OSError: if it cannot be written; previous files are not changed.
    """
    output_dir = run.options.output_dir
    if run.accelerator.is_main_process:
        keep_averages(run)
        try:
            with finished_files(output_dir) as folder:
                save_result(run, folder)
        except WRITE_ERRORS as error:
            raise OSError(
                f"The finished pipeline could not be written to {output_dir}: {error} The last checkpoint is "
                f"intact; when there is space, finish with {run.options.resume_command}"
            ) from error
        logger.info("Saved to %s.", output_dir)
    wait_for_everyone(run.accelerator)
    return output_dir


def save_result(run: Run, folder: Path) -> None:
    """Write the adapter's weights, or the pipeline with the run's modules, which lose their exact weights."""
    if run.recipe.lora is not None:
        save_lora(run.unet, folder)
        return
    pipeline = finished_pipeline(run)
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            forget_origin(module)
            # diffusers' own `to` would warn about dtypes that it keeps.
            torch.nn.Module.to(module.eval(), dtype=DTYPES[run.options.save_dtype])
        elif isinstance(module, PreTrainedTokenizerBase):
            forget_last_call(module)
    pipeline.save_pretrained(folder)


def finished_pipeline(run: Run) -> TrainedPipeline:
    """Return the run's pipeline, with the components that training did not need."""
    text_encoder, tokenizer = run.text_encoder, run.tokenizer
    if text_encoder is None and run.recipe.text_encoder is not None:  # captions were precomputed
        _, text_encoder, tokenizer = frozen_text_encoder(run.recipe, run.options.cache_dir)
    # The original autoencoder, since the run's may have been rounded.
    vae = open_vae(run.recipe, run.options.cache_dir)
    pipeline = run.pipeline()
    pipeline.register_modules(vae=vae)
    if text_encoder is not None:
        pipeline.register_modules(text_encoder=text_encoder, tokenizer=tokenizer)
    return pipeline


def report_result(run: Run) -> None:
    """Write the card, close the trackers and upload the result; a failure is reported and does not affect the rest."""
    ends: dict[str, Callable[[], object]] = {"close the trackers": run.accelerator.end_training}
    if run.accelerator.is_main_process:
        ends = {"write the model card": lambda: write_model_card(run), **ends, "upload it": lambda: push_output(run)}
    for what, do in ends.items():
        try:
            do()
        except Exception:
            logger.exception("The result is saved in %s, but it failed to %s.", run.options.output_dir, what)
