# SPDX-License-Identifier: Apache-2.0
"""Writing leaves a complete, verified result or nothing at all."""

import pytest
import torch

from diffusers_mdm.conversion.apple_mdm import convert_apple_checkpoint
from diffusers_mdm.conversion.write_pipeline import (
    check_same_tensors,
    same_bits,
    write_checkpoint,
    write_folder,
    write_model,
)
from tests.conversion.recorded_models import checkpoint


def entries(folder) -> list[str]:
    """All that is in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def test_folder_appears_only_when_filled(tmp_path):
    def fill(folder):
        (folder / "file").write_text("x")
        assert not (tmp_path / "deep" / "out").exists()

    write_folder(tmp_path / "deep" / "out", fill)
    assert (tmp_path / "deep" / "out" / "file").read_text() == "x"
    assert entries(tmp_path) == ["deep"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_failure_leaves_nothing(tmp_path, error):
    def fail(folder):
        (folder / "file").write_text("x")
        raise error

    with pytest.raises(error):
        write_folder(tmp_path / "deep" / "out", fail)
    assert entries(tmp_path) == []


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "file.pth").write_text("x")
    with pytest.raises(ValueError, match="exists already"):
        write_folder(tmp_path / "out", lambda folder: None)
    with pytest.raises(ValueError, match="exists already"):
        write_checkpoint(tmp_path / "file.pth", {"state_dict": {}})
    assert (tmp_path / "file.pth").read_text() == "x"


def test_file_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(Exception, match=r"pickle|local object"):
        write_checkpoint(tmp_path / "file.pth", {"state_dict": {"w": lambda: None}})
    assert entries(tmp_path) == []


def test_written_checkpoint_holds_tensors_and_a_counter(tmp_path):
    write_checkpoint(tmp_path / "file.pth", {"state_dict": {"w": torch.arange(3.0)}, "batch_num": 7})
    loaded = torch.load(tmp_path / "file.pth", weights_only=True)
    assert loaded["batch_num"] == 7
    assert torch.equal(loaded["state_dict"]["w"], torch.arange(3.0))


def test_bits_are_compared():
    nan = torch.tensor([float("nan")])
    assert same_bits(nan, nan.clone())
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.zeros(2), torch.zeros(2).half())
    assert same_bits(torch.ones(2, 3).T, torch.ones(3, 2))
    with pytest.raises(ValueError, match="b is on one side only"):
        check_same_tensors({"a": nan}, {"a": nan, "b": nan})
    with pytest.raises(ValueError, match="a has changed"):
        check_same_tensors({"a": torch.zeros(1)}, {"a": torch.ones(1)})


def test_model_that_loads_differently_is_not_written(tmp_path):
    converted = convert_apple_checkpoint(checkpoint("nested_unet_attn"))

    class Loses(type(converted.unet)):
        """Forgets a tensor when it saves, as a full disk would."""

        def state_dict(self, *args, **kwargs):
            state = super().state_dict(*args, **kwargs)
            state["levels.0.encoder.conv_in.bias"] = state["levels.0.encoder.conv_in.bias"] + torch.rand(1)
            return state

    converted.unet.__class__ = Loses
    with pytest.raises(ValueError, match=r"conv_in\.bias has changed"):
        write_model(tmp_path / "out", converted.unet, converted.scheduler)
    assert entries(tmp_path) == []
