"""Methods that compare two models, by hand and where the answer was planted."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from patchsae_lib.artefacts import DATA
from patchsae_lib.diffing import (
    METHODS,
    Change,
    auroc,
    beyond,
    by_scaling,
    by_token,
    class_levels,
    components,
    explained_by,
    finds_classes,
    overlaps,
    procrustes,
    scaled,
    scaling,
    shares_of,
    sparse_latents,
    split,
    top_overlap,
    written,
)
from patchsae_lib.interop import load_sae
from patchsae_lib.interop.openclip import load_small_clip
from patchsae_lib.remapping import decompose, levels_by_place, with_noise
from patchsae_lib.sae import SAE
from patchsae_lib.world import World
from patchsae_lib.world.planting import moved, renamed, reweighted, turned, unchanged

D, T, N, C = 8, 6, 40, 4


def dictionary(d: int = D) -> SAE:
    """An autoencoder of d orthonormal latents, which is exact for what they write."""
    sae = SAE(d, d).eval().requires_grad_(False)
    rows = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(5))).Q
    sae.W_dec.copy_(rows)
    sae.W_enc.copy_(rows.T)
    sae.b_enc.zero_()
    sae.b_dec.copy_(torch.linspace(1, 2, d))
    return sae


def codes(seed: int = 0, n: int = N, d: int = D) -> torch.Tensor:
    """Sparse latents (n, T, d) ≥ 0, a third of them active; latent c is stronger in class c."""
    generator = torch.Generator().manual_seed(seed)
    f = torch.rand(n, T, d, generator=generator)
    f = f * (torch.rand(n, T, d, generator=generator) < 0.3)
    labels = torch.arange(n) % C
    f[torch.arange(n), :, labels] += 1
    return f


class Toy:
    """A second half that pools CLS, as a class for each of the first C latents."""

    device, n_tokens, n_prompts, at_once = torch.device("cpu"), T, 0, 16

    def __init__(self, sae: SAE) -> None:
        self.sae = sae

    def features(self, z: torch.Tensor) -> torch.Tensor:
        # what breaks ties of silent latents is the same wherever it is computed
        return (z[:, 0] - self.sae.b_dec) @ self.sae.W_dec.T[:, :C] - 1e-3 * torch.arange(C)

    def unadapted(self) -> "Toy":
        return self


def change_of(before: torch.Tensor, after: torch.Tensor, model=None, **given) -> Change:
    """A change from latents (n, T, D) to others, or of a plant's tokens."""
    sae, labels = dictionary(), torch.arange(len(before)) % C
    head = torch.eye(C)
    heads = given.get("heads", (head, head))
    return Change(sae, before, after, labels, heads, model or Toy(sae))


def show(f: torch.Tensor) -> torch.Tensor:
    """Tokens that latents f write."""
    return dictionary().decode(f)


# --- scaling ------------------------------------------------------------------------------------


@given(st.floats(0.05, 0.95), st.sets(st.integers(0, D - 1), min_size=1, max_size=D - 1))
@settings(max_examples=25, deadline=None)
def test_scaling_recovers_a_planted_factor(alpha, chosen) -> None:
    f, R = codes(), torch.tensor(sorted(chosen))
    z, part = show(f), show(f.index_fill(2, R, 0))
    plant = reweighted(z, torch.eye(C), z - part, alpha)
    found = scaling(change_of(plant.before, plant.after))
    ratio = found.before / found.after
    assert torch.allclose(ratio[R], torch.tensor(alpha).double(), atol=1e-4)
    left = [j for j in range(D) if j not in chosen]
    assert torch.allclose(ratio[left], torch.ones(len(left)).double(), atol=1e-4)
    assert found.alpha == pytest.approx(alpha, abs=1e-4)
    assert found.explained.min() > 0.99
    assert not found.is_new[left].any()


