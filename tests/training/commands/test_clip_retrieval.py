# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from diffusers_mdm.training.commands.clip_retrieval import evaluate_clips, load_clip_gallery, motion
from diffusers_mdm.training.commands.retrieval import pool_to_side
from tests.pipelines.tiny_tasks import task


def test_a_model_that_draws_the_captioned_clips_scores_one():
    pipeline = task("video").make()
    captions, settings = ["a red apple", "a cat", "two dogs"], {"num_inference_steps": 2, "guidance_scale": 2.0}
    generators = [torch.Generator().manual_seed(5 + record) for record in range(len(captions))]
    drawn = pipeline(captions, generator=generators, output_type="pt", **settings).frames
    clips = pool_to_side((2 * drawn - 1).flatten(0, 1)).unflatten(0, drawn.shape[:2])
    right = evaluate_clips(pipeline, clips, captions, [2, 0], seed=5, batch_size=1, **settings)
    assert (right.num_drawn, right.clip) == (2, 1.0)
    assert right.motion == pytest.approx(1.0, abs=1e-3)
    wrong = evaluate_clips(pipeline, clips.roll(1, 0), captions, [2, 0], seed=5, **settings)
    assert wrong.clip == 0.0


def test_motion_is_the_mean_change_from_frame_to_frame():
    ramp = torch.arange(4.0).view(1, 4, 1, 1, 1).expand(1, 4, 3, 16, 16) * 0.25
    assert motion(torch.cat([ramp, torch.zeros_like(ramp)])).tolist() == [0.25, 0.0]


def test_the_gallery_has_the_clips_of_a_split(clips_dir):
    gallery, captions = load_clip_gallery(clips_dir, num_frames=4)
    assert gallery.shape == (len(captions), 4, 3, 16, 16)
    assert (gallery.min(), gallery.max()) == (-1.0, 1.0)
    assert (motion(gallery) > 0).all()
    with pytest.raises(ValueError, match="no split 'validation'"):
        load_clip_gallery(clips_dir, num_frames=4, split="validation")
    with pytest.raises(ValueError, match="8 frames, expected at least 9"):
        load_clip_gallery(clips_dir, num_frames=9)
