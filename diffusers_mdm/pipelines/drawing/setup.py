# SPDX-License-Identifier: Apache-2.0
"""One drawing from its beginning: what belongs to it alone, the sizes of its levels, its time steps, its noise.

Pipelines share their parts: one pipeline may be called from several threads, and `from_pipe` makes siblings around the
same parts. What changes while a drawing goes on must belong to that drawing:

- the scheduler, which counts its steps: the first drawing takes the pipeline's own, so that callbacks find in
  `pipeline.scheduler` what they expect; a drawing that finds it taken works with a copy;
- guidance and the like, which callbacks change through the pipeline: see `RunningDrawings`;
- adapters, which are rescaled in place while the model runs: such models run one call at a time;
- weights that are moved while they draw (offloading, layerwise casting) cannot be shared at all: this is refused.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from diffusers_mdm.library_internals import is_hooked
from diffusers_mdm.pipelines.drawing.conditioning import Conditioning, RowGroup, group_rows_by_text
from diffusers_mdm.pipelines.drawing.known_pixels import KnownPixels
from diffusers_mdm.pipelines.drawing.latent_space import scale_factor
from diffusers_mdm.pipelines.drawing.request import Request, Sample
from diffusers_mdm.pipelines.drawing.resampling import resampled_positions
from diffusers_mdm.pyramid import Pyramid, as_pyramid, pyramid_noise

# Micro-conditions by name, (2, B): those of the unconditional half of the batch, then those of the conditional one.
MicroConditioning = dict[str, torch.Tensor]
_REGISTRY = threading.Lock()
_TAKEN_SCHEDULERS: set[int] = set()
_DRAWING_THREADS: dict[int, list[int]] = {}  # of each U-Net that draws, by the id of the module
_RESCALED_ADAPTERS = threading.RLock()


@dataclass
class Controls:
    """What callbacks may read and change, through the pipeline, while a drawing goes on.

    Attributes:
        guidance_scale: weight w of the guidance, one for all levels or one a level, innermost first.
        guidance_rescale: how far the spread of the guided prediction is brought back, 0 to 1.
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
    """The controls of all drawings that a pipeline is making, by thread, and of the one that it finished last."""

    last: Controls = field(default_factory=Controls)
    by_thread: dict[int, list[Controls]] = field(default_factory=dict)

    @contextlib.contextmanager
    def one_more(self, controls: Controls) -> Iterator[None]:
        """Make these the controls that this thread sees while the drawing goes on."""
        thread = threading.get_ident()
        # A callback may draw with the same pipeline: the drawing inside has its own controls.
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
        """Read a control: of this thread's drawing, else of the latest one of the others, else of the last one."""
        return getattr(self._addressed()[-1], name)

    def set(self, name: str, value: Any) -> None:
        """Change a control: of this thread's drawing, or from outside of all drawings that go on.

        So a callback changes its own drawing, and a button that stops the pipeline stops all of them.
        """
        for controls in self._addressed():
            setattr(controls, name, value)

    def _addressed(self) -> list[Controls]:
        own = self.by_thread.get(threading.get_ident())
        if own:
            return own[-1:]
        return [controls for nested in list(self.by_thread.values()) for controls in nested] or [self.last]


@contextlib.contextmanager
def scheduler_of_its_own(scheduler: Any) -> Iterator[Any]:
    """The scheduler, or a copy of it while another drawing uses it."""
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
    """A copy that shares nothing that changes; the original may be in the middle of a step."""
    state = vars(scheduler).copy()
    # What is computed once from the config is never changed in place, so it need not be copied.
    tensors = {id(value): value for value in state.values() if isinstance(value, torch.Tensor)}
    other = object.__new__(type(scheduler))
    vars(other).update(copy.deepcopy(state, tensors))
    return other


