"""Autoencoders in files: what is written is read, and what is no autoencoder is refused."""

import errno
import os
import signal
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from patchsae_lib.interop import autoencoders
from patchsae_lib.interop.autoencoders import load_sae, read_config, save_sae
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
    with pytest.raises(ValueError, match=r"damaged or cut short|holds neither"):
        load_sae(path)


def test_other_files_are_clear_errors(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("hello, I am no autoencoder")
    with pytest.raises(ValueError, match="neither safetensors nor a torch checkpoint"):
        load_sae(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"not an autoencoder of ours: .* with weight"):
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
