# SPDX-License-Identifier: Apache-2.0
"""The text encoder of a run: a saved one of any kind, or a new small T5 with a tokenizer trained on the captions."""

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from ...pipelines.pipeline_mdm import MDMPipeline
from ..recipe.recipe import Recipe
from ..recipe.text_encoder import TextEncoderRecipe
from .classes import pipeline_class

# Image-text models, and the class that loads only their text encoder.
_TEXT_HALVES = {"clip": "CLIPTextModel", "siglip": "SiglipTextModel", "siglip2": "Siglip2TextModel"}
PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a lower-casing sub-word tokenizer that ends every text with `</s>`, like T5's.

    BPE merges the most frequent pairs first, so that every word that occurs a few times becomes one token, which a
    small encoder learns faster than pieces of words; unseen words are split into known pieces.

    Raises:
        ValueError: if `vocab_size` is too small for letters and special tokens.
    """
    if vocab_size < 64:
        raise ValueError(f"`vocab_size` must be at least 64 to hold letters and special tokens, got {vocab_size}.")
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[PAD, EOS, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, tokenizer.token_to_id(EOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=128,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_text_encoder(
    recipe: TextEncoderRecipe, captions: Iterable[str]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Create or load the text encoder and its tokenizer; `captions` are read only for a new tokenizer.

    Raises:
        ValueError: the saved encoder does not exist, or does not output features of text.
    """
    if recipe.pretrained is not None:
        return load_text_encoder(recipe.pretrained)
    assert recipe.tokenizer is not None  # the recipe's checks guarantee that all sizes of a new encoder are set
    tokenizer = train_tokenizer(captions, recipe.tokenizer.vocab_size)
    config = new_encoder_config(
        recipe, len(tokenizer), pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id
    )
    return T5EncoderModel(config), tokenizer


def new_encoder_config(recipe: TextEncoderRecipe, vocab_size: int, **token_ids: int) -> T5Config:
    """Return the config of a new small T5."""
    assert recipe.d_model is not None
    assert recipe.num_heads is not None
    return T5Config(
        vocab_size=vocab_size,
        d_model=recipe.d_model,
        d_kv=recipe.d_model // recipe.num_heads,
        d_ff=recipe.d_ff,
        num_layers=recipe.num_layers,
        num_heads=recipe.num_heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        initializer_factor=recipe.initializer_factor,
        **token_ids,
    )


def load_text_encoder(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a saved text encoder of any kind, and its tokenizer. Of encoder-decoder models only the encoder is loaded.

    Args:
        path: a folder or Hub id.

    Raises:
        ValueError: it does not exist, it does not output features of text, or its tokenizer cannot pad.
    """
    try:
        encoder = type(without_weights(AutoConfig.from_pretrained(path), path)).from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except OSError as error:
        raise ValueError(
            f"`text_encoder.pretrained`: there is no text encoder with a tokenizer in {path}: {error} Pass a "
            f"folder or Hub id that transformers can load; for a whole pipeline use `pretrained` and "
            "`text_encoder: {from_pipeline: true}`."
        ) from error
    if tokenizer.pad_token is None:
        raise ValueError(
            f"The tokenizer in {path} has no padding token, so captions of different lengths cannot be batched: "
            f"set its `pad_token` (its `eos_token` often works) and save it with the encoder in a folder."
        )
    return encoder, tokenizer


def without_weights(config: PretrainedConfig, path: str) -> PreTrainedModel:
    """Build the text encoder that a saved model is or contains, on the meta device, where weights have no contents.

    Args:
        config: config of the saved model.
        path: folder or Hub id of the model, for messages.

    Raises:
        ValueError: transformers has no class for it.
    """
    kind = config.model_type
    with torch.device("meta"):
        if kind in _TEXT_HALVES:
            return getattr(transformers, _TEXT_HALVES[kind])(config.text_config)
        with contextlib.suppress(ValueError):  # the class does not support this kind
            return AutoModelForTextEncoding.from_config(config)
        if config.is_encoder_decoder:
            raise ValueError(
                f"`text_encoder.pretrained`: {path} is a {kind}, of which transformers cannot load only the "
                f"encoder; use a T5, or a model that is an encoder."
            )
        try:
            return AutoModel.from_config(config)
        except ValueError as error:
            raise ValueError(f"`text_encoder.pretrained`: {path} is not a text encoder: {error}") from error


def frozen_text_encoder(
    recipe: Recipe, cache_dir: str | None = None
) -> tuple[str, PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the saved text encoder of a recipe, or of the pipeline it starts from; returns it with its name.

    Args:
        recipe: recipe of the run.
        cache_dir: folder for downloaded models.

    Raises:
        ValueError: there is none, or it is trained, so that texts cannot be encoded in advance.
    """
    encoder, source = recipe.text_encoder, recipe.pretrained
    if encoder is None or encoder.train_text_encoder:
        raise ValueError("Texts can be encoded in advance only by a saved text encoder that is not trained.")
    if encoder.pretrained is not None:
        return encoder.pretrained, *build_text_encoder(encoder, ())
    if source is None:
        raise ValueError("The recipe names no saved text encoder: set `text_encoder.pretrained`.")
    pipeline: Any = pipeline_class(recipe).from_pretrained(
        source.path, revision=source.revision, variant=source.variant, cache_dir=cache_dir, unet=None, vae=None
    )
    return source.path, pipeline.text_encoder, pipeline.tokenizer


def check_text_width(recipe: Recipe, encoder: PreTrainedModel | None) -> None:
    """Check that the features of a text encoder have the width that the recipe's model takes.

    Raises:
        ValueError: names both widths.
    """
    expected = recipe.model.get("encoder_hid_dim") or recipe.model.get("cross_attention_dim")
    width = getattr(encoder and encoder.config, "hidden_size", None)
    if width is not None and width != expected:
        name = "encoder_hid_dim" if recipe.model.get("encoder_hid_dim") else "cross_attention_dim"
        raise ValueError(
            f"`model.{name}` is {expected}, but the features of the text encoder have a width of {width}; set it "
            f"to {width} (with `encoder_hid_dim`, features are projected to `cross_attention_dim`), or use another "
            f"encoder."
        )


def count_text_parameters(recipe: Recipe) -> int | None:
    """Count the parameters of the text encoder in memory: 0 without one, None if its config is not available."""
    encoder, source = recipe.text_encoder, recipe.pretrained
    if encoder is None or recipe.data.embeddings_dir is not None:
        return 0
    if encoder.tokenizer is not None:
        return _count(without_weights(new_encoder_config(encoder, encoder.tokenizer.vocab_size), "the new one"))
    try:
        if encoder.pretrained is not None:
            config = AutoConfig.from_pretrained(encoder.pretrained, local_files_only=True)
            return _count(without_weights(config, encoder.pretrained))
        assert source is not None  # guaranteed by the recipe's checks
        where = {"revision": source.revision, "local_files_only": True}
        name = MDMPipeline.load_config(source.path, **where)["text_encoder"][1]
        config = AutoConfig.from_pretrained(source.path, subfolder="text_encoder", **where)
    except OSError:
        return None
    with torch.device("meta"):
        return _count(getattr(transformers, name)(config))


def _count(encoder: PreTrainedModel) -> int:
    encoder.tie_weights()  # transformers 5.0 leaves shared weights apart where they have no contents
    return sum(value.numel() for value in encoder.parameters())
