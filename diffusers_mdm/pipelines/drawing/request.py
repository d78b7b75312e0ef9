# SPDX-License-Identifier: Apache-2.0
"""The arguments of a pipeline call: their types, checks and defaults.

Small models need different guidance from the published ones. Therefore `model_index.json` can contain defaults:
`"drawing_defaults": {"num_inference_steps": 25, "guidance_scale": 3.0}`. Names that begin with `upscale_` apply only
to `MDMUpscalePipeline`, which otherwise uses the same defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from diffusers_mdm.checked_values import describe, is_number, is_whole_number
from diffusers_mdm.pyramid import Pyramid

# A pyramid, or a bare tensor for a single level, as diffusers' schedulers and callbacks expect.
Sample = torch.Tensor | Pyramid
Prompt = str | list[str] | None
StepCallback: TypeAlias = Callable[..., dict[str, Any] | None] | PipelineCallback | MultiPipelineCallbacks | None
# A name, a dict of a name and settings, a `GuidanceMethod`, or a guider of diffusers.
Guider: TypeAlias = Any
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
# Names of the argument for the number of images or clips per prompt or label, or without these.
COPIES_NAMES = ("num_images_per_prompt", "num_images_per_label", "num_videos_per_prompt", "batch_size")
MAX_RESAMPLING_STEPS = 10_000  # more is a typo that would run for days
MAX_IMAGES = 2**16  # per call; no device has memory for more
# Arguments that can be None in a call and have defaults in a folder (see `fill_in`), with their values if the folder
# has none, as in diffusers.
PUBLISHED_DEFAULTS: Mapping[str, Any] = {
    "num_inference_steps": 50,
    "guidance_scale": 7.5,
    "num_resampling_steps": 1,
    "level_agreement": 0.0,
    "open_levels_at": -math.inf,
    "num_inner_steps": None,
}
UPSCALE_DEFAULTS: Mapping[str, Any] = {**PUBLISHED_DEFAULTS, "eta": 0.0}
UPSCALE_PREFIX = "upscale_"
# Sizes [height, width] of the outermost level, besides those whose larger side is that of a level.
BUCKETS = "aspect_ratio_buckets"
_KNOWN = (*PUBLISHED_DEFAULTS, *(UPSCALE_PREFIX + name for name in UPSCALE_DEFAULTS), BUCKETS)


@dataclass
class Request:
    """The arguments of a pipeline call; arguments that a task does not have keep their defaults.

    `check_inputs` fills in `height`, `width` and `num_frames` if they are None, and the attributes below.

    Attributes:
        copies: images or clips per prompt or label (`num_images_per_prompt` and similar arguments), or in all.
        copies_name: the pipeline's name of that argument.
        num_images: B, the number of all images or clips of the call.
        images: `image`, converted.
        masks: `mask_image`, converted.
        guidance: `guider`, converted; None for plain guidance.
    """

    prompt: Prompt = None
    negative_prompt: Prompt = None
    prompt_embeds: torch.Tensor | None = None
    negative_prompt_embeds: torch.Tensor | None = None
    prompt_attention_mask: torch.Tensor | None = None
    negative_prompt_attention_mask: torch.Tensor | None = None
    class_labels: Any = None
    negative_class_labels: Any = None
    image: Any = None
    mask_image: Any = None
    height: Any = None
    width: Any = None
    num_frames: Any = None
    num_inference_steps: Any = None
    timesteps: list[int] | None = None
    strength: float = 1.0
    num_resampling_steps: int = 1
    jump_length: int = 1
    exact_consistency: bool = False
    guidance_scale: Any = None
    guidance_rescale: float = 0.0
    guider: Any = None
    guidance_unet: Any = None
    level_agreement: Any = None
    open_levels_at: Any = None
    num_inner_steps: int | list[int] | None = None
    eta: float | None = 0.0
    generator: torch.Generator | list[torch.Generator] | None = None
    latents: Sample | None = None
    micro_conditioning: Mapping[str, Any] | None = None
    output_type: str = "pil"
    output_pyramid: bool = False
    return_dict: bool = True
    cross_attention_kwargs: dict[str, Any] | None = None
    callback_on_step_end: StepCallback = None
    callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",)
    max_sequence_length: int = 128
    copies: int = 1
    copies_name: str = COPIES_NAMES[0]
    num_images: int = 1
    images: Any = None
    masks: Any = None
    guidance: Any = None

    @property
    def has_text(self) -> bool:
        """Whether any argument for text was passed."""
        texts = (self.prompt, self.prompt_embeds, self.prompt_attention_mask)
        negatives = (self.negative_prompt, self.negative_prompt_embeds, self.negative_prompt_attention_mask)
        return any(entry is not None for entry in (*texts, *negatives))

    @property
    def num_prompts(self) -> int:
        """The number of prompts, passed as text or as features `(B, L, width)`."""
        if self.prompt_embeds is not None:
            return len(self.prompt_embeds)
        return len(self.prompt) if isinstance(self.prompt, list) else 1


def read_call(arguments: Mapping[str, Any]) -> Request:
    """Check the types of the arguments of a pipeline's `__call__`, and convert them.

    Args:
        arguments: arguments by name, from `locals()` at the start of `__call__`.

    Raises:
        ValueError: names the argument, and says what it is and what was expected.
    """
    given: dict[str, Any] = {
        name: None if value is None and name in PUBLISHED_DEFAULTS else check_argument(name, value)
        for name, value in arguments.items()
        if name != "self"
    }
    for name in COPIES_NAMES:
        if name in given:
            given |= {"copies": given.pop(name), "copies_name": name}
    request = Request(**given)
    callback = request.callback_on_step_end
    if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
        request.callback_on_step_end_tensor_inputs = list(callback.tensor_inputs)
    return request


class Kind(NamedTuple):
    """The kind of values that an argument accepts.

    Attributes:
        expected: description for error messages.
        accepts: returns whether a value is of this kind.
        read: converts an accepted value to the type that the code uses.
    """

    expected: str
    accepts: Callable[[Any], bool]
    read: Callable[[Any], Any] = lambda value: value


def check_argument(name: str, value: Any) -> Any:
    """Return an argument in the type that the code uses.

    Args:
        name: name of the argument of `__call__`.
        value: the value that was passed.

    Raises:
        ValueError: it is of another kind; the message says what was expected.
    """
    kind = KINDS.get(name)
    if kind is None:
        return value
    if not kind.accepts(value):
        raise ValueError(f"`{name}` has to be {kind.expected}, but is {describe(value)}.")
    return kind.read(value)


def are_all(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Return whether a value is a list or tuple with only entries of this type."""
    return isinstance(value, (list, tuple)) and all(isinstance(entry, kind) for entry in value)


