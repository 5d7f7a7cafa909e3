"""The command that writes an autoencoder in another format."""

from pathlib import Path

import pytest
import torch

from patchsae_lib.__main__ import main
from patchsae_lib.interop.autoencoders import load_sae, read_config

AUTHORS = Path(__file__).parent / "parity" / "authors_sae.pt"
Z = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))


def test_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lens, ours = tmp_path / "lens", tmp_path / "sae.safetensors"
    assert main(["convert", str(AUTHORS), str(lens)]) == 0
    assert f"{lens}: 384 latents of width 48, relu" in capsys.readouterr().out
    assert main(["convert", str(lens), str(ours)]) == 0
    for path in (lens, ours):
        assert torch.equal(load_sae(path).encode(Z), load_sae(AUTHORS).encode(Z))
        assert torch.equal(load_sae(path)(Z), load_sae(AUTHORS)(Z))
        assert read_config(path)["l1_coefficient"] == 8e-5
        assert read_config(path)["dtype"] == "torch.float32"


def test_the_format_can_be_said(tmp_path: Path) -> None:
    assert main(["convert", str(AUTHORS), str(tmp_path / "a"), "--to", "ours"]) == 0
    assert main(["convert", str(AUTHORS), str(tmp_path / "b.safetensors"), "--to", "saelens"]) == 0
    assert (tmp_path / "a").is_file()
    assert (tmp_path / "b.safetensors" / "cfg.json").is_file()


def test_what_cannot_be_read_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(tmp_path / "none"), str(tmp_path / "a")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("no autoencoder at")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
