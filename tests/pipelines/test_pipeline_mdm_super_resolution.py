# SPDX-License-Identifier: Apache-2.0
"""Super-resolution: the small image reaches the model, saving keeps the settings, and what is refused."""

import pytest
import torch

from diffusers_mdm import DiffusionPipeline, MDMPipeline, MDMSuperResolutionPipeline
from diffusers_mdm.pipelines.pipeline_mdm_super_resolution import add_condition_noise, enlarge
from tests.pipelines.tiny_pipeline import make_pipeline, make_scheduler, make_unet, seed
from tests.pipelines.tiny_tasks import ENLARGING, ID2LABEL, NUM_CLASSES

DRAWN = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "pt"}


def make(of_classes: bool = False, **settings):
    """A tiny pipeline that enlarges images of 8 pixels to 16."""
    classes = {"encoder_hid_dim": None, "cross_attention_dim": None, "num_class_embeds": NUM_CLASSES}
    parts = {} if of_classes else {key: make_pipeline().components[key] for key in ("text_encoder", "tokenizer")}
    parts |= {"id2label": ID2LABEL} if of_classes else {}
    unet = make_unet(**ENLARGING, **(classes if of_classes else {}))
    settings = {"low_resolution": 8, "max_noise_level": 0.5, **settings}
    pipeline = MDMSuperResolutionPipeline(unet, make_scheduler(), **parts, **settings)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline():
    return make()


def small(number: int = 2, side: int = 8) -> torch.Tensor:
    return torch.rand(number, 3, side, side, generator=seed(1))


def test_an_image_depends_on_its_own_small_image_only(pipeline):
    images = small(3)
    seeds = [seed(number) for number in range(3)]
    together = pipeline(["a", "a", "a cat"], images, 0.3, generator=seeds, **{**DRAWN, "guidance_scale": 3.0}).images
    alone = pipeline("a", images[1:2], 0.3, generator=seed(1), **{**DRAWN, "guidance_scale": 3.0}).images
    assert together.shape == (3, 3, 16, 16)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-4)
    other = pipeline("a", 1 - images[1:2], 0.3, generator=seed(1), **{**DRAWN, "guidance_scale": 3.0}).images
    assert (other - alone).abs().max() > 1e-3


def test_the_model_knows_how_noisy_the_image_is(pipeline):
    """Only the micro-condition differs: at level 0 no noise is added, and none is at a tiny level."""
    none, some = (pipeline("a", small(1), level, generator=seed(0), **DRAWN).images for level in (0.0, 0.4))
    assert (none - some).abs().max() > 1e-4


def test_noise_keeps_the_variance():
    images, noise = torch.randn(2, 3, 64, 64, generator=seed(0)), torch.randn(2, 3, 64, 64, generator=seed(1))
    noisy = add_condition_noise(images, noise, torch.tensor([0.0, 0.8]))
    assert torch.equal(noisy[0], images[0])
    assert noisy[1].std() == pytest.approx(1.0, abs=0.03)
    assert (noisy[1] * noise[1]).mean() == pytest.approx(0.8, abs=0.03)


def test_images_of_other_sizes_and_shapes_fit(pipeline):
    large = pipeline("a", small(1, side=32), **DRAWN).images
    assert large.shape == (1, 3, 16, 16)
    wide = pipeline("a", torch.rand(3, 8, 16, generator=seed(0)), **DRAWN).images
    assert wide.shape == (1, 3, 8, 16)
    assert enlarge(torch.ones(1, 3, 4, 8), 8, 16).shape == (1, 3, 8, 16)


def test_saving_keeps_the_settings(tmp_path):
    pipeline = make(of_classes=True)
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded, MDMSuperResolutionPipeline)
    assert (loaded.config.low_resolution, loaded.config.max_noise_level, loaded.id2label) == (8, 0.5, ID2LABEL)
    loaded.set_progress_bar_config(disable=True)
    images = [
        each(image=small(1), class_labels="dog", generator=seed(0), **DRAWN).images for each in (pipeline, loaded)
    ]
    torch.testing.assert_close(*images, rtol=0, atol=1e-4)


def test_a_cascade_draws_from_prompts_alone(pipeline):
    base = make_pipeline(**{**ENLARGING, "sample_size": 8, "in_channels": 3})
    base.set_progress_bar_config(disable=True)
    images = base("a cat", generator=seed(0), **DRAWN).images
    assert pipeline("a cat", images, 0.2, generator=seed(1), **DRAWN).images.shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise_level": 0.6}, "0.5"),
        ({"micro_conditioning": {"noise_level": 0.1}}, "as the argument `noise_level`"),
        ({"image": None}, "`image`"),
    ],
)
def test_wrong_arguments(pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline("a", **{"image": small(1), **DRAWN, **arguments})


def test_models_and_pipelines_that_do_not_belong_together(pipeline):
    with pytest.raises(ValueError, match="MDMSuperResolutionPipeline"):
        MDMPipeline.from_pipe(pipeline)("a", **DRAWN)
    ordinary = MDMSuperResolutionPipeline.from_pipe(make_pipeline(), low_resolution=8)
    with pytest.raises(ValueError, match="MDMUpscalePipeline"):
        ordinary("a", small(1), **DRAWN)
    with pytest.raises(ValueError, match="`low_resolution` of this pipeline is 5"):
        make(low_resolution=5)("a", small(1), **DRAWN)
    with pytest.raises(ValueError, match="works on pixels"):
        MDMSuperResolutionPipeline(None, None, vae=object())