def test_factors_by_hand() -> None:
    # two orthogonal latents of centred activations: β_j = d_j · Σ f x / (1.01 Σ f²)
    sae = dictionary()
    f = torch.zeros(8, T, D)
    f[::2, :, 0], f[1::2, :, 1] = 2.0, 3.0
    after, before = sae.decode(f), sae.decode(f * torch.tensor([0.5, 1] + [0] * 6))
    found = scaling(change_of(before, after))
    n = 4 * T  # tokens of half the pictures
    in_first = f[change_of(before, after).halves[0]].flatten(0, 1).double()
    centred = in_first - in_first.mean(0)
    energy = centred.square().sum(0)
    assert found.energy.tolist() == pytest.approx(energy.tolist(), abs=1e-4)
    assert len(in_first) == n
    x = before[change_of(before, after).halves[0]].flatten(0, 1).double()
    D2 = sae.W_dec.double()[:2]
    A = (centred[:, :2].T @ centred[:, :2]) * (D2 @ D2.T)
    A = A + 0.01 * torch.diag(A.diagonal())
    b = ((centred[:, :2].T @ (x - x.mean(0))) * D2).sum(1)
    assert found.before[:2].tolist() == pytest.approx(torch.linalg.solve(A, b).tolist(), abs=1e-4)
    assert found.before[2:].abs().max() < 1e-4  # what rounding leaves of silent ones
    rest = x - x.mean(0) - centred[:, :2] * found.before[:2] @ D2
    wanted = rest.square().mean() * torch.linalg.inv(A).diagonal()
    assert found.errors[0, :2].tolist() == pytest.approx(wanted.sqrt().tolist(), rel=1e-2)


def test_a_latent_that_only_the_second_model_has_is_new() -> None:
    f = codes()
    before = f.index_fill(2, torch.tensor([6]), 0)
    found = scaling(change_of(show(before), show(f)))
    assert found.is_new.nonzero()[:, 0].tolist() == [6]
    assert found.alpha == pytest.approx(0, abs=1e-6)
    says = scaled(change_of(show(before), show(f))).says
    assert says["created"] > 0.99
    assert says["old"] == pytest.approx(0, abs=1e-6)


def test_what_factors_explain_is_measured_on_pictures_they_have_not_seen() -> None:
    f = codes()
    change = change_of(show(0.5 * f), show(f))
    rows = change.halves[1]
    factor = torch.full((D,), 0.5).double()
    explained = explained_by(factor, change, rows)
    assert torch.allclose(explained.mean(), torch.tensor(1.0), atol=1e-5)
    nothing = explained_by(0 * factor, change, rows)
    assert nothing.mean() == pytest.approx(0, abs=1e-5)


def test_latents_are_those_of_the_autoencoder() -> None:
    z = show(codes())
    f = sparse_latents(dictionary(), z)
    dense = torch.from_numpy(f.toarray())
    assert torch.equal(dense, dictionary().encode(z).flatten(0, 1))
    parts = written(f, dictionary(), z) + dictionary().b_dec
    assert torch.allclose(parts, dictionary()(z), atol=1e-5)


# --- the split ----------------------------------------------------------------------------------


def shift_class(f: torch.Tensor) -> torch.Tensor:
    """Latents in which the class's own is weaker than the next one's."""
    changed, rows = f.clone(), torch.arange(len(f))
    labels = rows % C
    changed[rows, :, labels] = 0.05
    changed[rows, :, (labels + 1) % C] += 0.2
    return changed


def test_the_split_is_exact_and_adds_up() -> None:
    f = codes()
    change = change_of(show(shift_class(f)), show(f))
    whole, none = change.difference, torch.zeros_like(change.difference)
    # all are wrong before, and all right after
    assert split(change, whole, none).mean(1).tolist() == [0, 1, 0, 0, 0]
    assert split(change, none, whole).mean(1).tolist() == [0, 0, 1, 0, 0]
    assert split(change, none, none).mean(1).tolist() == [0, 0, 0, 1, 0]


def test_the_split_by_token_is_that_of_the_page_before() -> None:
    lost = codes(seed=1)
    lost[torch.arange(N), :, torch.arange(N) % C] = 0  # the class's own latent is new after
    change = change_of(show(lost), show(codes()))
    given = change.before, change.after, change.labels, change.heads
    points = decompose(change.model, change.sae, *given).shares()
    assert torch.allclose(split(change, *by_token(change)), points)
    assert points[2].abs().sum() > 1  # not vacuous


