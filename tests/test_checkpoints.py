"""Autoencoders in files: what is written is read, and what is no autoencoder is refused."""

import argparse
import collections
import contextlib
import enum
import errno
import functools
import gzip
import operator
import os
import pickle
import signal
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from patchsae_lib import distributed
from patchsae_lib.interop import autoencoders, pickles
from patchsae_lib.interop.autoencoders import load_sae, read_config, save_sae
from patchsae_lib.interop.prompts import load_prompts
from patchsae_lib.sae import ACTIVATIONS, SAE

AUTHORS = Path(__file__).parent / "parity" / "authors_sae.pt"
NAN = float("nan")


def make(activation: str = "relu") -> SAE:
    sae = SAE(6, 20, activation, k=3, seed=1).eval()
    with torch.no_grad():
        sae.b_enc.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
        sae.threshold.fill_(0.3)
    return sae


Z = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_saved_sae_comes_back_as_it_was(activation: str, tmp_path: Path) -> None:
    sae = make(activation)
    save_sae(tmp_path / "new" / "sae.safetensors", sae, {"block": -2, "l1": 8e-5})
    again = load_sae(tmp_path / "new" / "sae.safetensors")
    assert (again.activation, again.d_vit, again.d_sae) == (activation, 6, 20)
    assert torch.equal(again.encode(Z), sae.encode(Z))
    assert torch.equal(again(Z), sae(Z))
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert read_config(tmp_path / "new" / "sae.safetensors") == {"block": -2, "l1": 8e-5}


def test_k_comes_back(tmp_path: Path) -> None:
    save_sae(tmp_path / "sae", make("topk"))
    assert (load_sae(tmp_path / "sae").encode(Z).count_nonzero(dim=1) == 3).all()


def test_half_precision_halves_the_file_and_reads_as_float32(tmp_path: Path) -> None:
    sae = SAE(64, 256).eval()
    save_sae(tmp_path / "full", sae)
    save_sae(tmp_path / "half", sae, half=True)
    sizes = [(tmp_path / name).stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.51 * sizes[1]
    again = load_sae(tmp_path / "half")
    assert again.W_enc.dtype == torch.float32
    torch.testing.assert_close(again.W_enc, sae.W_enc, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("value", "half"), [(NAN, False), (float("inf"), False), (1e6, True)])
def test_weights_that_are_no_numbers_are_not_saved(
    value: float, half: bool, tmp_path: Path
) -> None:
    save_sae(tmp_path / "sae", make())
    written = (tmp_path / "sae").read_bytes()
    broken = make()
    with torch.no_grad():
        broken.W_dec[4, 2] = value
    with pytest.raises(ValueError, match=r"W_dec as torch.float\d\d .* the first at \(4, 2\)"):
        save_sae(tmp_path / "sae", broken, half=half)
    assert (tmp_path / "sae").read_bytes() == written


def test_formats_are_told_apart_by_content(tmp_path: Path) -> None:
    save_sae(tmp_path / "ours.pt", make())
    (tmp_path / "theirs.safetensors").write_bytes(AUTHORS.read_bytes())
    assert load_sae(tmp_path / "ours.pt").d_sae == 20
    assert load_sae(tmp_path / "theirs.safetensors").d_sae == 384
    assert read_config(tmp_path / "theirs.safetensors")["block_layer"] == -2


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no autoencoder at .*sae: train one"):
        load_sae(tmp_path / "sae")


@pytest.mark.parametrize("length", [0, 5, 100, 1000, -1])
@pytest.mark.parametrize("which", ["ours", "theirs"])
def test_a_truncated_file_is_a_clear_error(which: str, length: int, tmp_path: Path) -> None:
    path = tmp_path / "sae"
    save_sae(path, make())
    content = path.read_bytes() if which == "ours" else AUTHORS.read_bytes()
    path.write_bytes(content[:length])
    with pytest.raises(ValueError, match=r"damaged or cut short|holds neither|is empty"):
        load_sae(path)


def test_other_files_are_clear_errors(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("hello, I am no autoencoder")
    with pytest.raises(ValueError, match="neither safetensors nor a torch checkpoint"):
        load_sae(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"not an autoencoder of ours: it holds weight"):
        load_sae(path)
    for content in ({"state_dict": {"weight": torch.zeros(2)}}, [1, 2]):
        torch.save(content, path)
        with pytest.raises(ValueError, match="without a state_dict of W_enc, b_enc, W_dec, b_dec"):
            load_sae(path)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("W_dec", torch.zeros(20, 7), r"W_dec is \(20, 7\), W_enc asks for \(20, 6\)"),
        ("W_enc", torch.zeros(6), r"W_enc must be \(d_vit, d_sae\), got \(6,\)"),
        ("b_dec", torch.full((6,), NAN), "b_dec .* NaN"),
    ],
)
def test_weights_that_do_not_fit_are_clear_errors(
    name: str, tensor: torch.Tensor, message: str, tmp_path: Path
) -> None:
    state = OrderedDict(make().state_dict()) | {name: tensor}
    torch.save({"state_dict": state}, tmp_path / "sae")
    with pytest.raises(ValueError, match=message):
        load_sae(tmp_path / "sae")


