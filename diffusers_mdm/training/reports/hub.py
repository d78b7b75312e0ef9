# SPDX-License-Identifier: Apache-2.0
"""Uploading the result of a run to the Hub. Failures there never affect the run."""

import contextlib
import dataclasses
import json
import logging
import shlex
from collections.abc import Iterator

from huggingface_hub import HfApi, get_session
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

from ..recipe.clip_stages import has_clips
from ..recipe.writing import FILE_NAME as RECIPE_FILE
from ..state.run import Run, RunOptions
from .markdown import one_line
from .model_card import (
    CARD_FILE,
    CURVES_FILE,
    MOVING_SAMPLES_FILE,
    SAMPLES_FILE,
    repository_name,
    write_model_card,
)

logger = logging.getLogger(__name__)

LORA_FILE = "pytorch_lora_weights.safetensors"
INDEX_FILE = "model_index.json"
# No connection, or an error response; the transfer of large files wraps its errors in a RuntimeError.
HUB_ERRORS = (OSError, HTTPError, RuntimeError, ValueError)
# Time limit in seconds for a response of the Hub, or a part of it. huggingface_hub itself has no limit.
ANSWER_SECONDS = 60.0
# Status codes after which another attempt may succeed.
_PASSING = (408, 429)


def prepare_repository(options: RunOptions) -> RunOptions:
    """Create the repository of a run before training, so that a wrong token or name is noticed early; on one process.

    Returns:
        The options with the repository's full name; unchanged without `push_to_hub`, or if the Hub cannot be reached,
        which is only a warning.

    Raises:
        ValueError: the Hub refuses the token or the name.
    """
    if not options.push_to_hub:
        return options
    try:
        repository = _open_repository(options)
    except HFValidationError as error:
        raise ValueError(f"{error} Name the repository with --hub_model_id <user>/<name>.") from error
    except HUB_ERRORS as error:
        if _is_refusal(error):
            raise ValueError(
                f"The Hub does not let this run write to {repository_name(options)!r}: {_spell(error)} Log in with "
                f"`hf auth login` (or pass --hub_token) with a token that has write access, name the repository "
                f"with --hub_model_id <user>/<name>, or omit --push_to_hub."
            ) from error
        logger.warning(
            "The Hub cannot be reached (%s). Training continues, and the upload will be tried again at the end.",
            _spell(error),
        )
        return options
    logger.info("The result will be uploaded to %s.", repository)
    return dataclasses.replace(options, hub_model_id=repository)


def push_output(run: Run) -> str | None:
    """Upload the result of the run, and nothing else from its folder, if `push_to_hub` is set; on one process.

    A failed upload is reported with the command that uploads later.

    Returns:
        The URL of the upload, or None if nothing was uploaded.
    """
    options = run.options
    if not options.push_to_hub:
        return None
    repository = repository_name(options)
    try:
        found = _open_repository(options)
        if found != repository:
            repository = found
            write_model_card(run, repository)  # the example code names the repository
        with _answers_in_time():
            commit = _api(options).upload_folder(
                repo_id=repository,
                folder_path=options.output_dir,
                allow_patterns=list(final_files(run)),
                commit_message="Upload the result of a training run",
            )
    except HUB_ERRORS as error:
        logger.error(
            "The upload to %s failed: %s\nNothing is lost: the result is in %s. Upload it later with\n  %s",
            repository,
            _spell(error),
            options.output_dir,
            upload_command(run, repository),
        )
        return None
    logger.info("Uploaded to %s.", commit.repo_url)
    return str(commit.repo_url)


def final_files(run: Run) -> tuple[str, ...]:
    """Return patterns of the files in the output folder that are the result; not of checkpoints, logs and samples."""
    around: tuple[str, ...] = (CARD_FILE, RECIPE_FILE, CURVES_FILE, SAMPLES_FILE)
    around += (MOVING_SAMPLES_FILE,) if has_clips(run.recipe) else ()
    if run.recipe.lora is not None:
        return (LORA_FILE, *around)
    index = json.loads((run.options.output_dir / INDEX_FILE).read_text(encoding="utf-8"))
    components = [name for name, entry in index.items() if isinstance(entry, list) and entry[0] is not None]
    return (INDEX_FILE, "pipeline.py", *(f"{name}/*" for name in components), *around)


def upload_command(run: Run, repository: str) -> str:
    """Return the command that uploads the result later, with the token of `hf auth login`."""
    words = ["hf", "upload", repository, str(run.options.output_dir), "."]
    words += ["--private"] if run.options.hub_private_repo else []
    for pattern in final_files(run):
        words += ["--include", pattern]
    return shlex.join(words)


def _api(options: RunOptions) -> HfApi:
    return HfApi(token=options.hub_token, library_name="diffusers-mdm")


def _open_repository(options: RunOptions) -> str:
    """Create the repository if it does not exist, make sure that it can be written, and return its full name."""
    api = _api(options)
    with _answers_in_time():
        url = api.create_repo(repository_name(options), private=options.hub_private_repo or None, exist_ok=True)
        api.auth_check(url.repo_id, write=True)
    return url.repo_id


@contextlib.contextmanager
def _answers_in_time() -> Iterator[None]:
    """Set a time limit inside the block for a Hub that accepts a connection and never responds, for all requests."""
    session = get_session()
    before = session.timeout
    session.timeout = ANSWER_SECONDS  # the session converts it to an object
    try:
        yield
    finally:
        session.timeout = before


def _is_refusal(error: Exception) -> bool:
    """Return whether the Hub was reached and refused."""
    if not isinstance(error, HfHubHTTPError):
        return False
    status = error.response.status_code
    return 400 <= status < 500 and status not in _PASSING


def _spell(error: Exception) -> str:
    """Return an error in one line."""
    return one_line(str(error)) or type(error).__name__
