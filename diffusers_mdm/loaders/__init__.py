# SPDX-License-Identifier: Apache-2.0
"""Loading and saving of LoRA weights."""

from diffusers_mdm.loaders.lora_pipeline import MDMLoraLoaderMixin

__all__ = ["MDMLoraLoaderMixin"]
