"""Masks of latents: exact against the plain way, and honest about what cannot be asked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchsae_lib.ablation import (
    Active,
    Masked,
    at_random,
    by_score,
    class_level,
    class_specific,
    dataset_level,
    latent_effects,
    mask_latents,
    masked_logits,
    matched,
    wrong_class,
)
from patchsae_lib.clip import DATA, load_small_clip
from patchsae_lib.latents import LatentTable
from patchsae_lib.sae import SAE, drop, keep
from patchsae_lib.world import TASKS, World

D = 64
N_CLASSES = 3


@pytest.fixture(scope="module", params=[-2, -3], ids=["second last block", "the one before"])
def clip(request):
    return load_small_clip(DATA / "small_clip", request.param)


@pytest.fixture(scope="module")
def seen(clip):
    """Six pictures: their tokens and labels, a head, an autoencoder."""
    world = World("objects", "test", 6)
    text = clip.text_features(world.class_names[:N_CLASSES], TASKS["objects"].templates)
    with torch.no_grad():
        z = clip.tokens(clip.preprocess(world.batch(range(6))))
    sae = SAE(clip.d_vit, D).eval().requires_grad_(False).fold(float(z.norm(dim=-1).mean()))
    sae.b_dec.copy_(z.mean((0, 1)))
    return z, torch.tensor([0, 1, 2, 0, 1, 2]), text, sae


def plain(clip, sae, z, text, order, labels, k, mask, error):
    """The whole second half, with a dense mask, for one k and one picture at a time."""
    logits = []
    for one, label in zip(z, labels.tolist(), strict=True):
        f = sae.encode(one[None])
        first = order[label if len(order) > 1 else 0, :k]
        z_hat = sae.decode((keep if mask == "on" else drop)(f, first))
        z_hat = z_hat + (one - sae.decode(f)) if error else z_hat
        pooled, _ = clip.visual._pool(clip._run(z_hat, clip.block + 1))
        features = torch.nn.functional.normalize(pooled @ clip.visual.proj, dim=-1)
        logits.append(clip.logit_scale * features @ text.T)
    return torch.cat(logits)


@pytest.mark.parametrize("error", [False, True])
def test_every_mask_is_that_of_the_plain_way(clip, seen, error: bool) -> None:
    z, labels, text, sae = seen
    ks = (0, 1, 5, 30, D)
    order = torch.stack([at_random(D, seed)[0] for seed in range(N_CLASSES)])
    active = Active.of(sae, z)
    whole = active.decode(sae)
    base = z - whole if error else sae.b_dec.expand_as(z)
    rank = order.argsort(1)[labels]
    with torch.no_grad():
        ours = list(masked_logits(clip, sae, active, base, whole, text, rank, ks))
        for k, (on, off) in zip(ks, ours, strict=True):
            for mask, logits in (("on", on), ("off", off)):
                wanted = plain(clip, sae, z, text, order, labels, k, mask, error)
                assert (logits - wanted).abs().max() < 1e-4, (k, mask)


def test_all_none_and_what_is_left_over_meet(clip, seen) -> None:
    z, labels, text, sae = seen
    rankings = {"random": at_random(D), "by class": by_score(torch.rand(N_CLASSES, D))}
    result = mask_latents(
        clip, sae, z, labels, text, rankings, (D, 0, 7, 7), batch=4, progress=False
    )
    assert result.ks == (0, 7, D)
    for predicted in result.predictions.values():
        assert predicted.shape == (2, 3, 6)
        assert torch.equal(predicted[0, 2], result.all_on)  # all on is the reconstruction
        assert torch.equal(predicted[1, 0], result.all_on)  # and so is nothing off
        assert torch.equal(predicted[0, 0], result.all_off)
        assert torch.equal(predicted[1, 2], result.all_off)
    assert len(result.all_off.unique()) == 1  # one answer for all pictures: chance
    assert torch.equal(result.original, clip.classify(z, text).argmax(1))
    exact = mask_latents(clip, sae, z, labels, text, rankings, (D,), error=True, progress=False)
    assert torch.equal(exact.all_on, exact.original)
    one = mask_latents(clip, sae, z, labels, text, rankings, (7,), batch=1, progress=False)
    assert torch.equal(one.predictions["by class"][:, 0], result.predictions["by class"][:, 1])


def test_a_mask_may_be_that_of_another_class_than_the_true_one(clip, seen) -> None:
    z, labels, text, sae = seen
    ranking = torch.stack([at_random(D, seed)[0] for seed in range(N_CLASSES)])
    guessed = mask_latents(
        clip, sae, z, labels, text, {"r": ranking}, (9,), classes=(labels + 1) % 3, progress=False
    )
    rolled = mask_latents(
        clip, sae, z, labels, text, {"r": ranking.roll(-1, 0)}, (9,), progress=False
    )
    assert torch.equal(guessed.predictions["r"], rolled.predictions["r"])


def test_accuracy_by_hand(clip, seen) -> None:
    z, labels, text, sae = seen
    result = mask_latents(clip, sae, z, labels, text, {"r": at_random(D)}, (3,), progress=False)
    result.predictions["r"][0, 0] = torch.tensor([0, 1, 2, 0, 0, 0])
    table = result.accuracy().set_index("mask")
    assert table.loc["on", "accuracy"] == pytest.approx(4 / 6)
    assert table.loc["on", "low"] < 4 / 6 < table.loc["on", "high"]
    assert result.reference()["all_off"] == pytest.approx(1 / 3)


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


def test_effects_are_derivatives(clip, seen) -> None:
    z, labels, text, sae = seen
    of_latents, of_tokens = latent_effects(clip, sae, z, labels, text)
    assert of_latents.shape == (6, D)
    assert torch.allclose(of_latents.sum(1), of_tokens.sum(1), rtol=1e-3, atol=1e-4)
    f = sae.encode(z)

    def above(f):
        logits = clip.classify(sae.decode(f), text)
        return logits[torch.arange(6), labels] - logits.mean(1)

    for latent in of_latents.abs().sum(0).topk(3).indices.tolist():
        less = f.clone()
        less[..., latent] *= 0.99
        slope = (above(f) - above(less)) / 0.01
        assert torch.allclose(slope, of_latents[:, latent], rtol=0.1, atol=2e-3)
    assert of_latents[:, (f > 0).sum((0, 1)) == 0].abs().sum() == 0


# --- rankings


def counted() -> LatentTable:
    table = LatentTable.empty(4, ("cat", "dog"), k=1)
    table.class_above = torch.tensor([[8, 2, 0, 8], [9, 9, 1, 0]], dtype=torch.int32)
    table.n_above = table.class_above.sum(0)
    table.class_images, table.images = torch.tensor([1, 3]), 4
    return table


def test_rankings_by_hand() -> None:
    table = counted()
    assert class_level(table).tolist() == [[0, 3, 1, 2], [0, 1, 2, 3]]
    assert dataset_level(table).tolist() == [[0, 1, 3, 2]]
    # a cat: 8, 2, 0, 8 a picture; a dog: 3, 3, 1/3, 0; on average 4¼, 2¾, ¼, 2
    assert class_specific(table).tolist() == [[3, 0, 2, 1], [1, 2, 0, 3]]
    assert wrong_class(class_level(table)).tolist() == [[0, 1, 2, 3], [0, 3, 1, 2]]
    table.class_images[1] = 0  # then dogs have the dataset's order
    assert class_level(table).tolist() == [[0, 3, 1, 2], [0, 1, 3, 2]]
    assert class_specific(table)[1].tolist() == [0, 1, 3, 2]


@given(st.integers(2, 60), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_matched_latents_are_others_of_about_the_same_frequency(d: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    frequency = torch.rand(d, generator=g)
    ranking = by_score(torch.rand(3, d, generator=g))
    other = matched(ranking, frequency, seed, width=4)
    assert torch.equal(other.sort(1).values, torch.arange(d).expand(3, -1))
    place = frequency.argsort().argsort()
    moved = (place[other] - place[ranking]).abs()
    assert moved.max() < 8
    assert (moved > 0).all()


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
        ({"classes": torch.tensor([0, 1, 2, 3, 0, 1])}, "classes of masks must be 0 to 2"),
    ],
)
def test_what_cannot_be_asked(clip, seen, changed, message: str) -> None:
    z, labels, text, sae = seen
    asked = {"labels": labels, "rankings": {"r": at_random(D)}, "ks": (1,)} | changed
    with pytest.raises(ValueError, match=message):
        mask_latents(clip, sae, z, text=text, progress=False, **asked)


def test_classes_without_pictures_change_nothing_for_the_others(clip, seen) -> None:
    z, _, text, sae = seen
    labels, orders = torch.tensor([0, 1, 0, 1, 0, 1]), {"r": at_random(D)}
    found = mask_latents(clip, sae, z, labels, text, orders, (1, 5), progress=False)
    two = mask_latents(clip, sae, z, labels, text[:2], orders, (1, 5), progress=False)
    assert found.shares("r", 3)[2].sum() == 0
    kept = found.original < 2
    assert torch.equal(found.original[kept], two.original[kept])
