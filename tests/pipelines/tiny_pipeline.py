# SPDX-License-Identifier: Apache-2.0
"""A tiny real pipeline: levels of 8 and 16 pixels, a small T5 and a word tokenizer, all made on the spot."""

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from diffusers_mdm import MatryoshkaScheduler, MDMPipeline, NestedUNetModel

TEXT_WIDTH = 16
WORDS = (
    "a",
    "the",
    "red",
    "blue",
    "green",
    "apple",
    "cat",
    "dog",
    "sad",
    "happy",
    "house",
    "very",
    "long",
    "picture",
    "of",
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer that ends every text with `</s>`, as T5's does."""
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )


def make_text_encoder() -> T5EncoderModel:
    torch.manual_seed(1)
    config = T5Config(
        vocab_size=len(WORDS) + 3, d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    return T5EncoderModel(config).eval()


def make_unet(**changes: Any) -> NestedUNetModel:
    """Two levels of 8 and 16 pixels with every parameter random, so that no zero-initialised branch hides anything."""
    torch.manual_seed(0)
    config = {
        "sample_size": 8,
        "block_out_channels": ((8, 16), (8, 8)),
        "layers_per_block": ((1, 1), (1, 1)),
        "attention_layers_per_block": ((0, 1), (0, 0)),
        "has_mid_block": (True, False),
        "has_attention_ffn": (True, False),
        "norm_num_groups": (4, 4),
        "normalize_input": (False, True),
        "dropout": (0.0, 0.0),
        "micro_conditioning_keys": (("scale",), ("scale",)),
        "micro_conditioning_defaults": ((8.0,), (16.0,)),
        "num_attention_heads": 2,
        "attention_norm_num_groups": 4,
        "encoder_hid_dim": TEXT_WIDTH,
        "cross_attention_dim": 8,
        **changes,
    }
    unet = NestedUNetModel(**config).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return unet


def make_scheduler(**changes: Any) -> MatryoshkaScheduler:
    return MatryoshkaScheduler(base_sample_size=8, **changes)


def make_pipeline(**unet_changes: Any) -> MDMPipeline:
    pipeline = MDMPipeline(
        text_encoder=make_text_encoder(),
        tokenizer=make_tokenizer(),
        unet=make_unet(**unet_changes),
        scheduler=make_scheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, **changes: Any) -> Any:
    """Draw "a red apple" with a fixed seed in two steps, as a tensor; keyword arguments change anything."""
    inputs = {
        "prompt": "a red apple",
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "generator": seed(0),
        "output_type": "pt",
    }
    if "prompt_embeds" in changes:
        del inputs["prompt"]
    output = pipeline(**{**inputs, **changes})
    return output.images if changes.get("return_dict", True) else output


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)
