# SPDX-License-Identifier: Apache-2.0
"""Prior preservation (DreamBooth, Ruiz et al. 2023): a subject is learnt beside pictures of its class.

The class pictures are drawn by the model itself before it learns, so that it keeps what it knew of the class. The loss
is mean(subject) + weight * mean(class), equation 2 of the paper.
"""

import dataclasses
import logging
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from diffusers.utils.logging import tqdm

from ...pipelines.pipeline_mdm import MDMPipeline
from ...processes import wait_for_everyone
from ..precision import frozen_dtype
from ..recipe.data import DataRecipe
from ..recipe.recipe import PriorRecipe, Recipe
from ..seeds import derive_seed
from .batch import Batch
from .numbered import CaptionedImages, NumberedSource, ShuffledImages
from .order import BatchOrder, ShuffledNumbers
from .reading import Request, closed_at_exit, read_batches
from .samples import Sample
from .sources import open_training_images
from .text.features import TextEmbeddings

logger = logging.getLogger(__name__)

_DRAWN = "drawn-{:05d}.png"
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
SUBJECT, CLASS = 0, 1


# --- the class pictures ---


def missing_class_pictures(prior: PriorRecipe) -> list[int]:
    """Numbers of the pictures that are still to be drawn, beside the user's own ones in the folder."""
    folder = Path(prior.class_data_dir)
    names = {path.name for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES} if folder.is_dir() else set()
    drawn = {number for number in range(prior.num_class_images) if _DRAWN.format(number) in names}
    wanted = prior.num_class_images - (len(names) - len(drawn))
    return [number for number in range(wanted) if number not in drawn]


def prepare_class_pictures(
    recipe: Recipe, accelerator: Accelerator, seed: int = 0, cache_dir: str | None = None
) -> None:
    """Draw the class pictures that are missing, on the main process, with the pipeline that the run starts from.

    Every picture has its own seed, so that a call that was interrupted is continued by the next one with the same
    result.

    Args:
        recipe: says which pictures, and how many.
        accelerator: of the run.
        seed: of the run.
        cache_dir: where downloaded models are kept.

    Raises:
        ValueError: pictures are missing and the recipe has no `pretrained` pipeline to draw them.
    """
    prior = recipe.prior_preservation
    if prior is None:
        return
    missing = missing_class_pictures(prior)
    if missing and recipe.pretrained is None:
        raise ValueError(
            f"{prior.class_data_dir} lacks {len(missing)} of {prior.num_class_images} pictures of the class, and a "
            "model from scratch cannot draw them; start from a saved pipeline, or put pictures there."
        )
    if missing and accelerator.is_main_process:
        source = recipe.pretrained
        assert source is not None
        pipeline = MDMPipeline.from_pretrained(
            source.path,
            revision=source.revision,
            variant=source.variant,
            cache_dir=cache_dir,
            dtype=frozen_dtype(prior.precision or str(accelerator.mixed_precision)),
        )
        pipeline.to(accelerator.device)
        side = pipeline.picture_sides[recipe.stages[-1].levels - 1]
        settings = {
            "height": side,
            "num_inference_steps": recipe.validation.num_inference_steps,
            "guidance_scale": recipe.validation.guidance_scale,
        }
        draw_class_pictures(pipeline, prior, missing, seed, settings)
    wait_for_everyone(accelerator)


