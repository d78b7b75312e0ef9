# SPDX-License-Identifier: Apache-2.0
"""Drawings at the same time, in several threads, are the same as one after another."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler
from peft import LoraConfig

from diffusers_mdm import MatryoshkaScheduler, MDMImg2ImgPipeline, MDMPipeline
from diffusers_mdm.pipelines.drawing.setup import Controls, RunningDrawings, scheduler_of_its_own
from tests.group_offloading import needs_group_offloading
from tests.pipelines.tiny_pipeline import draw, make_pipeline, make_scheduler, seed
from tests.pipelines.tiny_tasks import eight_bit_images

PROMPTS = ("a cat", "the very sad dog", "red", "a very long picture of the green house")
# diffusers' schedulers hand tensors to numpy in a way that it is about to give up.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
NUM_DRAWINGS, NUM_THREADS = 24, 4
# The same computation in another thread; sums may be split differently.
TOLERANCE = 1e-5


def in_threads(jobs):
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(lambda job: job(), jobs))


def jobs_of(pipes):
    """24 drawings that differ in everything that a call may ask for; the pipelines take turns."""

    def job(number):
        pipe = pipes[number % len(pipes)]
        settings = {
            "prompt": PROMPTS[number % 4],
            "num_inference_steps": 2 + number % 3,
            "guidance_scale": (1.0, 2.0, 5.0)[number % 3],
            "guidance_rescale": 0.5 * (number % 2),
            "generator": seed(number),
            "max_sequence_length": (128, 3)[number // 12],
            "height": (8, 16)[number % 5 == 0],
        }
        if isinstance(pipe, MDMImg2ImgPipeline):
            side = settings.pop("height")
            settings |= {"image": eight_bit_images(side)[:1], "strength": 0.6}
        return lambda: draw(pipe, **settings)

    return [job(number) for number in range(NUM_DRAWINGS)]


def siblings(pipe):
    """Pipelines around the same parts, the scheduler among them."""
    others = [MDMImg2ImgPipeline.from_pipe(pipe), MDMPipeline.from_pipe(pipe)]
    for other in others:
        other.set_progress_bar_config(disable=True)
    return [pipe, *others]


@pytest.mark.parametrize("algorithm", ["ddim", "dpmsolver++"])
def test_drawings_in_threads_are_those_made_alone(algorithm):
    pipe = make_pipeline()
    pipe.scheduler = make_scheduler(algorithm=algorithm)
    pipes = siblings(pipe)
    alone = [job() for job in jobs_of(pipes)]
    for got, expected in zip(in_threads(jobs_of(pipes)), alone, strict=True):
        torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, UniPCMultistepScheduler, EulerDiscreteScheduler])
def test_so_with_schedulers_of_diffusers(scheduler):
    pipe = make_pipeline()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)

    def jobs():
        return [
            lambda number=number: draw(pipe, height=8, num_inference_steps=3 + number % 2, generator=seed(number))
            for number in range(8)
        ]

    alone = [job() for job in jobs()]
    for got, expected in zip(in_threads(jobs()), alone, strict=True):
        torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


def test_strengths_of_an_adapter_do_not_mix():
    pipe = make_pipeline()
    pipe.unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False), "style")

    def jobs():
        return [
            lambda number=number: draw(
                pipe, height=8, cross_attention_kwargs={"scale": number / 4}, generator=seed(number)
            )
            for number in range(8)
        ]

    alone = [job() for job in jobs()]
    for got, expected in zip(in_threads(jobs()), alone, strict=True):
        torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


def test_a_callback_changes_its_own_drawing_alone():
    pipe, other_is_drawing, may_go_on = make_pipeline(), threading.Event(), threading.Event()
    plain = draw(pipe, num_inference_steps=3)

    def wait(pipeline, step, timestep, tensors):
        other_is_drawing.set()
        assert may_go_on.wait(60)
        assert pipeline.guidance_scale == 3.0
        assert not pipeline.interrupt

    def change(pipeline, step, timestep, tensors):
        pipeline._guidance_scale = 9.0
        pipeline._interrupt = True

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(draw, pipe, num_inference_steps=3, callback_on_step_end=wait)
        assert other_is_drawing.wait(60)
        draw(pipe, num_inference_steps=3, callback_on_step_end=change)
        may_go_on.set()
        torch.testing.assert_close(waiting.result(), plain, atol=TOLERANCE, rtol=0)


def test_a_callback_may_draw_with_the_same_pipeline():
    pipe = make_pipeline()
    plain, inside = draw(pipe, num_inference_steps=3), draw(pipe, prompt="red", generator=seed(5), guidance_scale=1.0)
    nested = []

    def sketch(pipeline, step, timestep, tensors):
        if step == 1:
            nested.append(draw(pipeline, prompt="red", generator=seed(5), guidance_scale=1.0))
            assert pipeline.guidance_scale == 3.0

    assert torch.equal(draw(pipe, num_inference_steps=3, callback_on_step_end=sketch), plain)
    assert torch.equal(nested[0], inside)


def test_another_thread_may_stop_a_drawing():
    pipe, steps, drawing, stopped = make_pipeline(), [], threading.Event(), threading.Event()

    def note(pipeline, step, timestep, tensors):
        steps.append(step)
        drawing.set()
        assert stopped.wait(60)

    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(draw, pipe, num_inference_steps=5, callback_on_step_end=note)
        assert drawing.wait(60)
        pipe._interrupt = True
        stopped.set()
        result.result()
    assert steps == [0]
    # The next drawing is not interrupted.
    draw(pipe, num_inference_steps=2, callback_on_step_end=note)
    assert steps == [0, 0, 1]


@pytest.mark.parametrize(
    "move",
    [
        pytest.param(
            lambda pipe: pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level"),
            marks=needs_group_offloading,
        ),
        lambda pipe: pipe.unet.enable_layerwise_casting(torch.bfloat16, torch.float32),
    ],
    ids=["offloaded", "cast"],
)
def test_weights_that_move_are_not_shared_between_threads(move):
    pipe, drawing, may_go_on = make_pipeline(), threading.Event(), threading.Event()
    move(pipe)

    def wait(*args):
        drawing.set()
        assert may_go_on.wait(60)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(draw, pipe, num_inference_steps=1, callback_on_step_end=wait)
        assert drawing.wait(60)
        with pytest.raises(ValueError, match=r"moves its weights during a call .* one after the other"):
            draw(pipe)
        may_go_on.set()
        first.result()
    assert torch.isfinite(draw(pipe)).all()


def test_the_first_drawing_takes_the_scheduler_and_the_next_one_a_copy():
    scheduler = make_scheduler()
    scheduler.set_timesteps(7)
    with scheduler_of_its_own(scheduler) as first, scheduler_of_its_own(scheduler) as second:
        assert first is scheduler
        assert second is not scheduler
        assert type(second) is MatryoshkaScheduler
        second.set_timesteps(3)
        assert len(first.timesteps) == 7
        assert second.alphas_cumprod is first.alphas_cumprod
    with scheduler_of_its_own(scheduler) as again:
        assert again is scheduler


def test_controls_after_a_drawing_are_those_of_the_last_one():
    running, first, second = RunningDrawings(), Controls(guidance_scale=2.0), Controls(guidance_scale=3.0)
    assert running.get("guidance_scale") == Controls().guidance_scale
    with running.one_more(first):
        with running.one_more(second):
            assert running.get("guidance_scale") == 3.0
            running.set("guidance_scale", 4.0)
        assert running.get("guidance_scale") == 2.0
    assert running.last is first
    assert second.guidance_scale == 4.0
    assert running.by_thread == {}
