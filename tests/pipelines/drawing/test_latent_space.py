# SPDX-License-Identifier: Apache-2.0
"""Latent pyramids: with a real autoencoder, the model denoises pooled latents."""

import json
import logging

import pytest
import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderDC,
    AutoencoderKLTemporalDecoder,
    AutoencoderTiny,
    VQModel,
)
from diffusers.utils import logging as host_logging

from diffusers_mdm import MDMImg2ImgPipeline, MDMInpaintPipeline, MDMPipeline, MDMUpscalePipeline
from diffusers_mdm.pipelines.drawing.latent_space import decode_latents, encode_images, scale_factor
from tests.pipelines.tiny_pipeline import make_pipeline, make_scheduler, seed
from tests.pipelines.tiny_tasks import eight_bit_images, make_vae, masks, task

TINY_TYPES = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
TINY_KL = {**TINY_TYPES, "block_out_channels": (8, 8), "norm_num_groups": 4}
# One of every class that is taken, with 4 channels of latents and half the side.
OTHERS = {
    "tiny": lambda: AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        scaling_factor=0.7,
        shift_factor=0.1,
    ),
    "deep compression": lambda: AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.4,
    ),
    "vector quantised": lambda: VQModel(**TINY_KL, latent_channels=4, num_vq_embeddings=16),
    "asymmetric": lambda: AsymmetricAutoencoderKL(
        **TINY_TYPES,
        down_block_out_channels=(8, 8),
        up_block_out_channels=(8, 16),
        norm_num_groups=4,
    ),
}
IMAGES = eight_bit_images(32) / 127.5 - 1


def test_encoding_is_the_mode_brought_to_unit_variance():
    vae = make_vae()
    with torch.no_grad():
        expected = (vae.encode(IMAGES).latent_dist.mode() - 0.1) * 0.7
        latents = encode_images(vae, IMAGES)
        decoded = decode_latents(vae, latents)
        again = vae.decode(expected / 0.7 + 0.1).sample
    assert scale_factor(vae) == 2
    assert latents.shape == (3, 4, 16, 16)
    torch.testing.assert_close(latents, expected)
    torch.testing.assert_close(decoded, again, atol=1e-5, rtol=0)


def test_statistics_of_each_channel():
    means, stds = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    vae = make_vae(latents_mean=means, latents_std=stds)
    mode = vae.encode(IMAGES).latent_dist.mode()
    expected = (mode - torch.tensor(means).view(1, 4, 1, 1)) / torch.tensor(stds).view(1, 4, 1, 1) * 0.7
    torch.testing.assert_close(encode_images(vae, IMAGES), expected)
    torch.testing.assert_close(decode_latents(vae, expected), vae.decode(mode).sample, atol=1e-5, rtol=0)


@pytest.mark.parametrize("force_upcast", [False, True])
def test_half_precision_goes_through_float32_where_the_autoencoder_asks_for_it(force_upcast):
    vae = make_vae(force_upcast=force_upcast).to(torch.float16)
    seen = []
    vae.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    latents = encode_images(vae, IMAGES)
    assert seen == [torch.float32 if force_upcast else torch.float16]
    assert vae.dtype == torch.float16
    assert latents.dtype == torch.float32


def test_frames_are_decoded_one_by_one():
    vae, clips = make_vae(), torch.randn(2, 4, 3, 8, 8, generator=seed(0))
    decoded = decode_latents(vae, clips)
    assert decoded.shape == (2, 3, 3, 16, 16)
    torch.testing.assert_close(decoded[1, :, 2], decode_latents(vae, clips[1:, :, 2])[0], atol=1e-5, rtol=0)


def test_one_that_overflows_in_float16_is_not_run_in_it_by_autocast_either():
    seen = []
    for force_upcast in (True, False):
        vae = make_vae(force_upcast=force_upcast)
        vae.encoder.conv_in.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
        with torch.autocast("cpu", dtype=torch.float16):
            encode_images(vae, IMAGES)
    assert seen == [torch.float32, torch.float16]