def draw_class_pictures(
    pipeline: MDMPipeline, prior: PriorRecipe, numbers: Sequence[int], seed: int, settings: Mapping[str, Any]
) -> None:
    """Draw and save pictures of the class by their numbers.

    Args:
        pipeline: draws them.
        prior: prompt, folder and how many are drawn at once.
        numbers: each decides with `seed` what its picture shows.
        seed: of the run.
        settings: for the pipeline, such as `height`.
    """
    folder = Path(prior.class_data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    pipeline.set_progress_bar_config(disable=True)
    for start in tqdm(range(0, len(numbers), prior.sample_batch_size), desc="class pictures"):
        batch = numbers[start : start + prior.sample_batch_size]
        generators = [torch.Generator().manual_seed(derive_seed(seed, number)) for number in batch]
        result = cast(Any, pipeline(prompt=[prior.class_prompt] * len(batch), generator=generators, **settings))
        for number, picture in zip(batch, result.images, strict=True):
            beside = folder / f".unfinished-{number}"
            picture.save(beside, format="png")
            os.replace(beside, folder / _DRAWN.format(number))
    logger.info("Drew %d pictures of %r into %s.", len(numbers), prior.class_prompt, folder)


# --- training on both ---


def open_subject_images(
    recipe: Recipe,
    side: int,
    micro_conditioning: Mapping[str, float] | None = None,
    embeddings: TextEmbeddings | None = None,
) -> "SubjectImages":
    """The pictures of a subject and of its class; arguments and errors as those of `open_training_images`.

    Raises:
        ValueError: there is no prior preservation in the recipe, or its pictures are in shards.
    """
    prior = recipe.prior_preservation
    if prior is None or not recipe.data.is_numbered:
        raise ValueError(
            "Prior preservation needs `prior_preservation` in the recipe, and pictures that can be had in any order: "
            "give `data.path`."
        )
    subject, others = (
        cast(ShuffledImages, open_training_images(data, side, micro_conditioning, embeddings)).images
        for data in (recipe.data, class_data(recipe.data, prior))
    )
    joined = JoinedSource(subject.source, others.source)
    images = CaptionedImages(joined, subject.decoder, subject.skipped, subject.embeddings)
    return SubjectImages(images, len(subject), prior.weight)


def class_data(data: DataRecipe, prior: PriorRecipe) -> DataRecipe:
    """How the class pictures are read: as those of the subject, from their own folder and with their own caption."""
    return data.with_fields(
        path=prior.class_data_dir,
        caption=prior.class_prompt,
        config_name=None,
        train_split="train",
        validation_split=None,
        image_column="image",
        max_train_samples=prior.num_class_images,
    )


class JoinedSource:
    """The samples of two sources, numbered one after the other."""

    def __init__(self, first: NumberedSource, second: NumberedSource):
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def _find(self, number: int) -> tuple[NumberedSource, int, int]:
        """The source that holds a sample, the sample's number there, and the number of the source's first one."""
        skipped = 0 if number < len(self.first) else len(self.first)
        return (self.second if skipped else self.first), number - skipped, skipped

    def name(self, number: int) -> str:
        """How a message calls the sample."""
        source, inside, _ = self._find(number)
        return source.name(inside)

    def read(self, number: int) -> Sample:
        """The sample."""
        source, inside, _ = self._find(number)
        return source.read(inside)

    def substitutes(self, number: int, request: Request) -> Iterator[int]:
        """Others of the same source."""
        source, inside, skipped = self._find(number)
        return (skipped + other for other in source.substitutes(inside, request))


class SubjectImages:
    """Pictures of a subject and of its class in turn, with the weight of each row's loss.

    Attributes:
        images: those of the subject, then those of the class.
        skipped: the broken ones.
    """

    def __init__(self, images: CaptionedImages, num_subjects: int, weight: float):
        self.images, self.skipped = images, images.skipped
        self.num_subjects, self.weight = num_subjects, weight
        images.decode(range(len(images)))

    def batches(self, order: BatchOrder, start_step: int = 0, num_workers: int = 0) -> Generator[Batch, None, None]:
        """The micro-batches of one process from optimizer step `start_step` on, without end."""
        numbers = [
            ShuffledNumbers(self.num_subjects, derive_seed(order.seed, SUBJECT)),
            ShuffledNumbers(len(self.images) - self.num_subjects, derive_seed(order.seed, CLASS)),
        ]

        def number_at(place: int) -> int:
            part, number = part_and_number(place, order.places_per_step)
            return numbers[part].number_at(number) + (self.num_subjects if part == CLASS else 0)

        places = order.micro_batches(start_step)
        requests = (Request(batch, [number_at(place) for place in batch]) for batch in places)
        if self.images.kept is None:
            reader = self.images.reader(order.seed)
            read = closed_at_exit(read_batches(reader, requests, num_workers, self.skipped))
        else:
            read = (self.images.load(request.references, request.positions, order.seed) for request in requests)
        for batch in read:
            yield dataclasses.replace(batch, row_weights=self.row_weights(batch.positions, order.places_per_step))

    def row_weights(self, positions: torch.Tensor, places_per_step: int) -> torch.Tensor:
        """Weight of each row's loss, (B,), such that its mean is mean(subject) + weight * mean(class)."""
        parts = [part_and_number(place, places_per_step)[0] for place in positions.tolist()]
        return torch.tensor([2.0 if part == SUBJECT else 2.0 * self.weight for part in parts])


def part_and_number(place: int, places_per_step: int) -> tuple[int, int]:
    """Whether a place of the stream shows the subject or its class, and the place in the stream of these alone.

    They take turns, and another one is first in every step: the outer levels of a thinned batch, which see the first
    rows alone, then see both, too.
    """
    step, offset = divmod(place, places_per_step)
    part = (offset + step) % 2
    # In a step of an odd number of places the part that is first has one more.
    in_first_step = (places_per_step + (part == SUBJECT)) // 2
    before = step // 2 * places_per_step + step % 2 * in_first_step
    return part, before + offset // 2
