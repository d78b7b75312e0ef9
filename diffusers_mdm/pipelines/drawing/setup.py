# SPDX-License-Identifier: Apache-2.0
"""Setting up a drawing (one sampling run): its state, the sizes of its levels, its timesteps and its noise.

Components are shared: a pipeline can be called from several threads, and `from_pipe` creates other pipelines with the
same components. Everything that changes during a drawing must therefore belong to the drawing:

- the scheduler, which counts its steps: the first drawing uses the pipeline's own, so that callbacks find what they
  expect in `pipeline.scheduler`; a drawing that starts while it is in use works with a copy;
- guidance and similar settings, which callbacks change through the pipeline: see `RunningDrawings`;
- adapters, which are rescaled in place while the model runs: a model with adapters runs one call at a time;
- weights that are moved during a call (offloading, layerwise casting) cannot be shared at all, which is refused.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from diffusers_mdm.library_internals import is_hooked
from diffusers_mdm.pipelines.drawing.conditioning import (
    Conditioning,
    MicroConditioning,
    SampleGroup,
    group_samples_by_text,
    spread_micro_conditioning,
)
from diffusers_mdm.pipelines.drawing.known_pixels import KnownPixels
from diffusers_mdm.pipelines.drawing.latent_space import scale_factor
from diffusers_mdm.pipelines.drawing.request import Request, Sample, check_argument
from diffusers_mdm.pyramid import Pyramid, Size, as_pyramid, level_of_size, pyramid_noise

_REGISTRY = threading.Lock()
_TAKEN_SCHEDULERS: set[int] = set()
_DRAWING_THREADS: dict[int, list[int]] = {}  # of each U-Net in use, by the id of the module
_RESCALED_ADAPTERS = threading.RLock()


@dataclass
class Controls:
    """The settings of a drawing that callbacks can read and change, through the pipeline.

    Attributes:
        guidance_scale: guidance scale w, one for all levels or one per level, innermost first.
        guidance_rescale: 0 to 1, see `rescaled`.
        cross_attention_kwargs: passed to the model at each step.
        num_timesteps: number of steps.
        interrupt: whether to skip the remaining steps.
    """

    guidance_scale: float | list[float] = 1.0
    guidance_rescale: float = 0.0
    cross_attention_kwargs: dict[str, Any] | None = None
    num_timesteps: int = 0
    interrupt: bool = False


@dataclass
class RunningDrawings:
    """The controls of all running drawings of a pipeline, by thread, and of the last finished one."""

    last: Controls = field(default_factory=Controls)
    by_thread: dict[int, list[Controls]] = field(default_factory=dict)

    @contextlib.contextmanager
    def one_more(self, controls: Controls) -> Iterator[None]:
        """Use these controls for this thread inside the block."""
        thread = threading.get_ident()
        # A callback may call the same pipeline; that drawing then has its own controls.
        nested = self.by_thread.setdefault(thread, [])
        nested.append(controls)
        try:
            yield
        finally:
            nested.remove(controls)
            if not nested:
                del self.by_thread[thread]
            self.last = controls

    def get(self, name: str) -> Any:
        """Read a control of this thread's drawing, or else of the latest running one, or the last finished one."""
        return getattr(self._addressed()[-1], name)

    def set(self, name: str, value: Any) -> None:
        """Change a control of this thread's drawing or, from another thread, of all running drawings.

        So a callback changes only its own drawing, and a stop button stops all drawings of the pipeline.
        """
        for controls in self._addressed():
            setattr(controls, name, value)

    def _addressed(self) -> list[Controls]:
        own = self.by_thread.get(threading.get_ident())
        if own:
            return own[-1:]
        return [controls for nested in list(self.by_thread.values()) for controls in nested] or [self.last]


def control(name: str) -> Any:
    """Return a pipeline's property that reads and changes a control of its current drawing; see `RunningDrawings`."""

    def get(pipeline: Any) -> Any:
        return pipeline.running_drawings.get(name)

    def change(pipeline: Any, value: Any) -> None:
        pipeline.running_drawings.set(name, check_argument(name, value))

    return property(get, change)


