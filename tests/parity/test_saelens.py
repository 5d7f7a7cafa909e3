"""Our SAEs against the real sae-lens and sparsify, in an environment of their own.

uv venv peers && uv pip install --python peers/bin/python sae-lens eai-sparsify
PATCHSAE_PEERS=peers/bin/python python -m pytest tests/parity/test_saelens.py
"""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from patchsae_lib.interop.autoencoders import load_sae
from patchsae_lib.interop.saelens import write_saelens
from patchsae_lib.sae import ACTIVATIONS, SAE

PEERS = os.environ.get("PATCHSAE_PEERS")
pytestmark = pytest.mark.skipif(
    not PEERS,
    reason="set PATCHSAE_PEERS to a Python that has sae-lens and eai-sparsify: "
    "uv venv peers && uv pip install --python peers/bin/python sae-lens eai-sparsify",
)
NO_GPU = os.environ | {"SPARSIFY_DISABLE_TRITON": "1", "CUDA_VISIBLE_DEVICES": ""}
Z = torch.randn(50, 24, generator=torch.Generator().manual_seed(0))


def run(which: str, folder: Path) -> None:
    save_file({"z": Z}, folder / "z.safetensors")
    script = Path(__file__).with_name("peers.py")
    done = subprocess.run(
        [PEERS, script, which, folder], capture_output=True, text=True, env=NO_GPU
    )
    assert done.returncode == 0, done.stderr


def same(sae: SAE, folder: Path) -> None:
    theirs = load_file(f"{folder}.outputs")
    f = sae.encode(Z)
    assert 0 < f.count_nonzero() < f.numel()
    assert torch.equal(f > 0, theirs["f"] > 0)
    for mine, other in ((f, theirs["f"]), (sae.decode(f), theirs["z_hat"])):
        assert mine.shape == other.shape
        error = (mine - other).abs().max().item()
        print(f"{folder.parent.name}/{folder.name}: {error:.1e}")  # shown by pytest -s
        assert error < 1e-5


@pytest.fixture(scope="module")
def saelens(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saelens")
    for activation in ACTIVATIONS:
        write_saelens(folder / "ours" / activation, ours(activation), {"block": -2})
    run("saelens", folder)
    return folder


def ours(activation: str) -> SAE:
    sae = SAE(24, 96, activation, k=5, seed=2).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for name in ("b_enc", "b_dec"):
        getattr(sae, name).normal_(0, 0.2, generator=generator)
    sae.threshold.fill_(0.4)
    return sae


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_they_read_what_we_write(activation: str, saelens: Path) -> None:
    same(ours(activation), saelens / "ours" / activation)


@pytest.mark.parametrize(
    "name",
    [
        "standard",
        "standard-no-b_dec",
        "topk",
        "topk-rescale",
        "jumprelu",
        "batchtopk",
        "scaled",
    ],
)
def test_we_read_what_they_write(name: str, saelens: Path) -> None:
    same(load_sae(saelens / "theirs" / name), saelens / "theirs" / name)


@pytest.fixture(scope="module")
def sparsify(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sparsify")
    run("sparsify", folder)
    return folder


@pytest.mark.parametrize("name", ["topk", "multi-topk"])
def test_we_read_what_sparsify_writes(name: str, sparsify: Path) -> None:
    same(load_sae(sparsify / "theirs" / name), sparsify / "theirs" / name)
