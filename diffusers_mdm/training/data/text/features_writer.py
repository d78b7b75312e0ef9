# SPDX-License-Identifier: Apache-2.0
"""Encoding captions once and saving their features, in the format that `TextEmbeddings` reads."""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from diffusers.utils.logging import tqdm
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ....pipelines.drawing.conditioning import encode_texts
from ...precision import DTYPES
from .captions import clean_caption
from .features import INDEX_NAME, EmbeddingsIndex, caption_key, read_index

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class CaptionEncoder:
    """A text encoder with its tokenizer and settings.

    Attributes:
        name: folder or Hub id of the encoder, for messages.
        text_encoder: the encoder, in the dtype of the features.
        tokenizer: tokenizer of the encoder.
        max_sequence_length: number of tokens after which captions are truncated.
        batch_size: number of captions that are encoded together; they have equal lengths, so there is no padding.
    """

    name: str
    text_encoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_sequence_length: int = 128
    batch_size: int = 32

    def identity(self) -> EmbeddingsIndex:
        """Return an index without files, which must be equal for all features in one folder."""
        dtypes = {dtype: name for name, dtype in DTYPES.items()}
        return EmbeddingsIndex(
            text_encoder=self.name,
            fingerprint=fingerprint(self.text_encoder, self.tokenizer),
            width=len(self.encode([""])[0][0]),
            dtype=dtypes[self.text_encoder.dtype],
            max_sequence_length=self.max_sequence_length,
        )

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> list[torch.Tensor]:
        """Return the features (L_i, D) of each caption, on the CPU."""
        captions = list(captions)
        limit = min(self.max_sequence_length, self.tokenizer.model_max_length)
        lengths = [len(ids) for ids in self.tokenizer(captions, truncation=True, max_length=limit).input_ids]
        features: list[torch.Tensor] = [torch.empty(0)] * len(captions)
        for batch in batches_of_equal_length(lengths, self.batch_size):
            embeds, _ = encode_texts(
                [captions[number] for number in batch],
                self.tokenizer,
                self.text_encoder,
                self.text_encoder.device,
                self.max_sequence_length,
            )
            for number, feature in zip(batch, embeds.cpu(), strict=True):
                features[number] = feature
        return features


def batches_of_equal_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield the numbers of texts with equal lengths in tokens, up to `batch_size` at a time."""
    order = sorted(range(len(lengths)), key=lambda number: lengths[number])
    batch: list[int] = []
    for number in order:
        if batch and (len(batch) == batch_size or lengths[number] != lengths[batch[0]]):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def fingerprint(text_encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of an encoder's weights and its tokenizer's vocabulary."""
    digest = hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    for name, weight in sorted(text_encoder.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def write_text_embeddings(
    folder: Path, captions: Iterable[str], encoder: CaptionEncoder, captions_per_file: int = 8192
) -> EmbeddingsIndex:
    """Encode the empty caption and all `captions`, each once, and write them into `folder`.

    Finished files are kept: a repeated call continues where the last one stopped, and adds new captions.

    Raises:
        ValueError: if the folder has features of another encoder or with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = resume_index(folder, encoder.identity())
    known = {key for name in index.files for key in _read_keys(folder / name).tolist()}
    write_index(folder, index)
    new: dict[int, str] = {}
    with tqdm(desc="captions", unit="") as bar:
        for caption in _with_empty(captions):
            key = caption_key(caption)
            if key in known:
                continue
            known.add(key)
            new[key] = caption
            if len(new) == captions_per_file:
                index = write_file(folder, index, new, encoder)
                bar.update(len(new))
                new = {}
        if new:
            index = write_file(folder, index, new, encoder)
            bar.update(len(new))
    index = dataclasses.replace(index, is_complete=True)
    write_index(folder, index)
    return index


def _with_empty(captions: Iterable[str]) -> Iterator[str]:
    yield ""
    yield from map(clean_caption, captions)


def resume_index(folder: Path, identity: EmbeddingsIndex) -> EmbeddingsIndex:
    """Return the index to continue with: the folder's own, without missing or damaged files, or a new one.

    Raises:
        ValueError: if the folder was begun with another encoder or other settings.
    """
    if not (folder / INDEX_NAME).exists():
        return identity
    index = read_index(folder)
    for field in ("dtype", "width", "max_sequence_length", "fingerprint"):
        old, new = getattr(index, field), getattr(identity, field)
        if old != new:
            raise ValueError(
                f"{folder} was begun with {field} {old} (text encoder {index.text_encoder}), now it is {new}; use "
                f"the same settings, or another folder."
            )
    usable = {}
    for name, count in index.files.items():
        try:
            if len(_read_keys(folder / name)) == count:
                usable[name] = count
        except (OSError, SafetensorError) as error:
            logger.warning("%s is lost (%s) and will be written again.", folder / name, error)
    return dataclasses.replace(index, files=usable, is_complete=False)


def write_file(
    folder: Path, index: EmbeddingsIndex, captions: dict[int, str], encoder: CaptionEncoder
) -> EmbeddingsIndex:
    """Encode `captions` (by key), write them to the next file, and then update the index."""
    keys = sorted(captions)
    features = encoder.encode([captions[key] for key in keys])
    lengths = torch.tensor([len(feature) for feature in features])
    number = next(n for n in range(len(index.files) + 1) if _file_name(n) not in index.files)
    tensors = {
        "keys": torch.tensor(keys, dtype=torch.int64),
        "offsets": torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        "tokens": torch.cat(features),
    }
    path = folder / _file_name(number)
    beside = path.with_suffix(".partial")
    save_file(tensors, beside)
    os.replace(beside, path)
    index = dataclasses.replace(index, files={**index.files, path.name: len(keys)})
    write_index(folder, index)
    return index


def _file_name(number: int) -> str:
    return f"embeddings-{number:05d}.safetensors"


def _read_keys(path: Path) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        keys: torch.Tensor = file.get_tensor("keys")
    return keys


def write_index(folder: Path, index: EmbeddingsIndex) -> None:
    """Replace the folder's index atomically."""
    beside = folder / f"{INDEX_NAME}.partial"
    beside.write_text(json.dumps(dataclasses.asdict(index), indent=2), encoding="utf-8")
    os.replace(beside, folder / INDEX_NAME)