def test_latents_that_were_there_are_old_in_every_token() -> None:
    f = codes()
    change = change_of(show(0.01 * f.where(f > 0.3, 0)), show(f))  # weaker, and in fewer tokens
    change.__dict__["scaling"] = SimpleNamespace(is_new=torch.arange(D) > 5)
    f0, f1 = (torch.from_numpy(x.toarray()).view(f.shape) for x in change.latents)
    old, new = by_scaling(change)
    change_by = [(f1 - f0)[..., part] @ change.sae.W_dec[part] for part in (slice(6), slice(6, 8))]
    assert torch.allclose(old, change_by[0], atol=1e-5)
    assert torch.allclose(new, change_by[1], atol=1e-5)


def test_names_are_the_heads_and_prompts_the_second_half() -> None:
    z = show(codes())
    plant = renamed(z, torch.eye(C))
    change = change_of(z, z, heads=plant.heads)
    points = split(change, *by_scaling(change))
    assert points.mean(1).tolist() == pytest.approx([1, 0, 0, 0, 0])
    toy = Toy(dictionary())
    wrong = SimpleNamespace(features=lambda x: toy.features(x).roll(1, 1), at_once=7)
    turns = SimpleNamespace(features=toy.features, unadapted=lambda: wrong, at_once=9)
    change = change_of(z, z, turns)
    points = split(change, *by_scaling(change))
    assert points.mean(1).tolist() == pytest.approx([0, 0, 0, 0, 1])


def test_without_a_sure_gain_there_are_no_shares() -> None:
    points = torch.zeros(5, 100).double()
    points[1, :40], points[3, :50] = 1, -1
    points[2, :2], points[4, :2] = 1, -1
    assert shares_of(points).says == pytest.approx({"points": 0.5})
    points[3] = 0
    assert shares_of(points).says["strengths"] == pytest.approx(1)
    assert shares_of(points[:, 50:]).says == {"points": 0}


# --- the overlap ---------------------------------------------------------------------------------


def test_the_overlap_is_of_the_strongest_latents_of_cls_and_of_patches() -> None:
    f = codes()
    assert top_overlap(change_of(show(f), show(f))).says["new"] == 0
    after = f.clone()
    after[:, 1:] = f[:, 1:].roll(4, 2) * (torch.arange(D) > 3)  # patches: four others at most
    before = f * (torch.arange(D) < 4)
    after[:, 0] = before[:, 0]
    says = overlaps(change_of(show(before), show(after)), 50)
    assert says["overlap, CLS"].tolist() == [1] * C
    assert says["overlap, patches"].tolist() == [0] * C
    change = change_of(show(before), show(after))
    for z, latents in zip((change.before, change.after), change.latents, strict=True):
        names = [str(c) for c in range(C)]
        wanted = levels_by_place(change.sae, z, change.labels, names)
        for place, levels in class_levels(change, latents).items():
            assert torch.allclose(levels / (N / C), wanted[place][2].float(), atol=1e-6)
    assert top_overlap(change_of(show(f), show(codes(seed=3)))).why


# --- PCA, alignment, classes --------------------------------------------------------------------


def test_what_is_beyond_noise_is_variance_of_the_axes() -> None:
    x = torch.tensor([[2.0, 0], [-2, 0], [0, 1], [0, -1]])  # variances 2 and .5
    even = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    assert beyond(x, even) == pytest.approx(2 / 2.5 - 1 / 2)
    assert beyond(even, x) == 0


def test_a_difference_in_one_direction_is_seen_and_noise_is_not() -> None:
    z = torch.randn(N, T, D, generator=torch.Generator().manual_seed(0))
    along = z + torch.randn(N, T, 1, generator=torch.Generator().manual_seed(1)) * torch.eye(D)[0]
    assert components(change_of(z, along)).says["change"] > 0.7
    noise = with_noise(z, along, seed=9)
    assert components(change_of(z, noise)).says["change"] < 0.1  # 120 tokens a null
    assert components(change_of(z, z)).says == {"change": 0.0}


