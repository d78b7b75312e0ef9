# SPDX-License-Identifier: Apache-2.0
"""Uploads to a local fake of the Hub, over HTTP."""

import dataclasses
import json
import os
import shlex
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.loop.start import resume_run, start_run
from diffusers_mdm.training.recipe.recipe import LoraRecipe, PretrainedRecipe
from diffusers_mdm.training.recipe.text_encoder import TextEncoderRecipe
from diffusers_mdm.training.reports import hub as hub_module
from diffusers_mdm.training.reports.hub import final_files, prepare_repository, push_output
from diffusers_mdm.training.state.checkpoint_folders import list_checkpoints
from diffusers_mdm.training.state.run import RunOptions
from tests.pipelines.fake_hub import fake_hub
from tests.training.plain_images import plain_recipe, write_plain
from tests.training.tiny_run import tiny_recipe

TOKEN = "hf_made_up"
NOWHERE = "http://127.0.0.1:9"  # the port of a service that discards what it gets, which nothing serves


def options(output_dir, **fields) -> RunOptions:
    settings = {"report_to": None, "logging_steps": 1, "max_train_steps": 1}
    return RunOptions(output_dir=output_dir, **{**settings, "push_to_hub": True, "hub_token": TOKEN, **fields})


@contextmanager
def hub_at(endpoint):
    """Let the Hub's library, which the tests keep offline, speak to `endpoint`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "ENDPOINT", endpoint)
        patch.setenv("NO_PROXY", "127.0.0.1")
        close_session()
        yield
        close_session()


@pytest.fixture(scope="module")
def pushed(images_dir, tmp_path_factory):
    """A run that was uploaded at its end; its folder, the repositories, and the requests that made them."""
    output_dir, root, created = tmp_path_factory.mktemp("runs") / "my-model", tmp_path_factory.mktemp("hub"), []
    with fake_hub(root, token=TOKEN, created=created) as (endpoint, _), hub_at(endpoint):
        run_recipe(tiny_recipe(images_dir), options(output_dir, hub_private_repo=True, report_to="tensorboard"))
    return output_dir, root, created


@pytest.fixture
def hub(tmp_path):
    """A fake Hub; its folder, and the HTTP status that requests get whose path has a certain part."""
    (tmp_path / "hub").mkdir()
    failures = {}
    with fake_hub(tmp_path / "hub", token=TOKEN, failures=failures) as (endpoint, _), hub_at(endpoint):
        yield tmp_path / "hub", failures


@pytest.fixture
def finished(pushed, images_dir):
    """The run of `pushed` as it was before its upload, which is wanted under another name."""
    output_dir, _, _ = pushed
    run = start_run(tiny_recipe(images_dir), options(output_dir, push_to_hub=False))
    resume_run(run)
    run.options = options(output_dir, hub_model_id="someone/later")
    return run


def files_of(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_result(name: str) -> bool:
    """Whether a file in the folder of a run without LoRA is to be uploaded."""
    parts = ("unet", "text_encoder", "tokenizer", "scheduler")
    files = ("README.md", "recipe.json", "curves.png", "samples.png", "model_index.json", "pipeline.py")
    return name.split("/")[0] in parts or name in files


def test_the_result_and_nothing_else_is_uploaded(pushed):
    output_dir, root, _ = pushed
    local, uploaded = files_of(output_dir), files_of(root / "someone" / "my-model")
    assert uploaded == {name: content for name, content in local.items() if is_result(name)}
    assert {"README.md", "recipe.json", "curves.png", "samples.png", "unet/config.json"} <= set(uploaded)
    left = {name.split("/")[0] for name in set(local) - set(uploaded)}
    assert left == {"checkpoint-1", "checkpoint-2", "history.jsonl", "logs", "samples"}


@pytest.mark.slow
def test_a_result_without_text_is_uploaded_whole(hub, tmp_path):
    root, _ = hub
    run_recipe(plain_recipe(write_plain(tmp_path / "images")), options(tmp_path / "plain"))
    local, uploaded = files_of(tmp_path / "plain"), files_of(root / "someone" / "plain")
    assert uploaded == {name: content for name, content in local.items() if is_result(name)}
    assert not any(name.startswith(("text_encoder", "tokenizer")) for name in uploaded)
    assert b"unconditional-image-generation" in uploaded["README.md"]
    assert "MDMUnconditionalPipeline" in json.loads(uploaded["model_index.json"])["_class_name"]


def test_the_repository_is_private_if_wanted_and_the_card_names_it(pushed):
    _, root, created = pushed
    assert {request["name"] for request in created} == {"my-model"}
    assert all(request.get("visibility") == "private" or request.get("private") for request in created)
    assert 'from_pretrained("someone/my-model")' in (root / "someone" / "my-model" / "README.md").read_text()


def test_repositories_are_made_before_training_and_named_in_full(hub, tmp_path):
    root, _ = hub
    prepared = prepare_repository(options(tmp_path / "my-model"))
    assert prepared.hub_model_id == "someone/my-model"
    assert (root / "someone" / "my-model").is_dir()
    assert prepare_repository(prepared) == prepared


@pytest.mark.parametrize("part", ["/api/repos/create", "/auth-check/write"])
def test_a_wrong_token_is_known_before_training(hub, images_dir, tmp_path, part):
    _, failures = hub
    failures[part] = 403
    with pytest.raises(ValueError, match="hf auth login"):
        run_recipe(tiny_recipe(images_dir), options(tmp_path / "my-model"))
    failures.clear()
    with pytest.raises(ValueError, match=r"does not let this run write to 'my-model'.*401"):
        run_recipe(tiny_recipe(images_dir), options(tmp_path / "my-model", hub_token="hf_wrong"))
    assert not (tmp_path / "my-model").exists()


def test_a_name_that_the_hub_does_not_take_is_known_before_training(hub, tmp_path):
    with pytest.raises(ValueError, match="--hub_model_id"):
        prepare_repository(options(tmp_path / "my model"))


def test_a_hub_that_is_down_at_the_start_is_a_warning(hub, tmp_path, caplog):
    _, failures = hub
    failures["/api/repos/create"] = 503
    wanted = options(tmp_path / "my-model")
    assert prepare_repository(wanted) == wanted
    assert "503" in caplog.text
    assert "Training continues" in caplog.text


def test_without_the_flag_nothing_is_asked(tmp_path):
    with hub_at(NOWHERE):
        wanted = options(tmp_path / "my-model", push_to_hub=False)
        assert prepare_repository(wanted) == wanted


def test_a_hub_out_of_reach_loses_nothing(images_dir, tmp_path, caplog):
    with hub_at(NOWHERE):
        output_dir = run_recipe(tiny_recipe(images_dir), options(tmp_path / "my-model"))
    assert "The Hub cannot be reached" in caplog.text
    assert f"Nothing is lost: the result is in {output_dir}" in caplog.text
    assert len(list_checkpoints(output_dir)) == 2
    assert {"README.md", "unet/config.json"} <= set(files_of(output_dir))


@contextmanager
def silent_hub():
    """A server that takes connections and never answers; its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_hub_that_never_answers_holds_nothing_up(finished, tmp_path, caplog, monkeypatch):
    """Neither at the start nor at the end; the library alone would wait for ever."""
    monkeypatch.setattr(hub_module, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with silent_hub() as endpoint, hub_at(endpoint):
        wanted = options(tmp_path / "my-model")
        assert prepare_repository(wanted) == wanted
        assert "Training continues" in caplog.text
        assert push_output(finished) is None
    assert "Upload it later with" in caplog.text


@pytest.mark.parametrize(("part", "status"), [("/commit/", 500), ("/preupload/", 401), ("/api/repos/create", 503)])
def test_a_failed_upload_names_the_command_that_makes_up_for_it(hub, finished, caplog, monkeypatch, part, status):
    root, failures = hub
    failures[part] = status
    # The library asks again after some seconds when a server fails.
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert push_output(finished) is None
    assert str(status) in caplog.text
    assert TOKEN not in caplog.text
    failures.clear()
    command = shlex.split(caplog.text.split("Upload it later with\n")[1].splitlines()[0])
    assert command[:3] == ["hf", "upload", "someone/later"]
    assert run_hf(command[1:], root).returncode == 0
    local = files_of(finished.options.output_dir)
    assert files_of(root / "someone" / "later") == {name: local[name] for name in local if is_result(name)}


def run_hf(words: list[str], root: Path) -> subprocess.CompletedProcess:
    """Run the Hub's command against the fake that is being used."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")},
        "HF_ENDPOINT": constants.ENDPOINT,
        "HF_HOME": str(root.parent / "home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    program = Path(sys.executable).with_name("hf")
    return subprocess.run([program, *words], env=environment, capture_output=True, text=True, check=False)


def test_the_examples_of_an_upload_name_the_repository_that_was_found_late(hub, finished):
    root, _ = hub
    finished.options = dataclasses.replace(finished.options, hub_model_id="later")
    assert push_output(finished).endswith("/someone/later")
    assert 'from_pretrained("someone/later")' in (root / "someone" / "later" / "README.md").read_text()


def test_of_lora_the_weights_are_the_result(finished):
    finished.recipe = dataclasses.replace(
        finished.recipe,
        lora=LoraRecipe(rank=2),
        pretrained=PretrainedRecipe("someone/model"),
        stages=finished.recipe.stages[:1],
        text_encoder=TextEncoderRecipe(from_pipeline=True),
    )
    assert final_files(finished) == (
        "pytorch_lora_weights.safetensors", "README.md", "recipe.json", "curves.png", "samples.png",
    )  # fmt: skip
