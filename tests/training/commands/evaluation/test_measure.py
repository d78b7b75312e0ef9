# SPDX-License-Identifier: Apache-2.0
"""`diffusers-mdm evaluate` from a folder of captioned images to a table, with a tiny pipeline."""

import json

import pytest
from PIL import Image

from diffusers_mdm.training.commands.evaluation.flags import build_parser, parse_arguments
from diffusers_mdm.training.commands.evaluation.measure import choose
from diffusers_mdm.training.commands.evaluation.verbs import run_verb


def run(*words):
    run_verb(parse_arguments(build_parser("Measure.", "evaluate"), [str(word) for word in words]))


@pytest.fixture(scope="module")
def drawn_dir(tmp_path_factory, images_dir, pipeline_dir):
    folder = tmp_path_factory.mktemp("evaluation") / "drawn"
    settings = ["--num_inference_steps", 2, "--batch_size", 3, "--num_captions", 4, "--seed", 1]
    run("generate", "--model_dir", pipeline_dir, "--data_dir", images_dir, *settings, "--output_dir", folder)
    return folder


@pytest.fixture(scope="module")
def reference_dir(tmp_path_factory, images_dir):
    folder = tmp_path_factory.mktemp("evaluation") / "reference"
    run("reference", "--data_dir", images_dir, "--sides", 8, 16, "--features", "--output_dir", folder)
    return folder


def test_drawings_are_scored_at_every_level(drawn_dir, reference_dir, images_dir, tmp_path, capsys):
    out = {name: tmp_path / name for name in ("scores.json", "sheet.png", "card.md")}
    files = ["--output", out["scores.json"], "--contact_sheet", out["sheet.png"], "--card_section", out["card.md"]]
    metrics = ["--metrics", "retrieval", "noise", "--data_dir", images_dir]
    run("score", "--drawings", drawn_dir, "--reference", reference_dir, *metrics, *files)
    assert capsys.readouterr().out.startswith("| | 8 px | 16 px |")
    report = json.loads(out["scores.json"].read_text(encoding="utf-8"))
    assert report["num_drawn"] == 4
    assert report["generation"]["settings"] == {"num_inference_steps": 2}
    assert report["reference"]["data"] == str(images_dir)
    assert report["levels"].keys() == {"8", "16"}
    assert 0 <= report["levels"]["16"]["retrieval_own_image"] <= 1
    assert report["levels"]["16"]["distance_to_truth"] > 0
    assert len(report["disagreement"]) == 1
    with Image.open(out["sheet.png"]) as sheet:
        assert sheet.size == (4 * 18 + 2, 2 * 18 + 4 + 2)
    assert "## Evaluation" in out["card.md"].read_text(encoding="utf-8")


def test_everything_can_be_done_in_one(pipeline_dir, images_dir, tmp_path, capsys):
    words = ["--model_dir", pipeline_dir, "--data_dir", images_dir, "--num_captions", 4, "--num_inference_steps", 1]
    run("all", *words, "--metrics", "retrieval", "noise", "--output_dir", tmp_path / "all")
    assert "| | 8 px | 16 px |" in capsys.readouterr().out
    report = json.loads((tmp_path / "all" / "scores.json").read_text(encoding="utf-8"))
    assert report["num_drawn"] == 4
    assert report["reference"]["sides"] == [8, 16]
    assert report["levels"]["16"]["distance_to_truth"] > 0


def test_what_cannot_be_measured_is_found_before_drawing(pipeline_dir, images_dir, tmp_path):
    words = ["--model_dir", pipeline_dir, "--data_dir", images_dir, "--output_dir", tmp_path / "all"]
    with pytest.raises(ValueError, match="nowhere"):
        run("all", *words, "--metrics", "cmmd", "--clip", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="'noise' needs the captions"):
        run("all", *words, "--num_images", 4, "--metrics", "noise")
    assert not (tmp_path / "all").exists()


def test_captions_come_from_one_place(pipeline_dir, images_dir, tmp_path):
    words = ["generate", "--model_dir", pipeline_dir, "--output_dir", tmp_path / "drawn"]
    with pytest.raises(ValueError, match="either --data_dir or --captions_file"):
        run(*words)
    captions = tmp_path / "captions.txt"
    captions.write_text("\n  \n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no captions; write one per line"):
        run(*words, "--captions_file", captions)
    captions.write_text("a red apple\n\nthe blue cat\n", encoding="utf-8")
    run(*words, "--captions_file", captions, "--num_inference_steps", 1, "--height", 8)
    assert sorted(path.name for path in (tmp_path / "drawn" / "8").iterdir()) == [
        "000000.png",
        "000001.png",
        "metadata.jsonl",
    ]


def test_truth_of_other_captions_is_refused(pipeline_dir, images_dir, reference_dir, tmp_path):
    captions = tmp_path / "captions.txt"
    captions.write_text("nobody wrote this\n", encoding="utf-8")
    words = ["--num_inference_steps", 1, "--height", 8, "--output_dir", tmp_path / "drawn"]
    run("generate", "--model_dir", pipeline_dir, "--captions_file", captions, *words)
    scored = ["score", "--drawings", tmp_path / "drawn", "--reference", reference_dir, "--metrics", "noise"]
    with pytest.raises(ValueError, match=r"1 captions of the generated images are not in .*'nobody wrote this'"):
        run(*scored, "--data_dir", images_dir)


def test_choices_are_drawn_from_the_seed_without_repetition():
    assert choose(5, None, 3) == [0, 1, 2, 3, 4]
    assert sorted(choose(5, 5, 3)) == [0, 1, 2, 3, 4]
    assert choose(50, 10, 3) == choose(50, 10, 3) != choose(50, 10, 4)
    with pytest.raises(ValueError, match="6 were requested, but there are 5"):
        choose(5, 6, 0)


def test_samples_for_a_card_show_seeds_levels_and_real_images(pipeline_dir, images_dir, tmp_path):
    words = ["samples", "--model_dir", pipeline_dir, "--num_inference_steps", 1, "--num_seeds", 2]
    with pytest.raises(ValueError, match="Give the captions by --prompts, --captions_file or --data_dir"):
        run(*words, "--output", tmp_path / "samples.png")
    run(*words, "--output", tmp_path / "new" / "one.png", "--prompts", "a red apple", "nobody wrote this")
    run(*words, "--output", tmp_path / "two.png", "--data_dir", images_dir, "--num_captions", 2)
    (tmp_path / "captions.txt").write_text("nobody wrote this\nnor this\n", encoding="utf-8")
    files = ["--captions_file", tmp_path / "captions.txt", "--data_dir", images_dir]
    run(*words, "--output", tmp_path / "three.png", *files)
    sizes = [Image.open(tmp_path / name).size for name in ("new/one.png", "two.png", "three.png")]
    assert sizes[1] == sizes[2] == (sizes[0][0] + 136, sizes[0][1])  # a column more, with the real images


def test_a_sheet_shows_models_above_real_images(drawn_dir, images_dir, tmp_path):
    words = ["sheet", "--drawings", drawn_dir, drawn_dir, "--num_images", 3, "--output", tmp_path / "sheet.png"]
    run(*words)
    run(*words[:-1], tmp_path / "with.png", "--data_dir", images_dir)
    sizes = [Image.open(tmp_path / name).size for name in ("sheet.png", "with.png")]
    assert sizes == [(3 * 18 + 2, 2 * 18 + 4 + 2), (3 * 18 + 2, 3 * 18 + 4 + 2)]
