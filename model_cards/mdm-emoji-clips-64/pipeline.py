"""Draw clips with a model whose levels have frames, nested in time as in space."""

from diffusers_mdm import MDMVideoPipeline as Pipeline  # noqa: F401
