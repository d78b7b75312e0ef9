# SPDX-License-Identifier: Apache-2.0
"""Which sources go to the registered reader of a model class, and which to the host."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffusers_mdm import NestedUNetModel
from diffusers_mdm.conversion.apple_mdm import convert_apple_checkpoint, read_single_file
from diffusers_mdm.models import single_file

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden" / "unet"


class OwnModel(NestedUNetModel):
    pass


@pytest.fixture
def read_files(monkeypatch):
    """The paths that the reader of the model class has read."""
    paths = []
    reader = single_file._READERS["NestedUNetModel"]

    def noting_reader(path):
        paths.append(path)
        return reader(path)

    monkeypatch.setitem(single_file._READERS, "NestedUNetModel", noting_reader)
    return paths


@pytest.fixture(scope="module")
def expected():
    return convert_apple_checkpoint(GOLDEN / "vis_model.pth", GOLDEN / "config.yaml").unet.state_dict()


def load(model_class, source):
    return model_class.from_single_file(source, original_config=str(GOLDEN / "config.yaml"))


@pytest.mark.parametrize("model_class", [NestedUNetModel, OwnModel])
@pytest.mark.parametrize("kind", [str, Path])
def test_local_file_goes_to_the_reader(model_class, kind, expected, read_files):
    model = load(model_class, kind(GOLDEN / "vis_model.pth"))
    assert read_files == [GOLDEN / "vis_model.pth"]
    assert type(model) is model_class
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_safetensors_and_state_dicts_go_to_the_host(tmp_path, expected, read_files):
    foreign = read_single_file(GOLDEN / "vis_model.pth")["state_dict"]
    save_file(foreign, tmp_path / "vis_model.safetensors")
    for source in (str(tmp_path / "vis_model.safetensors"), dict(foreign)):
        model = load(NestedUNetModel, source)
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert read_files == []
