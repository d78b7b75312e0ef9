"""Draw pictures of classes, in the manner of the host's DiT pipeline (Gu et al., section 4: ImageNet)."""

from diffusers_mdm import MDMClassConditionalPipeline as Pipeline  # noqa: F401
