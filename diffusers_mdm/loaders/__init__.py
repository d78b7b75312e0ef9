# SPDX-License-Identifier: Apache-2.0
"""Loading and saving of what is added to a pipeline: LoRA."""

from diffusers_mdm.loaders.lora_pipeline import MDMLoraLoaderMixin

__all__ = ["MDMLoraLoaderMixin"]
