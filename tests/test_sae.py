"""The autoencoder: values by hand, and what must hold for every input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from torch import Tensor

from patchsae_lib.sae import (
    ACTIVATIONS,
    SAE,
    batchtopk,
    explained_variance,
    geometric_median,
    ghost_loss,
    initial_b_dec,
    l0,
    l1_loss,
    nested_loss,
    reconstruction_loss,
    relu,
    require_finite,
    require_tokens,
    topk,
)

D_VIT, D_SAE = 6, 20
NAN, INF = float("nan"), float("inf")
# no deadline: torch imports some of itself late, in whichever test is first
relaxed = settings(deadline=None, max_examples=30)


def matrices(low: int = -4, high: int = 4) -> st.SearchStrategy[Tensor]:
    """Small whole numbers: ties and zeros are frequent."""
    shapes = stn.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8)
    elements = st.integers(low, high).map(float)
    return shapes.flatmap(lambda s: stn.arrays("float32", s, elements=elements)).map(torch.tensor)


def make(activation: str = "relu", seed: int = 0) -> SAE:
    """An SAE with every parameter away from 0, and a threshold that drops some latents."""
    sae = SAE(D_VIT, D_SAE, activation, k=3, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for bias in (sae.b_enc, sae.b_dec):
            bias.copy_(torch.randn(bias.shape, generator=generator))
        sae.threshold.fill_(0.4)
    return sae


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, D_VIT, generator=torch.Generator().manual_seed(seed))


# --- activations


@relaxed
@given(matrices(), st.integers(1, 8))
def test_topk_keeps_the_k_largest_of_each_token(pre: Tensor, k: int) -> None:
    k = min(k, pre.shape[1])
    f = topk(pre, k)
    expected = pre.relu().sort(descending=True).values[:, :k]
    assert torch.equal(f.sort(descending=True).values[:, :k], expected)
    assert (f.count_nonzero(dim=1) <= k).all()
    assert ((f == pre) | (f == 0)).all()


@relaxed
@given(matrices(), st.integers(1, 8))
def test_batchtopk_keeps_at_most_k_a_token_and_none_below_a_dropped_one(
    pre: Tensor, k: int
) -> None:
    f = batchtopk(pre, k)
    n_kept, n_positive = int(f.count_nonzero()), int((pre > 0).sum())
    assert n_kept <= k * len(pre)
    assert ((f == pre) | (f == 0)).all()
    dropped = pre[(f == 0) & (pre > 0)]
    if n_positive <= k * len(pre):
        assert len(dropped) == 0
    else:
        assert (f[f > 0] > dropped.max()).all()
        assert n_kept + (dropped == dropped.max()).sum() > k * len(pre)  # no room for its equals


@pytest.mark.parametrize("misled", [False, True])
def test_batchtopk_of_many_tokens_is_exact_whatever_its_sample_says(misled: bool) -> None:
    pre = torch.randn(300, 400, generator=torch.Generator().manual_seed(0))
    if misled:  # the sample sees nothing but the largest
        pre.view(-1)[::61] += 10
    cut = pre.flatten().sort(descending=True).values[300 * 20 - 1]
    assert torch.equal(batchtopk(pre, 20), pre * (pre >= cut))


def test_batchtopk_gives_a_token_what_another_does_not_need() -> None:
    f = batchtopk(torch.tensor([[4.0, 3.0, 2.0], [1.0, -1.0, -1.0]]), 1)
    assert f.tolist() == [[4, 3, 0], [0, 0, 0]]


@pytest.mark.parametrize("activation", ACTIVATIONS.values())
@relaxed
@given(pre=matrices())
def test_activations_are_relu_of_what_they_keep(activation, pre: Tensor) -> None:  # type: ignore[no-untyped-def]
    f = activation(pre, 1)
    assert f.shape == pre.shape
    assert (f >= 0).all()
    assert torch.equal(activation(-pre.abs(), 1), torch.zeros_like(pre))
    assert torch.equal(activation(pre, pre.shape[1]), relu(pre))


@pytest.mark.parametrize("activation", ACTIVATIONS.values())
def test_gradient_reaches_active_latents_only(activation) -> None:  # type: ignore[no-untyped-def]
    pre = torch.tensor([[3.0, 1.0, 2.0], [-1.0, -2.0, 4.0]], requires_grad=True)
    f = activation(pre, 1)
    f.sum().backward()
    assert pre.grad is not None
    assert torch.equal(pre.grad, (f > 0).float())


# --- the autoencoder


def test_encode_and_decode_by_hand() -> None:
    sae = SAE(2, 3).eval()
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, -1.0]]))
        sae.b_enc.copy_(torch.tensor([0.0, 0.5, 0.0]))
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]))
        sae.b_dec.copy_(torch.tensor([1.0, 1.0]))
    f = sae.encode(torch.tensor([3.0, 2.0]))  # z - b_dec = (2, 1)
    assert f.tolist() == [2.0, 1.5, 1.0]
    assert sae.decode(f).tolist() == [2 + 3 + 1, 3 + 3 + 1]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@relaxed
@given(order=st.permutations(range(5)), seed=st.integers(0, 5))
def test_permuting_tokens_permutes_latents(activation: str, order: list[int], seed: int) -> None:
    z = tokens(5, seed=seed)
    for sae in (make(activation), make(activation).eval()):
        torch.testing.assert_close(sae.encode(z[order]), sae.encode(z)[order])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_trained_sae_encodes_a_token_whatever_its_batch(activation: str) -> None:
    sae, z = make(activation).eval(), tokens(3, 4)
    assert (sae.encode(z) > 0).any()
    torch.testing.assert_close(sae.encode(z)[1, 2], sae.encode(z[1, 2]))


def test_in_training_batchtopk_does_depend_on_the_batch() -> None:
    sae, z = make("batchtopk"), tokens(30)
    assert not torch.equal(sae.encode(z)[0] > 0, sae.encode(z[:1])[0] > 0)


def test_gradients_are_those_of_the_formula() -> None:
    """b_dec's takes another path through `pre_activations`; it must not show."""
    sae, z = make(), tokens(7)
    (sae.encode(z).pow(2).sum() + sae(z).pow(3).sum()).backward()
    W_enc, b_enc, W_dec, b_dec = (p.detach().clone().requires_grad_() for p in sae.parameters())
    f = ((z - b_dec) @ W_enc + b_enc).relu()
    (f.pow(2).sum() + (f @ W_dec + b_dec).pow(3).sum()).backward()
    plain = W_enc, b_enc, W_dec, b_dec
    for parameter, expected in zip(sae.parameters(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-4, atol=1e-4)


def test_weights_come_from_the_seed_alone() -> None:
    state = torch.get_rng_state()
    first, again, second = SAE(4, 8, seed=1), SAE(4, 8, seed=1), SAE(4, 8, seed=2)
    assert torch.equal(first.W_enc, again.W_enc)
    assert not torch.equal(first.W_enc, second.W_enc)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(first.W_dec.norm(dim=1), torch.ones(8))


def test_parallel_gradient_is_removed_and_nothing_else() -> None:
    sae = make()
    gradient = torch.randn(D_SAE, D_VIT, generator=torch.Generator().manual_seed(0))
    sae.W_dec.grad = gradient.clone()
    sae.remove_parallel_gradient()
    removed = gradient - sae.W_dec.grad
    torch.testing.assert_close(
        (sae.W_dec.grad * sae.W_dec).sum(dim=1), torch.zeros(D_SAE), atol=1e-6, rtol=0
    )
    along = (removed * sae.W_dec).sum(dim=1, keepdim=True) * sae.W_dec
    torch.testing.assert_close(removed, along)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@relaxed
@given(scale=st.floats(1e-2, 1e3), seed=st.integers(0, 5))
def test_fold_keeps_latents_and_scales_the_reconstruction(
    activation: str, scale: float, seed: int
) -> None:
    sae, z = make(activation).eval(), tokens(4, seed=seed)
    folded = sae.fold(scale)
    torch.testing.assert_close(folded.encode(z * scale), sae.encode(z), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(folded(z * scale), sae(z) * scale, rtol=1e-4, atol=1e-5 * scale)
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.full((D_SAE,), scale))
    torch.testing.assert_close(
        sae.W_dec.norm(dim=1), torch.ones(D_SAE)
    )  # the old one is left alone


def test_threshold_starts_at_the_first_batch_and_then_follows_slowly() -> None:
    sae = SAE(D_VIT, D_SAE, "batchtopk", k=3)
    sae.learn_threshold(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
    assert sae.threshold == 2
    sae.learn_threshold(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    assert sae.threshold == pytest.approx(1.95)
    sae.learn_threshold(torch.zeros(2, 2))  # nothing active, nothing learnt
    assert sae.threshold == pytest.approx(1.95)


def test_wrong_settings_and_inputs_are_clear_errors() -> None:
    with pytest.raises(ValueError, match="'gelu' is not one of relu, topk, batchtopk"):
        SAE(4, 8, "gelu")
    with pytest.raises(ValueError, match=r"k = 9 .* d_sae = 8"):
        SAE(4, 8, "topk", k=9)
    with pytest.raises(ValueError, match=r"reads tokens \(…, 6\)"):
        make().encode(torch.zeros(3, 7))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_nan_and_infinity_are_errors_not_latents(value: float) -> None:
    z = tokens(2, 3)
    z[1, 2, 4] = value
    with pytest.raises(ValueError, match=r"1 values are NaN .* the first at \(1, 2, 4\)"):
        make().encode(z)


def test_a_sum_that_overflows_is_no_error() -> None:
    require_finite(torch.full((8,), 3e38), "large numbers")


# --- losses


def test_losses_by_hand() -> None:
    z = torch.tensor([[3.0, 4.0], [0.0, 2.0]])  # norms 5 and 2
    z_hat = torch.tensor([[3.0, 6.0], [1.0, 2.0]])  # squared errors 0, 4 and 1, 0
    assert reconstruction_loss(z, z_hat).item() == pytest.approx((4 / 5 + 1 / 2) / 4)
    assert l1_loss(torch.tensor([[1.0, 0.0, 2.0], [0.0, 5.0, 0.0]])).item() == (3 + 5) / 2


def test_nested_loss_is_the_mean_over_the_nested_dictionaries() -> None:
    sae, z = make(), tokens(9)
    f = sae.encode(z)
    parts = [reconstruction_loss(z, f[:, :m] @ sae.W_dec[:m] + sae.b_dec) for m in (2, 5, D_SAE)]
    assert nested_loss(sae, z, f, sae.decode(f), (2, 5)).item() == pytest.approx(
        sum(parts).item() / 3
    )
    assert nested_loss(sae, z, f, sae.decode(f), ()).item() == pytest.approx(parts[-1].item())


def test_ghost_gradients_reach_dead_latents_only() -> None:
    sae, z = make(), tokens(9)
    dead = torch.arange(D_SAE) < 4
    pre = sae.pre_activations(z)
    z_hat = sae.decode(relu(pre))
    loss = ghost_loss(z, z_hat, pre[:, dead].exp() @ sae.W_dec[dead])
    loss.backward()
    assert sae.W_dec.grad is not None
    assert sae.W_enc.grad is not None
    assert torch.equal(sae.W_dec.grad.norm(dim=1) > 0, dead)
    assert torch.equal(sae.W_enc.grad.norm(dim=0) > 0, dead)
    # It is worth as much as the reconstruction loss, up to the 1e-6 of the rescaling.
    assert loss.item() == pytest.approx(reconstruction_loss(z, z_hat).item(), rel=0.01)


def test_ghost_loss_of_a_perfect_reconstruction_is_0() -> None:
    z = tokens(3)
    assert ghost_loss(z, z, tokens(3, seed=1)) == 0


def test_ghost_loss_by_hand() -> None:
    z, z_hat = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 3.5]])  # residual (0, 0.5)
    ghosts = torch.tensor([[3.0, 4.0]], requires_grad=True)
    loss = ghost_loss(z, z_hat, ghosts)
    # g is scaled to half the residual's norm: (0.15, 0.2), errors 0.0225 / 0.5 and 0.09 / 0.5;
    # each element is scaled to its share of the reconstruction loss, 0 and 0.25 / 5
    assert loss.item() == pytest.approx(0.025, rel=1e-4)
    loss.backward()
    # d = 2 (g − r) / 0.5 / 2 elements · 0.05 / 0.18 for the second, times g's scale of 0.05
    assert ghosts.grad is not None
    assert ghosts.grad.tolist()[0] == pytest.approx([0, 2 * -0.3 * 0.05 / 0.18 * 0.05], rel=1e-4)


