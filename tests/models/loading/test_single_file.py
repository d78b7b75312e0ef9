# SPDX-License-Identifier: Apache-2.0
"""Which sources go to the registered reader of a model class, which to diffusers, and where their config is found."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffusers_mdm import NestedUNetModel
from diffusers_mdm.conversion.apple_mdm import convert_apple_checkpoint, read_single_file
from diffusers_mdm.models.loading import single_file

GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden" / "unet"


class OwnModel(NestedUNetModel):
    pass


@pytest.fixture
def read_files(monkeypatch):
    """The paths that the reader of the model class has read."""
    paths = []
    reader = single_file._READERS["NestedUNetModel"]

    def noting_reader(path, state_dict_key=None):
        paths.append(path)
        return reader(path, state_dict_key)

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


def test_safetensors_and_state_dicts_go_to_diffusers(tmp_path, expected, read_files):
    foreign = read_single_file(GOLDEN / "vis_model.pth")["state_dict"]
    save_file(foreign, tmp_path / "vis_model.safetensors")
    for source in (str(tmp_path / "vis_model.safetensors"), dict(foreign)):
        model = load(NestedUNetModel, source)
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert read_files == []


@pytest.fixture(scope="module")
def saved(expected, tmp_path_factory):
    """A folder that `save_pretrained` wrote, with the same weights as `.bin` beside its safetensors."""
    folder = tmp_path_factory.mktemp("saved")
    convert_apple_checkpoint(GOLDEN / "vis_model.pth").unet.save_pretrained(folder)
    torch.save(expected, folder / "diffusion_pytorch_model.bin")
    return folder


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
@pytest.mark.parametrize("is_beside", [True, False])
def test_own_weights_are_loaded_with_their_own_config(saved, expected, suffix, is_beside, tmp_path):
    file = saved / f"diffusion_pytorch_model.{suffix}"
    if is_beside:
        model = NestedUNetModel.from_single_file(file)
    else:
        shutil.copy(file, tmp_path)
        model = NestedUNetModel.from_single_file(str(tmp_path / file.name), config=saved)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_weights_without_a_config_say_which_argument_is_missing(saved, suffix, tmp_path):
    shutil.copy(saved / f"diffusion_pytorch_model.{suffix}", tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(ValueError, match=r"Pass `config=`.*config\.json of the NestedUNetModel.*`original_config=`"):
        NestedUNetModel.from_single_file(tmp_path / f"diffusion_pytorch_model.{suffix}")


def test_own_weights_that_are_incomplete_are_refused(saved, expected, tmp_path):
    incomplete = {name: tensor for name, tensor in expected.items() if name != "levels.0.decoder.conv_out.bias"}
    torch.save(incomplete, tmp_path / "weights.bin")
    with pytest.raises(ValueError, match=r"levels\.0\.decoder\.conv_out\.bias is missing"):
        NestedUNetModel.from_single_file(tmp_path / "weights.bin", config=str(saved))


def test_arguments_in_the_checkpoint_stand_for_a_config(expected):
    model = NestedUNetModel.from_single_file(GOLDEN / "vis_model.pth")
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_one_of_several_models_is_chosen(expected, tmp_path):
    foreign = read_single_file(GOLDEN / "vis_model.pth")["state_dict"]
    torch.save({"model": {name: tensor + 1 for name, tensor in foreign.items()}, "ema": foreign}, tmp_path / "f.pth")
    config = {"original_config": GOLDEN / "config.yaml"}
    with pytest.raises(ValueError, match="'model', 'ema'; choose one"):
        NestedUNetModel.from_single_file(tmp_path / "f.pth", **config)
    model = NestedUNetModel.from_single_file(tmp_path / "f.pth", state_dict_key="ema", **config)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="`state_dict_key` chooses among the models in a local"):
        NestedUNetModel.from_single_file(foreign, state_dict_key="ema", **config)


def test_hostile_yaml_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "config.yaml").write_text("unet_config: &a {inner_config: *a}")
    with pytest.raises(ValueError, match="contains itself"):
        NestedUNetModel.from_single_file(GOLDEN / "vis_model.pth", original_config=str(tmp_path / "config.yaml"))