@contextlib.contextmanager
def scheduler_of_its_own(scheduler: Any) -> Iterator[Any]:
    """Provide the scheduler, or a copy if another drawing is using it."""
    with _REGISTRY:
        is_taken = id(scheduler) in _TAKEN_SCHEDULERS
        _TAKEN_SCHEDULERS.add(id(scheduler))
    if is_taken:
        yield copied_scheduler(scheduler)
        return
    try:
        yield scheduler
    finally:
        with _REGISTRY:
            _TAKEN_SCHEDULERS.discard(id(scheduler))


def copied_scheduler(scheduler: Any) -> Any:
    """Return a copy that shares no mutable state; the original may be in the middle of a step."""
    state = vars(scheduler).copy()
    # Tables computed from the config are never changed in place, so they need not be copied.
    tensors = {id(value): value for value in state.values() if isinstance(value, torch.Tensor)}
    other = object.__new__(type(scheduler))
    vars(other).update(copy.deepcopy(state, tensors))
    return other


@contextlib.contextmanager
def models_in_use(unet: Any) -> Iterator[None]:
    """Record that this thread is using a model.

    Raises:
        ValueError: another thread is using it too, and the model moves between devices.
    """
    thread = threading.get_ident()
    with _REGISTRY:
        threads = _DRAWING_THREADS.setdefault(id(unet), [])
        if any(other != thread for other in threads) and _has_moving_weights(unet):
            raise ValueError(
                "This pipeline moves its weights during a call (offloading or layerwise casting), and another "
                "thread is using them: make the calls one after the other, put all prompts into one call, or load "
                "a pipeline for each thread."
            )
        threads.append(thread)
    try:
        yield
    finally:
        with _REGISTRY:
            threads.remove(thread)
            if not threads:
                _DRAWING_THREADS.pop(id(unet), None)


def _has_moving_weights(model: Any) -> bool:
    """Return whether hooks of accelerate or diffusers move weights to a device, or to another precision, and back."""
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    return is_hooked(modules)


def adapters_to_itself(unet: Any) -> contextlib.AbstractContextManager[Any]:
    """Prevent other threads from rescaling the adapters of a model inside the block."""
    return _RESCALED_ADAPTERS if getattr(unet, "peft_config", None) else contextlib.nullcontext()


@dataclass
class Drawing:
    """The state of one drawing (sampling run), which exists as long as the call of the pipeline.

    Attributes:
        pipeline: the pipeline, which is passed to callbacks.
        request: the checked arguments of the call.
        controls: guidance and other settings that callbacks can change.
        scheduler: a scheduler that only this drawing uses.
        device: device of the model.
        dtype: dtype of the samples between steps.
        conditioning: conditions of the B images; a callback can change them.
        groups: groups of images that can go through the model together.
        own_columns: see `group_samples_by_text`.
        micro_conditioning: see `MicroConditioning`.
        timesteps: timesteps of the drawing, in decreasing order.
        positions: index of the timestep of each model call; consecutive, except where steps are repeated.
        model_inputs: `guidance.prediction.ModelInputs` for the conditions, made at the first step that needs them.
        model_dtypes: see `dtype_of`.
        known: known pixels, None for none.
        average: `(B, C, h, w)`, or with frames, required averages in [-1, 1], see `with_given_average`; None for none.
        guidance: the guidance of each level, None for plain guidance.
        beside: `(B, c, H, W)`, further input channels of the model, which has one level; None without.
        step: how many steps were done before the one that goes on.
        position: index of its timestep in `timesteps`; None if the loop does not tell.
    """

    pipeline: Any
    request: Request
    controls: Controls
    scheduler: Any
    device: torch.device
    dtype: torch.dtype
    conditioning: Conditioning = field(default_factory=Conditioning)
    groups: list[SampleGroup] = field(default_factory=list)
    own_columns: bool = False
    micro_conditioning: MicroConditioning = field(default_factory=dict)
    timesteps: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    positions: Sequence[int] = ()
    model_inputs: dict[Any, Any] = field(default_factory=dict)
    model_dtypes: dict[int, torch.dtype] = field(default_factory=dict)
    known: KnownPixels | None = None
    average: torch.Tensor | None = None
    guidance: Any = None
    beside: torch.Tensor | None = None
    step: int = 0
    position: int | None = None

    def dtype_of(self, model: Any) -> torch.dtype:
        """Return a model's dtype, which diffusers determines from all of its modules, so it is read only once."""
        if id(model) not in self.model_dtypes:
            self.model_dtypes[id(model)] = model.dtype
        return self.model_dtypes[id(model)]

    def condition_on(self, conditioning: Conditioning) -> None:
        """Use these conditions from now on."""
        self.conditioning = conditioning
        self.groups = group_samples_by_text(conditioning, own_columns=self.own_columns)
        self.model_inputs.clear()
        if getattr(self.pipeline.unet, "inner_cache", None) is not None:
            self.pipeline.unet.inner_cache.forget()


