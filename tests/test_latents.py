"""What one pass counts of every latent: by hand, merged, kept in a file, and from pictures."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patchsae_lib import latents
from patchsae_lib.artefacts import DATA
from patchsae_lib.interop.openclip import load_small_clip
from patchsae_lib.latents import (
    SUMS,
    LatentTable,
    clusters,
    image_levels,
    mean_beyond,
    monosemanticity,
    partners,
    related_classes,
    responses,
    scan,
    scan_tokens,
    selectivity,
    strongest_in_pairs,
)
from patchsae_lib.profiles import StatisticsConfig
from patchsae_lib.sae import SAE
from patchsae_lib.study import Study
from patchsae_lib.tokens import Tokens
from patchsae_lib.world import CLASSES as WORLD_CLASSES
from patchsae_lib.world import World
from patchsae_lib.world.pairs import CHANGES, counterfactuals
from patchsae_lib.world.scene import Scene
from patchsae_lib.world.vocabulary import BACKGROUNDS, COLOURS, STYLES, WORDS

D, T, K = 4, 3, 3
CLASSES = ("cat", "dog", "bus")


def identity() -> SAE:
    """Its latents are its tokens, where those are positive."""
    sae = SAE(D, D).eval().requires_grad_(False)
    sae.W_enc.copy_(torch.eye(D))
    return sae


def counted(z: Tensor, indices: list[int], labels: list[int], tau: float = 0.2) -> LatentTable:
    table = LatentTable.empty(D, CLASSES, StatisticsConfig(tau=tau, k=K))
    if len(z):
        table.add(identity(), z, torch.tensor(indices), torch.tensor(labels))
    return table


def pictures_(n: int, seed: int) -> tuple[Tensor, list[int], list[int]]:
    """Few different values, so that there are ties and silent latents."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randint(-2, 3, (n, T, D), generator=g) / 4
    z[..., 3] = -1
    return (
        z,
        torch.randperm(n, generator=g).tolist(),
        torch.randint(-1, 3, (n,), generator=g).tolist(),
    )


