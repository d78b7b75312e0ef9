# SPDX-License-Identifier: Apache-2.0
"""Latent pyramids: with a real autoencoder, the model denoises pooled latents."""

import json
import logging

import pytest
import torch
from diffusers.utils import logging as host_logging

from diffusers_mdm import MDMImg2ImgPipeline, MDMInpaintPipeline, MDMPipeline, MDMUpscalePipeline
from diffusers_mdm.pipelines.drawing.latent_space import decode_latents, encode_pictures, scale_factor
from tests.pipelines.tiny_pipeline import make_pipeline, make_scheduler, seed
from tests.pipelines.tiny_tasks import eight_bit_pictures, make_vae, masks, task

PICTURES = eight_bit_pictures(32) / 127.5 - 1


def test_encoding_is_the_mode_brought_to_unit_variance():
    vae = make_vae()
    with torch.no_grad():
        expected = (vae.encode(PICTURES).latent_dist.mode() - 0.1) * 0.7
        latents = encode_pictures(vae, PICTURES)
        decoded = decode_latents(vae, latents)
        again = vae.decode(expected / 0.7 + 0.1).sample
    assert scale_factor(vae) == 2
    assert latents.shape == (3, 4, 16, 16)
    torch.testing.assert_close(latents, expected)
    torch.testing.assert_close(decoded, again, atol=1e-5, rtol=0)


def test_statistics_of_each_channel():
    means, stds = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    vae = make_vae(latents_mean=means, latents_std=stds)
    mode = vae.encode(PICTURES).latent_dist.mode()
    expected = (mode - torch.tensor(means).view(1, 4, 1, 1)) / torch.tensor(stds).view(1, 4, 1, 1) * 0.7
    torch.testing.assert_close(encode_pictures(vae, PICTURES), expected)
    torch.testing.assert_close(decode_latents(vae, expected), vae.decode(mode).sample, atol=1e-5, rtol=0)


@pytest.mark.parametrize("force_upcast", [False, True])
def test_half_precision_goes_through_float32_where_the_autoencoder_asks_for_it(force_upcast):
    vae = make_vae(force_upcast=force_upcast).to(torch.float16)
    seen = []
    vae.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    latents = encode_pictures(vae, PICTURES)
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
            encode_pictures(vae, PICTURES)
    assert seen == [torch.float32, torch.float16]


def test_draws_from_the_posterior_are_those_of_the_rows_own_generators():
    vae = make_vae()
    posterior = vae.encode(PICTURES).latent_dist
    noise = torch.cat([torch.randn(1, *posterior.mean.shape[1:], generator=seed(row)) for row in range(len(PICTURES))])
    expected = (posterior.mean + posterior.std * noise - 0.1) * 0.7
    generators = [seed(row) for row in range(len(PICTURES))]
    drawn = encode_pictures(vae, PICTURES, sample_posterior=True, generator=generators)
    torch.testing.assert_close(drawn, expected)
    assert not torch.allclose(drawn, encode_pictures(vae, PICTURES), atol=1e-2)


def test_clips_are_encoded_frame_by_frame():
    means, stds = [0.5, -0.5, 0.0, 0.2], [2.0, 1.0, 0.5, 1.5]
    clips = torch.stack([PICTURES, PICTURES.flip(-1)], dim=2)
    for changes in ({}, {"latents_mean": means, "latents_std": stds}):
        vae = make_vae(**changes)
        encoded = encode_pictures(vae, clips)
        assert encoded.shape == (len(PICTURES), 4, 2, *(side // 2 for side in PICTURES.shape[-2:]))
        torch.testing.assert_close(encoded[:, :, 1], encode_pictures(vae, PICTURES.flip(-1)), atol=1e-5, rtol=0)
        assert decode_latents(vae, encoded).shape == clips.shape


def test_without_an_autoencoder_nothing_changes():
    assert encode_pictures(None, PICTURES) is PICTURES
    assert decode_latents(None, PICTURES) is PICTURES
    assert make_pipeline().vae_scale_factor == 1


def test_sizes_are_those_of_pictures():
    pipe = task("latent text").make()
    assert pipe.picture_sides == (16, 32)
    settings = {"num_inference_steps": 1, "output_type": "pt", "generator": seed(0)}
    assert pipe("a cat", height=16, **settings).images.shape == (1, 3, 16, 16)
    assert pipe("a cat", height=32, width=16, **settings).images.shape == (1, 3, 32, 16)
    latents = pipe("a cat", **{**settings, "generator": seed(0), "output_type": "latent"}).images
    assert latents.shape == (1, 4, 16, 16)
    with torch.no_grad():
        expected = (decode_latents(pipe.vae, latents).clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(pipe("a cat", **{**settings, "generator": seed(0)}).images, expected)
    with pytest.raises(ValueError, match=r"No level of this model draws 8 x 8 pixels .* 16, 32"):
        pipe("a cat", height=8)


def test_the_known_pyramid_is_pooled_latents():
    pipe = task("latent img2img").make()
    given = eight_bit_pictures(32)[:1]
    latents = pipe("a cat", given, strength=0, output_type="latent", output_pyramid=True).pyramid
    expected = encode_pictures(pipe.vae, given / 127.5 - 1)
    torch.testing.assert_close(latents[1], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(latents[0], torch.nn.functional.avg_pool2d(expected, 2), atol=1e-5, rtol=0)


def test_given_pixels_do_not_go_through_the_autoencoder():
    given, mask = eight_bit_pictures(32)[:1], masks(32)[:1]
    settings = {"num_inference_steps": 2, "output_type": "pt", "generator": seed(0)}
    base = task("latent text").make()
    base.set_progress_bar_config(disable=True)
    assert torch.equal(MDMImg2ImgPipeline.from_pipe(base)("a", given, strength=0, **settings).images, given / 255)
    drawn = MDMInpaintPipeline.from_pipe(base)("a", given, mask, **settings).images
    outside = ~mask.bool().expand(1, 3, 32, 32)
    assert torch.equal(drawn[outside], (given / 255)[outside])
    small = eight_bit_pictures(16)[:1]
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
