# SPDX-License-Identifier: Apache-2.0
r"""Compare an outermost level with enlarging the level inside it, and with the best that enlarging could reach.

The images of folders that `evaluate generate` has written, all for the same captions, are compared with real ones
by features of Inception-v3 and by pixels. Images smaller than those of the reference are enlarged with Lanczos'
filter. To see what the numbers mean, the real images of the same captions are measured in the same way: whole, and
averaged down to smaller sides and enlarged again. To see what a level around smaller images could reach that leaves
them as they are, these are measured with the detail of the real image that they have no pixels for (what it loses when
it is averaged down to their side and enlarged again), as they are and with their errors halved.

python training/evaluate.py reference --data_dir training/data/emoji-styles-256 --num_images 500 \
  --features inception --sides 256 --output_dir runs/reference-256
python training/evaluate.py generate --model_dir model_cards/mdm-emoji-256 --height 256 \
  --data_dir training/data/emoji-styles-256 --num_captions 200 --output_dir runs/generated-256
python training/evaluate.py generate --model_dir model_cards/mdm-emoji-64 --height 64 \
  --data_dir training/data/emoji-styles-256 --num_captions 200 --output_dir runs/generated-64
python benchmarks/enlargement.py --generated runs/generated-256 runs/generated-64 --reference runs/reference-256 \
  --data_dir training/data/emoji-styles-256 --output enlargement.json
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from measuring import describe_machine, open_training_split, write_numbers
from PIL import Image
from upscaling import enlarge

from diffusers_mdm.evaluation.distances import frechet_distance, kernel_distance_of_all
from diffusers_mdm.evaluation.features import FeatureExtractor, InceptionFeatures, extract
from diffusers_mdm.evaluation.generate import open_levels
from diffusers_mdm.evaluation.images import average_down, batches_of
from diffusers_mdm.evaluation.levels import corner_noise, pixel_distance
from diffusers_mdm.evaluation.reference import load_reference

BATCH_SIZE = 10


def enlarged(images: torch.Tensor, side: int) -> torch.Tensor:
    """Enlarge images `(N, 3, S, S)`, uint8, to `side` pixels with Lanczos' filter; leave larger ones as they are."""
    if images.shape[-1] >= side:
        return images
    return (255 * enlarge(images / 255, side, Image.Resampling.LANCZOS)).round().to(torch.uint8)


def reduced(images: torch.Tensor, inner_side: int) -> torch.Tensor:
    """Average images `(N, 3, S, S)`, uint8, down to a smaller side, and enlarge them to S pixels again."""
    return enlarged(average_down(images, inner_side), images.shape[-1])


def with_real_detail(images: torch.Tensor, truth: torch.Tensor, inner_side: int, errors: float = 1.0) -> torch.Tensor:
    """Add to enlarged images what the real ones lose at a smaller side.

    Args:
        images: images of `inner_side` pixels, enlarged, `(N, 3, S, S)`, uint8.
        truth: the real images of the same captions, of the same shape.
        inner_side: the side before enlarging, in pixels.
        errors: the part that is kept of what the enlarged images have different from the real ones, reduced and
            enlarged likewise: 1 for all of it; with 0 the result is `truth`.

    Returns:
        Images `(N, 3, S, S)`, uint8.
    """
    wrong = images.float() - reduced(truth, inner_side)
    return (truth + errors * wrong).round().clamp(0, 255).to(torch.uint8)


def generated_images(folder: Path) -> tuple[list[str], torch.Tensor]:
    """Return the captions and the outermost level, `(N, 3, S, S)`, uint8, of generated images."""
    level = open_levels(folder)[-1]
    return list(level.captions), torch.cat(list(batches_of(level, BATCH_SIZE)))


def real_images(data_dir: Path, side: int, captions: Sequence[str]) -> torch.Tensor:
    """Return the images of captions of the training data, `(N, 3, side, side)`, uint8.

    Raises:
        ValueError: a caption is not in the training data, or there are none.
    """
    images, known = open_training_split(data_dir, side)
    missing = sorted(set(captions).difference(known))
    if missing:
        raise ValueError(
            f"The training data in {data_dir} do not have captions of the generated images, such as {missing[:1]}; "
            "pass the `--data_dir` for which the images were generated."
        )
    return images.load([known.index(caption) for caption in captions]).pixels


def measure(
    images: torch.Tensor, truth: torch.Tensor, features: torch.Tensor, extractor: FeatureExtractor
) -> dict[str, float]:
    """Return the distances of images from a reference by features, and from their own real images by pixels."""
    found = extract(extractor, images.split(BATCH_SIZE))
    return {
        "fid": frechet_distance(found, features),
        "kid": kernel_distance_of_all(found, features),
        "noise": corner_noise(images, truth)[0],
        "distance": pixel_distance(images, truth),
    }


def markdown_table(entries: Mapping[str, Mapping[str, float]]) -> str:
    """Return a Markdown table with one row per set of images."""
    lines = ["| images | FID | KID × 1000 | noise | distance |", "|---|--:|--:|--:|--:|"]
    for name, entry in entries.items():
        cells = [
            f"{entry['fid']:.1f}",
            f"{1000 * entry['kid']:.1f}",
            f"{entry['noise']:.4f}",
            f"{entry['distance']:.4f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generated", type=Path, nargs="+", required=True, help="folders of `evaluate generate`")
    parser.add_argument("--reference", type=Path, required=True, help="features of real images")
    parser.add_argument("--data_dir", type=Path, required=True, help="the data set of the captions")
    parser.add_argument("--side", type=int, default=256, help="side that is compared, in pixels")
    parser.add_argument("--real_sides", type=int, nargs="*", default=[64, 128], help="sides of reduced real images")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the numbers")
    return parser.parse_args(argv)


def compare(args: argparse.Namespace, extractor: FeatureExtractor) -> dict[str, dict[str, float]]:
    """Measure all sets of images.

    Raises:
        ValueError: the folders have different captions.
    """
    features = load_reference(args.reference).features["inception", args.side]
    generated = {folder.name: generated_images(folder) for folder in args.generated}
    captions = next(iter(generated.values()))[0]
    if any(own != captions for own, _ in generated.values()):
        raise ValueError("The folders in --generated have different captions; generate them with the same flags.")
    truth = real_images(args.data_dir, args.side, captions)
    sets = {}
    for name, (_, images) in generated.items():
        inner_side = images.shape[-1]
        sets[name] = enlarged(images, args.side)
        if inner_side < args.side:
            for errors, kept in ((1.0, ""), (0.5, " and half of its errors")):
                detailed = with_real_detail(sets[name], truth, inner_side, errors)
                sets[f"{name}, with the real detail{kept}"] = detailed
    for side in args.real_sides:
        sets[f"real images of {side} pixels, enlarged"] = reduced(truth, side)
    sets["real images"] = truth
    return {name: measure(images, truth, features, extractor) for name, images in sets.items()}


def main(argv: list[str] | None = None) -> None:
    """Measure, print and save."""
    args = parse_args(argv)
    entries = compare(args, InceptionFeatures())
    write_numbers(args.output, {"machine": describe_machine("cpu"), "images": entries})
    print(markdown_table(entries))


if __name__ == "__main__":
    main()
