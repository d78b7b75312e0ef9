# SPDX-License-Identifier: Apache-2.0
"""Predict held-out emoji from the same emoji in other styles by linear regression, as a baseline for the demo model.

The demo model is evaluated on emoji in a style in which it never saw them: an image counts as right if the nearest
image in the data set (see `diffusers_mdm.evaluation.recall`) has the requested style. All that the model can
know about such an image comes from the same emoji in other styles (its siblings), and from how the styles of other
emoji differ. A ridge regression is given exactly this information: it predicts the held-out image from the pixels of
the siblings, and is fitted on all emoji that the training split has both in the requested style and in those of the
siblings. It is scored like the generated images.

Since it is linear, it is a baseline and not an upper bound.

python benchmarks/style_from_siblings.py --ridge 1 10 100 1000
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence

import torch
from measuring import ROOT, describe_machine

from diffusers_mdm.evaluation.recall import Gallery, RetrievalScores, score_records
from diffusers_mdm.evaluation.retrieval import nearest
from diffusers_mdm.training.commands.evaluation.galleries import load_gallery

DATA_DIR = ROOT / "training" / "data" / "emoji-styles-64"


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ridge", nargs="+", type=float, default=[1.0, 10.0, 100.0, 1000.0], help="penalties to try")
    return parser.parse_args(arguments)


def training_rows(gallery: Gallery) -> dict[str, dict[int, int]]:
    """Map every emoji to the records of its training images, by style."""
    records: dict[str, dict[int, int]] = defaultdict(dict)
    for record in gallery.records_of("none"):
        records[gallery.labels[record]][gallery.styles[record]] = record
    return records


def fit(inputs: torch.Tensor, targets: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit a ridge regression from `(N, P)` to `(N, Q)`; return weights `(P, Q)` and offset `(Q,)`, in float64."""
    inputs, targets = inputs.cpu().double(), targets.cpu().double()
    mean_input, mean_target = inputs.mean(0), targets.mean(0)
    centred = inputs - mean_input
    # There are fewer images than pixels, so the dual problem (of size N) is solved.
    kernel = centred @ centred.T + ridge * torch.eye(len(centred), dtype=torch.float64)
    weights = centred.T @ torch.linalg.solve(kernel, targets - mean_target)
    return weights, mean_target - mean_input @ weights


def predict_held_out(gallery: Gallery, ridge: float) -> tuple[list[int], torch.Tensor]:
    """Return the held-out combinations that have siblings, and the predictions for them, `(N, 3, 16, 16)`."""
    by_label, fits, records, predictions = training_rows(gallery), {}, [], []
    for record in gallery.records_of("combination"):
        style, known = gallery.styles[record], by_label.get(gallery.labels[record], {})
        siblings = tuple(sorted(set(known) - {style}))
        if not siblings:
            continue
        key = (style, siblings)
        if key not in fits:
            fitting = [found for found in by_label.values() if {style, *siblings} <= set(found)]
            inputs = torch.cat([gallery.pixels[[found[s] for found in fitting]].flatten(1) for s in siblings], 1)
            fits[key] = fit(inputs, gallery.pixels[[found[style] for found in fitting]].flatten(1), ridge)
        weights, offset = fits[key]
        given = torch.cat([gallery.pixels[known[s]].flatten() for s in siblings]).cpu().double()
        records.append(record)
        predictions.append((given @ weights + offset).float().view(gallery.pixels.shape[1:]))
    return records, torch.stack(predictions)


def score(gallery: Gallery, ridge: float) -> RetrievalScores:
    """Score the predictions like generated images."""
    records, predictions = predict_held_out(gallery, ridge)
    return score_records(gallery, records, nearest(predictions, gallery.pixels)[1].tolist())


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, predict, compare and print."""
    args = parse_args(arguments)
    print(describe_machine("cpu"))
    gallery = load_gallery(DATA_DIR)
    for ridge in args.ridge:
        scores = score(gallery, ridge)
        print(
            f"ridge {ridge:g}: {scores.num_drawn} held-out images predicted; the nearest one is the right image "
            f"{scores.image:.1%}, has the requested style {scores.style:.1%}, shows the emoji {scores.label:.1%}"
        )


if __name__ == "__main__":
    main()