# --- the start of b_dec


def test_geometric_median_of_a_line_is_its_middle_point() -> None:
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [100.0, 100.0]])
    torch.testing.assert_close(
        geometric_median(points, max_steps=10_000), points[1], atol=0.02, rtol=0
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 20))
def test_no_neighbour_of_the_geometric_median_is_nearer_to_all(seed: int) -> None:
    points = tokens(30, seed=seed).double()
    median = geometric_median(points)
    best = (points - median).norm(dim=1).sum()
    for step in 0.01 * torch.cat([torch.eye(D_VIT), -torch.eye(D_VIT)]):
        assert (points - median - step).norm(dim=1).sum() > best


def test_b_dec_starts() -> None:
    z = tokens(5, 3) + 2
    torch.testing.assert_close(initial_b_dec(z, "mean"), z.flatten(0, 1).mean(dim=0))
    assert initial_b_dec(z, "zeros").tolist() == [0] * D_VIT
    for shape in ((5, 3), (15,)):
        assert initial_b_dec(z.reshape(*shape, D_VIT), "geometric_median").shape == (D_VIT,)
    with pytest.raises(ValueError, match="'median' is not"):
        initial_b_dec(z, "median")
    with pytest.raises(ValueError, match="NaN"):
        initial_b_dec(z * NAN, "mean")