def same(a: LatentTable, b: LatentTable) -> None:
    for name in SUMS:
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    for name in ("top_values", "top_images", "top_labels", "frequency", "mean"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert torch.equal(a.entropy.nan_to_num(-1), b.entropy.nan_to_num(-1))
    assert (a.images, a.tokens, a.skipped) == (b.images, b.tokens, b.skipped)


@settings(max_examples=20, deadline=None)
@given(power=st.integers(-6, 6), tau=st.floats(0, 2), seed=st.integers(0, 99))
def test_an_autoencoder_counts_what_its_folded_twin_counts(
    power: int, tau: float, seed: int
) -> None:
    scale = 2.0**power  # exact
    z = torch.randn(5, T, D, generator=torch.Generator().manual_seed(seed))
    sae = SAE(D, 16, seed=seed).eval()  # of tokens divided by the scale
    tables = []
    for twin, tokens, unit in ((sae, z / scale, tau / scale), (sae.fold(scale), z, tau)):
        table = LatentTable.empty(16, CLASSES, StatisticsConfig(tau=unit, k=K))
        table.add(twin, tokens, torch.arange(5), torch.tensor([0, 1, 2, 0, 1]))
        tables.append(table)
    assert torch.equal(tables[0].class_above, tables[1].class_above)
    assert torch.equal(tables[0].n_above, tables[1].n_above)


def test_tau_is_in_the_units_of_tokens() -> None:
    config, sae, z = StatisticsConfig(tau=3.0, k=K), identity(), torch.zeros(1, T, D)
    z[0, :, 0] = torch.tensor([1.0, 2.0, 4.0])
    sae.W_dec.copy_(torch.diag(torch.tensor([2.0, 1, 1, 1])))  # a latent of 1 writes 2
    table = LatentTable.empty(D, CLASSES, config)
    table.add(sae, z, torch.tensor([0]), torch.tensor([2]))
    assert (table.n_active[0], table.n_above[0], table.class_above[2, 0]) == (3, 2, 2)


def test_a_picture_by_hand() -> None:
    z = torch.tensor([[[1.0, 0.1, -1.0, 0.0], [0.5, 0.3, -2.0, 0.0], [0.0, 0.0, -3.0, 0.0]]])
    table = counted(z, [7], [1])
    assert (table.images, table.tokens) == (1, 3)
    assert table.n_images.tolist() == [1, 1, 0, 0]
    assert table.n_active.tolist() == [2, 2, 0, 0]
    assert table.frequency.tolist() == [1, 1, 0, 0]
    assert table.mean.tolist() == pytest.approx([0.5, 0.4 / 3, 0, 0])  # over all three tokens
    assert table.token_frequency.tolist() == pytest.approx([2 / 3, 2 / 3, 0, 0])
    assert table.token_mean.tolist() == pytest.approx([0.75, 0.2, 0, 0])
    assert table.n_above.tolist() == [2, 1, 0, 0]  # above 0.2
    assert table.class_above.tolist() == [[0] * 4, [2, 1, 0, 0], [0] * 4]
    assert table.top_values[0].tolist() == [0.5, 0, 0]
    assert table.top_images.tolist() == [[7, -1, -1], [7, -1, -1], [-1] * 3, [-1] * 3]
    assert table.top_labels[0].tolist() == [1, -1, -1]
    assert table.entropy.isnan().all()  # fewer than k


def test_two_pictures_by_hand() -> None:
    """Latent 0 has means of .5 and .25 over two tokens; latent 1 is active in one picture."""
    z = torch.tensor(
        [[[1.0, 0, -1, -1], [0, 0, -1, -1]], [[0.25, 0.6, -1, -1], [0.25, 0, -1, -1]]]
    )
    table = counted(z, [0, 1], [0, 1])
    assert table.frequency.tolist() == [1, 0.5, 0, 0]
    assert table.mean.tolist() == pytest.approx([0.375, 0.3, 0, 0])
    assert table.token_frequency.tolist() == pytest.approx([0.75, 0.25, 0, 0])
    assert table.token_mean.tolist() == pytest.approx([0.5, 0.6, 0, 0])


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_two_halves_merged_in_any_order_are_the_whole(n: int, m: int, seed: int) -> None:
    z, indices, labels = pictures_(n + m, seed)
    whole = counted(z, indices, labels)
    a = counted(z[:n], indices[:n], labels[:n])
    b = counted(z[n:], indices[n:], labels[n:])
    a.skipped, b.skipped, whole.skipped = [50], [40], [40, 50]
    same(a.merge(b), whole)
    same(b.merge(a), whole)


def test_reference_images_are_the_highest_and_of_equals_the_first() -> None:
    z = torch.zeros(6, 1, D)
    z[:, 0, 0] = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, 0.0])
    table = counted(z, [5, 4, 3, 2, 1, 0], [0, 1, 2, 0, 1, 2])
    assert table.top_images[0].tolist() == [2, 4, 1]
    assert table.top_values[0].tolist() == [3, 3, 2]
    assert table.top_labels[0].tolist() == [0, 1, 1]


def test_entropy_and_spread_by_hand() -> None:
    z = torch.zeros(3, 1, D)
    z[:, 0, 0], z[:, 0, 1] = torch.tensor([2.0, 1.0, 1.0]), 1.0
    table = counted(z, [0, 1, 2], [0, 2, 2])
    assert float(table.entropy[0]) == pytest.approx(math.log(2))
    assert float(table.label_std[0]) == pytest.approx(1)
    assert float(table.label_std[1]) == pytest.approx(math.sqrt((16 + 4 + 4) / 27))
    one_class = counted(z, [0, 1, 2], [1, 1, 1])
    assert one_class.entropy[:2].tolist() == [0, 0]
    assert one_class.label_std[:2].tolist() == [0, 0]
    assert table.entropy[2:].isnan().all()  # silent


def test_latents_of_related_classes_are_found_and_others_are_not() -> None:
    classes = tuple(str(i) for i in range(40))
    table = LatentTable.empty(60, classes, StatisticsConfig(k=4))
    generator = torch.Generator().manual_seed(0)
    table.top_labels = torch.randint(40, (60, 4), generator=generator)
    start = torch.randint(37, (20, 1), generator=generator)
    table.top_labels[:20] = start + torch.arange(4)  # neighbours
    table.top_images, table.top_values = torch.arange(4).expand(60, 4), torch.ones(60, 4)
    related, by_chance = related_classes(table, torch.arange(60), n=199)
    assert related[:20].all()
    assert related[20:].sum() <= 6
    assert by_chance.mean() == pytest.approx(0.05, abs=0.01)
    assert (by_chance >= related.double().mean()).sum() == 0
    among, _ = related_classes(table, torch.tensor([59, 0]), n=199)
    assert among.tolist() == [bool(related[59]), True]