@contextlib.contextmanager
def begin_drawing(pipeline: Any, request: Request) -> Iterator[Drawing]:
    """Begin a drawing, which has its own copy of everything that changes during it.

    Args:
        pipeline: the pipeline.
        request: the checked arguments of the call.
    """
    controls = Controls(request.guidance_scale, request.guidance_rescale, request.cross_attention_kwargs)
    unet = pipeline.unet
    with (
        models_in_use(unet),
        pipeline.running_drawings.one_more(controls),
        scheduler_of_its_own(pipeline.scheduler) as scheduler,
    ):
        device, dtype = pipeline._execution_device, torch.promote_types(unet.dtype, torch.float32)
        drawing = Drawing(pipeline, request, controls, scheduler, device, dtype)
        drawing.guidance = None if request.guidance is None else request.guidance.for_levels(unet.num_levels)
        drawing.micro_conditioning = spread_micro_conditioning(request.micro_conditioning, request.num_images, device)
        yield drawing


# Sizes


def pixels_per_latent(vae: Any) -> int:
    """Return the number of pixels per latent along a side; 1 for a model on pixels."""
    return 1 if vae is None else scale_factor(vae)


def image_sides(unet: Any, vae: Any) -> tuple[int, ...]:
    """Return the side in pixels of each level's images, innermost first."""
    return tuple(side * pixels_per_latent(vae) for side in unet.sample_sizes)


def image_multiples(unet: Any, vae: Any) -> list[int]:
    """Return for every level the number of which height and width of its images must be multiples, innermost first."""
    return [ratio * unet.size_multiple * pixels_per_latent(vae) for ratio in unet.level_ratios]


