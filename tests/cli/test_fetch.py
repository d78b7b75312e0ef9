# SPDX-License-Identifier: Apache-2.0
"""`diffusers-mdm fetch` with a small published-format checkpoint, from a local server and from a folder."""

import hashlib
import json
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard

from diffusers_mdm import MDMPipeline, NestedUNetModel
from diffusers_mdm.cli import fetch as command
from diffusers_mdm.cli.main import main
from diffusers_mdm.fetching.published import CHECKPOINTS, LICENCE_LINK, PublishedCheckpoint
from tests.commands.test_convert import text_encoder
from tests.conversion.recorded_models import GOLDEN
from tests.fetching.file_server import Behaviour, serving

FILE = GOLDEN / "nested_unet" / "vis_model.pth"
SHA256 = hashlib.sha256(FILE.read_bytes()).hexdigest()
TINY = PublishedCheckpoint("tiny", (16, 32), "tiny/vis_model.pth", GOLDEN / "nested_unet" / "config.yaml", "for tests")


def fetch(tmp_path, *words: object, checkpoint: PublishedCheckpoint = TINY) -> None:
    """Run the command for a checkpoint that is not in its table."""
    parser = command.build_parser("fetch")
    args = parser.parse_args(["flickr64", "--output_dir", str(tmp_path / "out"), *map(str, words)])
    args.text_encoder = None if args.without_text_encoder else args.text_encoder
    command.fetch(checkpoint, args)


def test_an_interrupted_download_becomes_a_pipeline_with_a_card(tmp_path):
    encoder = text_encoder(tmp_path / "t5", width=40)
    does = Behaviour(FILE.read_bytes(), cut_after=[1_000_000])
    with serving(does) as address:
        words = ["--mirror", address, "--text_encoder", encoder]
        with pytest.raises(OSError, match="1,000,000 bytes have arrived"):
            fetch(tmp_path, *words, "--attempts", 1)
        assert not (tmp_path / "out").exists()
        fetch(tmp_path, *words, "--sha256", SHA256, "--size", FILE.stat().st_size)
    assert does.requests == [None, "bytes=1000000-"]
    assert set(does.paths) == {"/tiny/vis_model.pth"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "t5"]
    pipeline = MDMPipeline.from_pretrained(tmp_path / "out")
    assert len(pipeline.image_sides) == 2
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.license_link) == ("other", LICENCE_LINK)
    assert SHA256 in card.text
    assert f"{address}/tiny/vis_model.pth" in card.text


def test_a_folder_is_a_mirror(tmp_path):
    (tmp_path / "mirror" / "tiny").mkdir(parents=True)
    shutil.copy(FILE, tmp_path / "mirror" / "tiny")
    words = ["--mirror", tmp_path / "mirror", "--without_text_encoder", "--level", 1, "--dtype", "bf16"]
    with pytest.raises(ValueError, match=r"expected 0000"):
        fetch(tmp_path, *words, "--sha256", "0" * 64)
    with pytest.raises(ValueError, match=r"expected 7\."):
        fetch(tmp_path, *words, "--size", 7)
    assert not (tmp_path / "out").exists()
    fetch(tmp_path, *words)
    assert NestedUNetModel.from_pretrained(tmp_path / "out", subfolder="unet").num_levels == 1
    assert "Only the inner 1 levels" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "mirror" / "tiny" / "vis_model.pth").exists()


def test_what_is_no_checkpoint_is_refused_and_a_kept_download_used_again(tmp_path):
    does = Behaviour(b"x" * 1000)
    with serving(does) as address:
        for _ in range(2):
            with pytest.raises(ValueError, match=r"checkpoint.*tiny\.pth; remove it to download it again"):
                fetch(tmp_path, "--mirror", address, "--without_text_encoder", "--download_dir", tmp_path / "kept")
    assert does.requests == [None]
    assert (tmp_path / "kept" / "tiny.pth").read_bytes() == does.content
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("flickr65",), 2, "invalid choice: 'flickr65' (choose from"),
        (("flickr64", "--timeout", "0"), 2, "expected seconds above 0"),
        (("flickr64", "--mirror", "nowhere"), 1, "nowhere/flickr64/vis_model.pth does not exist"),
        (("flickr64", "--mirror", "ftp://host"), 1, "is not an address"),
        (("flickr64", "--level", "2"), 1, "flickr64 has 1 level(s)"),
        (("flickr64", "--sha256", "abc"), 1, "64 hexadecimal digits"),
    ],
)
def test_mistakes_are_one_line(words, code, message, tmp_path, capsys):
    arguments = ["fetch", *words, "--output_dir", str(tmp_path / "out"), "--without_text_encoder"]
    try:
        found = main(arguments)
    except SystemExit as ended:
        found = ended.code
    error = capsys.readouterr().err
    assert (found, error.count("\n")) == (code, 1)
    assert message in error
    assert not list(tmp_path.iterdir())


def test_existing_output_is_kept(tmp_path, capsys):
    assert main(["fetch", "flickr64", "--output_dir", str(tmp_path), "--without_text_encoder"]) == 1
    assert "exists already" in capsys.readouterr().err


def test_configs_are_part_of_the_package():
    for one in CHECKPOINTS.values():
        assert yaml.safe_load(one.config_path.read_text(encoding="utf-8"))["sample_image_size"] == one.sides[-1]
    assert json.dumps(list(CHECKPOINTS)) == '["flickr64", "flickr256", "flickr1024"]'