def test_as_many_latents_are_related_by_the_true_numbering_as_by_chance_where_none_are() -> None:
    table = LatentTable.empty(20_000, [str(i) for i in range(400)], StatisticsConfig(k=4))
    generator = torch.Generator().manual_seed(0)
    table.top_labels = torch.randint(400, (20_000, 4), generator=generator)
    table.top_values = torch.rand(20_000, 4, generator=generator)
    table.top_images = torch.arange(4).expand(20_000, 4)
    related, by_chance = related_classes(table, torch.arange(20_000), n=99)
    assert float(related.double().mean() - by_chance.mean()) == pytest.approx(0, abs=0.005)


def test_unlabelled_pictures_have_everything_but_entropy() -> None:
    z, indices, _ = pictures_(20, 0)
    table = LatentTable.empty(D, config=StatisticsConfig(k=K))
    table.add(identity(), z, torch.tensor(indices))
    labelled = counted(z, indices, [0] * 20)
    assert torch.equal(table.top_images, labelled.top_images)
    assert torch.equal(table.n_above, labelled.class_above.sum(0))
    assert table.class_above.shape == (0, D)
    assert table.entropy.isnan().all()
    assert table.frame()["top_class"].tolist() == [""] * D


def test_a_table_is_kept_whole_in_one_file(tmp_path: Path) -> None:
    z, indices, labels = pictures_(30, 1)
    table = counted(z, indices, labels, tau=0.1)
    table.skipped = [31]
    table.save(tmp_path / "t.safetensors")
    again = LatentTable.load(tmp_path / "t.safetensors")
    same(table, again)
    assert (again.class_names, again.tau, again.size) == (CLASSES, 0.1, (D, K))
    assert list(tmp_path.iterdir()) == [tmp_path / "t.safetensors"]


def test_a_row_for_every_latent() -> None:
    frame = counted(*pictures_(30, 2)).frame()
    assert len(frame) == D
    assert set(frame["top_class"]) <= {*CLASSES, ""}
    assert frame.loc[3, ["n_images", "frequency", "mean"]].tolist() == [0, 0, 0]
    assert frame["frequency"].tolist() == pytest.approx((frame["n_images"] / 30).tolist())
    assert 0 < frame.loc[0, "frequency"] < 1


def test_the_first_class_has_a_name_and_an_unlabelled_picture_none() -> None:
    z = torch.tensor([[[1.0, 0.0, 0.0, -1.0]], [[0.0, 1.0, 0.0, -1.0]], [[0.0, 0.0, 1.0, -1.0]]])
    frame = counted(z, [5, 6, 7], [0, -1, 2]).frame()
    assert frame["top_class"].tolist() == [CLASSES[0], "", CLASSES[2], ""]
    assert frame["top_image"].tolist() == [5, 6, 7, -1]


@pytest.mark.parametrize(
    ("class_names", "config", "message"),
    [
        (CLASSES, StatisticsConfig(k=K, tau=0.5), "different tau"),
        (CLASSES[:2], StatisticsConfig(k=K), "different class_names"),
        (
            CLASSES,
            StatisticsConfig(k=K + 1),
            r"different size .*: \(\(4, 3\), \(4, 4\)\)",
        ),
    ],
)
def test_tables_that_count_other_things_do_not_merge(class_names, config, message) -> None:
    table = LatentTable.empty(D, CLASSES, StatisticsConfig(k=K))
    with pytest.raises(ValueError, match=message):
        table.merge(LatentTable.empty(D, class_names, config))


def test_a_label_of_no_class_is_refused() -> None:
    with pytest.raises(ValueError, match="label 3: the table knows 3 classes"):
        counted(torch.ones(1, T, D), [0], [3])
    with pytest.raises(ValueError, match="label 7: the table knows 3 classes"):
        counted(torch.ones(2, T, D), [0, 1], [0, 7])


