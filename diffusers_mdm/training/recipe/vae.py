# SPDX-License-Identifier: Apache-2.0
"""The autoencoder of a recipe, for models on latents."""

from dataclasses import dataclass


@dataclass(frozen=True)
class VaeRecipe:
    """A saved diffusers `AutoencoderKL`: `pretrained` (folder or Hub id), or that of the pipeline the run starts from.

    It is not trained. `model.sample_size` and the sides of the levels are then in latents; images are larger by the
    autoencoder's factor.
    """

    pretrained: str | None = None
    subfolder: str | None = None  # such as "vae", if `pretrained` is a whole pipeline
    revision: str | None = None
    variant: str | None = None
    from_pipeline: bool = False

    def __post_init__(self) -> None:
        if (self.pretrained is not None) == self.from_pipeline:
            raise ValueError(
                "set either `pretrained`, a saved autoencoder, or `from_pipeline: true`, for that of the pipeline "
                "that the recipe starts from."
            )
        if self.from_pipeline and (self.subfolder, self.revision, self.variant) != (None, None, None):
            raise ValueError(
                "`subfolder`, `revision` and `variant` locate `pretrained`; with `from_pipeline`, those of the "
                "pipeline are used, so omit them."
            )
