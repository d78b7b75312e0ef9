# SPDX-License-Identifier: Apache-2.0
"""No double precision is made where images are: devices such as Apple's have none."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusers_mdm import MatryoshkaScheduler
from tests.models.tiny_models import video_config
from tests.pipelines.tiny_pipeline import TEXT_WIDTH, make_unet


class NoFloat64(TorchDispatchMode):
    """Fails at the first tensor of double precision that an operation makes on a kind of device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.looks = True

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        made = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        found = any(value.dtype == torch.float64 and value.device.type == self.device for value in made)
        assert not (found and self.looks), function
        return result

    def looking_away_from(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """A function of torch, which knows itself what its devices have."""

        def called(*args: Any, **kwargs: Any) -> torch.Tensor:
            self.looks = False
            try:
                return function(*args, **kwargs)
            finally:
                self.looks = True

        return called


@torch.no_grad()
@pytest.mark.parametrize("timestep", [5, 5.0, np.float64(5.0), [1.0, 2.0], torch.tensor(5.0, dtype=torch.float64)])
def test_the_model_makes_none(timestep):
    unet = make_unet().to("meta")
    sample = [torch.randn(2, 3, 8, 8, device="meta"), torch.randn(2, 3, 16, 16, device="meta")]
    states = torch.randn(2, 4, TEXT_WIDTH, device="meta")
    with NoFloat64("meta"):
        unet(sample, timestep, states, added_cond_kwargs={"scale": np.full(2, 8.0)})


@torch.no_grad()
def test_a_model_of_clips_makes_none():
    clips = {key: value for key, value in video_config().items() if key != "encoder_hid_dim"}
    unet = make_unet(**{**clips, "encoder_hid_dim": TEXT_WIDTH}).to("meta")
    shapes = ((1, 3, 1, 8, 8), (1, 3, 4, 8, 8), (1, 3, 4, 16, 16))
    with NoFloat64("meta"):
        unet([torch.randn(shape, device="meta") for shape in shapes], 5, torch.randn(1, 4, TEXT_WIDTH, device="meta"))


@pytest.mark.parametrize("algorithm", ["ddim", "dpmsolver++"])
@pytest.mark.parametrize("thresholding", [False, True])
def test_the_scheduler_makes_none(algorithm, thresholding, monkeypatch):
    scheduler = MatryoshkaScheduler(base_sample_size=4, algorithm=algorithm, thresholding=thresholding)
    scheduler.set_timesteps(3)
    sample = [torch.randn(2, 3, 4, 4), torch.randn(2, 3, 8, 8)]
    output = [torch.randn_like(level) for level in sample]
    watch = NoFloat64("cpu")
    # From torch 2.14 on, it counts ranks in double precision where there is one.
    monkeypatch.setattr(torch, "quantile", watch.looking_away_from(torch.quantile))
    with watch:
        for timestep in scheduler.timesteps:
            sample = scheduler.step(output, timestep, sample, eta=0.0 if algorithm != "ddim" else 0.5).prev_sample
        scheduler.add_noise(sample, output, torch.tensor([3, 5]))
        scheduler.get_velocity(sample, output, torch.tensor([3, 5]))
