"""Masks of latents: exact against the plain way, and honest about what cannot be asked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchsae_lib.ablation import (
    NEIGHBOURS,
    Decomposition,
    Masked,
    at_random,
    by_score,
    class_level,
    class_specific,
    drop,
    keep,
    latent_effects,
    mask_latents,
    masked_logits,
    matched,
    rankings,
    removal_effects,
)
from patchsae_lib.artefacts import DATA
from patchsae_lib.interop.openclip import load_small_clip
from patchsae_lib.intervals import estimate_mean
from patchsae_lib.latents import LatentTable
from patchsae_lib.sae import SAE
from patchsae_lib.tokens import Tokens
from patchsae_lib.world import TASKS, World

D = 64
N_CLASSES = 3


@pytest.fixture(scope="module", params=[-2, -3], ids=["second last block", "the one before"])
def clip(request):
    return load_small_clip(DATA / "small_clip", request.param)


@pytest.fixture(scope="module")
def setting(clip):
    """Six pictures: their tokens and labels, a head, an autoencoder."""
    world = World("objects", "test", 6)
    head = clip.text_features(world.class_names[:N_CLASSES], TASKS["objects"].templates)
    with torch.no_grad():
        z = clip.tokens(clip.preprocess(world.batch(range(6))))
    sae = SAE(clip.d_vit, D).eval().requires_grad_(False).fold(float(z.norm(dim=-1).mean()))
    sae.b_dec.copy_(z.mean((0, 1)))
    return z, torch.tensor([0, 1, 2, 0, 1, 2]), head, sae


def plain(clip, sae, z, head, order, labels, k, mask, error):
    """The whole second half, with a dense mask, for one k and one picture at a time."""
    logits = []
    for picture, label in zip(z, labels.tolist(), strict=True):
        f = sae.encode(picture[None])
        z_hat = sae.decode(mask(f, order[label if len(order) > 1 else 0, :k]))
        z_hat = z_hat + (picture - sae.decode(f)) if error else z_hat
        pooled, _ = clip.visual._pool(clip._run(z_hat, clip.block + 1))
        features = torch.nn.functional.normalize(pooled @ clip.visual.proj, dim=-1)
        logits.append(clip.logit_scale * features @ head.T)
    return torch.cat(logits)


@given(st.sets(st.integers(0, 6)), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_keep_and_drop_are_the_two_parts_of_f(latents: set[int], seed: int) -> None:
    f = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(seed)).relu()
    on, off = keep(f, sorted(latents)), drop(f, torch.tensor(sorted(latents)))
    assert torch.equal(on + off, f)
    for latent in range(7):
        part, rest = (on, off) if latent in latents else (off, on)
        assert torch.equal(part[..., latent], f[..., latent])
        assert not rest[..., latent].any()


@pytest.mark.parametrize("mask", [keep, drop])
@pytest.mark.parametrize("latent", [-1, 7])
def test_latents_that_do_not_exist_are_not_masked(mask, latent: int) -> None:
    with pytest.raises(ValueError, match=rf"latents must be 0 to 6, got \[{latent}\]"):
        mask(torch.zeros(2, 7), [latent])


@pytest.mark.parametrize("error", [False, True])
def test_every_mask_is_that_of_the_plain_way(clip, setting, error: bool) -> None:
    z, labels, head, sae = setting
    ks = (0, 1, 5, 30, D)
    order = torch.stack([at_random(D, seed)[0] for seed in range(N_CLASSES)])
    split = Decomposition.of(sae, z, error=error)
    with torch.no_grad():
        masked = list(masked_logits(clip, split, head, order.argsort(1)[labels], ks))
        for k, (on, off) in zip(ks, masked, strict=True):
            for mask, logits in ((keep, on), (drop, off)):
                wanted = plain(clip, sae, z, head, order, labels, k, mask, error)
                assert (logits - wanted).abs().max() < 1e-4, (k, mask)


def test_all_none_and_what_is_left_over_meet(clip, setting, monkeypatch) -> None:
    z, labels, head, sae = setting
    monkeypatch.setattr(SAE, "images_at_once", lambda *_, **__: 4)
    orders = {"random": at_random(D), "by class": by_score(torch.rand(N_CLASSES, D))}
    result = mask_latents(clip, sae, z, labels, head, orders, (D, 0, 7, 7))
    assert result.ks == (0, 7, D)
    for predicted in result.predictions.values():
        assert predicted.shape == (2, 3, 6)
        assert torch.equal(predicted[0, 2], result.all_on)  # all on is the reconstruction
        assert torch.equal(predicted[1, 0], result.all_on)  # and so is nothing off
        assert torch.equal(predicted[0, 0], result.all_off)
        assert torch.equal(predicted[1, 2], result.all_off)
    assert len(result.all_off.unique()) == 1  # one answer for all pictures: chance
    assert torch.equal(result.original, clip.classify(z, head).argmax(1))
    exact = mask_latents(clip, sae, z, labels, head, orders, (D,), error=True)
    assert torch.equal(exact.all_on, exact.original)
    monkeypatch.setattr(SAE, "images_at_once", lambda *_, **__: 1)
    one = mask_latents(clip, sae, z, labels, head, orders, (7,))
    assert torch.equal(one.predictions["by class"][:, 0], result.predictions["by class"][:, 1])


def test_what_is_not_reconstructed_is_left_out_unless_it_is_asked_for(clip, setting) -> None:
    z, labels, head, sae = setting
    ranking = {"r": at_random(D, 0)}
    usual, without, with_error = (
        mask_latents(clip, sae, z, labels, head, ranking, (D,), **more)
        for more in ({}, {"error": False}, {"error": True})
    )
    assert torch.equal(usual.all_on, without.all_on)
    assert torch.equal(with_error.all_on, with_error.original)
    plain_way = clip.classify(sae(z), head).argmax(1)
    assert torch.equal(usual.all_on, plain_way.cpu())


def test_a_mask_may_be_that_of_another_class_than_the_true_one(clip, setting) -> None:
    z, labels, head, sae = setting
    ranking = torch.stack([at_random(D, seed)[0] for seed in range(N_CLASSES)])
    guessed = mask_latents(
        clip, sae, z, labels, head, {"r": ranking}, (9,), classes=(labels + 1) % 3
    )
    rolled = mask_latents(clip, sae, z, labels, head, {"r": ranking.roll(-1, 0)}, (9,))
    assert torch.equal(guessed.predictions["r"], rolled.predictions["r"])


def test_pictures_are_masked_batch_by_batch_from_tokens_as_they_are_stored(
    clip, setting, monkeypatch
) -> None:
    z, labels, head, sae = setting
    monkeypatch.setattr(SAE, "images_at_once", lambda *_, **__: 4)
    stored, orders = z.bfloat16(), {"r": at_random(D)}
    held = mask_latents(clip, sae, Tokens.hold(stored), labels, head, orders, (9,))
    expected = mask_latents(clip, sae, stored.float(), labels, head, orders, (9,))
    assert torch.equal(held.predictions["r"], expected.predictions["r"])
    assert torch.equal(held.original, expected.original)


def test_accuracy_by_hand() -> None:
    labels, on = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 1, 2, 0, 0, 0])
    predictions = {"r": torch.stack([on, labels])[:, None]}
    result = Masked((3,), labels, labels, on, labels * 0, predictions)
    table = result.accuracy()
    assert table[["ranking", "k", "mask"]].values.tolist() == [["r", 3, "on"], ["r", 3, "off"]]
    expected = estimate_mean([True, True, True, True, False, False], over="pictures")
    assert tuple(table.loc[0, ["accuracy", "low", "high"]]) == expected
    all_right = 1, 0.025 ** (1 / 6), 1  # Clopper and Pearson's
    assert tuple(table.loc[1, ["accuracy", "low", "high"]]) == pytest.approx(all_right)
    reference = result.reference()
    assert list(reference.values()) == pytest.approx([1, 4 / 6, 1 / 3])


def test_shares_of_answers_by_hand() -> None:
    given_on = [[0, 1, 1], [0, 0, 1]]  # two ks, three pictures
    given_off = [[2, 2, 2], [1, 1, 0]]
    labels, none = torch.tensor([0, 0, 1]), torch.zeros(3, dtype=torch.long)
    predictions = {"r": torch.tensor([given_on, given_off])}
    shares = Masked((1, 2), labels, none, none, none, predictions).shares("r", 3)
    assert shares.shape == (3, 2, 2, 3)
    assert shares[0, 0].tolist() == [[0.5, 0.5, 0], [1, 0, 0]]
    assert shares[1, 0].tolist() == [[0, 1, 0], [0, 1, 0]]
    assert shares[0, 1].tolist() == [[0, 0, 1], [0, 1, 0]]
    assert shares[2].sum() == 0  # no picture is of this class


def test_effects_are_derivatives(clip, setting) -> None:
    z, labels, head, sae = setting
    of_latents, of_tokens = latent_effects(clip, sae, z, labels, head)
    assert of_latents.shape == (6, D)
    assert torch.allclose(of_latents.sum(1), of_tokens.sum(1), rtol=1e-3, atol=1e-4)
    f = sae.encode(z)

    def above(f):
        logits = clip.classify(sae.decode(f), head)
        return logits[torch.arange(6), labels] - logits.mean(1)

    for latent in of_latents.abs().sum(0).topk(3).indices.tolist():
        less = f.clone()
        less[..., latent] *= 0.99
        slope = (above(f) - above(less)) / 0.01
        assert torch.allclose(slope, of_latents[:, latent], rtol=0.1, atol=2e-3)
    assert of_latents[:, (f > 0).sum((0, 1)) == 0].abs().sum() == 0


def test_removal_takes_what_is_lost_without_a_latent(clip, setting) -> None:
    z, labels, head, sae = setting
    f = sae.encode(z)
    latents = f.sum(1).topk(2).indices[:, 1]
    removed = removal_effects(clip, sae, z, labels, head, latents)
    for i, (label, latent) in enumerate(zip(labels, latents, strict=True)):
        states = sae.decode(torch.cat([f[i : i + 1], drop(f[i : i + 1], latent[None])]))
        change = clip.classify(states, head).diff(dim=0).neg()[0]
        assert removed[i] == pytest.approx(float(change[label] - change.mean()), abs=1e-4)


# --- rankings


def counted() -> LatentTable:
    table = LatentTable.empty(4, ("cat", "dog"))
    table.class_above = torch.tensor([[8, 2, 0, 8], [9, 9, 1, 0]], dtype=torch.int32)
    table.n_above = table.class_above.sum(0)
    table.class_images, table.images = torch.tensor([1, 3]), 4
    return table


def test_rankings_by_hand() -> None:
    table = counted()
    assert class_level(table).tolist() == [[0, 3, 1, 2], [0, 1, 2, 3]]
    assert rankings(table)["dataset-level"].tolist() == [[0, 1, 3, 2]]
    # a cat: 8, 2, 0, 8 a picture; a dog: 3, 3, 1/3, 0; on average 4¼, 2¾, ¼, 2
    assert class_specific(table).tolist() == [[3, 0, 2, 1], [1, 2, 0, 3]]
    assert rankings(table)["wrong class"].tolist() == [[0, 1, 2, 3], [0, 3, 1, 2]]
    table.class_images[1] = 0  # then dogs have the dataset's order
    assert class_level(table).tolist() == [[0, 3, 1, 2], [0, 1, 3, 2]]
    assert class_specific(table)[1].tolist() == [0, 1, 3, 2]


@given(st.integers(2, 200), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_matched_latents_are_others_of_about_the_same_frequency(d: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    frequency = torch.rand(d, generator=g)
    ranking = by_score(torch.rand(3, d, generator=g))
    exchanged = matched(ranking, frequency, seed)
    assert torch.equal(exchanged.sort(1).values, torch.arange(d).expand(3, -1))
    place = frequency.argsort().argsort()
    moved = (place[exchanged] - place[ranking]).abs()
    assert moved.max() < 2 * NEIGHBOURS
    assert (moved > 0).all()


def test_equal_scores_are_in_the_order_of_latents() -> None:
    assert by_score(torch.zeros(2, 5000)).equal(torch.arange(5000).expand(2, -1))


def test_the_wrong_class_is_half_the_list_away() -> None:
    table = LatentTable.empty(6, tuple("abcdef"))
    table.class_above = 5 * torch.eye(6, dtype=torch.int32)  # each class has a latent of its own
    table.class_images = torch.ones(6, dtype=torch.long)
    assert rankings(table)["wrong class"][:, 0].tolist() == [3, 4, 5, 0, 1, 2]


def test_random_orders_are_those_of_their_seed() -> None:
    assert torch.equal(at_random(50, 1), at_random(50, 1))
    assert not torch.equal(at_random(50, 1), at_random(50, 2))


# --- errors


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ks": (1, D + 1)}, r"k must be 0 to d_sae = 64, got \[1, 65\]"),
        ({"ks": ()}, "k must be 0 to d_sae"),
        ({"rankings": {"r": at_random(D + 1)}}, r"'r' \(1, 65\) is of another SAE"),
        ({"rankings": {"r": at_random(D).expand(2, -1)}}, "another SAE or of other classes"),
        ({"rankings": {"r": at_random(D).clamp_max(62)}}, "must hold 0 to 63 once"),
        ({"rankings": {"r": at_random(D) + 1}}, "must hold 0 to 63 once"),
        ({"labels": torch.tensor([0, 1, 2, 3, 0, 1])}, "labels must be 0 to 2"),
        ({"labels": torch.tensor([0, 1, 2, -1, 0, 1])}, "labels must be 0 to 2"),
        ({"labels": torch.tensor([0, 1, 2, 1, 0])}, "labels .* one for each of 6 images"),
        ({"classes": torch.tensor([0, 1, 2, 3, 0, 1])}, "classes must be 0 to 2"),
    ],
)
def test_what_cannot_be_asked(clip, setting, changed, message: str) -> None:
    z, labels, head, sae = setting
    asked = {"labels": labels, "rankings": {"r": at_random(D)}, "ks": (1,)} | changed
    with pytest.raises(ValueError, match=message):
        mask_latents(clip, sae, z, head=head, **asked)


def test_classes_without_pictures_change_nothing_for_the_others(clip, setting) -> None:
    z, _, head, sae = setting
    labels, orders = torch.tensor([0, 1, 0, 1, 0, 1]), {"r": at_random(D)}
    found = mask_latents(clip, sae, z, labels, head, orders, (1, 5))
    two = mask_latents(clip, sae, z, labels, head[:2], orders, (1, 5))
    assert found.shares("r", 3)[2].sum() == 0
    kept = found.original < 2
    assert torch.equal(found.original[kept], two.original[kept])