def test_a_table_does_not_depend_on_how_pictures_are_batched(monkeypatch) -> None:
    z, indices, labels = pictures_(30, 3)
    tokens, expected = Tokens.hold(z, torch.tensor(indices)), counted(z, indices, labels)
    for batch, chunk in ((7, 2), (64, 1), (1, 100)):
        monkeypatch.setattr(latents, "BATCH", batch)
        monkeypatch.setattr(SAE, "images_at_once", lambda *_, n=chunk, **__: n)
        config = StatisticsConfig(k=K)
        same(scan_tokens(identity(), tokens, torch.tensor(labels), CLASSES, config), expected)
    unlabelled = scan_tokens(identity(), tokens, None, CLASSES, config)
    assert torch.equal(unlabelled.n_above, expected.n_above)
    assert unlabelled.class_images.sum() == 0


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_monosemanticity_is_the_mean_over_pairs(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    a, e = torch.rand(7, D, generator=g), torch.randn(7, 5, generator=g)
    a[torch.rand(7, D, generator=g) < 0.4] = 0
    scores = monosemanticity([(a[:3], e[:3]), (a[3:], e[3:])])
    unit = torch.nn.functional.normalize(e, dim=1)
    for latent in range(D):
        above, below = 0.0, 0.0
        for i, j in itertools.combinations(range(7), 2):
            weight = float(a[i, latent] * a[j, latent])
            above, below = above + weight * float(unit[i] @ unit[j]), below + weight
        if below:
            assert float(scores[latent]) == pytest.approx(above / below, abs=1e-5)
        else:
            assert scores[latent].isnan()


def test_monosemanticity_needs_two_images() -> None:
    assert monosemanticity([(torch.ones(1, 2), torch.ones(1, 3))]).isnan().all()
    with pytest.raises(ValueError, match="no images"):
        monosemanticity([])


def test_groups_are_told_from_a_shape() -> None:
    g = np.random.default_rng(0)
    one = g.normal(size=(600, 2)) @ np.array([[3, 0], [1, 0.4]])
    two = np.concatenate([g.normal(size=(300, 2)), g.normal([6, 3], size=(300, 2))])
    bend = np.stack([np.cos(t := g.uniform(0, 3, 900)), np.sin(t)], 1)
    bend += g.normal(0, 0.2, (900, 2))
    assert [clusters(x).max() + 1 for x in (one, two, bend)] == [1, 2, 1]
    labels = clusters(two)
    assert len(set(labels[:300]) - {-1}) == len(set(labels[300:]) - {-1}) == 1


# --- the pass


@pytest.fixture(scope="module")
def clip():
    return load_small_clip(DATA / "small_clip")


class Grey:
    """120 pictures of one class, of which those that are `bad` cannot be read."""

    class_names = ("grey",)

    def __init__(self, *bad: int) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return 120

    def label(self, index: int) -> int:
        return 0

    def batch(self, indices: list[int]) -> Tensor:
        if set(self.bad) & set(indices):
            raise OSError("cannot be read")
        return torch.tensor(indices).view(-1, 1, 1, 1)


class FakeClip:
    """Picture i has the single token (i, i, i, i)."""

    n_tokens = at_once = 1

    def preprocess(self, pictures: Tensor) -> Tensor:
        return pictures.float()

    def tokens(self, images: Tensor) -> Tensor:
        return images[..., 0].expand(-1, 1, D)


def test_a_pass_counts_what_the_tokens_say(clip, monkeypatch) -> None:
    monkeypatch.setattr(latents, "BATCH", 4)
    world, sae = World("objects", "test", 10), SAE(clip.d_vit, 64).eval().requires_grad_(False)
    table = scan(clip, sae, world, config=StatisticsConfig(k=2), progress=False)
    z = clip.tokens(clip.preprocess(world.batch(range(10))))
    f = sae.encode(z)
    assert torch.allclose(table.token_mean.float(), f.sum((0, 1)) / (f > 0).sum((0, 1)), rtol=1e-4)
    assert int(table.class_images.sum()) == table.images == 10
    values, images = f.mean(1).T.topk(2)
    assert torch.allclose(table.top_values, values, rtol=1e-4)
    assert (table.top_images == images).float().mean() > 0.95
    labels = torch.tensor([world.label(i) for i in range(10)])
    again = scan_tokens(sae, Tokens.hold(z), labels, world.class_names, StatisticsConfig(k=2))
    assert torch.allclose(again.total, table.total, rtol=1e-4)
    assert torch.equal(again.class_images, table.class_images)


def test_an_unreadable_picture_is_skipped_and_listed(monkeypatch) -> None:
    monkeypatch.setattr(latents, "BATCH", 50)
    given = FakeClip(), identity()
    table = scan(*given, Grey(37), range(100), progress=False)
    assert table.skipped == [37]
    assert table.images == table.class_images[0] == 99
    assert float(table.total[0]) == sum(range(100)) - 37
    assert table.top_images[0].tolist() == list(range(99, 89, -1))
    with pytest.raises(ValueError, match=r"2 of 100 pictures cannot be read, more than 1%"):
        scan(*given, Grey(37, 38), range(100), progress=False)
    with pytest.raises(ValueError, match="no pictures"):
        scan(*given, Grey(), [], progress=False)


def test_levels_are_tokens_a_picture() -> None:
    table = LatentTable.empty(2, ["a", "b"])
    table.class_above = torch.tensor([[6, 0], [1, 1]], dtype=torch.int32)
    table.class_images = torch.tensor([3, 0])
    assert table.class_per_image.tolist() == [[2.0, 0.0], [1.0, 1.0]]


def test_image_levels_are_means_over_tokens() -> None:
    sae = SAE(4, 6)
    z = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(image_levels(sae, z), sae.encode(z).mean(1), atol=1e-6)


def test_the_strongest_latents_of_a_pair_are_shared_or_exclusive() -> None:
    levels = torch.tensor([[5.0, 4, 1, 0], [0, 5, 1, 4], [1, 2, 0, 0], [1, 2, 0, 0]])
    strongest, groups = strongest_in_pairs(levels, 2)
    assert strongest.tolist() == [[0, 1], [1, 3], [1, 0], [1, 0]]
    shared = [[False, True], [True, False], [True, True], [True, True]]
    assert groups["shared"].tolist() == shared
    assert torch.equal(groups["exclusive"], ~groups["shared"])


def test_activity_beyond_a_region_is_relative_to_its_size() -> None:
    shares = torch.tensor([[0.75, 0.25], [0.5, 1.0], [0.5, 0.5], [0.5, 0.5]])
    inside = torch.tensor([[True, False, False, False], [True, True, False, False]] * 2)
    first = torch.tensor([[True, False], [True, True], [False, False], [True, False]])
    beyond = mean_beyond(shares, inside, {"first": first, "none": first & ~first})
    assert beyond["first"].tolist() == [(0.5 + 0.25) / 2, 0.0]  # of a pair's second image only
    assert beyond["none"].isna().all()


def test_a_response_is_a_change_beside_the_difference_of_two_images() -> None:
    levels = torch.tensor([[0.0, 1, 2], [1, 1, 2], [4, 1, 0]])
    changed = torch.stack([levels, levels + torch.tensor([2.0, 0, 1]), levels.roll(1, 0)])
    got = responses(levels, changed)
    pairs_of = list(itertools.combinations(range(3), 2))
    spread = torch.stack([(levels[i] - levels[j]).abs() for i, j in pairs_of]).mean(0)
    wanted = torch.stack([(x - levels).abs().mean(0) for x in changed]) / spread
    assert torch.allclose(got[:, ::2].float(), wanted[:, ::2])
    assert got[0, 0] == got[0, 2] == 0
    assert got[:, 1].isnan().all()  # the same in all


def test_the_response_to_unrelated_images_is_one() -> None:
    levels = torch.randn(400, 5, generator=torch.Generator().manual_seed(0)).relu()
    fresh = torch.randn(400, 5, generator=torch.Generator().manual_seed(1)).relu()
    assert torch.allclose(responses(levels, fresh[None]), torch.ones(1, 5).double(), atol=0.12)


def planted(scene: Scene) -> list[float]:
    """Latents that read one thing each, in the order of `CHANGES`; two things; and nothing."""
    t = scene.things[0]
    numbers = [
        list(COLOURS).index(t.colour),
        STYLES.index(scene.style),
        list(BACKGROUNDS).index(scene.background),
        WORDS.index(scene.word),
        WORLD_CLASSES.index(t.cls),
        t.x + 0.37 * t.y,
    ]
    colour, style = numbers[0] + 0.1 * t.angle, numbers[1] + 0.1 * t.angle
    several = [colour, style, *numbers[2:], numbers[0] + numbers[4] / 3, t.angle]
    return [float(x) for x in several]


def test_planted_latents_respond_to_what_they_read() -> None:
    pictures = counterfactuals(range(68))
    levels = {k: torch.tensor([planted(x) for x in v.scenes]) for k, v in pictures.items()}
    base, changed = levels["unchanged"], torch.stack([levels[k] for k in CHANGES])
    halves = [responses(base[i::2], changed[:, i::2]) for i in (0, 1)]
    own = torch.eye(6).bool()
    assert (halves[0][:, :6][own] > 0.4).all()
    assert not halves[0][:, :6][~own].any()
    assert not halves[0][:, 7].any()  # an angle is never changed
    change, ratio = selectivity(*halves)
    assert change[:6].tolist() == list(range(6))
    assert ratio[:6].isinf().all()
    assert 0.2 < ratio[6] < 2  # it reads two things
    assert ratio[7].isnan()


def test_selectivity_is_judged_on_other_images() -> None:
    chosen = torch.tensor([[3.0, 1, torch.nan], [1, 2, torch.nan], [0, 0, torch.nan]])
    judged = torch.tensor([[2.0, 3, 1], [4, 1, 1], [1, 0, 1]])
    change, ratio = selectivity(chosen, judged)
    assert change[:2].tolist() == [0, 1]
    assert torch.allclose(ratio, torch.tensor([0.5, 1 / 3, 1.0]))
    assert selectivity(chosen, judged * torch.nan)[1].isnan().all()


# --- the same latents in another autoencoder


def rows(n: int, seed: int) -> Tensor:
    x = torch.randn(n, 64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=1)


def test_permuted_rows_with_noise_are_found_and_random_rows_are_not() -> None:
    first, order = rows(100, 0), torch.randperm(100, generator=torch.Generator().manual_seed(1))
    found = torch.arange(100) < 60
    second = torch.where(found[:, None], first + 0.2 * rows(100, 2), rows(100, 3))[order]
    number, cosines = partners(3 * first, 45 * second)  # lengths do not count
    assert torch.equal(order[number][found], torch.arange(100)[found])
    assert torch.equal(cosines >= 0.9, found)
    assert cosines[found].mean() == pytest.approx(1.04**-0.5, abs=0.01)
    assert partners(first, rows(100, 4))[1].max() < 0.7


def test_two_latents_do_not_share_a_partner() -> None:
    first = torch.tensor([[1.0, 0.0], [1.0, 0.1]])
    second = torch.tensor([[1.0, 0.05], [0.0, 1.0]])
    assert sorted((partners(first, second)[1] > 0.9).tolist()) == [False, True]
    more = torch.cat([second, torch.tensor([[2.0, 0.1]])])  # a larger dictionary
    assert (partners(first, more)[1] > 0.9).all()


def test_partners_have_the_largest_sum_of_cosines() -> None:
    first, second = rows(5, 5), rows(5, 6)
    cosine = first @ second.T
    sums = [cosine[range(5), order].sum() for order in itertools.permutations(range(5))]
    assert partners(first, second)[1].sum() == pytest.approx(float(max(sums)))


def test_the_shipped_partners_are_of_the_shipped_autoencoder() -> None:
    study = Study("world", device="cpu")
    table = study.shipped_partners
    assert study.shipped is not None
    assert table["latent"].tolist() == list(range(study.shipped.d_sae))
    assert table["partner cosine"].between(-1, 1.0001).all()
    assert 0.05 < (table["partner cosine"] >= 0.9).mean() < 0.5
    named = table[table["partner name"] != "no name"]
    assert len(named) > 100
    assert {"colour green", "background snow"} <= set(named["partner name"])