def whole_numbers(value: Any) -> list[int] | None:
    """Convert a list, range, array or tensor of integers to a list; None if it is not one."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        value = value.tolist() if value.ndim == 1 and value.dtype not in (torch.bool, np.dtype(bool)) else None
    if not isinstance(value, (list, tuple, range)) or not len(value):
        return None
    if not all(is_number(entry) and entry == int(entry) for entry in value):
        return None
    return [int(entry) for entry in value]


def _has_values(value: Any) -> bool:
    """Return whether a value is a tensor with values, unlike those on the meta device."""
    return isinstance(value, torch.Tensor) and value.device.type != "meta"


def _is_features(value: Any) -> bool:
    return _has_values(value) and value.dtype.is_floating_point


def _is_mask(value: Any) -> bool:
    return _has_values(value) and not value.dtype.is_complex


def _are_levels(value: Any) -> bool:
    levels: Iterable[Any] = [value] if isinstance(value, torch.Tensor) else value
    return isinstance(levels, (list, tuple)) and all(_is_features(level) and level.ndim in (4, 5) for level in levels)


def _are_images(value: Any) -> bool:
    images = value if isinstance(value, (list, tuple)) else [value]
    return all(not isinstance(image, torch.Tensor) or _has_values(image) for image in images)


def _is_text_keyed(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _optional(kind: Kind) -> Kind:
    """Return the kind that also accepts None."""
    return Kind(
        f"{kind.expected}, or None",
        lambda value: value is None or kind.accepts(value),
        lambda value: None if value is None else kind.read(value),
    )


def _one_or_list(kind: Kind, which: str) -> Kind:
    """Return the kind that also accepts a non-empty list."""
    return Kind(
        f"{kind.expected}, or a list of them, {which}",
        lambda value: all(map(kind.accepts, value)) and len(value) > 0 if _is_list(value) else kind.accepts(value),
        lambda value: list(map(kind.read, value)) if _is_list(value) else kind.read(value),
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _are_sizes(value: Any) -> bool:
    return _is_list(value) and all(
        _is_list(size) and len(size) == 2 and all(is_whole_number(side, 1) for side in size) for size in value
    )


def _as_sizes(value: Any) -> list[list[int]]:
    return [[int(side) for side in size] for size in value]


_IMAGES = Kind("images whose values are in memory", _are_images)
_COUNT = Kind("a whole number of at least 1", lambda value: is_whole_number(value, 1), int)
_PIXELS = _optional(
    Kind("a whole number of pixels", lambda value: isinstance(value, int) or is_whole_number(value, 0), int)
)
_SHARE = Kind("a number from 0 to 1", lambda value: is_number(value, 0, 1), float)
_FLAG = Kind("True or False", lambda value: isinstance(value, (bool, np.bool_)), bool)
_FEATURES = _optional(Kind("a tensor of floating-point numbers (batch, tokens, width)", _is_features))
_MASK = _optional(Kind("a tensor (batch, tokens), True where there is a token", _is_mask))
# Prompts and labels have separate checks, and images are further checked in `image_inputs`.
KINDS: dict[str, Kind] = {
    **dict.fromkeys((*COPIES_NAMES, "jump_length", "max_sequence_length"), _COUNT),
    "num_resampling_steps": Kind(
        f"a whole number of at least 1, and at most {MAX_RESAMPLING_STEPS}",
        lambda value: is_whole_number(value, 1) and value <= MAX_RESAMPLING_STEPS,
        int,
    ),
    "num_inference_steps": _optional(_COUNT),
    "num_inner_steps": _optional(_one_or_list(_COUNT, "innermost level first")),
    **dict.fromkeys(("height", "width"), _PIXELS),
    BUCKETS: Kind("a list of sizes [height, width] in pixels, such as [[48, 80], [80, 48]]", _are_sizes, _as_sizes),
    "num_frames": _optional(_COUNT),
    "timesteps": _optional(
        Kind("a list of whole numbers", lambda value: whole_numbers(value) is not None, whole_numbers)
    ),
    "guidance_scale": _one_or_list(Kind("a finite number", is_number, float), "one per level, innermost first"),
    "level_agreement": _one_or_list(_SHARE, "one for every level but the innermost"),
    "open_levels_at": Kind(
        "a log SNR, a number, or minus infinity",
        lambda value: is_number(value) or (isinstance(value, float) and value == -math.inf),
        float,
    ),
    "guidance_rescale": _SHARE,
    "strength": Kind(
        "a number from 0 (the image is not changed) to 1 (almost nothing of it is left)",
        lambda value: is_number(value, 0, 1),
        float,
    ),
    "eta": Kind(
        "a number from 0 (deterministic) to 1 (ancestral), or None (ancestral)",
        lambda value: value is None or is_number(value, 0, 1),
        lambda value: None if value is None else float(value),
    ),
    "generator": _optional(
        Kind(
            "a torch.Generator or a list of them, one per image",
            lambda value: isinstance(value, torch.Generator) or (are_all(value, torch.Generator) and len(value) > 0),
            lambda value: value if isinstance(value, torch.Generator) else list(value),
        )
    ),
    "latents": _optional(
        Kind(
            "a tensor of floating-point numbers (batch, channels, ...) or a list of them, innermost first", _are_levels
        )
    ),
    **dict.fromkeys(("prompt_embeds", "negative_prompt_embeds"), _FEATURES),
    **dict.fromkeys(("prompt_attention_mask", "negative_prompt_attention_mask"), _MASK),
    "micro_conditioning": _optional(Kind("a dict of numbers by name, such as {'scale': 256}", _is_text_keyed)),
    **dict.fromkeys(("image", "mask_image"), _IMAGES),
    "output_type": Kind(
        f"one of {', '.join(OUTPUT_TYPES)}", lambda value: isinstance(value, str) and value in OUTPUT_TYPES
    ),
    **dict.fromkeys(("output_pyramid", "return_dict", "exact_consistency"), _FLAG),
    "cross_attention_kwargs": _optional(
        Kind(
            "a dict such as {'scale': 0.5}, the strength of a LoRA",
            lambda value: _is_text_keyed(value) and is_number(value.get("scale", 1.0)),
        )
    ),
    "callback_on_step_end": _optional(Kind("a function", callable)),
    "callback_on_step_end_tensor_inputs": _optional(
        Kind("a list of names", lambda value: are_all(value, str), lambda value: list(value))
    ),
}


def check_defaults(defaults: Any) -> dict[str, Any] | None:
    """Check and convert the default settings of a folder; None for none.

    Args:
        defaults: the value in `model_index.json`.

    Raises:
        ValueError: it is not a mapping, has unknown names, or values of the wrong kind.
    """
    if defaults is None:
        return None
    if not isinstance(defaults, Mapping):
        raise ValueError(
            f"`drawing_defaults` has to be a dict such as {dict(PUBLISHED_DEFAULTS)}, but is {describe(defaults)}."
        )
    checked = {}
    for name, value in defaults.items():
        if name not in _KNOWN:
            raise ValueError(f"`drawing_defaults` has {name!r}; it can have {', '.join(_KNOWN)}.")
        if value is None:
            raise ValueError(f"`drawing_defaults` has None for {name!r}; omit it, or set a value.")
        checked[name] = check_argument(name.removeprefix(UPSCALE_PREFIX), value)
    return checked or None


def fill_in(
    request: Request, scheduler: Any, folder: Mapping[str, Any] | None, published: Mapping[str, Any], prefix: str
) -> None:
    """Fill in arguments of a call that are None.

    Args:
        request: the arguments of the call.
        scheduler: scheduler of the pipeline; with one that adds no noise, `eta` is not set.
        folder: the default settings of the pipeline's folder, None for none.
        published: the values for settings that the folder does not have.
        prefix: prefix of settings that apply only to the pipeline's task, "" for none.
    """
    own = folder or {}
    for name, value in published.items():
        if getattr(request, name) is None:
            chosen = own.get(prefix + name, own.get(name, value))
            is_refused = name == "eta" and scheduler.config.get("algorithm") == "dpmsolver++"
            setattr(request, name, value if is_refused else chosen)
