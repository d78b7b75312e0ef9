# SPDX-License-Identifier: Apache-2.0
"""A pipeline whose model is the exact denoiser of a Gaussian pyramid, so that what it draws is known beforehand."""

from typing import Any

import torch

from diffusers_mdm import MatryoshkaScheduler, MDMPipeline
from diffusers_mdm.models import NestedUNetModel
from diffusers_mdm.models.forward_inputs import StepEmbedding
from tests.pipelines.tiny_pipeline import TEXT_WIDTH, make_unet
from tests.schedulers.gaussian_pyramid import GaussianPyramid

GAUSSIAN = GaussianPyramid((2, 4))


class ExactDenoiser(NestedUNetModel):
    """Predicts every level exactly, whatever the prompt; the inner level alone, too. Counts which levels ran."""

    scheduler: Any = None
    calls: Any = None

    def forward(self, sample: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        levels = [sample] if isinstance(sample, torch.Tensor) else list(sample)
        self.calls.append(len(levels))
        times = timestep.timesteps if isinstance(timestep, StepEmbedding) else timestep
        predicted = [level.float() for level in GAUSSIAN.predict(self.scheduler, levels, times[:1])]
        return (predicted[0] if isinstance(sample, torch.Tensor) else predicted,)


def make_exact_pipeline(**scheduler: Any) -> MDMPipeline:
    """The pipeline; its scheduler does not clip, and steps evenly in log SNR with the two-step solver."""
    settings = {"timestep_spacing": "log_snr", "algorithm": "dpmsolver++", "clip_sample": False, **scheduler}
    tiny = make_unet(
        sample_size=2, in_channels=1, out_channels=1, encoder_hid_dim=TEXT_WIDTH, block_out_channels=((8, 8), (8, 8))
    )
    unet = ExactDenoiser(**{key: value for key, value in tiny.config.items() if not key.startswith("_")})
    unet.scheduler, unet.calls = MatryoshkaScheduler(base_sample_size=2, **settings), []
    pipe = MDMPipeline(None, None, unet, MatryoshkaScheduler(base_sample_size=2, **settings))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_exactly(pipe: MDMPipeline, num_images: int = 1, **changes: Any) -> list[torch.Tensor]:
    """The last samples of both levels, drawn from a fixed seed."""
    inputs = {
        "prompt_embeds": torch.zeros(num_images, 1, TEXT_WIDTH),
        "num_inference_steps": 20,
        "guidance_scale": 1.0,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "latent",
        "output_pyramid": True,
    }
    pipe.unet.calls.clear()
    return pipe(**{**inputs, **changes}).pyramid
