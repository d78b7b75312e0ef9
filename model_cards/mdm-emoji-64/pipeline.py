from diffusers_mdm import MDMPipeline  # noqa: F401
