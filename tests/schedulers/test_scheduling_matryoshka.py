# SPDX-License-Identifier: Apache-2.0
"""The scheduler as diffusers' pipelines and users meet it: saving, switching classes, kinds of input, bad input."""

import copy
import importlib

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, SchedulerMixin

from diffusers_mdm.schedulers import MatryoshkaScheduler, MatryoshkaSchedulerOutput

SAMPLE = (4, 3, 8, 8)


def ready(num_steps=50, **config):
    scheduler = MatryoshkaScheduler(**config)
    scheduler.set_timesteps(num_steps)
    return scheduler


# Kinds of input


def test_public_attributes():
    scheduler = MatryoshkaScheduler()
    assert scheduler.order == 1
    assert scheduler.init_noise_sigma == 1.0
    assert scheduler.final_alpha_cumprod == 1
    assert len(scheduler) == len(scheduler.timesteps) == len(scheduler.betas) == len(scheduler.alphas) == 1000
    assert scheduler.num_inference_steps is None
    sample = torch.randn(SAMPLE)
    assert scheduler.scale_model_input(sample, 0.0) is sample


def test_config_is_read_through_config():
    scheduler = MatryoshkaScheduler()
    scheduler.register_to_config(extra=5)
    with pytest.warns(FutureWarning):
        assert scheduler.extra == 5
    with pytest.raises(AttributeError, match="'MatryoshkaScheduler' object has no attribute 'does_not_exist'"):
        scheduler.does_not_exist  # noqa: B018


@pytest.mark.parametrize("algorithm", ["ddim", "dpmsolver++"])
def test_bare_tensor_and_pyramid_of_one_level_agree(algorithm):
    bare, pyramid = ready(algorithm=algorithm), ready(algorithm=algorithm)
    sample = torch.randn(SAMPLE)
    single = [sample]
    for t in bare.timesteps[:3]:
        sample = bare.step(0.1 * sample, t, sample).prev_sample
        single = pyramid.step([0.1 * single[0]], t, single).prev_sample
    assert isinstance(sample, torch.Tensor)
    assert torch.equal(single[0], sample)


def test_output_is_a_dataclass_or_a_tuple():
    scheduler, sample = ready(), [torch.randn(2, 3, 8, 8), torch.randn(2, 3, 16, 16)]
    output = scheduler.step(sample, 500, sample)
    assert isinstance(output, MatryoshkaSchedulerOutput)
    pair = scheduler.step(sample, 500, sample, return_dict=False)
    assert isinstance(pair, tuple)
    for levels, others in zip(pair, (output.prev_sample, output.pred_original_sample), strict=True):
        assert isinstance(levels, list)
        assert all(torch.equal(level, other) for level, other in zip(levels, others, strict=True))
    assert torch.equal(output[0][1], output.prev_sample[1])


@pytest.mark.parametrize("as_type", [int, float, torch.tensor, lambda t: torch.tensor([t]), np.int64])
def test_timestep_may_be_any_kind_of_number(as_type):
    scheduler, sample = ready(), torch.randn(SAMPLE)
    t = scheduler.timesteps[3].item()
    expected = scheduler.step(sample, t, sample).prev_sample
    assert torch.equal(scheduler.step(sample, as_type(t), sample).prev_sample, expected)


def test_a_timestep_between_two_leads_to_the_lower_one():
    scheduler, sample = MatryoshkaScheduler(), torch.randn(SAMPLE)
    scheduler.set_timesteps(timesteps=[900, 300])
    between = scheduler.step(sample, 500, sample).prev_sample
    scheduler.set_timesteps(timesteps=[500, 300])
    assert torch.equal(scheduler.step(sample, 500, sample).prev_sample, between)


def test_steps_leave_their_arguments_alone():
    scheduler = ready()
    sample, output = torch.randn(SAMPLE), torch.randn(SAMPLE)
    before = sample.clone(), output.clone()
    scheduler.step(output, 500, sample, eta=0.5)
    assert torch.equal(sample, before[0])
    assert torch.equal(output, before[1])