def test_alignment_turns_a_rotation_back_and_nothing_else() -> None:
    z = torch.randn(N, T, D, generator=torch.Generator().manual_seed(0))
    plant = turned(unchanged(z, torch.eye(C)))
    change = change_of(plant.before, plant.after, plant.model(Toy(dictionary())))
    back = change.aligned
    assert torch.allclose(back.after, z, atol=1e-4)
    assert torch.allclose(
        back.model.features(back.after), Toy(dictionary()).features(z), atol=1e-4
    )
    assert procrustes(change).says == {"change": 0.0}
    assert torch.allclose(change_of(z, 2 * z).aligned.after, 2 * z, atol=1e-4)


def test_prompts_are_carried_along() -> None:
    z = torch.randn(N, T + 2, D, generator=torch.Generator().manual_seed(0))
    change = change_of(z[:, :T], z)
    assert torch.equal(change.aligned.after[:, T:], z[:, T:])
    assert torch.equal(change.noise.after[:, T:], z[:, T:])
    assert change.kept.shape[1] == T


def test_halves_have_every_class() -> None:
    change = change_of(show(codes()), show(codes()))
    for rows in change.halves:
        assert change.labels[rows].bincount().tolist() == [N / C / 2] * C
    assert torch.cat(change.halves).sort().values.tolist() == list(range(N))


def test_aurocs_are_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 4, (30, 3), generator=generator).double()
    labels = torch.arange(30) % 3
    table = auroc(x, labels, 4)
    for c in range(3):
        for j in range(3):
            assert table[c, j] == pytest.approx(roc_auc_score(labels == c, x[:, j]))
    assert table[3].isnan().all()


def test_classes_are_found_by_the_column_that_was_best_on_the_other_half() -> None:
    change = change_of(show(codes()), show(codes()))
    levels = torch.eye(C)[change.labels]
    assert finds_classes(levels, change) == 1
    lucky = torch.rand(N, 50, generator=torch.Generator().manual_seed(0))
    assert finds_classes(lucky, change) == pytest.approx(0.5, abs=0.15)


# --- the scorecard at the smallest size ---------------------------------------------------------


@pytest.fixture(scope="module")
def seen():
    """The small CLIP's tokens of two pictures of 14 classes, and the shipped autoencoder."""
    clip, world = load_small_clip(DATA / "small_clip"), World("styles", "test", 70)
    rows = [i for i in range(70) if i % 35 < 14]
    with torch.no_grad():
        z = clip.tokens(clip.preprocess(world.batch(rows)))
    head = clip.text_features(world.class_names[:14], ["a photo of a {}"])
    return clip, load_sae(DATA / "sae.safetensors"), z, torch.arange(28) % 14, head


#: grades on names, noise and rotation. Not to be wrong is required; PCA is what a rotation fools
REQUIRED = {
    "top-50 overlap": ("right", "abstains", "right"),
    "split by token": ("right", "right", "wrong"),
    "split by scaling": ("right", "right", "right"),
    "latent scaling": ("right", "right", "right"),
    "PCA of differences": ("right", "right", "wrong"),
    "after Procrustes": ("right", "right", "right"),
}


@torch.no_grad()
@pytest.mark.parametrize("method", REQUIRED)
def test_names_noise_and_rotation_come_out_as_required(seen, method: str) -> None:
    clip, sae, z, labels, head = seen
    far = z.roll(1, 0)
    noise = with_noise(z, z + 0.1 * (far - z), seed=3)
    plants = renamed(z, head), moved(z, head, noise), turned(unchanged(z, head))
    grades = []
    for plant in plants:
        given = plant.before, plant.after, labels, plant.heads, plant.model(clip)
        grades.append(plant.grade(METHODS[method](Change(sae, *given)).says))
    assert tuple(grades) == REQUIRED[method]
