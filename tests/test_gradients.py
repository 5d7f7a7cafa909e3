"""ReLU's gradients from its active latents alone are those of the dense products."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchsae_lib import training
from patchsae_lib.profiles import SAEConfig, TrainConfig
from patchsae_lib.sae import SAE
from patchsae_lib.training import Trainer, objective, sparse_objective, train


def setting(seed: int, n: int, bias: float) -> tuple[SAE, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sae = SAE(8, 40, seed=seed)
    sae.b_enc.data.fill_(bias)
    sae.b_dec.data.normal_(generator=generator)
    return sae, sae.b_dec.detach() + torch.randn(n, 8, generator=generator)


def gradients(sae, z, function, dead):
    sae.zero_grad()
    measured, _, z_hat = function(sae, z, 0.01, dead)
    measured["loss"].backward()
    return measured, z_hat, [p.grad.clone() for p in sae.parameters()]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 99),
    n=st.integers(1, 2_100),  # more than one chunk of the encoder
    bias=st.sampled_from([-9.0, -1.0, -0.2, 0.0]),  # no latent at all, some, half of them
    n_dead=st.integers(0, 3),
)
def test_sparse_and_dense_gradients_are_equal(seed, n, bias, n_dead):
    sae, z = setting(seed, n, bias)
    sae, z = sae.double(), z.double()  # ghosts divide by differences, which rounding blows up
    dead = torch.arange(40) < n_dead if n_dead else None
    dense, sparse = (gradients(sae, z, f, dead) for f in (objective, sparse_objective))
    for name, value in dense[0].items():
        torch.testing.assert_close(sparse[0][name], value, rtol=1e-6, atol=1e-9, msg=name)
    torch.testing.assert_close(sparse[1], dense[1])
    for theirs, ours in zip(dense[2], sparse[2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_it_says_which_latents_fired_and_how_many():
    sae, z = setting(0, 50, -0.5)
    f = sae.encode(z).detach()
    measured, fired, _ = sparse_objective(sae, z, 0.01)
    assert torch.equal(fired, f.amax(0) > 0)
    assert float(measured["l0"]) == pytest.approx(float(f.count_nonzero()) / 50)
    assert measured["l1"].item() == pytest.approx(float(f.sum(1).mean()))


def test_entries_by_hand():
    sae = SAE(2, 3)
    sae.W_enc.data = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 2.0]])
    sae.W_dec.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    z = torch.tensor([[3.0, 0.0], [-1.0, 1.0]])
    _, _, z_hat = sparse_objective(sae, z, 0.0)
    # latents [3, 0, 0] and [0, 1, 2]
    assert z_hat.tolist() == [[3.0, 0.0], [1.0, 2.0]]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_ends_alike_on_both_ways(monkeypatch, precision):
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randn(256, 8, generator=generator) for _ in range(40)]
    sae = SAEConfig(expansion=16, b_enc_init=-1.0, l1=1e-3)
    config = TrainConfig(batch_tokens=256, steps=40, lr=1e-3, precision=precision, dead_after=5)
    found = []
    for limit in (0.0, 1.0):
        monkeypatch.setattr(training, "SPARSE", limit)
        found.append(train(lambda start: iter(tokens[start:]), sae, config, progress=False))
    (dense, history), (sparse, history_too) = found
    rtol = 0.02 if precision == "bfloat16" else 1e-3
    assert history_too[-1]["loss"] == pytest.approx(history[-1]["loss"], rel=rtol)
    assert history_too[-1]["l0"] == pytest.approx(history[-1]["l0"], rel=rtol)
    assert (sparse.W_dec - dense.W_dec).norm() < rtol * dense.W_dec.norm()


def test_the_way_is_chosen_by_how_many_latents_are_active(monkeypatch):
    taken = []
    for name in ("objective", "sparse_objective"):
        real = getattr(training, name)
        monkeypatch.setattr(training, name, lambda *a, f=real, n=name: (taken.append(n), f(*a))[1])
    z = torch.randn(128, 8, generator=torch.Generator().manual_seed(0))
    for activation, bias in (("relu", 0.0), ("relu", -3.0), ("topk", -3.0)):
        trainer = Trainer(SAE(8, 400, activation, 3), SAEConfig(activation), TrainConfig())
        trainer.sae.b_enc.data.fill_(bias)
        trainer.step(z)
    assert taken == ["objective", "sparse_objective", "objective"]