class Burglar:
    """A pickle that would run a command on being read."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


# A class named like the authors' may be anywhere; whatever it is, a stand-in takes its place.
class ViTSAERunnerConfig(Burglar):
    """A burglar in the authors' clothes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ViTSAERunnerConfig, (self.command,)


@pytest.mark.parametrize("place", ["cfg", "state_dict", "W_enc"])
def test_a_pickle_cannot_run_code(place: str, tmp_path: Path) -> None:
    loot = tmp_path / "loot"
    trap = Burglar(f"touch {loot}")
    file: dict[str, Any] = {"cfg": {}, "state_dict": dict(make().state_dict())}
    (file if place in file else file["state_dict"])[place] = trap
    torch.save(file, tmp_path / "sae")
    with pytest.raises(ValueError, match=r"no checkpoint of an SAE .*run (posix|nt)\.system"):
        load_sae(tmp_path / "sae")
    assert not loot.exists()
    torch.load(tmp_path / "sae", weights_only=False)  # the trap was set
    assert loot.exists()


class Calls:
    """A pickle of it calls a function with these arguments, on being read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __call__(self) -> None:
        """Let a pickle call what another call returns."""

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


GADGETS = {  # ways to a function that harmless types might open
    "eval": lambda code: Calls(eval, code),
    "getattr": lambda code: Calls(Calls(getattr, Calls(__import__, "builtins"), "eval"), code),
    "partial": lambda code: Calls(Calls(functools.partial, eval, code)),
    "attrgetter": lambda code: Calls(Calls(operator.attrgetter("__call__"), eval), code),
    "methodcaller": lambda code: Calls(operator.methodcaller("__call__", code), eval),
    "map": lambda code: Calls(list, Calls(map, eval, [code])),
}


@pytest.mark.parametrize("gadget", GADGETS)
@pytest.mark.parametrize("place", ["cfg", "field", "state_dict"])
def test_no_gadget_runs_code(gadget: str, place: str, tmp_path: Path) -> None:
    loot = tmp_path / "loot"
    trap = GADGETS[gadget](f"__import__('pathlib').Path({str(loot)!r}).touch()")
    file: dict[str, Any] = {"cfg": {"d_in": 6}, "state_dict": dict(make().state_dict())}
    holder = {"cfg": file, "field": file["cfg"], "state_dict": file["state_dict"]}[place]
    holder[place] = trap
    torch.save(file, tmp_path / "sae")
    with contextlib.suppress(ValueError):  # refused, or read without what it holds
        load_sae(tmp_path / "sae")
    assert not loot.exists()
    torch.load(tmp_path / "sae", weights_only=False)  # the trap was set
    assert loot.exists()


class Level(enum.Enum):
    """A member of it in a configuration is its value."""

    TOP = "topk"


class Fields(dict):
    """A dict with other attributes, as some libraries have for configurations."""


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (Path("/a/b"), "/a/b"),
        (PureWindowsPath("C:/a"), "C:\\a"),
        (argparse.Namespace(l1=1e-4), {"l1": 1e-4}),
        (SimpleNamespace(l1=[1, 2]), {"l1": [1, 2]}),
        (np.float64(1e-3), 1e-3),
        (np.int64(-3), -3),
        (np.bool_(True), True),
        (np.str_("größe"), "größe"),
        (np.dtype(">i4").type(7), 7),
        (collections.defaultdict(list, a=1), {"a": 1}),
        (collections.defaultdict(dict, a={}), {"a": {}}),
        (OrderedDict(a=1), {"a": 1}),
        (Fields(a=1), {"a": 1}),
        ({"a"}, ["a"]),
        (frozenset({2}), [2]),
        (Level.TOP, "topk"),
        (torch.device("cuda", 1), torch.device("cuda", 1)),
        (torch.bfloat16, torch.bfloat16),
        (torch.relu, "relu"),
        ((1, None, b"\xff"), (1, None, b"\xff")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_configurations_hold_is_read_as_plain_values(
    value: Any, read: Any, tmp_path: Path
) -> None:
    torch.save({"cfg": {"x": value}, "state_dict": make().state_dict()}, tmp_path / "sae")
    assert read_config(tmp_path / "sae") == {"x": read}
    assert type(read_config(tmp_path / "sae")["x"]) is type(read) or isinstance(read, dict)
    torch.save({"cfg": value, "state_dict": make().state_dict()}, tmp_path / "sae")
    if isinstance(read, dict):
        assert read_config(tmp_path / "sae") == read
    assert load_sae(tmp_path / "sae").d_sae == 20 if isinstance(read, dict) else True


def test_a_tensor_of_another_kind_is_named(tmp_path: Path) -> None:
    """A sparse one is rebuilt by a function that the unpickler does not call."""
    state = make().state_dict()
    torch.save({"state_dict": {**state, "W_enc": state["W_enc"].to_sparse()}}, tmp_path / "sae")
    with pytest.raises(ValueError, match=r"W_enc is _Value, expected floats"):
        load_sae(tmp_path / "sae")


def test_numbers_of_either_order_of_bytes() -> None:
    for order, raw in (("<", b"\7\0\0\0"), (">", b"\0\0\0\7"), ("|", b"\7\0\0\0")):
        dtype = pickles._DType("i4", False, True)
        dtype.__setstate__((3, order, None))
        assert pickles._scalar(dtype, raw) == 7


def test_a_value_that_decides_is_applied_whatever_its_type(tmp_path: Path) -> None:
    cfg = argparse.Namespace(activation_fn=Level.TOP, k=np.int64(3), d_in=np.int32(6))
    state = {name: t for name, t in make().state_dict().items() if name != "threshold"}
    torch.save({"cfg": cfg, "state_dict": state}, tmp_path / "sae")
    assert torch.equal(load_sae(tmp_path / "sae").encode(Z), make("topk").encode(Z))


# --- other files -------------------------------------------------------------------------------


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "x")


WRITERS: dict[str, Callable[[Path], object]] = {
    r"is a pointer of Git LFS, .*: run `git lfs pull`": lambda path: path.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"
    ),
    r"is a web page: download the file itself": lambda path: path.write_text(
        "\n<!doctype html><html>"
    ),
    r"is in torch's format before 1.6": lambda path: torch.save(
        {"state_dict": make().state_dict()}, path, _use_new_zipfile_serialization=False
    ),
    r"is a bare pickle": lambda path: path.write_bytes(pickle.dumps({"W_enc": 1})),
    r"is NumPy's .npz": lambda path: np.savez(path.open("wb"), W_enc=np.zeros(3)),
    r"is an array of NumPy": lambda path: np.save(path.open("wb"), np.zeros(3)),
    r"is a zip archive, not torch's": zipped,
    r"is packed with gzip": lambda path: path.write_bytes(gzip.compress(b"weights")),
    r"is empty": lambda path: path.touch(),
    r"it holds a whole model, e.g. of transformers": lambda path: save_file(
        {f"vision_model.encoder.layers.{i}.x": torch.zeros(1) for i in range(99)}, path
    ),
    r"is a pickled module, which is not run: save its state": lambda path: torch.save(
        make(), path
    ),
}


@pytest.mark.parametrize("read", [load_sae, load_prompts])
@pytest.mark.parametrize("said", WRITERS)
def test_a_file_of_another_kind_is_named(
    said: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    WRITERS[said](tmp_path / "file")
    of_prompts = "no whole checkpoint of MaPLe" if "module" in said else said
    with pytest.raises(ValueError, match=of_prompts if read is load_prompts else said) as raised:
        read(tmp_path / "file")
    message = str(raised.value).replace(str(tmp_path), "")
    assert "\n" not in message
    assert len(message) <= 250


@pytest.mark.parametrize("address", ["https://huggingface.co/a/b/sae.pt", "s3://b/sae", "", None])
def test_an_address_is_no_path(address: str | None) -> None:
    with pytest.raises((ValueError, TypeError), match=r"is no path: download the file, or give"):
        load_sae("" if address is None else address)


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_sae(tmp_path / "sae", make())
    assert load_sae("~/sae").d_sae == 20


def test_a_file_too_large_for_memory_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_sae(tmp_path / "sae", make())
    size = (tmp_path / "sae").stat().st_size
    monkeypatch.setattr(distributed, "free_memory", lambda: 2 * size - 1)
    with pytest.raises(ValueError, match=r"sae is too large: two copies of .* GB do not fit"):
        load_sae(tmp_path / "sae")
    monkeypatch.setattr(distributed, "free_memory", lambda: 2 * size)
    assert load_sae(tmp_path / "sae").d_sae == 20


def test_free_memory_is_what_the_system_and_the_container_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, limit = tmp_path / "info", tmp_path / "limit"
    info.write_text("MemTotal: 9 kB\nMemAvailable:     5 kB\n")
    rules = list(distributed.MEMORY.values())
    monkeypatch.setattr(
        distributed, "MEMORY", dict(zip(map(str, (info, limit)), rules, strict=True))
    )
    assert distributed.free_memory() == 5 * 1024
    for text, free in (("max\n", 5 * 1024), ("4096\n", 4096), ("9999999\n", 5 * 1024)):
        limit.write_text(text)
        assert distributed.free_memory() == free
    info.unlink()
    limit.unlink()
    assert distributed.free_memory() == float("inf")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"k": "true"}, "k = True"),
        ({"k": "21"}, "k = 21"),
        ({"k": "{half"}, "damaged"),
        ({"k": None}, "damaged .*'k'"),
        ({"config": "half"}, "damaged"),
        ({"activation": "jumprelu"}, r"jumprelu does not have a threshold of the shape \(\)"),
        ({"activation": "gelu"}, "activation 'gelu' is not one of"),
    ],
)
def test_metadata_of_ours_are_held_against_the_tensors(
    change: dict[str, str | None], said: str, tmp_path: Path
) -> None:
    save_sae(tmp_path / "sae", make("topk"))
    tensors = load_file(tmp_path / "sae")
    metadata = {"format": autoencoders.FORMAT, "activation": "topk", "k": "3", "config": "{}"}
    metadata = {k: v for k, v in (metadata | change).items() if v is not None}
    save_file(tensors, tmp_path / "sae", metadata)
    with pytest.raises(ValueError, match=said):
        load_sae(tmp_path / "sae")


def test_quantised_weights_of_ours_are_refused(tmp_path: Path) -> None:
    save_sae(tmp_path / "sae", make())
    tensors = {name: t.to(torch.int8) for name, t in load_file(tmp_path / "sae").items()}
    metadata = {"format": autoencoders.FORMAT, "activation": "relu", "k": "3", "config": "{}"}
    save_file(tensors, tmp_path / "sae", metadata)
    with pytest.raises(ValueError, match=r"W_enc is torch.int8, expected floats"):
        load_sae(tmp_path / "sae")


def test_a_configuration_that_tells_nothing_is_no_configuration(tmp_path: Path) -> None:
    config = ViTSAERunnerConfig("true")
    torch.save({"cfg": config, "state_dict": make().state_dict()}, tmp_path / "sae")
    with pytest.raises(ValueError, match="its configuration has no fields"):
        load_sae(tmp_path / "sae")


@pytest.mark.parametrize("key", ["cfg", "config"])
def test_their_configuration_under_either_name(key: str, tmp_path: Path) -> None:
    state = {name: getattr(make(), name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    torch.save({key: {"block_layer": -2}, "state_dict": state}, tmp_path / "sae")
    assert torch.equal(load_sae(tmp_path / "sae").encode(Z), make().encode(Z))
    assert read_config(tmp_path / "sae") == {"block_layer": -2}


def half_written(tensors: Any, path: Path, metadata: Any = None) -> None:
    """As `save_file` up to where the disk is full."""
    save_file(tensors, path, metadata)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def full(*args: Any) -> None:
    half_written(*args)
    raise OSError(errno.ENOSPC, "No space left on device")


def killed(*args: Any) -> None:
    half_written(*args)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("old", [True, False])
def test_a_full_disk_leaves_the_old_file_or_none(
    old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old:
        save_sae(tmp_path / "sae", make("topk"), {"old": 1})
    monkeypatch.setattr(autoencoders, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_sae(tmp_path / "sae", make())
    assert [path.name for path in tmp_path.iterdir()] == ["sae"] * old
    if old:
        assert read_config(tmp_path / "sae") == {"old": 1}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork, which Windows has not")
@pytest.mark.parametrize("old", [True, False])
def test_a_killed_process_leaves_the_old_file_or_none(
    old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = make()
    if old:
        save_sae(tmp_path / "sae", make("topk"), {"old": 1})
    if (child := os.fork()) == 0:
        try:
            monkeypatch.setattr(autoencoders, "save_file", killed)
            save_sae(tmp_path / "sae", sae)
        finally:
            os._exit(1)  # not reached
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert (tmp_path / "sae").exists() == old
    if old:
        assert load_sae(tmp_path / "sae").activation == "topk"
    save_sae(tmp_path / "sae", sae)  # what the killed one left is in nobody's way
    assert load_sae(tmp_path / "sae").activation == "relu"


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    sae = make()
    save_sae(tmp_path / "sae", sae)
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "sae").items()}
    expected = {"W_enc": (6, 20), "b_enc": (20,), "W_dec": (20, 6), "b_dec": (6,)}
    assert shapes == expected | {"threshold": ()}
