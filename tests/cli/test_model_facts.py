# SPDX-License-Identifier: Apache-2.0
"""Facts about folders: counted from configs and headers, equal to those of the loaded model."""

import json
import math
import shutil

import pytest

from diffusers_mdm.cli.model_facts import components, describe, file_sizes, read_facts, spell
from tests.pipelines.tiny_pipeline import make_unet
from tests.pipelines.tiny_tasks import task


def test_a_pipeline_is_counted_without_its_weights(model_dir):
    facts = read_facts(str(model_dir), batch_size=2, dtype="bfloat16")
    unet = make_unet()
    total = sum(parameter.numel() for parameter in unet.parameters())
    assert facts["parameters"] == total
    assert facts["shared_parameters"] + sum(level["parameters"] for level in facts["levels"]) == total
    assert [(level["side"], level["frames"]) for level in facts["levels"]] == [(8, 1), (16, 1)]
    assert facts["components"]["unet"]["weights"] == total
    assert facts["components"]["unet"]["dtypes"] == ["F32"]
    assert facts["bytes_on_disk"] == sum(path.stat().st_size for path in model_dir.rglob("*") if path.is_file())
    assert facts["memory"]["unet_bytes"] == 2 * total
    inner, outer = (level["log_snr"] for level in facts["levels"])
    # The schedule of a level of twice the side is shifted by log 2.
    assert inner[0] - outer[0] == pytest.approx(math.log(2), abs=0.02)
    text = describe(facts)
    assert "16 px" in text
    assert f"{total:,} parameters" in text
    assert json.loads(json.dumps(facts)) == facts


def test_folders_without_a_pipeline(model_dir, tmp_path):
    for part in ("unet", "scheduler"):
        shutil.copytree(model_dir / part, tmp_path / part)
    whole = components(str(tmp_path), {}, file_sizes(str(tmp_path)))
    assert set(whole) == {"unet", "scheduler"}
    alone = read_facts(str(model_dir / "unet"))
    assert alone["class"] is None
    assert alone["components"]["unet"]["weights"] == alone["parameters"] == whole["unet"]["weights"]
    assert alone["schedule"] is None
    assert "log_snr" not in alone["levels"][0]


def test_clips_of_classes(tmp_path):
    task("class video").make().save_pretrained(tmp_path)
    facts = read_facts(str(tmp_path))
    assert (facts["classes"], facts["text_width"]) == (4, None)
    assert [level["frames"] for level in facts["levels"]] == [1, 4, 4]
    assert "conditioned on: 4 classes" in describe(facts)
    assert "4 frames" in describe(facts)


def test_what_is_no_model_is_refused(model_dir, tmp_path):
    with pytest.raises(ValueError, match="holds no NestedUNetModel"):
        read_facts(str(tmp_path))
    shutil.copytree(model_dir, tmp_path / "other")
    (tmp_path / "other" / "unet" / "config.json").write_text('{"_class_name": "UNet2DModel"}', encoding="utf-8")
    with pytest.raises(ValueError, match="holds a UNet2DModel; expected a NestedUNetModel"):
        read_facts(str(tmp_path / "other"))
    damaged = tmp_path / "damaged"
    shutil.copytree(model_dir, damaged)
    weights = damaged / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged"):
        read_facts(str(damaged))


def test_sizes_are_spelled():
    assert (spell(3 * 2**19), spell(5 * 2**30)) == ("1.5 MiB", "5.00 GiB")
