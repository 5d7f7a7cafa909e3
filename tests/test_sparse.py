"""Sparse latents: every sum over them is that of the dense latents, gradients included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchsae_lib import sparse
from patchsae_lib.sae import SAE
from patchsae_lib.sparse import SparseLatents, image_counts, sum_rows
from patchsae_lib.training import objective


def setting(seed: int, n: int, bias: float) -> tuple[SAE, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sae = SAE(8, 40, seed=seed)
    sae.b_enc.data.fill_(bias)
    sae.b_dec.data.normal_(generator=generator)
    return sae, sae.b_dec.detach() + torch.randn(n, 8, generator=generator)


def latents(*shape: int) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)) - 1).relu()


# --- sums


def test_entries_by_hand():
    f = torch.tensor([[[0.0, 2.0], [0.0, 0.0]], [[1.0, 0.0], [3.0, 4.0]]])
    active = SparseLatents.from_dense(f)
    assert (active.shape, active.d_sae) == ((2, 2), 2)
    assert active.token.tolist() == [0, 2, 3, 3]
    assert active.image.tolist() == [0, 1, 1, 1]
    assert active.latent.tolist() == [1, 0, 0, 1]
    assert active.value.tolist() == [2, 1, 3, 4]
    W_dec = torch.tensor([[1.0, 0.0, 1.0], [0.0, 10.0, 0.0]])
    assert active.decode(W_dec).tolist() == [
        [[0, 20, 0], [0, 0, 0]],
        [[1, 0, 1], [3, 40, 3]],
    ]
    assert active.per_image().tolist() == [[0, 2], [4, 4]]
    assert active.per_image(torch.ones(4)).tolist() == [[0, 1], [2, 1]]


@settings(max_examples=20, deadline=None)
@given(
    n_images=st.integers(0, 3),
    n_tokens=st.integers(1, 4),
    n_prompts=st.integers(0, 2),
    bias=st.sampled_from([-9.0, -0.5]),
)
def test_encoding_and_decoding_is_that_of_the_autoencoder(n_images, n_tokens, n_prompts, bias):
    sae, z = setting(0, n_images * (n_tokens + n_prompts), bias)
    z = z.view(n_images, n_tokens + n_prompts, 8)
    with torch.no_grad():
        active = SparseLatents.encode(sae, z, n_tokens)
        f = sae.encode(z[:, :n_tokens])
        decoded = active.decode(sae.W_dec)
        torch.testing.assert_close(decoded[:, :n_tokens] + sae.b_dec, sae.decode(f))
    assert decoded.shape == z.shape
    assert not decoded[:, n_tokens:].any()  # what is left out decodes to 0
    torch.testing.assert_close(active.per_image(), f.sum(1))
    from_dense = SparseLatents.from_dense(f, n_tokens + n_prompts)
    assert torch.equal(from_dense.token, active.token)
    assert from_dense.shape == active.shape == z.shape[:2]


def test_selected_entries_are_a_mask():
    f, W_dec = latents(3, 5, 40), torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
    active = SparseLatents.from_dense(f)
    odd = active.latent % 2 == 1
    on = active.select(odd).decode(W_dec)
    torch.testing.assert_close(on, f[:, :, 1::2] @ W_dec[1::2])
    assert torch.equal(active.select(odd.nonzero()[:, 0]).decode(W_dec), on)
    assert active.select(odd).d_sae == 40


def test_rows_are_summed_by_bag_and_an_empty_bag_is_0():
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    rows, bag = torch.tensor([0, 1, 2]), torch.tensor([0, 0, 2])
    sums = sum_rows(rows, bag, torch.tensor([2.0, 3.0, 4.0]), table, 4)
    assert sums.tolist() == [[2, 3], [0, 0], [4, 4], [0, 0]]


@pytest.mark.parametrize("limit", [0.0, 2.0], ids=["dense", "sparse"])
def test_latents_of_an_image_are_counted(limit, monkeypatch):
    monkeypatch.setattr(sparse, "SPARSE", limit)
    f = latents(3, 50, 40)
    f[:, :, 7] = 0
    cuts = torch.linspace(0.1, 0.9, 40)
    sums, active, above = image_counts(f, cuts)
    torch.testing.assert_close(sums, f.sum(1))
    assert torch.equal(active, (f > 0).sum(1).short())
    assert torch.equal(above, (f > cuts).sum(1).short())
    assert active[:, 7].tolist() == [0, 0, 0]
    assert (active > above).any()


# --- gradients


def gradients(sae, z, dead, is_sparse):
    sae.zero_grad()
    parts, _, z_hat = objective(sae, z, 0.01, dead, sparse=is_sparse)
    parts["loss"].backward()
    return parts, z_hat, [p.grad.clone() for p in sae.parameters()]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 99),
    n=st.sampled_from([1, 40, 1_024, 1_100]),  # up to two chunks of the encoder
    bias=st.sampled_from([-9.0, -1.0, -0.2, 0.0]),  # no latent at all, a few, half of them
    n_dead=st.integers(0, 3),
)
def test_sparse_and_dense_gradients_are_equal(seed, n, bias, n_dead):
    sae, z = setting(seed, n, bias)
    sae, z = sae.double(), z.double()  # ghosts divide by differences, which rounding blows up
    dead = torch.arange(n_dead) if n_dead else None
    dense, found = (gradients(sae, z, dead, is_sparse) for is_sparse in (False, True))
    for name, value in dense[0].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-6, atol=1e-9, msg=name)
    torch.testing.assert_close(found[1], dense[1])
    for gradient, expected in zip(found[2], dense[2], strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)


def test_an_objective_by_hand():
    sae = SAE(2, 3)
    sae.W_enc.data = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 2.0]])
    sae.W_dec.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    z = torch.tensor([[3.0, 0.0], [-1.0, 1.0]])
    for is_sparse in (False, True):
        parts, latents_of, z_hat = objective(sae, z, 0.1, sparse=is_sparse)
        # latents [3, 0, 0] and [0, 1, 2]
        assert z_hat.tolist() == [[3.0, 0.0], [1.0, 2.0]]
        assert latents_of.f[latents_of.f > 0].tolist() == [3, 1, 2]
        assert latents_of.fired.tolist() == [True, True, True]
        assert parts["l1"] == 3
        assert parts["reconstruction"].item() == pytest.approx((4 + 1) / 2**0.5 / 4)
        assert parts["loss"].item() == pytest.approx((4 + 1) / 2**0.5 / 4 + 0.1 * 3)


def test_latents_that_fire_are_the_same_on_both_ways():
    sae, z = setting(0, 50, -1.0)
    f = sae.encode(z).detach()
    assert not f.amax(0).all()
    for is_sparse in (False, True):
        _, found, _ = objective(sae, z, 0.01, sparse=is_sparse)
        assert torch.equal(found.fired, f.amax(0) > 0)
        assert found.f.count_nonzero() == f.count_nonzero()
        assert found.l1.item() == pytest.approx(float(f.sum(1).mean()))
