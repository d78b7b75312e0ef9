# SPDX-License-Identifier: Apache-2.0
"""The text encoder of a recipe: a saved one, or a new small T5 with its own tokenizer."""

from dataclasses import dataclass

from .fields import POSITIVE, Range, check_ranges

# Limits for a new encoder; larger ones are loaded instead of trained.
SIZE = Range(1, 2**16)


@dataclass(frozen=True)
class TokenizerRecipe:
    """Settings of a sub-word tokenizer trained on the captions; frequent words become single tokens."""

    vocab_size: int

    def __post_init__(self) -> None:
        # There must be room for letters and special tokens.
        check_ranges(self, {"vocab_size": Range(64, 2**22)})


@dataclass(frozen=True)
class TextEncoderRecipe:
    """The text encoder: `pretrained` (folder or Hub id), or a new small T5 of the given size."""

    pretrained: str | None = None
    from_pipeline: bool = False  # use the encoder of the recipe's `pretrained` pipeline
    tokenizer: TokenizerRecipe | None = None
    d_model: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    d_ff: int | None = None
    initializer_factor: float = 1.0  # size of a new encoder, as in `T5Config`
    train_text_encoder: bool = False  # train it together with the U-Net
    max_sequence_length: int = 128  # longer captions are truncated
    learning_rate_scale: float = 1.0  # factor on the learning rate for the encoder
    # Factor on the learning rate for the token embeddings. A batch contains few of the tokens, so at the common rate
    # embeddings trained from scratch hardly leave their random initial values.
    token_learning_rate_scale: float = 1.0

    def __post_init__(self) -> None:
        sizes = [self.tokenizer, self.d_model, self.num_layers, self.num_heads, self.d_ff]
        if self.pretrained is not None and self.from_pipeline:
            raise ValueError("`pretrained` and `from_pipeline` each name an encoder; use one of them.")
        saved = self.pretrained is not None or self.from_pipeline
        if saved and any(size is not None for size in sizes):
            raise ValueError(
                "`pretrained` and `from_pipeline` load an existing encoder; remove `tokenizer`, `d_model`, "
                "`num_layers`, `num_heads` and `d_ff`, or train a new encoder of that size."
            )
        if not saved and any(size is None for size in sizes):
            raise ValueError(
                "a new text encoder needs `tokenizer`, `d_model`, `num_layers`, `num_heads` and `d_ff`; or set "
                "`pretrained`, a folder or Hub id."
            )
        if not saved and not self.train_text_encoder:
            raise ValueError("a new text encoder has to be trained: set `train_text_encoder: true`.")
        check_ranges(
            self,
            {
                **dict.fromkeys(("d_model", "num_layers", "num_heads", "d_ff", "max_sequence_length"), SIZE),
                "initializer_factor": POSITIVE,
                **dict.fromkeys(("learning_rate_scale", "token_learning_rate_scale"), POSITIVE),
            },
        )
        if self.d_model is not None and self.num_heads is not None and self.d_model % self.num_heads:
            raise ValueError(f"`d_model` {self.d_model} must be a multiple of `num_heads` {self.num_heads}.")
