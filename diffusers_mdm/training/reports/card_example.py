# SPDX-License-Identifier: Apache-2.0
"""The example code in a model card."""

from collections.abc import Iterator, Mapping, Sequence

from ..modules.classes import class_argument, draws_classes_alone, is_unconditional, num_class_embeds, pipeline_class
from ..recipe.clip_stages import has_clips, stage_frames
from ..recipe.recipe import Recipe
from .card_facts import is_hub_id, public_name, sides_of, subject_prompt
from .markdown import python_string
from .moving_grids import FRAMES_PER_SECOND

PLACEHOLDER_PROMPT, PLACEHOLDER_CLIP_PROMPT = "a description of the image", "a description of the clip"


def what_to_draw(recipe: Recipe, id2label: Mapping[int, str]) -> tuple[list[str], str]:
    """Return the lines of an example that define the prompt or class, and the arguments of the pipeline for it."""
    prompts = recipe.validation.prompts
    first = class_argument(prompts[0], id2label) if prompts and draws_classes_alone(recipe) else 0
    label = f"label = {python_string(first) if isinstance(first, str) else first}"
    if draws_classes_alone(recipe):
        return [label], "label"
    if is_unconditional(recipe):
        return [], ""
    placeholder = PLACEHOLDER_CLIP_PROMPT if has_clips(recipe) else PLACEHOLDER_PROMPT
    lines = [f"prompt = {python_string(subject_prompt(recipe) or next(iter(prompts), placeholder))}"]
    if num_class_embeds(recipe) is None:
        return lines, "prompt"
    return [*lines, label], "label, prompt=prompt"


def usage(recipe: Recipe, name: str, id2label: Mapping[int, str] | None = None, factor: int = 1) -> str:
    """Return Python example code that generates an image or a clip.

    Args:
        recipe: recipe of the run.
        name: name of the result, a repository or folder.
        id2label: names of the classes, for models that have them.
        factor: pixels per latent along a side.
    """
    settings, sides = recipe.validation, sides_of(recipe, factor)
    base, size = (recipe.pretrained.path if recipe.lora and recipe.pretrained else None), ""
    pipeline, (inputs, asked) = pipeline_class(recipe).__name__, what_to_draw(recipe, id2label or {})
    imports = ["from diffusers.utils import export_to_video", ""] if has_clips(recipe) else []
    lines, with_vae = [*imports, f"from diffusers_mdm import {pipeline}", ""], ""
    if base is not None and recipe.vae is not None and recipe.vae.pretrained is not None:
        lines[:0], with_vae = ["from diffusers import AutoencoderKL", *([] if imports else [""])], ", vae=vae"
        inside = f", subfolder={python_string(recipe.vae.subfolder)}" if recipe.vae.subfolder else ""
        lines.append(
            f"vae = AutoencoderKL.from_pretrained({python_string(public_name(recipe.vae.pretrained))}{inside})"
        )
    source = python_string(name if base is None else public_name(base))
    lines.append(f"pipe = {pipeline}.from_pretrained({source}{with_vae})")
    if base is not None:
        lines.append(f"pipe.load_lora_weights({python_string(name)})")
        # The pipeline may have further outer levels, which were not adapted.
        size = f"height={sides[-1]}, "
    how = f"num_inference_steps={settings.num_inference_steps}"
    how += "" if is_unconditional(recipe) else f", guidance_scale={settings.guidance_scale:g}"
    if recipe.super_resolution is not None:
        small = recipe.super_resolution.low_resolution
        lines[:0] = ["from PIL import Image", ""]
        inputs = [*inputs, f'small = Image.open("small.png")  # {small} x {small} pixels']
        asked = ", ".join(filter(None, [asked.replace("label", "class_labels=label", 1), "image=small"]))
    asked += ", " if asked else ""
    lines += inputs
    lines += (
        draw_clip(recipe, sides[-1], asked, size + how) if has_clips(recipe) else draw_image(sides, asked, size, how)
    )
    code = "\n".join(lines)
    text = f"With the package diffusers-mdm installed:\n\n```python\n{code}\n```"
    if "/" not in name or (base is not None and not is_hub_id(base)):
        text += "\n\nReplace a name without a slash by the path of your local folder."
    return text


def draw_image(sides: Sequence[int], asked: str, size: str, how: str) -> Iterator[str]:
    """Return the lines of an example that generate an image, given the pipeline's arguments."""
    yield f"image = pipe({asked}{size}{how}).images[0]  # {sides[-1]} x {sides[-1]} pixels"
    if len(sides) > 1:
        yield f"small = pipe({asked}height={sides[0]}, {how}).images[0]  # the innermost level alone"
    yield 'image.save("image.png")'


def draw_clip(recipe: Recipe, side: int, asked: str, how: str) -> Iterator[str]:
    """Return the lines of an example that generate a clip and write a video file, given the pipeline's arguments."""
    frames = stage_frames(recipe, recipe.stages[-1])
    yield f"frames = pipe({asked}{how}).frames[0]  # {frames} frames of {side} x {side} pixels"
    yield f'export_to_video(frames, "clip.mp4", fps={FRAMES_PER_SECOND})  # needs imageio and imageio-ffmpeg'
