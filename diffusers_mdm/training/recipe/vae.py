# SPDX-License-Identifier: Apache-2.0
"""Which autoencoder's latents a model denoises."""

from dataclasses import dataclass


@dataclass(frozen=True)
class VaeRecipe:
    """A saved diffusers `AutoencoderKL`: `pretrained` (folder or Hub id), or that of the pipeline a run starts from.

    It stays as it is. `model.sample_size` and the sides of the levels then count latents; pictures are larger by the
    autoencoder's factor.
    """

    pretrained: str | None = None
    subfolder: str | None = None  # such as "vae", where `pretrained` is a whole pipeline
    revision: str | None = None
    variant: str | None = None
    from_pipeline: bool = False

    def __post_init__(self) -> None:
        if (self.pretrained is not None) == self.from_pipeline:
            raise ValueError(
                "give either `pretrained`, a saved autoencoder, or `from_pipeline: true`, that of the pipeline that "
                "the recipe starts from."
            )
        if self.from_pipeline and (self.subfolder, self.revision, self.variant) != (None, None, None):
            raise ValueError(
                "`subfolder`, `revision` and `variant` say where `pretrained` lies; with `from_pipeline` those of the "
                "pipeline hold."
            )
