# SPDX-License-Identifier: Apache-2.0
"""Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") for matrices, AdamW for the
rest.

`torch.optim.Muon` exists from torch 2.9 on and accepts only parameters with two axes, so convolutions would need
copies of their weights; this one flattens their gradients, also where they are sharded.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from ..recipe.optimizer import OptimizerRecipe
from .family import FP32_BYTES, Groups, OptimizerFamily, Shape

# Polynomial x -> a x + b x³ + c x⁵, which moves singular values from (0, 1] to about 1 (Jordan et al. 2024).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5
_SMALLEST_NORM = 1e-7
# Root mean square of the entries of an update of AdamW (Liu et al. 2025, "Muon is Scalable for LLM Training", 2.2).
_ADAM_UPDATE = 0.2
# Layers from and to pixels, which AdamW trains as it does embeddings (Jordan et al. 2024).
_ENDS = ("conv_in", "conv_out")


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the groups with `is_matrix`, AdamW for the others, in one optimizer.

    The updates of both have the same size, so that the same learning rate suits both.

    Args:
        groups: parameter groups; those with `is_matrix` have parameters with at least two axes.
        lr: learning rate.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: of both, decoupled.
        momentum: of Muon, in Nesterov's form.
    """

    def __init__(
        self,
        groups: Groups,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        momentum: float,
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "is_matrix": False})
        others = [group for group in self.param_groups if not group["is_matrix"]]
        settings: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        # It has the same groups, as objects, and gets the same state in every step.
        self._adamw = torch.optim.AdamW(others, **settings) if others else None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["is_matrix"]:
                self._step_matrices(group)
        if self._adamw is not None:
            # `load_state_dict` replaces both.
            self._adamw.param_groups = [group for group in self.param_groups if not group["is_matrix"]]
            self._adamw.state = self.state
            self._adamw.step()
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        momentum, rate = group["momentum"], group["lr"]
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffer = state["momentum_buffer"]
            buffer.mul_(momentum).add_(gradient, alpha=1 - momentum)
            direction = orthogonal_like(gradient * (1 - momentum) + buffer * momentum)
            size = _ADAM_UPDATE * math.sqrt(max(parameter.shape[0], parameter.numel() // parameter.shape[0]))
            parameter.mul_(1 - rate * group["weight_decay"]).add_(direction, alpha=-rate * size)


def orthogonal_like(update: torch.Tensor) -> torch.Tensor:
    """Return about U Vᵀ for an update U S Vᵀ, of the same shape, dtype and sharding.

    All axes except the first are flattened. A sharded update is gathered, since all of a matrix is needed.
    """
    whole = update.full_tensor() if isinstance(update, DTensor) else update
    direction = orthogonalize(whole.flatten(1)).reshape(whole.shape).to(update.dtype)
    if isinstance(update, DTensor):
        return distribute_tensor(direction, update.device_mesh, update.placements)
    return direction


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix with the same singular vectors, and singular values of about 1 (0.7 to 1.2), by Newton-Schulz
    iterations: in bfloat16 on GPUs, where it is faster and precise enough, otherwise in float32.

    Args:
        matrix: `(M, N)`.
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix).to(torch.float32 if matrix.device.type == "cpu" else torch.bfloat16)
    x = x / x.norm().clamp(min=_SMALLEST_NORM)
    for _ in range(_NUM_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if is_tall else x


def create(
    model: torch.nn.Module, groups: Groups, recipe: OptimizerRecipe, learning_rate: float, is_sharded: bool
) -> torch.optim.Optimizer:
    """Return Muon for the matrices in `groups`, each of which is split in two, and AdamW for the rest."""
    matrices = {id(parameter) for parameter in matrices_of(model)}
    split = []
    for group in groups:
        for is_matrix in (True, False):
            own = [parameter for parameter in group["params"] if (id(parameter) in matrices) is is_matrix]
            if own:
                split.append({**group, "params": own, "is_matrix": is_matrix})
    return MuonAdamW(
        split,
        lr=learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        eps=recipe.adam_epsilon,
        weight_decay=recipe.adam_weight_decay,
        momentum=recipe.muon_momentum,
    )


def matrices_of(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters that Muon trains: weights of linear layers and convolutions, not those from and to
    pixels, and no biases, norms or embeddings.
    """
    found = []
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) or path.rpartition(".")[2] in _ENDS:
            continue
        found += [parameter for parameter in module.parameters(recurse=False) if parameter.ndim >= 2]
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    return [parameter for parameter in found if id(parameter) not in embeddings]  # a tied head is an embedding, too


def state_bytes(shape: Shape) -> int:
    """Return the memory of the momentum, or of the two moments of AdamW."""
    return (1 if len(shape) >= 2 else 2) * FP32_BYTES * math.prod(shape)


MUON = OptimizerFamily("Muon for matrices and AdamW for the rest", create, state_bytes)