# --- measures and checks


def test_explained_variance_is_1_for_perfect_and_0_for_the_mean() -> None:
    z = tokens(4, 5) + 3
    assert explained_variance(z, z) == 1
    mean = z.flatten(0, 1).mean(dim=0).expand_as(z)
    assert explained_variance(z, mean) == pytest.approx(0, abs=1e-6)


def test_l0_by_hand() -> None:
    assert l0(torch.tensor([[[1.0, 0.0, 2.0, 0.0]], [[0.0, 0.0, 3.0, 0.0]]])) == 1.5


def test_measures_of_nothing_meaningful_are_no_numbers() -> None:
    constant = torch.ones(4, 3)
    assert not explained_variance(constant, constant).isfinite()
    assert not explained_variance(tokens(4), tokens(4) * NAN).isfinite()
    with pytest.raises(ValueError, match="NaN"):
        l0(torch.tensor([[1.0, NAN]]))


@pytest.mark.parametrize("value", [NAN, INF, 0.0])
def test_tokens_that_training_cannot_use_are_counted_and_located(value: float) -> None:
    z = tokens(3, 4)
    require_tokens(z, "the tokens")
    z[1, 2] = z[2, 0] = value
    message = "the tokens: 2 of 12 tokens hold NaN or infinity or are all 0, the first at image 1"
    with pytest.raises(ValueError, match=f"{message} token 2"):
        require_tokens(z, "the tokens")
    with pytest.raises(ValueError, match="first at token 6"):
        require_tokens(z.flatten(0, 1), "a batch")
