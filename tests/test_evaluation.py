import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from patchsae_lib.clip import SplitCLIP, accuracy
from patchsae_lib.evaluation import (
    HeldOut,
    accuracy_kept,
    contrastive_losses,
    evaluate_sae,
)
from patchsae_lib.interop.openclip import WordTokenizer, create_small_clip, small_clip_config
from patchsae_lib.intervals import clustered_mean
from patchsae_lib.sae import SAE, explained_variance, l0, reconstruction_loss
from patchsae_lib.sparse import is_sparse
from patchsae_lib.tokens import Tokens


@pytest.fixture(scope="module")
def clip() -> SplitCLIP:
    torch.manual_seed(0)
    model = create_small_clip(small_clip_config(["a", "cat"])).eval().requires_grad_(False)
    return SplitCLIP(model, WordTokenizer(["a", "cat"]))


N = 10


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


@pytest.fixture(autouse=True)
def batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole batches and a part of one."""
    monkeypatch.setattr(SplitCLIP, "at_once", 8)


@pytest.mark.parametrize("cls_only", [False, True])
def test_a_perfect_autoencoder_changes_nothing(clip, held_out, cls_only) -> None:
    r = evaluate_sae(perfect(clip.d_vit), held_out, cls_only)
    assert r.mse == pytest.approx(0, abs=1e-12)
    assert r.explained_variance == pytest.approx(1)
    assert r.l0 == clip.d_vit  # of each pair one
    assert r.contrastive == pytest.approx(r.contrastive_original, abs=1e-4)
    assert r.accuracy == r.accuracy_original
    assert r.recovered in (1.0, 0.0)


@pytest.mark.parametrize("n_rare", [100, 180])
def test_measures_are_those_of_all_tokens_at_once(clip, held_out, n_rare) -> None:
    sae, z = SAE(clip.d_vit, 400, seed=2).eval().requires_grad_(False), held_out.tokens[:]
    sae.b_dec.copy_(z.mean((0, 1)))
    sae.b_enc[:220] = -1e9  # dead
    sae.b_enc[-n_rare:] = (
        -sae.pre_activations(z)[..., -n_rare:].flatten(0, 1).quantile(0.999, dim=0)
    )
    r, f = evaluate_sae(sae, held_out), sae.encode(z)
    assert is_sparse(f) == (n_rare == 180)
    assert r.l0 == pytest.approx(l0(f))
    assert r.l1 == pytest.approx(float(f.sum(-1).mean()), rel=1e-5)
    assert r.mse == pytest.approx(float(reconstruction_loss(z, sae.decode(f))), rel=1e-5)
    ev = float(explained_variance(z, sae.decode(f)))
    assert r.explained_variance == pytest.approx(ev, rel=1e-4, abs=1e-6)
    assert r.dead == pytest.approx(0.55)  # the rare ones are not
    for state, loss, hits in (
        (sae.decode(f), r.contrastive, r.accuracy),
        (z, r.contrastive_original, r.accuracy_original),
    ):
        x = clip.features(state)
        wanted = contrastive_losses(x, held_out.captions, clip.logit_scale).mean()
        assert loss == pytest.approx(float(wanted), abs=1e-4)
        assert hits == pytest.approx(accuracy(x @ held_out.head.T, held_out.labels))


def test_kept_accuracy_counts_from_chance(clip, held_out) -> None:
    predicted = (held_out.features @ held_out.head.T).argmax(1)
    labels = torch.where(torch.arange(N) < 2, (predicted + 1) % 3, predicted)
    r = evaluate_sae(SAE(clip.d_vit, 40, seed=2).eval(), replace(held_out, labels=labels))
    assert r.accuracy_original == pytest.approx(0.8)
    assert r.accuracy < 0.8
    assert r.recovered == pytest.approx((r.accuracy - 1 / 3) / (0.8 - 1 / 3))


def test_nothing_is_kept_of_an_accuracy_at_chance(clip, held_out) -> None:
    predicted = (held_out.features @ held_out.head.T).argmax(1)
    labels = torch.where(torch.arange(9) < 3, predicted[:9], (predicted[:9] + 1) % 3)
    at_chance = HeldOut(
        clip, held_out.tokens.select(torch.arange(9)), labels, held_out.head, held_out.captions[:9]
    )
    r = evaluate_sae(perfect(clip.d_vit), at_chance)
    assert r.accuracy_original == pytest.approx(1 / 3)
    assert r.recovered == 0


def test_pictures_without_a_label_count_for_no_accuracy(clip, held_out) -> None:
    sae, is_labelled = SAE(clip.d_vit, 40, seed=2).eval(), torch.arange(N) % 2 > 0
    some = replace(held_out, labels=held_out.labels.where(is_labelled, torch.tensor(-1)))
    rows = is_labelled.nonzero()[:, 0]
    labelled = HeldOut(
        clip, held_out.tokens.select(rows), held_out.labels[rows], held_out.head,
        held_out.captions[rows],
    )  # fmt: skip
    found, alone, every = (evaluate_sae(sae, x) for x in (some, labelled, held_out))
    for measure in ("accuracy", "accuracy_original", "recovered"):
        assert getattr(found, measure) == pytest.approx(getattr(alone, measure))
    assert found.correct.tolist() == alone.correct.tolist()
    for measure in ("mse", "explained_variance", "l0", "l1", "dead", "contrastive"):
        assert getattr(found, measure) == getattr(every, measure)


def test_cls_only_leaves_the_patches_alone(clip, held_out) -> None:
    nothing = SAE(clip.d_vit, 8).eval().requires_grad_(False)
    with torch.no_grad():
        nothing.b_enc.fill_(-1e9)
    all_gone, cls_gone = (evaluate_sae(nothing, held_out, c) for c in (False, True))
    assert cls_gone.l0 == all_gone.l0 == 0
    assert cls_gone.contrastive != pytest.approx(all_gone.contrastive, abs=1e-6)
    z = held_out.tokens[:]
    z[:, 0] = nothing.b_dec
    x = clip.features(z)
    wanted = contrastive_losses(x, held_out.captions, clip.logit_scale).mean()
    assert cls_gone.contrastive == pytest.approx(float(wanted), abs=1e-6)


def test_contrastive_losses_by_hand() -> None:
    x = torch.eye(2)
    expected = torch.tensor(math.log(1 + math.exp(-3)))
    torch.testing.assert_close(contrastive_losses(x, x, 3.0), expected.expand(2))
    # whole batches only: the fifth pair does not count
    pairs = torch.cat([x, x, x[:1]]), torch.cat([x, x, x[1:]])
    torch.testing.assert_close(contrastive_losses(*pairs, 3.0, 2), expected.expand(4))
    # both images are alike to the texts, and prefer the first
    losses = contrastive_losses(x, x[:, [0, 0]], 2.0)
    by_image, by_text = math.log(1 + math.exp(-2)), math.log(2)
    expected = [(by_image + by_text) / 2, (by_image + 2 + by_text) / 2]
    assert losses.tolist() == pytest.approx(expected)


def test_a_report_tells_pictures_apart(clip, held_out) -> None:
    sae = SAE(clip.d_vit, 40, seed=2).eval()
    r = evaluate_sae(sae, held_out)
    features = clip.features(sae(held_out.tokens[:]))
    predicted = (features @ held_out.head.T).argmax(1)
    assert r.correct.tolist() == (predicted == held_out.labels).tolist()
    assert r.accuracy == pytest.approx(float(r.correct.double().mean()))
    assert r.contrastive == pytest.approx(float(r.losses.mean()))
    assert r.losses.shape == (N,)
    assert set(r.measures) == {f.name for f in fields(r)} - {"correct", "losses"}


# --- the share of accuracy that is kept


def test_the_accuracy_that_is_kept_is_a_ratio_of_what_is_above_chance() -> None:
    original = torch.tensor([1, 1, 1, 1, 0]) > 0
    correct = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 1]]) > 0
    kept = accuracy_kept(correct, original, 0.2, least=0.5)
    assert kept.mean == pytest.approx((0.6 - 0.2) / (0.8 - 0.2))
    assert kept.low < kept.mean < kept.high
    assert kept.over == "pictures × seeds"


def test_each_picture_is_compared_with_itself() -> None:
    original = torch.arange(200) % 10 > 0
    correct = original & (torch.arange(200) > 2)
    paired = accuracy_kept(correct.expand(3, 200), original, 0.1, least=0.5)
    moved = accuracy_kept(correct.roll(1).expand(3, 200), original, 0.1, least=0.5)
    assert paired.mean == moved.mean
    assert paired.high - paired.low < 0.4 * (moved.high - moved.low)


def test_its_interval_is_that_of_the_linearised_ratio() -> None:
    """R = (.6 − .2) / (.9 − .2) = 4/7, and each picture and seed has its term, by hand."""
    original = torch.tensor([[1] * 9 + [0]] * 2, dtype=torch.float64)
    correct = torch.tensor([[1] * 6 + [0] * 4, [0] * 3 + [1] * 6 + [0]], dtype=torch.float64)
    ratio = 0.4 / 0.7
    terms = ratio + ((correct - 0.2) - ratio * (original - 0.2)) / 0.7
    picture, seed = np.tile(np.arange(10), 2), np.repeat([0, 1], 10)
    wanted = clustered_mean(terms.flatten(), picture, seed, over="pictures × seeds")
    found = accuracy_kept(correct > 0, original[0] > 0, 0.2, least=0.0)
    assert tuple(found) == pytest.approx(tuple(wanted))


def test_its_p_value_is_that_of_the_least_share() -> None:
    generator = torch.Generator().manual_seed(0)
    original = torch.rand(200, generator=generator) < 0.9
    correct = original & (torch.rand(3, 200, generator=generator) < 0.9)
    kept = accuracy_kept(correct, original, 0.1, least=0.5)
    assert kept.p < 1e-6
    at_bound = accuracy_kept(correct, original, 0.1, least=kept.low)
    assert at_bound.p == pytest.approx(0.05, abs=1e-6)
    assert at_bound == pytest.approx(kept)


def test_its_interval_covers_the_truth() -> None:
    """Pictures differ in difficulty and seeds in quality: new ones of both, 300 times."""
    generator = torch.Generator().manual_seed(1)
    covered = 0
    for _ in range(300):
        original = torch.rand(150, generator=generator) < 0.9
        survives = 0.75 + 0.2 * torch.rand(150, generator=generator)  # mean .85
        survives = survives + 0.02 * torch.randn(3, 1, generator=generator)
        correct = original & (torch.rand(3, 150, generator=generator) < survives)
        kept = accuracy_kept(correct, original, 0.1, least=0.9)
        covered += kept.low <= (0.9 * 0.85 - 0.1) / (0.9 - 0.1) <= kept.high
    assert 0.92 <= covered / 300 <= 1
