# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

from diffusers_mdm import MDMPipeline
from diffusers_mdm.training.commands.evaluation_command import (
    drawing_settings,
    evaluation_parser,
    open_pipeline,
    write_report,
)


def parsed(*words: str):
    parser = evaluation_parser("Measure.\nAnd more.", Path("data"), guidance_scale=2.5, batch_size=7)
    assert parser.description == "Measure."
    return parser.parse_args(["--model_dir", "model", *words])


def test_defaults_are_those_of_the_command():
    args = parsed()
    assert (args.data_dir, args.batch_size, args.seed, args.output) == (Path("data"), 7, 0, None)
    assert drawing_settings(args) == {"num_inference_steps": 25, "guidance_scale": 2.5, "height": None}


def test_the_report_has_settings_and_scores(tmp_path):
    args = parsed("--height", "16", "--seed", "3", "--output", str(tmp_path / "scores.json"))
    write_report(args, {"mean": 0.5}, num_per_class=4)
    assert json.loads((tmp_path / "scores.json").read_text()) == {
        "settings": {
            "num_inference_steps": 25,
            "guidance_scale": 2.5,
            "height": 16,
            "seed": 3,
            "num_per_class": 4,
        },
        "mean": 0.5,
    }


def test_without_an_output_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_report(parsed(), {"mean": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_the_model_is_opened_as_the_pipeline_that_is_asked_for(pipeline_dir):
    pipeline = open_pipeline(MDMPipeline, parsed("--model_dir", str(pipeline_dir), "--device", "cpu"))
    assert isinstance(pipeline, MDMPipeline)
