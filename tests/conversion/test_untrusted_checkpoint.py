# SPDX-License-Identifier: Apache-2.0
"""The reader gives what torch.load gives for honest files, and runs nothing from dishonest ones."""

import collections
import copyreg
import datetime
import enum
import os
import pathlib
import pickle
import struct
import zipfile
from typing import NamedTuple

import numpy
import pytest
import torch

from diffusers_mdm.conversion.untrusted_checkpoint import PickledObject, read_untrusted_checkpoint
from tests.conversion.recorded_models import APPLE_MODELS, GOLDEN, checkpoint


class Runs:
    """Pickles as a call of `function(*args)`."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def write_zip(path, program: bytes, records: dict[str, bytes] | None = None, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        for name, data in (records or {}).items():
            archive.writestr(f"archive/{name}", data)
    return path


def tensor_program(storage="FloatStorage", count=4, offset=0, shape=(4,), strides=(1,), key=b"0") -> bytes:
    """Pickle of {"w": tensor} with whatever the arguments claim."""

    def numbers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    storage_id = b"(X\x07\x00\x00\x00storagectorch\n" + storage.encode() + b"\n"
    storage_id += b"X\x01\x00\x00\x00" + key + b"X\x03\x00\x00\x00cpuJ" + struct.pack("<i", count) + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage_id + b"J" + struct.pack("<i", offset)
    tensor += numbers(shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}X\x01\x00\x00\x00w" + tensor + b"s."


@pytest.mark.parametrize("name", APPLE_MODELS)
def test_trainer_files_are_refused_by_torch_and_read_here(name):
    with pytest.raises(pickle.UnpicklingError):
        torch.load(checkpoint(name), weights_only=True)
    contents = read_untrusted_checkpoint(checkpoint(name))
    assert contents["args"].path == "argparse.Namespace"
    assert contents["args"].state["unet_config"].name.endswith("UNetConfig")
    assert contents["best_avg_loss"] == pytest.approx(0.9, abs=0.05)
    assert all(isinstance(tensor, torch.Tensor) for tensor in contents["state_dict"].values())


def test_tensors_are_those_that_torch_reads(tmp_path):
    base = torch.randn(4, 6)
    saved = {
        "contiguous": base,
        "transposed": base.T,
        "shares memory": base[1:3, ::2],
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "numbers": {torch.int64: torch.arange(5), "half": torch.randn(3).half(), "brain": torch.randn(3).bfloat16()},
    }
    saved["numbers"] = {str(key): value for key, value in saved["numbers"].items()}
    torch.save(saved, tmp_path / "file.pth")
    expected, found = (
        torch.load(tmp_path / "file.pth", weights_only=True),
        read_untrusted_checkpoint(tmp_path / "file.pth"),
    )
    expected.update(expected.pop("numbers"))
    found.update(found.pop("numbers"))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype
        assert torch.equal(tensor, found[name])


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_every_protocol_of_torch_save_is_read(tmp_path, protocol):
    torch.save(
        {"state_dict": {"w": torch.arange(3)}, "b": b"\x00\xff", "n": 2**40},
        tmp_path / "f.pth",
        pickle_protocol=protocol,
    )
    contents = read_untrusted_checkpoint(tmp_path / "f.pth")
    assert torch.equal(contents["state_dict"]["w"], torch.arange(3))
    assert (contents["b"], contents["n"]) == (b"\x00\xff", 2**40)


class Settings(dict):
    """A dict with attributes, as the config classes of many trainers are."""


class Names(list):
    pass


class Point(NamedTuple):
    x: int
    y: int


class Kind(enum.Enum):
    FIRST = 1


def containing_itself() -> Settings:
    settings = Settings(a=1)
    settings["itself"] = settings
    settings.owner = settings
    return settings


BESIDE_WEIGHTS = {
    "deque": (collections.deque([1, 2]), [1, 2]),
    "bounded deque": (collections.deque([1, 2], maxlen=2), [1, 2]),
    "defaultdict": (collections.defaultdict(list, a=[1]), {"a": [1]}),
    "ordered dict": (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    "counter": (collections.Counter("aab"), {"a": 2, "b": 1}),
    "tuple key": ({(1, "a"): 2}, {(1, "a"): 2}),
    "numpy scalars": ([numpy.float32(1.5), numpy.int16(-2), numpy.bool_(True)], [1.5, -2, True]),
    "complex": (torch.tensor([1 + 2j]), torch.tensor([1 + 2j])),
    "dict subclass": (Settings(a=1), ...),
    "list subclass": (Names([1, 2]), ...),
    "named tuple": (Point(1, 2), ...),
    "set": ({1, 2}, ...),
    "frozen set as a key": ({frozenset([1]): 2}, ...),
    "enum as a key": ({Kind.FIRST: 2}, ...),
    "type and dtype as keys": ({torch.float32: 1, dict: 2}, ...),
    "bytes": (bytearray(b"ab"), ...),
    "array": (numpy.arange(3), ...),
    "path": (pathlib.PurePosixPath("a/b"), ...),
    "date": (datetime.datetime(2026, 1, 31), ...),
    "float8": (torch.ones(2).to(torch.float8_e5m2), ...),
    "parameter with attributes": (torch.nn.Parameter(torch.ones(2)), ...),
    "contains itself": (containing_itself(), ...),
}
BESIDE_WEIGHTS["parameter with attributes"][0].note = "kept by torch, of no use here"


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", BESIDE_WEIGHTS)
def test_what_stands_beside_weights_does_not_hide_them(tmp_path, kind, protocol):
    value, expected = BESIDE_WEIGHTS[kind]
    torch.save({"extra": value, "state_dict": {"w": torch.ones(2)}}, tmp_path / "f.pth", pickle_protocol=protocol)
    contents = read_untrusted_checkpoint(tmp_path / "f.pth")
    assert torch.equal(contents["state_dict"]["w"], torch.ones(2))
    if isinstance(expected, torch.Tensor):
        assert torch.equal(contents["extra"], expected)
    elif expected is not ...:
        assert contents["extra"] == expected


def test_subclasses_keep_what_they_hold(tmp_path):
    settings = Settings(a=1)
    settings.depth = 2
    torch.save(Settings(settings=settings, names=Names([1, 2]), w=torch.ones(2)), tmp_path / "f.pth")
    contents = read_untrusted_checkpoint(tmp_path / "f.pth")
    assert torch.equal(contents["w"], torch.ones(2))
    assert contents["settings"].path.endswith(".Settings")
    assert (contents["settings"].entries, contents["settings"].state) == ({"a": 1}, {"depth": 2})
    assert contents["names"].items == [1, 2]


@pytest.mark.parametrize("dtype", [torch.uint16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_tensors_of_newer_types_are_read(tmp_path, dtype):
    tensor = torch.arange(6).to(dtype).reshape(2, 3).T
    torch.save({"w": tensor}, tmp_path / "f.pth")
    found = read_untrusted_checkpoint(tmp_path / "f.pth")["w"]
    assert (found.dtype, found.shape) == (dtype, tensor.shape)
    assert torch.equal(found.to(torch.float32), tensor.to(torch.float32))


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_old_and_new_module_names_mean_the_same(tmp_path, module):
    renamed = {b"cml_mdm.models.": b"cmodels.", b"cml_mdm.": b"c", b"cnumpy._core.multiarray": b"c" + module.encode()}
    with zipfile.ZipFile(checkpoint("unet")) as old, zipfile.ZipFile(tmp_path / "old.pth", "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename.endswith("data.pkl"):
                for there, here in renamed.items():
                    data = data.replace(there, here)
            new.writestr(info.filename, data)
    contents = read_untrusted_checkpoint(tmp_path / "old.pth")
    assert contents["args"].state["unet_config"].path == "models.unet.UNetConfig"
    assert isinstance(contents["best_avg_loss"], float)


# --- hostile files ---


def reduce_program(marker) -> bytes:
    return pickle.dumps({"args": Runs(os.system, f"touch {marker}")}, protocol=2)


def exec_program(marker) -> bytes:
    return pickle.dumps({"args": Runs(exec, f"open({str(marker)!r}, 'w')")}, protocol=2)


def new_object_program(marker) -> bytes:
    # NEWOBJ calls __new__ of a class: here of one whose construction opens a file.
    name = str(marker).encode()
    return (
        b"\x80\x02}X\x04\x00\x00\x00argsc_io\nFileIO\nX"
        + struct.pack("<I", len(name))
        + name
        + b"X\x01\x00\x00\x00w\x86Rs."
    )


def build_program(marker) -> bytes:
    # BUILD first gives an object a __setstate__ of the file's choice, then calls it.
    command = f"touch {marker}".encode()
    text = b"X" + struct.pack("<I", len(command)) + command
    return (
        b"\x80\x02}X\x04\x00\x00\x00argscargparse\nNamespace\n)\x81"
        b"}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb" + text + b"bs."
    )


PAYLOADS = [reduce_program, exec_program, new_object_program, build_program]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_payloads_do_not_run(tmp_path, payload):
    armed, marker = tmp_path / "armed", tmp_path / "marker"
    pickle.loads(payload(armed))  # noqa: S301  # the control: what an unpickler that calls would do
    assert armed.exists()
    contents = read_untrusted_checkpoint(write_zip(tmp_path / "evil.pth", payload(marker)))
    assert isinstance(contents["args"], PickledObject)
    assert not marker.exists()


@pytest.mark.parametrize("payload", PAYLOADS)
def test_payload_in_a_trainer_file_does_not_run(tmp_path, payload):
    marker = tmp_path / "marker"
    torch.save({"state_dict": {"w": torch.ones(2)}, "args": Runs(os.system, f"touch {marker}")}, tmp_path / "evil.pth")
    contents = read_untrusted_checkpoint(tmp_path / "evil.pth")
    assert torch.equal(contents["state_dict"]["w"], torch.ones(2))
    assert not marker.exists()


def test_records_do_not_print_what_they_hold():
    assert repr(PickledObject("os", "system", ("x" * 10_000,))) == "<inert os.system>"


def test_known_functions_cannot_be_changed(tmp_path):
    defaults = torch._utils._rebuild_tensor_v2.__defaults__
    state = b"N}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86b"
    program = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n" + state + b"s."
    with pytest.raises(ValueError, match="sets attributes"):
        read_untrusted_checkpoint(write_zip(tmp_path / "evil.pth", program))
    assert torch._utils._rebuild_tensor_v2.__defaults__ == defaults


def test_extension_codes_are_refused(tmp_path):
    copyreg.add_extension("os", "system", 77)
    try:
        with pytest.raises(ValueError, match="EXT1"):
            read_untrusted_checkpoint(write_zip(tmp_path / "evil.pth", b"\x80\x02}X\x01\x00\x00\x00a\x82\x4ds."))
    finally:
        copyreg.remove_extension("os", "system", 77)


@pytest.mark.parametrize(
    "program",
    {
        "inst": b"(X\x04\x00\x00\x00trueios\nsystem\n.",
        "obj": b"(cos\nsystem\nX\x04\x00\x00\x00trueo.",
        "text persistent id": b"Pstorage\n.",
        "list as a key": b"\x80\x02}])s.",
        "tuple of tuples as a key": b"\x80\x02})\x85)s.",
        "items of a bare name": b"\x80\x02cos\nsystem\nK\x01K\x02s.",
        "empty stack": b"\x80\x02R.",
        "unknown memo": b"\x80\x02h\x05.",
        "no end": b"\x80\x02}",
        "calls a number": b"\x80\x02K\x01)R.",
        "calls twice": b"\x80\x02cos\nsystem\n)R)R.",
        "bytes by another codec": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.",
        "appends to a dict": b"\x80\x02}K\x01a.",
        "foreign persistent id": b"\x80\x02X\x01\x00\x00\x00aQ.",
        "not a dict": b"\x80\x02K\x01.",
    }.items(),
    ids=lambda item: item[0],
)
def test_strange_pickles_are_refused(tmp_path, program):
    with pytest.raises(ValueError, match=r"cannot be read as a checkpoint|contains a int"):
        read_untrusted_checkpoint(write_zip(tmp_path / "evil.pth", program[1]))


def test_huge_memo_index_costs_nothing(tmp_path):
    contents = read_untrusted_checkpoint(write_zip(tmp_path / "f.pth", b"\x80\x02}r\xff\xff\xff\x7f."))
    assert contents == {}


def test_nested_sharing_is_not_expanded(tmp_path):
    doubling = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
    contents = read_untrusted_checkpoint(
        write_zip(tmp_path / "f.pth", b"\x80\x02}X\x01\x00\x00\x00a)" + doubling + b"s.")
    )
    assert len(contents["a"]) == 2


def test_tensor_of_a_type_that_is_not_read_is_a_record(tmp_path):
    contents = read_untrusted_checkpoint(write_zip(tmp_path / "f.pth", tensor_program(storage="QInt8Storage")))
    assert contents["w"].path == "torch.QInt8Storage"


GOOD = {"data/0": bytes(16)}


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"count": 1 << 30}, "type and size"),
        ({"shape": (5,)}, "outside its storage"),
        ({"offset": 1}, "outside its storage"),
        ({"shape": (1 << 30, 4), "strides": (0, 1)}, "outside its storage"),
        ({"shape": (-1,)}, "impossible shape"),
        ({"strides": (-1,)}, "impossible shape"),
        ({"strides": (1, 1)}, "impossible shape"),
        ({"storage": "LongStorage"}, "type and size"),
        ({"key": b"1"}, "missing"),
    ],
)
def test_tensors_cannot_leave_their_storage(tmp_path, claim, message):
    assert torch.equal(
        read_untrusted_checkpoint(write_zip(tmp_path / "good.pth", tensor_program(), GOOD))["w"], torch.zeros(4)
    )
    with pytest.raises(ValueError, match=message):
        read_untrusted_checkpoint(write_zip(tmp_path / "evil.pth", tensor_program(**claim), GOOD))


def test_records_that_inflate_are_refused(tmp_path):
    bomb = write_zip(tmp_path / "f.pth", tensor_program(), {"data/0": bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="larger than the file"):
        read_untrusted_checkpoint(bomb)


def test_big_endian_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="big-endian"):
        read_untrusted_checkpoint(write_zip(tmp_path / "f.pth", tensor_program(), {**GOOD, "byteorder": b"big"}))


# --- damaged files, and files that are something else ---


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.9, 0.999])
def test_truncated_file(tmp_path, kept):
    whole = checkpoint("nested_unet_attn").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match="truncated"):
        read_untrusted_checkpoint(tmp_path / "cut.pth")


def test_flipped_bits_are_noticed(tmp_path):
    data = bytearray(checkpoint("nested_unet_attn").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "flipped.pth").write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged.*CRC"):
        read_untrusted_checkpoint(tmp_path / "flipped.pth")


def test_files_that_are_something_else(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "legacy", _use_new_zipfile_serialization=False)
    (tmp_path / "text").write_text("model: unet\n")
    (tmp_path / "pointer").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    for name, message in {
        "legacy": "1.6",
        "text": "not a checkpoint",
        "pointer": "LFS",
        "zip": "not one that",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_untrusted_checkpoint(tmp_path / name)
    with pytest.raises(ValueError, match="not a checkpoint"):
        read_untrusted_checkpoint(GOLDEN / "unet" / "io.safetensors")
    with pytest.raises(FileNotFoundError):
        read_untrusted_checkpoint(tmp_path / "nothing")
