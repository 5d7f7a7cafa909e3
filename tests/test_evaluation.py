import math
from dataclasses import replace

import pytest
import torch

from patchsae_lib.clip import SplitCLIP, accuracy
from patchsae_lib.evaluation import (
    BATCH,
    HeldOut,
    contrastive_loss,
    evaluate_sae,
)
from patchsae_lib.interop.openclip import WordTokenizer, create_small_clip, small_clip_config
from patchsae_lib.sae import SAE, explained_variance, l0, reconstruction_loss
from patchsae_lib.tokens import Tokens


@pytest.fixture(scope="module")
def clip() -> SplitCLIP:
    torch.manual_seed(0)
    model = create_small_clip(small_clip_config(["a", "cat"])).eval().requires_grad_(False)
    return SplitCLIP(model, WordTokenizer(["a", "cat"]))


N = BATCH + 2  # a whole batch and a part of one


@pytest.fixture(scope="module")
def held_out(clip: SplitCLIP) -> HeldOut:
    images = torch.randn(N, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    tokens = Tokens.hold(clip.tokens(images))
    return HeldOut(clip, tokens, torch.arange(N) % 3, unit(3, 128, 0), unit(N, 128, 1))


def perfect(d: int) -> SAE:
    """An autoencoder that loses nothing: one latent for each sign of each dimension."""
    sae = SAE(d, 2 * d).eval()
    eye = torch.eye(d)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([eye, -eye], 1))
        sae.W_dec.copy_(torch.cat([eye, -eye], 0))
    return sae.requires_grad_(False)


def unit(n: int, d: int, seed: int) -> torch.Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=1)


@pytest.mark.parametrize("cls_only", [False, True])
def test_a_perfect_autoencoder_changes_nothing(clip, held_out, cls_only) -> None:
    r = evaluate_sae(perfect(clip.d_vit), held_out, cls_only)
    assert r.mse == pytest.approx(0, abs=1e-12)
    assert r.explained_variance == pytest.approx(1)
    assert r.l0 == clip.d_vit  # of each pair one
    assert r.contrastive == pytest.approx(r.contrastive_original, abs=1e-4)
    assert r.accuracy == r.accuracy_original
    assert r.recovered in (1.0, 0.0)


def test_measures_are_those_of_all_tokens_at_once(clip, held_out) -> None:
    sae, z = SAE(clip.d_vit, 400, seed=2).eval().requires_grad_(False), held_out.tokens[:]
    sae.b_enc[:200] = -1e9  # dead
    sae.b_enc[300:] = -sae.pre_activations(z)[..., 300:].flatten(0, 1).quantile(0.999, dim=0)
    r, f = evaluate_sae(sae, held_out), sae.encode(z)
    assert r.l0 == pytest.approx(l0(f))
    assert r.l1 == pytest.approx(float(f.sum(-1).mean()), rel=1e-5)
    assert r.mse == pytest.approx(float(reconstruction_loss(z, sae.decode(f))), rel=1e-5)
    ev = explained_variance(z, sae.decode(f))
    assert r.explained_variance == pytest.approx(ev, rel=1e-4)
    assert r.dead == 0.5  # the rare ones of the last hundred are not
    for state, loss, hits in (
        (sae.decode(f), r.contrastive, r.accuracy),
        (z, r.contrastive_original, r.accuracy_original),
    ):
        x = clip.features(state)
        wanted = contrastive_loss(x, held_out.captions, clip.logit_scale)
        assert loss == pytest.approx(wanted, abs=1e-4)
        assert hits == pytest.approx(accuracy(x @ held_out.head.T, held_out.labels))


def test_kept_accuracy_counts_from_chance(clip, held_out) -> None:
    predicted = (held_out.features @ held_out.head.T).argmax(1)
    labels = torch.where(torch.arange(N) < 2, (predicted + 1) % 3, predicted)
    r = evaluate_sae(SAE(clip.d_vit, 40, seed=2).eval(), replace(held_out, labels=labels))
    assert r.accuracy_original == pytest.approx(0.8)
    assert r.accuracy < 0.8
    assert r.recovered == pytest.approx((r.accuracy - 1 / 3) / (0.8 - 1 / 3))


def test_cls_only_leaves_the_patches_alone(clip, held_out) -> None:
    nothing = SAE(clip.d_vit, 8).eval().requires_grad_(False)
    with torch.no_grad():
        nothing.b_enc.fill_(-1e9)
    all_gone, cls_gone = (evaluate_sae(nothing, held_out, c) for c in (False, True))
    assert cls_gone.l0 == all_gone.l0 == 0
    assert cls_gone.contrastive != pytest.approx(all_gone.contrastive, abs=1e-6)


def test_contrastive_loss_by_hand() -> None:
    x = torch.eye(2)
    expected = math.log(1 + math.exp(-3))
    assert contrastive_loss(x, x, 3.0) == pytest.approx(expected, rel=1e-5)
    # whole batches only: the fifth pair does not count
    assert contrastive_loss(torch.cat([x, x, x[:1]]), torch.cat([x, x, x[1:]]), 3.0, 2) == (
        pytest.approx(expected, rel=1e-5)
    )
