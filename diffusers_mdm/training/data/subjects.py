# SPDX-License-Identifier: Apache-2.0
"""Prior preservation (DreamBooth, Ruiz et al. 2023): training on a subject together with images of its class.

The model generates the class images itself before training, so that it preserves what it knows about the class. The
loss is mean(subject) + weight * mean(class), equation 2 of the paper.
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
from .numbered import CaptionedImages, ShuffledImages
from .order import BatchOrder, ShuffledNumbers
from .reading import NumberedSource, Request, closed_at_exit, read_batches
from .samples import Sample
from .sources import open_training_images
from .text.features import TextEmbeddings

logger = logging.getLogger(__name__)

_DRAWN = "drawn-{:05d}.png"
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
SUBJECT, CLASS = 0, 1


# --- class images ---


def missing_class_images(prior: PriorRecipe) -> list[int]:
    """Return the numbers of the images that must still be generated, in addition to the user's own in the folder."""
    folder = Path(prior.class_data_dir)
    names = {path.name for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES} if folder.is_dir() else set()
    drawn = {number for number in range(prior.num_class_images) if _DRAWN.format(number) in names}
    wanted = prior.num_class_images - (len(names) - len(drawn))
    return [number for number in range(wanted) if number not in drawn]


def prepare_class_images(
    recipe: Recipe, accelerator: Accelerator, seed: int = 0, cache_dir: str | None = None
) -> None:
    """Generate the missing class images on the main process, with the pipeline that the run starts from.

    Every image has its own seed, so that after an interruption the next call continues with the same result.

    Args:
        recipe: the recipe of the run.
        accelerator: the accelerator of the run.
        seed: the seed of the run.
        cache_dir: folder for downloaded models.

    Raises:
        ValueError: images are missing and the recipe has no `pretrained` pipeline to generate them.
    """
    prior = recipe.prior_preservation
    if prior is None:
        return
    missing = missing_class_images(prior)
    if missing and recipe.pretrained is None:
        raise ValueError(
            f"{prior.class_data_dir} lacks {len(missing)} of {prior.num_class_images} class images, and an "
            f"untrained model cannot generate them; start from a saved pipeline, or put images there."
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
        side = pipeline.image_sides[recipe.stages[-1].levels - 1]
        settings = {
            "height": side,
            "num_inference_steps": recipe.validation.num_inference_steps,
            "guidance_scale": recipe.validation.guidance_scale,
        }
        draw_class_images(pipeline, prior, missing, seed, settings)
    wait_for_everyone(accelerator)


def draw_class_images(
    pipeline: MDMPipeline, prior: PriorRecipe, numbers: Sequence[int], seed: int, settings: Mapping[str, Any]
) -> None:
    """Generate and save class images by their numbers.

    Args:
        pipeline: the pipeline.
        prior: prompt, folder and batch size.
        numbers: numbers of the images, which with `seed` determine their noise.
        seed: the seed of the run.
        settings: further arguments of the pipeline, such as `height`.
    """
    folder = Path(prior.class_data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    pipeline.set_progress_bar_config(disable=True)
    for start in tqdm(range(0, len(numbers), prior.sample_batch_size), desc="class images"):
        batch = numbers[start : start + prior.sample_batch_size]
        generators = [torch.Generator().manual_seed(derive_seed(seed, number)) for number in batch]
        result = cast(Any, pipeline(prompt=[prior.class_prompt] * len(batch), generator=generators, **settings))
        for number, image in zip(batch, result.images, strict=True):
            beside = folder / f".unfinished-{number}"
            image.save(beside, format="png")
            os.replace(beside, folder / _DRAWN.format(number))
    logger.info("Generated %d images of %r in %s.", len(numbers), prior.class_prompt, folder)


# --- training on subject and class ---


def open_subject_images(
    recipe: Recipe,
    side: int,
    micro_conditioning: Mapping[str, float] | None = None,
    embeddings: TextEmbeddings | None = None,
) -> "SubjectImages":
    """Open the images of a subject and of its class; arguments and errors as for `open_training_images`.

    Raises:
        ValueError: there is no prior preservation in the recipe, or its images are in shards.
    """
    prior = recipe.prior_preservation
    if prior is None or not recipe.data.is_numbered:
        raise ValueError(
            "Prior preservation needs `prior_preservation` in the recipe, and images that can be accessed in any "
            "order: use `data.path`."
        )
    subject, others = (
        cast(ShuffledImages, open_training_images(data, side, micro_conditioning, embeddings)).images
        for data in (recipe.data, class_data(recipe.data, prior))
    )
    joined = JoinedSource(subject.source, others.source)
    images = CaptionedImages(joined, subject.decoder, subject.skipped, subject.embeddings)
    return SubjectImages(images, len(subject), prior.weight)


def class_data(data: DataRecipe, prior: PriorRecipe) -> DataRecipe:
    """Return the data recipe of the class images: like that of the subject, with their own folder and caption."""
    return data.with_fields(
        path=prior.class_data_dir,
        caption=prior.class_prompt,
        other_caption_columns={},
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
        """Return the source of a sample, the sample's number there, and the number of the source's first sample."""
        skipped = 0 if number < len(self.first) else len(self.first)
        return (self.second if skipped else self.first), number - skipped, skipped

    def name(self, number: int) -> str:
        """Return the name of the sample for messages."""
        source, inside, _ = self._find(number)
        return source.name(inside)

    def read(self, number: int) -> Sample:
        """Read the sample."""
        source, inside, _ = self._find(number)
        return source.read(inside)

    def substitutes(self, number: int, request: Request) -> Iterator[int]:
        """Return other samples of the same source."""
        source, inside, skipped = self._find(number)
        return (skipped + other for other in source.substitutes(inside, request))


class SubjectImages:
    """Images of a subject and of its class in alternation, with a loss weight for each sample.

    Attributes:
        images: those of the subject, followed by those of the class.
        skipped: counts samples that cannot be used.
    """

    def __init__(self, images: CaptionedImages, num_subjects: int, weight: float):
        self.images, self.skipped = images, images.skipped
        self.num_subjects, self.weight = num_subjects, weight
        images.decode(range(len(images)))

    def batches(self, order: BatchOrder, start_step: int = 0, num_workers: int = 0) -> Generator[Batch, None, None]:
        """Yield the micro-batches of this process from optimizer step `start_step` on, without end."""
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
            yield dataclasses.replace(
                batch, sample_weights=self.sample_weights(batch.positions, order.places_per_step)
            )

    def sample_weights(self, positions: torch.Tensor, places_per_step: int) -> torch.Tensor:
        """Return the loss weight of each sample, (B,), such that the mean is mean(subject) + weight * mean(class)."""
        parts = [part_and_number(place, places_per_step)[0] for place in positions.tolist()]
        return torch.tensor([2.0 if part == SUBJECT else 2.0 * self.weight for part in parts])


def part_and_number(place: int, places_per_step: int) -> tuple[int, int]:
    """Return whether a position is for the subject or its class, and the position among those of that part.

    They alternate, and every step begins with the other one, so that outer levels with a smaller batch, which get
    only the first samples, also see both.
    """
    step, offset = divmod(place, places_per_step)
    part = (offset + step) % 2
    # In a step with an odd number of samples, the part that is first has one more.
    in_first_step = (places_per_step + (part == SUBJECT)) // 2
    before = step // 2 * places_per_step + step % 2 * in_first_step
    return part, before + offset // 2