def test_runs_on_every_device(device):
    scheduler = MatryoshkaScheduler()
    scheduler.set_timesteps(5, device=device)
    scheduler.set_begin_index(0)
    sample = [torch.randn(2, 3, 8, 8, device=device), torch.randn(2, 3, 16, 16, device=device)]
    rows = [torch.Generator(device).manual_seed(seed) for seed in (0, 1)]
    sample = scheduler.add_noise(sample, sample, scheduler.timesteps[:1])
    for t in scheduler.timesteps:
        sample = scheduler.step(sample, t, sample, eta=0.5, generator=rows).prev_sample
    assert all(level.device.type == device.type and level.isfinite().all() for level in sample)
    assert scheduler.alphas_cumprod.device.type == "cpu"


def test_copies_are_independent():
    scheduler, sample = ready(algorithm="dpmsolver++"), torch.randn(SAMPLE)
    scheduler.step(sample, scheduler.timesteps[0], sample)
    twin = copy.deepcopy(scheduler)
    results = [one.step(sample, one.timesteps[1], sample).prev_sample for one in (scheduler, twin)]
    assert torch.equal(*results)


# Saving, and changing class


CONFIGS = [
    {},
    {"shift_power": 2.0, "level_scaling": "rescale", "algorithm": "dpmsolver++", "solver_order": 1},
    {"beta_schedule": "cosine_log_snr", "log_snr_max": 9.0, "prediction_type": "epsilon", "steps_offset": 1},
    {"trained_betas": np.linspace(0.001, 0.02, 100), "thresholding": True, "sample_max_value": 1.5},
]


@pytest.mark.parametrize("config", CONFIGS)
def test_saving_keeps_every_setting(tmp_path, config):
    scheduler = MatryoshkaScheduler(**config)
    scheduler.save_pretrained(tmp_path)
    loaded = MatryoshkaScheduler.from_pretrained(tmp_path)
    saved = {key: value for key, value in scheduler.config.items() if key != "_use_default_values"}
    if isinstance(saved["trained_betas"], np.ndarray):
        saved["trained_betas"] = saved["trained_betas"].tolist()
    assert dict(loaded.config) == saved
    assert torch.equal(loaded.alphas_cumprod, scheduler.alphas_cumprod)
    assert loaded.betas.tolist() == scheduler.betas.tolist()
    for one in (scheduler, loaded):
        one.set_timesteps(20)
    sample = [torch.randn(2, 3, 8, 8), torch.randn(2, 3, 32, 32)]
    first, second = (one.step(sample, one.timesteps[2], sample).prev_sample for one in (scheduler, loaded))
    assert all(torch.equal(level, other) for level, other in zip(first, second, strict=True))


def test_base_class_is_found_in_the_module():
    module = importlib.import_module("diffusers_mdm.schedulers.scheduling_matryoshka")
    assert module.SchedulerMixin is SchedulerMixin


def test_compatible_classes():
    classes = MatryoshkaScheduler().compatibles
    assert classes[0] is MatryoshkaScheduler
    assert len(classes) == len(set(classes))
    assert set(classes[1:]) == {DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler}


@pytest.mark.parametrize("other", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, MatryoshkaScheduler])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"prediction_type": "epsilon", "beta_schedule": "linear", "shift_power": 2.0, "clip_sample": False},
        {"timestep_spacing": "leading", "base_sample_size": 16, "algorithm": "dpmsolver++"},
    ],
)
def test_there_and_back_through_another_class(other, config):
    scheduler = MatryoshkaScheduler(**config)
    there = other.from_config(scheduler.config)
    assert there.config.prediction_type == scheduler.config.prediction_type
    torch.testing.assert_close(there.alphas_cumprod, scheduler.alphas_cumprod, atol=1e-5, rtol=0)
    back = MatryoshkaScheduler.from_config(there.config)
    assert {key: back.config[key] for key in scheduler.config} == dict(scheduler.config)
    assert not set(back.config) - set(scheduler.config) & set(MatryoshkaScheduler._get_init_keys(MatryoshkaScheduler))


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        (DDIMScheduler(), {"beta_schedule": "linear", "prediction_type": "epsilon", "clip_sample": True}),
        (DDIMScheduler(rescale_betas_zero_snr=True), {"rescale_betas_zero_snr": True}),
        (DDPMScheduler(beta_schedule="scaled_linear", clip_sample_range=2.0), {"clip_sample_range": 2.0}),
        (
            DPMSolverMultistepScheduler(thresholding=True),
            {"algorithm": "dpmsolver++", "solver_order": 2, "clip_sample": False, "thresholding": True},
        ),
    ],
)
@pytest.mark.parametrize("through_file", [False, True])
def test_a_hosts_config_keeps_its_process(tmp_path, theirs, expected, through_file):
    if through_file:
        theirs.save_pretrained(tmp_path)
        ours = MatryoshkaScheduler.from_pretrained(tmp_path, base_sample_size=32)
    else:
        ours = MatryoshkaScheduler.from_config(theirs.config, base_sample_size=32)
    assert {key: ours.config[key] for key in expected} == expected
    assert ours.config.prediction_type == theirs.config.prediction_type
    assert ours.config.base_sample_size == 32
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, atol=1e-5, rtol=0)


