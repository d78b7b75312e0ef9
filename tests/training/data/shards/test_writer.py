# SPDX-License-Identifier: Apache-2.0
"""Shards that were written contain what the data set did, whole or in parts."""

import dataclasses
import io
import tarfile
from pathlib import Path

import datasets
import pytest
from PIL import Image

from diffusers_mdm.cli.training import shards
from diffusers_mdm.training.data.shards.samples import ListedSamples
from diffusers_mdm.training.data.shards.writer import ShardSource, image_file, write_shards
from diffusers_mdm.training.data.skip_budget import SkipBudget
from diffusers_mdm.training.recipe.data import DataRecipe
from tests.training.image_files import png

NUMBER = 7


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> str:
    """A parquet file of images with captions and classes; the fourth image is damaged."""
    folder = tmp_path_factory.mktemp("table")
    files = [png((index * 30, 0, 0)) if index != 3 else b"broken" for index in range(NUMBER)]
    columns = {
        "image": [{"bytes": file, "path": None} for file in files],
        "text": [f"red {index}" for index in range(NUMBER)],
        "texts": [[f"red {index}", "red"] for index in range(NUMBER)],
        "label": [index % 2 for index in range(NUMBER)],
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "texts": datasets.List(datasets.Value("string")),
            "label": datasets.ClassLabel(names=["even", "odd"]),
        }
    )
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "train.parquet")
    return str(folder)


def contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}


def test_training_reads_what_was_written(table, tmp_path, capsys):
    words = ["--dataset_name", table, "--caption_column", "text", "--label_column", "label"]
    assert shards.run("shards", [*words, "--samples_per_shard", "4", "--output_dir", str(tmp_path)]) == 0
    assert "6 samples" in capsys.readouterr().out
    names = [str(path) for path in sorted(tmp_path.iterdir())]
    read = ListedSamples(DataRecipe(shards=tuple(names), label_column="cls"), names, SkipBudget(0))
    samples = [read.read(number) for number in range(len(read))]
    assert [sample.captions for sample in samples] == [f"red {index}" for index in range(NUMBER) if index != 3]
    assert [sample.label for sample in samples] == [index % 2 for index in range(NUMBER) if index != 3]
    first = contents(tmp_path / "00000.tar")
    assert first["0000000001.txt"] == b"red 1"
    assert first["0000000001.cls"] == b"1"
    assert first["0000000001.png"] == png((30, 0, 0))
    assert "0000000003.png" not in first


def test_an_interrupted_command_continues_and_machines_share_the_work(table, tmp_path):
    source = ShardSource(table, caption_column="texts", samples_per_shard=2)
    assert write_shards(source, tmp_path / "whole") == NUMBER - 1
    parts = tmp_path / "parts"
    write_shards(dataclasses.replace(source, num_shards=2), parts)
    assert sorted(path.name for path in parts.iterdir()) == ["00000.tar", "00001.tar"]
    assert write_shards(dataclasses.replace(source, num_shards=2), parts) == 0
    write_shards(dataclasses.replace(source, first_shard=3), parts)
    write_shards(dataclasses.replace(source, first_shard=2, num_shards=1), parts)
    assert [contents(path) for path in sorted(parts.iterdir())] == [
        contents(path) for path in sorted((tmp_path / "whole").iterdir())
    ]
    assert contents(parts / "00000.tar")["0000000000.json"] == b'{"caption": ["red 0", "red"]}'


def test_large_images_are_made_smaller_and_others_kept():
    drawn = io.BytesIO()
    Image.new("RGB", (60, 40), (0, 90, 200)).save(drawn, "PNG")
    suffix, content = image_file(drawn.getvalue(), 20)
    assert suffix == "jpg"
    assert Image.open(io.BytesIO(content)).size == (30, 20)
    assert image_file(drawn.getvalue(), 40) == image_file(drawn.getvalue(), None) == ("png", drawn.getvalue())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label_column": "class"}, "no column 'class'; it has 'image'"),
        ({"max_skipped": 0}, "allows 0"),
        ({"image_column": "text"}, "does not contain the file itself"),
        ({"samples_per_shard": 0}, "samples_per_shard"),
        ({"video_column": "image", "short_side": 8}, "applies to images"),
    ],
)
def test_what_is_wrong_is_named_and_no_part_of_a_shard_is_left(table, tmp_path, changes, said):
    fields = {"max_skipped": 2, **changes}
    with pytest.raises(ValueError, match=said):
        write_shards(ShardSource(table, **fields), tmp_path)
    assert not list(tmp_path.iterdir())
