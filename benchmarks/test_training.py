"""A training step of the autoencoder against other libraries, and against its matrix products.

The others are run by `peers.py`, each in a process of its own, by the interpreter that
PATCHSAE_PEERS names (`make bench` makes that environment). Of a step's time the five matrix
products that ReLU and L1 ask for cannot be saved, unless latents are sparse: they are the limit.
"""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from report import against

from patchsae_lib.distributed import resolve_precision
from patchsae_lib.profiles import SAEConfig, TrainConfig
from patchsae_lib.sae import SAE
from patchsae_lib.training import Trainer

D_VIT, N_TOKENS = 768, 4096
WIDTHS = (24_576, 49_152)
PEERS = ("sae_lens", "sae_lens_autocast", "overcomplete", "dictionary_learning")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDS = dict(rounds=3 if DEVICE.type == "cpu" else 50, warmup_rounds=1)


def title(d_sae):
    return f"training step, 768 → {d_sae:,}, ReLU + L1, 4,096 tokens"


@pytest.mark.parametrize("d_sae", WIDTHS)
@pytest.mark.parametrize("library", PEERS)
def test_peer(benchmark, library, d_sae):
    interpreter = os.environ.get("PATCHSAE_PEERS")
    if not interpreter or not Path(interpreter).exists():
        pytest.skip("no environment with the other libraries: make bench makes it")
    command = [interpreter, str(Path(__file__).with_name("peers.py")), library, str(d_sae)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-3, text=True) as peer:

        def step():
            print("step", file=peer.stdin, flush=True)
            assert peer.stdout.readline() == "done\n", f"{library} failed: try {command}"

        against(benchmark, title(d_sae), library.replace("_", " "), count=N_TOKENS, unit="tokens")
        benchmark.pedantic(step, **ROUNDS)
        peer.stdin.close()


def finish():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


@pytest.mark.parametrize("d_sae", WIDTHS)
@pytest.mark.parametrize("l0", [150, 0], ids=["trained", "new"])  # 0: about half of d_sae
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ours(benchmark, dtype, l0, d_sae):
    if dtype == "bfloat16" and resolve_precision("auto", DEVICE) != dtype:
        pytest.skip("no hardware for bfloat16")
    sae = SAE(D_VIT, d_sae).to(DEVICE)
    trainer = Trainer(sae, SAEConfig(), TrainConfig(precision=dtype, batch_tokens=N_TOKENS))
    z = torch.randn(N_TOKENS, D_VIT, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    trainer.start(z)
    if l0:
        with torch.no_grad():
            pre = sae.pre_activations(z[:64]).flatten()
            sae.b_enc.sub_(pre.kthvalue(round(pre.numel() * (1 - l0 / d_sae))).values)
    setting = f"ours, {dtype}, {l0 or 'half the'} latents active"

    def step():
        trainer.step(z)
        finish()

    against(benchmark, title(d_sae), setting, count=N_TOKENS, unit="tokens")
    benchmark.pedantic(step, **ROUNDS)


@pytest.mark.parametrize("d_sae", WIDTHS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matrix_products(benchmark, dtype, d_sae):
    kind = getattr(torch, dtype)
    z, f = torch.randn(N_TOKENS, D_VIT), torch.randn(N_TOKENS, d_sae)
    z, f, w = (x.to(DEVICE, kind) for x in (z, f, torch.randn(D_VIT, d_sae)))

    def products():
        for _ in range(2):  # f and its gradient
            z @ w
        f @ w.T  # ẑ
        for _ in range(2):  # the gradients of W_enc and W_dec
            z.T @ f
        finish()

    against(
        benchmark, title(d_sae), f"five matrix products, {dtype}", count=N_TOKENS, unit="tokens"
    )
    benchmark.pedantic(products, **ROUNDS)