def test_an_old_config_without_prediction_type_means_noise():
    ours = MatryoshkaScheduler.from_config({"_class_name": "DDIMScheduler", "beta_end": 0.012})
    assert (ours.config.prediction_type, ours.config.beta_schedule, ours.config.beta_end) == (
        "epsilon",
        "linear",
        0.012,
    )


def test_keys_of_another_class_are_kept_for_the_way_back():
    theirs = DDIMScheduler(set_alpha_to_one=False)
    back = DDIMScheduler.from_config(MatryoshkaScheduler.from_config(theirs.config).config)
    assert back.config.set_alpha_to_one is False


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, "learned_range"),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"}, "sigmoid"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}, "sde-dpmsolver"),
        ({"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction"}, "flow_prediction"),
    ],
)
def test_what_has_no_counterpart_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        MatryoshkaScheduler.from_config(config)


# Bad input


def test_step_before_set_timesteps():
    with pytest.raises(ValueError, match="call `set_timesteps` first"):
        MatryoshkaScheduler().step(torch.zeros(SAMPLE), 5, torch.zeros(SAMPLE))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_model_output_is_named(value):
    sample = [torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 8, 8)]
    broken = [level.clone() for level in sample]
    broken[1][1, 2, 3, 4] = value
    with pytest.raises(ValueError, match="timestep 320, level 1"):
        ready().step(broken, 320, sample)


@pytest.mark.parametrize("timestep", [-1, 1000, 2.5, torch.tensor([1, 2])])
def test_timestep_out_of_range(timestep):
    with pytest.raises(ValueError, match="timestep"):
        ready().step(torch.zeros(SAMPLE), timestep, torch.zeros(SAMPLE))


@pytest.mark.parametrize(
    ("output", "sample"),
    [
        ([torch.zeros(1, 3, 4, 4)], [torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 8, 8)]),
        (torch.zeros(1, 6, 4, 4), torch.zeros(1, 3, 4, 4)),
        ([torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 4, 4)], [torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 8, 8)]),
    ],
)
def test_output_and_sample_must_agree(output, sample):
    with pytest.raises(ValueError, match="`model_output` has levels of the shapes"):
        ready().step(output, 5, sample)


@pytest.mark.parametrize("sample", [[], [torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 4, 4)], "noise"])
def test_what_is_no_pyramid_is_refused(sample):
    with pytest.raises(ValueError, match=r"pyramid|Expected"):
        ready().step(sample, 5, sample)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_out_of_range(eta):
    with pytest.raises(ValueError, match="eta"):
        ready().step(torch.zeros(SAMPLE), 5, torch.zeros(SAMPLE), eta=eta)


@pytest.mark.parametrize("eta", [0.5, None])
def test_dpm_solver_takes_no_noise(eta):
    with pytest.raises(ValueError, match="injects no noise"):
        ready(algorithm="dpmsolver++").step(torch.zeros(SAMPLE), 50, torch.zeros(SAMPLE), eta=eta)


def test_noise_comes_from_one_source():
    noise, generator = torch.zeros(SAMPLE), torch.Generator()
    with pytest.raises(ValueError, match="not both"):
        ready().step(noise, 50, noise, eta=1.0, generator=generator, variance_noise=noise)
    with pytest.raises(ValueError, match="generators"):
        ready().step(noise, 50, noise, eta=1.0, generator=[generator] * 3)
    with pytest.raises(ValueError, match="variance_noise"):
        ready().step(noise, 50, noise, eta=1.0, variance_noise=noise[:1])