@contextlib.contextmanager
def models_in_use(unet: Any) -> Iterator[None]:
    """Note that this thread draws with a model.

    Raises:
        ValueError: another thread does so already, and the model moves between devices.
    """
    thread = threading.get_ident()
    with _REGISTRY:
        threads = _DRAWING_THREADS.setdefault(id(unet), [])
        if any(other != thread for other in threads) and _has_moving_weights(unet):
            raise ValueError(
                "This pipeline moves its weights while it draws (offloading or layerwise casting), and another thread "
                "is drawing with them: draw one after the other, put all prompts into one call, or load a pipeline "
                "for each thread."
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
    """Whether hooks of accelerate or of diffusers move weights to a device, or to another precision, and back."""
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    return is_hooked(modules)


def adapters_to_itself(unet: Any) -> contextlib.AbstractContextManager[Any]:
    """For one call of a model: keep other threads from rescaling its adapters meanwhile."""
    return _RESCALED_ADAPTERS if getattr(unet, "peft_config", None) else contextlib.nullcontext()


@dataclass
class Drawing:
    """Everything that belongs to one drawing; it lives as long as the call of the pipeline.

    Attributes:
        pipeline: whose parts draw; callbacks are given it.
        request: what was asked for, checked.
        controls: guidance and the like, which callbacks may change.
        scheduler: for this drawing alone.
        device: where the model runs.
        dtype: of the samples between the steps.
        conditioning: what the B pictures are conditioned on; a callback may change it.
        groups: which of them may go through the model together.
        own_columns: see `group_rows_by_text`.
        micro_conditioning: see `MicroConditioning`.
        timesteps: descending, those that are drawn.
        positions: which of them each call of the model does; one after another, save where steps are repeated.
        model_inputs: what the model is given of the conditions, made at the first step that needs it.
        known: what is given of the pictures, None for nothing.
        average: `(B, C, h, w)` in [-1, 1], what the predicted pictures have to average to, None for anything.
        guidance: how the predictions of each level are guided, None for plain guidance.
        step: how many steps were done before the one that goes on.
    """

    pipeline: Any
    request: Request
    controls: Controls
    scheduler: Any
    device: torch.device
    dtype: torch.dtype
    conditioning: Conditioning = field(default_factory=Conditioning)
    groups: list[RowGroup] = field(default_factory=list)
    own_columns: bool = False
    micro_conditioning: MicroConditioning = field(default_factory=dict)
    timesteps: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    positions: Sequence[int] = ()
    model_inputs: dict[Any, dict[str, Any]] = field(default_factory=dict)
    known: KnownPixels | None = None
    average: torch.Tensor | None = None
    guidance: Any = None
    step: int = 0

    def condition_on(self, conditioning: Conditioning) -> None:
        """Draw from these conditions from now on."""
        self.conditioning = conditioning
        self.groups = group_rows_by_text(conditioning, own_columns=self.own_columns)
        self.model_inputs.clear()
        if getattr(self.pipeline.unet, "inner_cache", None) is not None:
            self.pipeline.unet.inner_cache.forget()


@contextlib.contextmanager
def begin_drawing(pipeline: Any, request: Request) -> Iterator[Drawing]:
    """Begin a drawing: everything that changes while it goes on is its own.

    Args:
        pipeline: whose parts draw.
        request: what is asked for, checked.
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
    """Pixels of a picture's side for one of its latents' side; 1 for a model of pixels."""
    return 1 if vae is None else scale_factor(vae)


def picture_sides(unet: Any, vae: Any) -> tuple[int, ...]:
    """Side in pixels of the pictures that each level draws, innermost first."""
    return tuple(side * pixels_per_latent(vae) for side in unet.sample_sizes)


def picture_multiples(unet: Any, vae: Any) -> list[int]:
    """For every level, what height and width of its pictures have to be multiples of, innermost first."""
    return [ratio * unet.size_multiple * pixels_per_latent(vae) for ratio in unet.level_ratios]


def level_shapes(
    unet: Any, vae: Any, num_images: int, height: int, width: int, num_frames: int | None = None
) -> list[tuple[int, ...]]:
    """Shapes of the levels that are drawn for a picture or a clip, innermost first.

    Args:
        unet: the model.
        vae: its autoencoder, None for a model of pixels.
        num_images: B.
        height: pixels of the outermost level's pictures, checked.
        width: pixels of the outermost level's pictures, checked.
        num_frames: frames of its clips; None for pictures.

    Returns:
        `(B, C, H_i, W_i)`, or of clips `(B, C, F_i, H_i, W_i)`.
    """
    sides, side = picture_sides(unet, vae), max(height, width)
    if num_frames is None or num_frames == 1:
        num_levels = sides.index(side) + 1
    else:
        num_levels = list(zip(sides, unet.level_frames, strict=True)).index((side, num_frames)) + 1
    ratios, frames = unet.level_ratios[:num_levels], unet.level_frames[:num_levels]
    shrunk = ratios[-1] * pixels_per_latent(vae)
    shapes: list[tuple[int, ...]] = []
    for ratio, count in zip(ratios, frames, strict=True):
        axis = () if num_frames is None else (1 if num_frames == 1 else count,)
        shapes.append((num_images, unet.config.in_channels, *axis, height * ratio // shrunk, width * ratio // shrunk))
    return shapes


# Time steps


def set_timesteps(drawing: Drawing, strength: float = 1.0) -> None:
    """Set the scheduler's time steps, and keep the last of them.

    Args:
        drawing: takes the time steps, in the order of drawing.
        strength: which share of them to keep, rounded down; above 0 one is kept at least.
    """
    scheduler, request = drawing.scheduler, drawing.request
    if request.timesteps is None:
        scheduler.set_timesteps(request.num_inference_steps, device=drawing.device)
    else:
        scheduler.set_timesteps(timesteps=request.timesteps, device=drawing.device)
    timesteps = scheduler.timesteps
    kept = max(int(len(timesteps) * strength), 1) if strength > 0 else 0
    skipped = len(timesteps) - kept
    # One of diffusers' schedulers that is told where it begins need not read its first time step back from an
    # accelerator; `MatryoshkaScheduler` goes by the time step of each step all the same.
    if kept and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    drawing.timesteps = timesteps[skipped:]
    drawing.positions = range(kept)


def repeat_stretches(drawing: Drawing) -> None:
    """Go through each stretch of `jump_length` steps as often as the request says."""
    request = drawing.request
    drawing.positions = resampled_positions(len(drawing.timesteps), request.num_resampling_steps, request.jump_length)


def step_arguments(drawing: Drawing) -> dict[str, Any]:
    """Those of our arguments that the scheduler's `step` takes. What the model predicts is checked after the loop."""
    known, request = inspect.signature(drawing.scheduler.step).parameters, drawing.request
    given = {"eta": request.eta, "generator": request.generator, "check_output": False}
    given["level_agreement"] = request.level_agreement
    return {key: value for key, value in given.items() if key in known}


# Samples


def starting_noise(drawing: Drawing) -> Pyramid:
    """Noise of unit variance for every level that is drawn, level 0 first, or what was given."""
    request, pipeline = drawing.request, drawing.pipeline
    size = (request.num_images, request.height, request.width, request.num_frames)
    shapes = level_shapes(pipeline.unet, pipeline.vae, *size)
    return draw_noise(shapes, request.generator, request.latents, drawing.device, drawing.dtype)


def draw_noise(
    shapes: Sequence[tuple[int, ...]],
    generator: torch.Generator | list[torch.Generator] | None,
    latents: Sample | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Pyramid:
    """Noise of unit variance in these shapes, or what is given of it; arguments as in `prepare_latents`."""
    if latents is None:
        return pyramid_noise(shapes, generator, device, dtype)
    return [level.to(device, dtype) for level in as_pyramid(latents)[0]]


def scaled_noise(scheduler: Any, noise: Pyramid) -> Sample:
    """Noise of unit variance as the sample that a scheduler starts from: a bare tensor where there is one level."""
    levels = [level * scheduler.init_noise_sigma for level in noise]
    return levels[0] if len(levels) == 1 else levels


def noised(drawing: Drawing, clean: Pyramid, noise: Pyramid, timestep: torch.Tensor, *, bare: bool) -> Pyramid:
    """Pictures as they are at a time step of the process.

    Args:
        drawing: its scheduler adds the noise.
        clean: levels in [-1, 1], or of latents, level 0 and those around it.
        noise: N(0, 1), the same shapes.
        timestep: t.
        bare: whether the samples between the steps are a bare tensor; the scheduler is given one then.
    """
    # One time step of shape (1,) is what diffusers' schedulers take for the whole batch.
    if bare:
        return [drawing.scheduler.add_noise(clean[0], noise[0], timestep.reshape(1))]
    return drawing.scheduler.add_noise(clean, noise, timestep.reshape(1))


def noised_sample(drawing: Drawing, clean: Pyramid, noise: Pyramid) -> Sample:
    """Pictures noised as at the first of the time steps; a bare tensor where there is one level.

    Args:
        drawing: its scheduler adds the noise.
        clean: every level that is drawn, in [-1, 1] or of latents.
        noise: N(0, 1), the same shapes.
    """
    bare = len(clean) == 1
    levels = noised(drawing, clean, noise, drawing.timesteps[0], bare=bare)
    return levels[0] if bare else levels


def spread_micro_conditioning(
    micro_conditioning: Mapping[str, Any] | None, num_images: int, device: torch.device
) -> MicroConditioning:
    """Bring micro-conditions to `(2, B)`: those of the unconditional half of the batch, then those of the conditional.

    Args:
        micro_conditioning: name to a number, B numbers (one a picture) or 2 B (unconditional ones first). A name that
            is missing takes the model's own value.
        num_images: B.
        device: of the numbers.
    """
    spread = {}
    for key, value in (micro_conditioning or {}).items():
        numbers = torch.as_tensor(value, dtype=torch.float32, device=device)
        spread[key] = (numbers.view(-1, num_images) if numbers.numel() > 1 else numbers).expand(2, num_images)
    return spread