def test_draws_from_the_posterior_are_those_of_the_rows_own_generators():
    vae = make_vae()
    posterior = vae.encode(IMAGES).latent_dist
    noise = torch.cat([torch.randn(1, *posterior.mean.shape[1:], generator=seed(row)) for row in range(len(IMAGES))])
    expected = (posterior.mean + posterior.std * noise - 0.1) * 0.7
    generators = [seed(row) for row in range(len(IMAGES))]
    drawn = encode_images(vae, IMAGES, sample_posterior=True, generator=generators)
    torch.testing.assert_close(drawn, expected)
    assert not torch.allclose(drawn, encode_images(vae, IMAGES), atol=1e-2)


def test_clips_are_encoded_frame_by_frame():
    means, stds = [0.5, -0.5, 0.0, 0.2], [2.0, 1.0, 0.5, 1.5]
    clips = torch.stack([IMAGES, IMAGES.flip(-1)], dim=2)
    for changes in ({}, {"latents_mean": means, "latents_std": stds}):
        vae = make_vae(**changes)
        encoded = encode_images(vae, clips)
        assert encoded.shape == (len(IMAGES), 4, 2, *(side // 2 for side in IMAGES.shape[-2:]))
        torch.testing.assert_close(encoded[:, :, 1], encode_images(vae, IMAGES.flip(-1)), atol=1e-5, rtol=0)
        assert decode_latents(vae, encoded).shape == clips.shape


def test_without_an_autoencoder_nothing_changes():
    assert encode_images(None, IMAGES) is IMAGES
    assert decode_latents(None, IMAGES) is IMAGES
    assert make_pipeline().vae_scale_factor == 1


def test_sizes_are_those_of_images():
    pipe = task("latent text").make()
    assert pipe.image_sides == (16, 32)
    settings = {"num_inference_steps": 1, "output_type": "pt", "generator": seed(0)}
    assert pipe("a cat", height=16, **settings).images.shape == (1, 3, 16, 16)
    assert pipe("a cat", height=32, width=16, **settings).images.shape == (1, 3, 32, 16)
    latents = pipe("a cat", **{**settings, "generator": seed(0), "output_type": "latent"}).images
    assert latents.shape == (1, 4, 16, 16)
    with torch.no_grad():
        expected = (decode_latents(pipe.vae, latents).clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(pipe("a cat", **{**settings, "generator": seed(0)}).images, expected)
    with pytest.raises(ValueError, match=r"No level of this model has 8 x 8 pixels .* 16, 32"):
        pipe("a cat", height=8)


def test_the_known_pyramid_is_pooled_latents():
    pipe = task("latent img2img").make()
    given = eight_bit_images(32)[:1]
    latents = pipe("a cat", given, strength=0, output_type="latent", output_pyramid=True).pyramid
    expected = encode_images(pipe.vae, given / 127.5 - 1)
    torch.testing.assert_close(latents[1], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(latents[0], torch.nn.functional.avg_pool2d(expected, 2), atol=1e-5, rtol=0)


def test_given_pixels_do_not_go_through_the_autoencoder():
    given, mask = eight_bit_images(32)[:1], masks(32)[:1]
    settings = {"num_inference_steps": 2, "output_type": "pt", "generator": seed(0)}
    base = task("latent text").make()
    base.set_progress_bar_config(disable=True)
    assert torch.equal(MDMImg2ImgPipeline.from_pipe(base)("a", given, strength=0, **settings).images, given / 255)
    drawn = MDMInpaintPipeline.from_pipe(base)("a", given, mask, **settings).images
    outside = ~mask.bool().expand(1, 3, 32, 32)
    assert torch.equal(drawn[outside], (given / 255)[outside])
    small = eight_bit_images(16)[:1]
    large = MDMUpscalePipeline.from_pipe(base)("a", small, exact_consistency=True, **settings).images
    sums = torch.nn.functional.avg_pool2d((large.double() * 255).round(), 2)
    assert torch.equal(sums, small.double())


def test_the_autoencoder_is_saved_and_shared(tmp_path):
    pipe = task("latent text").make()
    assert MDMUpscalePipeline.from_pipe(pipe).vae is pipe.vae
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderKL"]
    assert (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").is_file()
    loaded = MDMPipeline.from_pretrained(tmp_path)
    assert loaded.vae_scale_factor == 2


def test_files_from_before_there_was_an_autoencoder_still_load(tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    del index["vae"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert MDMPipeline.from_pretrained(tmp_path).vae is None


def test_a_scheduler_that_clips_is_warned_about(caplog):
    host_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        MDMPipeline(None, None, None, make_scheduler(clip_sample=False), vae=make_vae())
        assert not caplog.records
        MDMPipeline(None, None, None, make_scheduler(), vae=make_vae())
    assert "clip_sample=False" in caplog.text


def latent_pipeline(vae):
    pipe = MDMPipeline(**{**task("latent text").make().components, "vae": vae.eval()})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", OTHERS)
def test_other_autoencoders_of_images_draw_and_are_given_images(name, tmp_path):
    torch.manual_seed(0)
    vae = OTHERS[name]()
    with torch.no_grad():
        encoded = vae.eval().encode(IMAGES)
        expected = (encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded[0]).float()
        shift, scale = vae.config.get("shift_factor") or 0.0, vae.config.scaling_factor
        latents = encode_images(vae, IMAGES)
        torch.testing.assert_close(latents, (expected - shift) * scale)
        sampled = encode_images(vae, IMAGES, sample_posterior=True, generator=seed(0))
        assert torch.equal(sampled, latents) is not hasattr(encoded, "latent_dist")
        decoded = decode_latents(vae, latents)
        torch.testing.assert_close(decoded, vae.decode(expected).sample, atol=1e-4, rtol=0)
    pipe = latent_pipeline(vae)
    settings = {"num_inference_steps": 1, "output_type": "pt", "generator": seed(0)}
    assert pipe("a cat", **settings).images.shape == (1, 3, 32, 32)
    changed = MDMImg2ImgPipeline.from_pipe(pipe)
    assert changed.vae is vae
    assert changed("a cat", eight_bit_images(32)[:1], **settings).images.shape == (1, 3, 32, 32)
    pipe.save_pretrained(tmp_path)
    assert type(MDMPipeline.from_pretrained(tmp_path).vae) is type(vae)


def test_an_autoencoder_of_a_class_of_ones_own_is_carried_to_other_pipelines():
    class OwnAutoencoder(AutoencoderTiny):
        pass

    vae = OwnAutoencoder(num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4)
    assert MDMUpscalePipeline.from_pipe(latent_pipeline(vae)).vae is vae


def test_what_is_no_autoencoder_of_images_is_refused_before_the_first_step():
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=TINY_TYPES["down_block_types"], layers_per_block=1
    )
    with pytest.raises(ValueError, match=r"AutoencoderKLTemporalDecoder, which .* use one of AutoencoderKL, "):
        latent_pipeline(vae)("a cat")
    with pytest.raises(ValueError, match="latents of 3 channels, but the model has 4"):
        latent_pipeline(VQModel(**TINY_KL, latent_channels=3))("a cat")


def test_channels_that_are_no_image_are_not_shown_as_one():
    pipe = MDMPipeline(**{**task("latent text").make().components, "vae": None})
    with pytest.raises(
        ValueError, match=r"has 4 output channels, which are not an image.* load it with its autoencoder"
    ):
        pipe("a cat")
    assert pipe("a cat", num_inference_steps=1, output_type="np").images.shape == (1, 16, 16, 4)


def test_latents_can_be_given_in_place_of_images():
    base = task("latent text").make()
    base.set_progress_bar_config(disable=True)
    given, mask = eight_bit_images(32)[:1], masks(32)[:1]
    latents = encode_images(base.vae, given / 127.5 - 1)
    small = eight_bit_images(16)[:1]
    small_latents = encode_images(base.vae, small / 127.5 - 1)
    settings = {"num_inference_steps": 2, "output_type": "latent"}
    for kind, image, code, more in (
        (MDMImg2ImgPipeline, given, latents, {}),
        (MDMInpaintPipeline, given, latents, {"mask_image": mask}),
        (MDMUpscalePipeline, small, small_latents, {}),
    ):
        pipe = kind.from_pipe(base)
        expected = pipe("a", image, generator=seed(0), **more, **settings).images
        torch.testing.assert_close(pipe("a", code, generator=seed(0), **more, **settings).images, expected)
    pipe = MDMImg2ImgPipeline.from_pipe(base)
    back = pipe("a", latents * 3, strength=0, output_type="latent").images
    assert torch.equal(back, latents * 3)
    decoded = (decode_latents(base.vae, latents) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(pipe("a", latents, strength=0, output_type="pt").images, decoded)
    with pytest.raises(ValueError, match=r"latents of images of 24 x 24 pixels .* one of 16, 32"):
        pipe("a", latents[..., :12, :12])
