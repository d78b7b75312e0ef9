"""Pipeline for class-conditional image generation, like diffusers' DiT pipeline (Gu et al., section 4: ImageNet)."""

from diffusers_mdm import MDMClassConditionalPipeline as Pipeline  # noqa: F401
