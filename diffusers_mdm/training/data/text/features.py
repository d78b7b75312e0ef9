# SPDX-License-Identifier: Apache-2.0
"""Precomputed text features, read from disk instead of using a text encoder in memory.

A folder contains

    index.json                      how they were made, and how many captions each file has
    embeddings-00000.safetensors    "keys" (n,) int64: hashes of the captions, sorted
                                    "offsets" (n + 1,) int64: caption i has the tokens offsets[i] … offsets[i + 1] - 1
                                    "tokens" (offsets[n], D): features of the tokens of all captions, without padding

Each caption is stored once, even if several images have it. The files are memory-mapped, so that all processes of a
machine share what has been read. `features_writer.py` writes them.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch.nn.utils.rnn import pad_sequence

from ....checked_values import describe, is_whole_number
from ....config_reading import read_json
from ...recipe.fields import read_fields
from ..batch import Batch
from .captions import clean_caption

INDEX_NAME = "index.json"
FORMAT = "diffusers-mdm text embeddings 1"
FILE_NAME = re.compile(r"embeddings-\d{5,}\.safetensors")  # names of files in the folder; no paths
COMMAND = "`diffusers-mdm precompute`"
NAMED_IN_ERROR = 3


def caption_key(caption: str) -> int:
    """Return the first 64 bits, signed, of the SHA-256 of the cleaned caption.

    Among 12 million captions, the probability that two have the same key is 1 in 250,000.
    """
    return int.from_bytes(hashlib.sha256(clean_caption(caption).encode()).digest()[:8], "little", signed=True)


@dataclass(frozen=True)
class EmbeddingsIndex:
    """The index of a folder of text embeddings.

    Attributes:
        text_encoder: folder or Hub id of the encoder, as given to the command.
        fingerprint: hash of the encoder's weights.
        width: D of the features.
        dtype: dtype of the features, and of the encoder that made them: "fp32", "bf16" or "fp16".
        max_sequence_length: number of tokens after which captions were truncated.
        files: number of captions by file.
        is_complete: whether the command ran to its end.
    """

    text_encoder: str
    fingerprint: str
    width: int
    dtype: str
    max_sequence_length: int
    files: dict[str, int] = dataclasses.field(default_factory=dict)
    is_complete: bool = False
    format: str = FORMAT


def read_index(folder: Path) -> EmbeddingsIndex:
    """Read the index of a folder.

    Raises:
        ValueError: if there is none, or it has another format.
    """
    path = folder / INDEX_NAME
    if not path.is_file():
        raise ValueError(
            f"{folder} contains no text embeddings (there is no {INDEX_NAME}); create them with {COMMAND}."
        )
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not an index of text embeddings. Create them again with {COMMAND}.")
    if values.get("format") != FORMAT:
        raise ValueError(
            f"{path} has the format {describe(values.get('format'))}, expected {FORMAT!r}; create the embeddings "
            f"again."
        )
    if not values.get("fingerprint"):
        raise ValueError(
            f"{path} does not identify the text encoder of its embeddings (it has no `fingerprint`): an older "
            f"version wrote it. Create them again with {COMMAND} in another folder."
        )
    try:
        index = read_fields(EmbeddingsIndex, {**values, "files": values.get("files", {})})
    except ValueError as error:
        raise ValueError(
            f"{path} is not an index of text embeddings: {error} Create them again with {COMMAND}."
        ) from error
    for name, count in index.files.items():
        if not FILE_NAME.fullmatch(name) or not is_whole_number(count, 0):
            raise ValueError(
                f"{path} lists a file {describe(name)} with {describe(count)} captions; expected names such as "
                f"embeddings-00000.safetensors. Create the embeddings again with {COMMAND}."
            )
    return index


class TextEmbeddings:
    """The precomputed features of captions, by caption.

    Args:
        folder: folder written by the command.
        width: D that the model takes; None for any.
        max_sequence_length: number of tokens after which the run truncates captions; None for any.

    Raises:
        ValueError: if the folder is incomplete, damaged, or made for another model; the message says what to do.
    """

    def __init__(self, folder: str | Path, width: int | None = None, max_sequence_length: int | None = None):
        self.folder = Path(folder)
        self.index = read_index(self.folder)
        self._check(width, max_sequence_length)
        self._open_files()
        if (empty := self._find("")) is None:
            raise ValueError(
                f"{folder} lacks the empty caption, which guidance needs; create it again with {COMMAND}."
            )
        self.empty = empty.clone()

    def _check(self, width: int | None, max_sequence_length: int | None) -> None:
        index = self.index
        if not index.is_complete:
            raise ValueError(f"{self.folder} is incomplete; repeat the command that writes it, which will continue.")
        if width is not None and width != index.width:
            raise ValueError(
                f"The text embeddings in {self.folder} are {index.width} wide (made with {index.text_encoder}), "
                f"but the model takes {width}; create them with the model's own text encoder."
            )
        if max_sequence_length is not None and max_sequence_length != index.max_sequence_length:
            raise ValueError(
                f"The captions of {self.folder} were truncated after {index.max_sequence_length} tokens, but the "
                f"recipe has {max_sequence_length} (`text_encoder.max_sequence_length`); use the same number for both."
            )

    def check_encoder(self, name: str, fingerprint: str) -> None:
        """Check that the features are from the text encoder and tokenizer with which the pipeline will be saved.

        Args:
            name: name of the run's text encoder, for the message.
            fingerprint: fingerprint of that encoder in the dtype of the features.

        Raises:
            ValueError: if the fingerprints differ.
        """
        if fingerprint != self.index.fingerprint:
            raise ValueError(
                f"The text embeddings in {self.folder} were made with another text encoder or tokenizer "
                f"({self.index.text_encoder}) than that of this run ({name}): a model trained on them would not "
                f"understand prompts encoded by its own encoder. Create them with {COMMAND} and this run's text "
                f"encoder in another folder; or start from the pipeline whose encoder made them."
            )

    def _open_files(self) -> None:
        keys, places, self._tokens = [], [], []
        for number, (name, count) in enumerate(self.index.files.items()):
            path = self.folder / name
            try:
                with safe_open(path, framework="pt") as file:
                    stored, offsets, tokens = (file.get_tensor(key) for key in ("keys", "offsets", "tokens"))
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{path} is missing or damaged ({error}); remove it and repeat {COMMAND}.") from error
            starts = offsets.numpy()
            if len(stored) != count or len(starts) != count + 1 or tokens.shape != (starts[-1], self.index.width):
                raise ValueError(f"{path} does not match {INDEX_NAME}; remove it and repeat {COMMAND}.")
            keys.append(stored.numpy())
            places.append(np.stack([np.full(count, number), starts[:-1], starts[1:]], axis=1))
            self._tokens.append(tokens)
        all_keys = np.concatenate(keys) if keys else np.empty(0, np.int64)
        order = np.argsort(all_keys, kind="stable")
        self._keys = all_keys[order]
        self._places = np.concatenate(places)[order] if places else np.empty((0, 3), np.int64)

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return type(self), (self.folder,)  # another process maps the files itself

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, caption: str) -> bool:
        return self._find(caption) is not None

    def _find(self, caption: str) -> torch.Tensor | None:
        key = caption_key(caption)
        place = int(np.searchsorted(self._keys, key))
        if place == len(self._keys) or self._keys[place] != key:
            return None
        file, start, end = self._places[place].tolist()
        return self._tokens[file][start:end]

    def look_up(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features of captions in the form in which an encoder would return them.

        Returns:
            `(B, L, D)`, zero at padding, with L the length of the longest, and the mask `(B, L)`, True for tokens.

        Raises:
            ValueError: if a caption is missing.
        """
        found = [self._find(caption) for caption in captions]
        known = [feature for feature in found if feature is not None]
        if len(known) < len(found):
            self.check_captions(captions)
        lengths = torch.tensor([len(feature) for feature in known])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        return pad_sequence(known, batch_first=True), mask

    def add_to(self, batch: Batch) -> Batch:
        """Return the batch with the features of its captions."""
        embeds, mask = self.look_up(batch.captions)
        return dataclasses.replace(
            batch, prompt_embeds=embeds, prompt_attention_mask=mask, empty_prompt_embeds=self.empty
        )

    def check_captions(self, captions: Iterable[str]) -> None:
        """Check that the features of captions are available.

        Raises:
            ValueError: names the first captions that are missing.
        """
        unique = dict.fromkeys(captions)
        missing = [caption for caption in unique if caption not in self]
        if missing:
            named = ", ".join(repr(caption) for caption in missing[:NAMED_IN_ERROR])
            raise ValueError(
                f"{self.folder} lacks {len(missing)} of {len(unique)} captions, such as {named}. It was created "
                f"for other captions; repeat {COMMAND} with this data set and the same folder to add the missing ones."
            )
