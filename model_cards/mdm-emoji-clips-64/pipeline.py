"""Pipeline for video generation with a model whose levels have frames, and can be nested in time as in space."""

from diffusers_mdm import MDMVideoPipeline as Pipeline  # noqa: F401
