# SPDX-License-Identifier: Apache-2.0
"""Pipelines with weights in fewer bits, by diffusers' `PipelineQuantizationConfig`."""

import diffusers
import pytest
import torch
import transformers
from diffusers import PipelineQuantizationConfig

from diffusers_mdm import MDMPipeline
from tests.pipelines.tiny_pipeline import draw, make_pipeline

pytestmark = pytest.mark.slow  # importing torchao takes seconds
CONFIGS = ("Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig", "Float8WeightOnlyConfig")


@pytest.mark.parametrize("name", CONFIGS)
def test_quantized_pipelines_draw_and_are_saved(name, tmp_path):
    quantization = pytest.importorskip("torchao.quantization", reason="needs the extra `quantization`")
    make_pipeline().save_pretrained(tmp_path / "whole")
    config = getattr(quantization, name)()
    mapping = {"unet": diffusers.TorchAoConfig(config), "text_encoder": transformers.TorchAoConfig(config)}
    pipe = MDMPipeline.from_pretrained(
        tmp_path / "whole",
        dtype=torch.float32,
        quantization_config=PipelineQuantizationConfig(quant_mapping=mapping),
    )
    linear = next(part for part in pipe.unet.modules() if isinstance(part, torch.nn.Linear))
    assert type(linear.weight.data) is not torch.Tensor
    images = draw(pipe)
    # A few bits less are a small change of the images, but one.
    error = (images - draw(make_pipeline())).square().mean().sqrt()
    assert 0 < error < 0.1
    pipe.save_pretrained(tmp_path / "quantized")
    again = MDMPipeline.from_pretrained(tmp_path / "quantized", dtype=torch.float32)
    torch.testing.assert_close(draw(again), images, atol=1e-5, rtol=0)
