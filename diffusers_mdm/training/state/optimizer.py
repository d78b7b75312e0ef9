# SPDX-License-Identifier: Apache-2.0
"""The optimizer of a stage: its parameter groups, its learning rates, and its state by parameter name.

Since the state is stored by name, parameters keep it when levels are added or frozen, or the number of processes
changes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ..modules.conditioned_unet import ConditionedUNet
from ..optimizers.registry import family_of
from ..recipe.stage import StageRecipe
from ..recipe.text_encoder import TextEncoderRecipe
from .run import Run
from .sharding import laid_out_like, whole


def parameter_groups(
    model: ConditionedUNet, stage: StageRecipe, encoder: TextEncoderRecipe | None
) -> list[dict[str, Any]]:
    """Return the parameter groups of the optimizer, one for each learning rate.

    Each has a `name` ("text_encoder.tokens", "text_encoder", "unet" for what levels share, "unet.levels.0" …) and
    `lr_scale`, its factor on the stage's learning rate. Parameters that do not require gradients are not included.
    """
    scales = stage.level_learning_rate_scales or (1.0,) * stage.levels
    rates = {}
    if encoder is not None:
        rates["text_encoder.tokens"] = encoder.token_learning_rate_scale * encoder.learning_rate_scale
        rates["text_encoder"] = encoder.learning_rate_scale
    rates |= {"unet": 1.0, "extra_losses": 1.0}
    rates |= {f"unet.levels.{level}": scale for level, scale in enumerate(scales)}
    members: dict[str, list[torch.nn.Parameter]] = {name: [] for name in rates}
    text_encoder = getattr(model, "text_encoder", None)
    tokens = None if text_encoder is None else text_encoder.get_input_embeddings().weight
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        parts = name.split(".")
        group = "text_encoder.tokens" if parameter is tokens else parts[0]
        if parts[:2] == ["unet", "levels"]:
            group = ".".join(parts[:3])
        members[group].append(parameter)
    return [
        {"name": name, "params": parameters, "lr_scale": rates[name]}
        for name, parameters in members.items()
        if parameters
    ]


def trained_parameters(run: Run) -> list[tuple[str, torch.nn.Parameter]]:
    """Return the trained parameters of the prepared model by name (as in `ConditionedUNet`), in the model's order."""
    model = run.accelerator.unwrap_model(run.model, keep_torch_compile=False)
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def learning_rate_factor(stage: StageRecipe, step: int, last: int | None) -> float:
    """Return the factor on the stage's learning rate at optimizer step `step` (starting at 0), by diffusers'
    schedules.

    Warm-up reaches the full rate at its last step, (step + 1) / lr_warmup_steps; the schedule counts optimizer steps,
    regardless of the number of processes.

    Args:
        stage: the stage, with its schedule.
        step: optimizer step of the stage.
        last: maximum number of steps of the stage (`Progress.last_step`); None if unknown.
    """
    if step < stage.lr_warmup_steps:
        return (step + 1) / stage.lr_warmup_steps
    if stage.lr_scheduler in ("constant", "constant_with_warmup") or last is None:
        return 1.0
    done = min(1.0, (step - stage.lr_warmup_steps) / max(1, last - stage.lr_warmup_steps))
    if stage.lr_scheduler == "linear":
        return 1.0 - done
    if stage.lr_scheduler == "polynomial":
        return float((1.0 - done) ** stage.lr_power)
    if stage.lr_scheduler == "cosine_with_restarts":
        done = 1.0 if done >= 1.0 else (stage.lr_num_cycles * done) % 1.0
    return 0.5 * (1.0 + math.cos(math.pi * done))


def whole_optimizer_state(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    shared: Sequence[str] = (),
) -> dict[str, torch.Tensor]:
    """Return the optimizer state, whole and on the CPU, as "<parameter>//<entry>"; counters are int64 scalars.

    `shared` names the values that all parameter groups have in common and that steps change (see `OptimizerFamily`);
    they are included as "//<name>". No two tensors share memory, which safetensors could not save.
    """
    state: dict[str, torch.Tensor] = {}
    addresses = set()
    for name, parameter in named_parameters:
        for entry, value in optimizer.state.get(parameter, {}).items():
            tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.int64)
            tensor = whole(tensor)
            state[f"{name}//{entry}"] = tensor.clone() if tensor.data_ptr() in addresses else tensor
            addresses.add(tensor.data_ptr())
    for name in shared:
        value = optimizer.param_groups[0][name]
        # In double precision, like numbers of Python.
        state[f"//{name}"] = torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)
    return state


def optimizer_state_of(run: Run) -> dict[str, torch.Tensor]:
    """Return the state of a run's optimizer; every process must call this, since shards are gathered."""
    shared = family_of(run.recipe.optimizer).shared
    return whole_optimizer_state(run.optimizer.optimizer, trained_parameters(run), shared)


def take_optimizer_state(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    state: Mapping[str, torch.Tensor],
) -> None:
    """Load the result of `whole_optimizer_state` into the optimizer; parameters without saved state start from
    scratch.

    Hyper-parameters (learning rate, betas) remain those of `optimizer`.
    """
    entries: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        name, entry = key.split("//")
        entries.setdefault(name, {})[entry] = value
    numbers = {
        parameter: number
        for number, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"])
    }
    numbered = {
        numbers[parameter]: {key: _entry_like(value, parameter) for key, value in entries[name].items()}
        for name, parameter in named_parameters
        if name in entries and parameter in numbers
    }
    optimizer.load_state_dict({"state": numbered, "param_groups": optimizer.state_dict()["param_groups"]})
    shared = {name: value.item() for name, value in entries.get("", {}).items()}
    for group in optimizer.param_groups:
        group.update(shared)


def _entry_like(value: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor | int:
    """Return an entry of the saved state as the optimizer had it: counters as numbers, tensors like `parameter`."""
    if value.ndim == 0 and value.dtype == torch.int64:
        return int(value)
    return laid_out_like(value, parameter)
