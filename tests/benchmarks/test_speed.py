# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of speed run, at a size that says nothing about speed."""

import demo_speed
import forward_speed
import import_time
import pytest

from diffusers_mdm import LevelConfig, NestedUNetModel
from tests.pipelines.tiny_pipeline import make_pipeline


def test_forward(capsys):
    row = LevelConfig((32, 32), (1, 1), (0, 1), has_mid_block=True)
    model = NestedUNetModel(
        sample_size=8,
        attention_norm_num_groups=8,
        encoder_hid_dim=6,
        cross_attention_dim=6,
        **LevelConfig.columns_from([row]),
    )
    forward_speed.compare(model.eval(), forward_speed.parse_args(["--rounds", "1"]))
    said = capsys.readouterr().out
    assert said.startswith("8 px, batch 2, float32, cpu: native")
    # Both variants compute the same function.
    assert float(said.rsplit(" ", 1)[1]) < 1e-5


def test_demo(tmp_path, capsys):
    make_pipeline().save_pretrained(tmp_path)
    demo_speed.main(["--model", str(tmp_path), "--num_inference_steps", "1", "--rounds", "1"])
    assert "8 images of 8 and 16 pixels, 1 steps, cpu" in capsys.readouterr().out


@pytest.mark.slow
def test_import(capsys):
    import_time.main(["--rounds", "1"])
    assert "diffusers_mdm after them" in capsys.readouterr().out
