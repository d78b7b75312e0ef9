# SPDX-License-Identifier: Apache-2.0
"""The model card of a converted checkpoint: where it comes from, and under which licence."""

from __future__ import annotations

from .. import __version__
from .published import LICENCE_LINK, REPOSITORY, PublishedCheckpoint


def fetched_card(
    checkpoint: PublishedCheckpoint, source: str, sha256: str, text_encoder: str | None, num_levels: int | None = None
) -> str:
    """Return the card as Markdown with a header for the Hub.

    Args:
        checkpoint: what was converted.
        source: the address or file that it came from.
        sha256: checksum of the file.
        text_encoder: what was saved as the text encoder; None if the folder has none.
        num_levels: number of inner levels that were kept; None for all.
    """
    sides = checkpoint.sides[:num_levels]
    shown = ", ".join(f"{side} × {side}" for side in sides)
    kept = "" if num_levels in (None, len(checkpoint.sides)) else f" Only the inner {len(sides)} levels were kept."
    return f"""---
library_name: diffusers
pipeline_tag: text-to-image
license: other
license_name: apple-ml-mdm
license_link: {LICENCE_LINK}
tags:
  - diffusers
  - diffusers-mdm
  - matryoshka-diffusion
  - text-to-image
---

# Matryoshka Diffusion Model {checkpoint.name}

The model `{checkpoint.name}` of [ml-mdm]({REPOSITORY}), published by Apple Inc. with the paper
[Matryoshka Diffusion Models](https://arxiv.org/abs/2310.15111) (Gu, Zhai, Zhang, Susskind and Jaitly, ICLR 2024):
{checkpoint.about}. Its levels here: {shown} pixels.{kept}

It was converted by diffusers-mdm {__version__}, which renames, splits and reshapes tensors and changes no number.

| | |
|---|---|
| file | {source} |
| SHA-256 of the file | `{sha256}` |
| text encoder | {text_encoder or "none in this folder; the model was trained with google/flan-t5-xl"} |

{_usage(text_encoder is not None)}
## Licence

The weights are Apple's. The publisher names no licence for them apart from [that of the repository]({LICENCE_LINK}),
"Copyright (C) 2024 Apple Inc. All Rights Reserved.", which grants a personal, non-exclusive licence to use, reproduce,
modify and redistribute under Apple's copyrights, without rights to patents or trademarks and without any warranty;
whoever redistributes everything unmodified must keep the notice. Read the licence itself before you use the model;
conversion does not change it. {_encoder_licence(text_encoder)}

## Limits

The publisher describes neither the filtering of the training data nor an evaluation of biases. Treat the images as
those of any model trained on unfiltered images of the web.
"""


def _usage(is_pipeline: bool) -> str:
    if is_pipeline:
        code = """import torch
from diffusers_mdm import MDMPipeline

pipe = MDMPipeline.from_pretrained("path/to/this/folder", dtype=torch.bfloat16)
image = pipe("a red fox in the snow").images[0]"""
    else:
        code = """from diffusers_mdm import MatryoshkaScheduler, NestedUNetModel

unet = NestedUNetModel.from_pretrained("path/to/this/folder", subfolder="unet")
scheduler = MatryoshkaScheduler.from_pretrained("path/to/this/folder", subfolder="scheduler")"""
    return f"```python\n{code}\n```\n"


def _encoder_licence(text_encoder: str | None) -> str:
    return "" if text_encoder is None else "The text encoder has the licence of its own publisher."