def level_shapes(
    unet: Any,
    vae: Any,
    num_images: int,
    height: int,
    width: int,
    num_frames: int | None = None,
    buckets: Sequence[Size] = (),
) -> list[tuple[int, ...]]:
    """Return the shapes of the levels that are generated for an image or a clip, innermost first.

    Args:
        unet: the model.
        vae: its autoencoder, None for a model on pixels.
        num_images: B.
        height: checked height of the outermost level in pixels.
        width: checked width of the outermost level in pixels.
        num_frames: frames of clips; None for images.
        buckets: see `level_of_size`.

    Returns:
        `(B, C, H_i, W_i)`, or for clips `(B, C, F_i, H_i, W_i)`.
    """
    sides, side = image_sides(unet, vae), max(height, width)
    if num_frames is None or num_frames == 1:
        level = level_of_size(height, width, sides, buckets)
        if level is None:
            raise ValueError(f"No level of this model has {height} x {width} pixels (height x width).")
        num_levels = level + 1
    else:
        num_levels = list(zip(sides, unet.level_frames, strict=True)).index((side, num_frames)) + 1
    ratios, frames = unet.level_ratios[:num_levels], unet.level_frames[:num_levels]
    shrunk = ratios[-1] * pixels_per_latent(vae)
    shapes: list[tuple[int, ...]] = []
    for ratio, count in zip(ratios, frames, strict=True):
        axis = () if num_frames is None else (1 if num_frames == 1 else count,)
        shapes.append((num_images, unet.config.out_channels, *axis, height * ratio // shrunk, width * ratio // shrunk))
    return shapes


# Timesteps


def set_timesteps(drawing: Drawing, strength: float = 1.0) -> None:
    """Set the scheduler's timesteps, and keep only the last ones for img2img.

    Args:
        drawing: receives the timesteps, in order.
        strength: fraction of them to keep, rounded down, but at least one if above 0.
    """
    scheduler, request = drawing.scheduler, drawing.request
    if request.timesteps is None:
        scheduler.set_timesteps(request.num_inference_steps, device=drawing.device)
    else:
        scheduler.set_timesteps(timesteps=request.timesteps, device=drawing.device)
    timesteps = scheduler.timesteps
    kept = max(int(len(timesteps) * strength), 1) if strength > 0 else 0
    skipped = len(timesteps) - kept
    # With a begin index, diffusers' schedulers need not read the first timestep back from an accelerator;
    # `MatryoshkaScheduler` uses the timestep of each step anyway.
    if kept and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    drawing.timesteps = timesteps[skipped:]
    drawing.positions = range(kept)


def step_arguments(drawing: Drawing) -> dict[str, Any]:
    """Return those of our arguments that the scheduler's `step` accepts. Predictions are checked after the loop."""
    known, request = inspect.signature(drawing.scheduler.step).parameters, drawing.request
    given = {"eta": request.eta, "generator": request.generator, "check_output": False}
    given["level_agreement"] = request.level_agreement
    return {key: value for key, value in given.items() if key in known}


# Samples


def starting_noise(drawing: Drawing) -> Pyramid:
    """Return noise of unit variance for every generated level, level 0 first, or the given noise."""
    request, pipeline = drawing.request, drawing.pipeline
    size = (request.num_images, request.height, request.width, request.num_frames)
    shapes = level_shapes(pipeline.unet, pipeline.vae, *size, pipeline.aspect_ratio_buckets)
    return draw_noise(shapes, request.generator, request.latents, drawing.device, drawing.dtype)


def draw_noise(
    shapes: Sequence[tuple[int, ...]],
    generator: torch.Generator | list[torch.Generator] | None,
    latents: Sample | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Pyramid:
    """Sample noise of unit variance, or return the given noise; arguments as in `prepare_latents`."""
    if latents is None:
        return pyramid_noise(shapes, generator, device, dtype)
    return [level.to(device, dtype) for level in as_pyramid(latents)[0]]


def scaled_noise(scheduler: Any, noise: Pyramid) -> Sample:
    """Scale noise of unit variance to a scheduler's initial sample; a bare tensor for a single level."""
    levels = [level * scheduler.init_noise_sigma for level in noise]
    return levels[0] if len(levels) == 1 else levels


def noised(drawing: Drawing, clean: Pyramid, noise: Pyramid, timestep: torch.Tensor, *, bare: bool) -> Pyramid:
    """Add the noise of a timestep to images.

    Args:
        drawing: the drawing, whose scheduler adds the noise.
        clean: levels in [-1, 1] or of latents, from level 0 outwards.
        noise: N(0, 1) noise in the same shapes.
        timestep: t.
        bare: whether the samples between steps are a bare tensor, which is then also passed to the scheduler.
    """
    # diffusers' schedulers take a timestep of shape (1,) for the whole batch.
    if bare:
        return [drawing.scheduler.add_noise(clean[0], noise[0], timestep.reshape(1))]
    return drawing.scheduler.add_noise(clean, noise, timestep.reshape(1))
