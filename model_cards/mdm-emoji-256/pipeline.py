"""Pipeline for text-to-image generation, at every resolution of the model at once (Gu et al., arXiv:2310.15111)."""

from diffusers_mdm import MDMPipeline as Pipeline  # noqa: F401
