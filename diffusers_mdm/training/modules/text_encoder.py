# SPDX-License-Identifier: Apache-2.0
"""The text encoder of a run: a saved one, or a small T5 and a tokenizer made for the captions at hand."""

from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from ..recipe.text_encoder import TextEncoderRecipe

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a lower-casing sub-word tokenizer that ends every text with `</s>`, as T5's do.

    Merging the most frequent pairs first (BPE) turns every word that occurs a few times into one token, which a
    small encoder learns faster than pieces; unseen words still split into known pieces.

    Raises:
        ValueError: if `vocab_size` leaves no room beside the special tokens.
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
    """Make or load the text encoder and its tokenizer; `captions` are read only for a new tokenizer."""
    if recipe.pretrained is not None:
        encoder = T5EncoderModel.from_pretrained(recipe.pretrained)
        return encoder, AutoTokenizer.from_pretrained(recipe.pretrained)
    # The recipe has checked that the sizes of a new encoder are all there.
    assert recipe.tokenizer is not None
    assert recipe.d_model is not None
    assert recipe.num_heads is not None
    tokenizer = train_tokenizer(captions, recipe.tokenizer.vocab_size)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=recipe.d_model,
        d_kv=recipe.d_model // recipe.num_heads,
        d_ff=recipe.d_ff,
        num_layers=recipe.num_layers,
        num_heads=recipe.num_heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        initializer_factor=recipe.initializer_factor,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return T5EncoderModel(config), tokenizer
