"""Names of latents: the concept that the strongest patches of a latent show, or no name.

Of N patches a latent is active on about 1 %, and a patch shows three of C concepts, so that
products are sparse. With L0 active latents in a patch, naming d latents takes

    N d_vit d      multiplications to encode, the only dense product
    N L0 c         to count hits at all cuts at once, c ≈ 3 concepts in a patch
    P Σ_l n_l      additions for P permutations, n_l the pictures that activate latent l

Of 2,400 pictures of the world (N = 470,400, d = 3,072, C = 546, L0 = 37) these are 2.8 · 10¹¹,
5 · 10⁷ and 10⁹; dense, the hits at 13 cuts would be 10¹³. Latents are held as (patch, latent,
value), 8 bytes each: 0.14 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy import sparse, stats
from torch import Tensor

from patchsae_lib.sae import SAE
from patchsae_lib.sparse import SparseLatents
from patchsae_lib.tokens import Tokens
from patchsae_lib.world.truth import CONCEPTS, N_SINGLE, SINGLE, Concept, PatchTruth, spoken

Array = npt.NDArray[Any]

BLOCK = 256  # latents whose hits are in memory together
RANKS = tuple(25 * 2**k for k in range(12))  # patches above a cut; above the last, 0, are all
#: kinds of concept that CLS may stand for: those of a whole picture or of its object
PICTURE_KINDS = ("group", "class", "background", "style", "class style")
LYING_KINDS = tuple(kind for kind in (*SINGLE, "sign", "style") if kind != "group")  # by `lies_on`


@dataclass(frozen=True)
class NamingRule:
    """When a latent gets a name.

    A concept counts if each half of the pictures shows it in `minimum` patches: a share of 20 is
    known to about ± .1, and fewer would drop the beak. A latent counts if it is active on as many
    in each half. The concept is chosen on the first half: the one with the highest φ of those that
    the strongest patches show. It is tested on the second, so that one test a latent is left,
    whatever the number of concepts. A name needs both:

    - `floor`: of the share s of the latent's `strongest` patches that show the concept, which is
      on a share p of all patches, (s − p) / (1 − p) is at least one half: most of them show it,
      and not because most patches do. 50 patches are about five of each of ten reference images.
    - `rate`: the false discovery rate, over all latents that count (Benjamini and Hochberg 1995),
      of the overlap against `permutations` of the pictures.

    The same holds for CLS, with average precision in the place of s, and pictures for patches.

    A first rule (chosen by IoU; s ≥ .5 among the strongest thousandth of patches) was fixed before
    any name was seen. It named latents "style photo", which half of all patches are, and looked
    deeper than rare concepts have patches. This one was made on the same pictures, of the test
    split; it names latents by others, `SPLIT` of the world, at which nobody had looked. After a
    look at masks there, a style, which fills its whole picture, is no concept of patches any more:
    it named half of the latents, and no mask can show whether such a name is right.
    """

    pictures: int = 2400
    minimum: int = 20
    strongest: int = 50
    floor: float = 0.5
    rate: float = 0.05
    permutations: int = 999

    def reached(self, share: Any, usual: Any) -> Any:
        """Return whether shares are above the floor, where the `usual` share is chance."""
        return (share - usual) >= self.floor * (1 - usual)


SPLIT = "names"
RULE = NamingRule()
NO_NAME = "no name"


class Activity(NamedTuple):
    """Latents of pictures, sparse: `patches` (images · patches, d), and `cls` (images, d)."""

    patches: sparse.csr_array
    cls: sparse.csr_array


@torch.no_grad()
def activity(sae: SAE, tokens: Tokens) -> Activity:
    """Encode the tokens of pictures, CLS first; the latents of a batch alone are ever dense."""
    first, f = [np.zeros(1, np.int64)], (np.empty(0, np.float32), np.empty(0, np.int32))
    for z in tokens.split(sae.images_at_once(tokens.n_tokens)):
        part = SparseLatents.encode(sae, z)
        counts = part.token.bincount(minlength=z.shape[0] * z.shape[1]).cpu().numpy()
        first.append(first[-1][-1] + counts.cumsum())
        if first[-1][-1] > len(f[0]):  # grown in place: many small pieces would hold on to memory
            for column in f:
                column.resize(2 * int(first[-1][-1]), refcheck=False)
        entries = slice(first[-2][-1], first[-1][-1])
        f[0][entries], f[1][entries] = part.value.cpu(), part.latent.cpu()
    ends = np.concatenate(first)
    parts = f[0][: ends[-1]], f[1][: ends[-1]], ends
    latents = sparse.csr_array(parts, shape=(len(ends) - 1, sae.d_sae))
    is_cls = np.arange(len(ends) - 1) % tokens.n_tokens == 0
    return Activity(latents[~is_cls], latents[is_cls])


def cuts_of(f: sparse.csc_array) -> Array:
    """Find cuts (len(RANKS) + 1, d), falling, above which each of the latents f (n, d) fires on so
    many patches, or, at the last and where it is active on fewer, wherever it is active."""
    cuts, ranks = np.zeros((len(RANKS) + 1, f.shape[1]), np.float32), np.array(RANKS)
    for latent, values in enumerate(np.split(f.data, f.indptr[1:-1])):
        within = ranks[ranks < len(values)]
        cuts[: len(within), latent] = np.sort(values)[::-1][within]
    return cuts


def hits_of(f: sparse.csc_array, truth: sparse.csr_array, cuts: Array) -> tuple[Array, Array]:
    """Count the patches above each cut: (d, cuts, c) those that show a concept, and (d, cuts) all.

    f (n, d), truth (n, c), and `cuts` (cuts, d), falling. Each active latent is counted once, at
    the first cut below it, and summed up from there.
    """
    n_cuts, d = cuts.shape
    latent = np.repeat(np.arange(d), np.diff(f.indptr))
    first = (f.data <= cuts[:, latent]).sum(0)  # n_cuts: above none
    row, shape = latent * (n_cuts + 1) + first, (d, n_cuts + 1)
    ones = np.ones(len(row), np.int32)
    fired = sparse.csr_array((ones, (row, f.indices)), shape=(shape[0] * shape[1], f.shape[0]))
    hits = (fired @ truth).toarray().reshape(*shape, -1)[:, :-1].cumsum(1)
    return hits, fired.sum(1).reshape(shape)[:, :-1].cumsum(1)


def iou_of(hits: Array, fires: Array, positives: Array) -> Array:
    """IoU (d, cuts, c) of `hits_of`, with the numbers of patches (c,) that show a concept."""
    return hits / np.maximum(1, positives + fires[..., None] - hits)


def phi_of(hits: Array, fires: Array, positives: Array, n: int) -> Array:
    """Correlation φ (d, cuts, c) of firing and showing a concept over n patches, from `hits_of`.
    IoU grows with the share of patches that show a concept, by chance alone; φ does not."""
    product = (
        fires[..., None] * (n - fires[..., None]) * (positives * (n - positives)).astype(float)
    )
    return (n * hits.astype(float) - fires[..., None] * positives) / np.sqrt(
        np.maximum(1, product)
    )


def average_precision(order: Array, shown: Array) -> Array:
    """Average precision (…) of a ranking: `order` (k,) are the active rows, the strongest first,
    `shown` (…, n) bool what all n rows show. The rows that are not active share the last rank."""
    hits = shown[..., order]
    cumulated, n = hits.cumsum(-1), shown.shape[-1]
    positives = np.maximum(1, shown.sum(-1))
    found = cumulated[..., -1] if len(order) else np.zeros(shown.shape[:-1])
    ranked = (cumulated / np.arange(1, len(order) + 1) * hits).sum(-1)
    return (ranked + (shown.sum(-1) - found) * shown.sum(-1) / n) / positives


class Overlap:
    """Patches where a latent fires and where its concept is, picture by picture.

    `fires` and `shown` are numbers of patches, `patches` to an image, of `n` images. `together`
    (images that fire, images that show + 1) holds how many each with each have in common, the
    last column 0 for the images that do not show the concept.
    """

    def __init__(self, fires: Array, shown: Array, patches: int, n: int) -> None:
        self.n = n
        self.firing, fired = _by_image(fires, patches)
        self.showing, where = _by_image(shown, patches)
        common = fired @ where.T
        self.together = np.concatenate([common, np.zeros((len(common), 1), np.float32)], 1)
        self.column = np.full(n, len(self.showing))
        self.column[self.showing] = np.arange(len(self.showing))

    def z(self) -> float:
        """Return the z-score of the overlap against shuffled pictures, whose mean and variance
        are exact (Hoeffding 1951). A position in the frame that both prefer does not count. NaN
        without variance."""
        x, n = self.together.astype(float), self.n
        observed = x[np.arange(len(x)), self.column[self.firing]].sum()
        means = x.sum() / n, (x.sum(1) ** 2).sum() / n, (x.sum(0) ** 2).sum() / n
        squares = (x**2).sum() - means[1] - means[2] + means[0] ** 2
        deviation = np.sqrt(max(0.0, squares) / (n - 1))
        return float((observed - means[0]) / deviation) if deviation > 1e-9 else np.nan

    def p(self, orders: Array) -> float:
        """Return the share of `orders` (m, n) of the pictures, with the true one, in which they
        overlap as much."""
        rows = np.arange(len(self.together))
        columns = self.column[orders[:, self.firing]]
        overlaps = self.together[rows, columns].sum(1)
        observed = self.together[rows, self.column[self.firing]].sum()
        return float((1 + (overlaps >= observed).sum()) / (1 + len(orders)))


def _by_image(patch: Array, patches: int) -> tuple[Array, Array]:
    """Return the images in which patches lie, and for each where: (images, patches) float32."""
    images, row = np.unique(patch // patches, return_inverse=True)
    table = np.zeros((len(images), patches), np.float32)
    table[row, patch % patches] = 1
    return images, table


def permutations_of(n: int, rule: NamingRule) -> Array:
    """Draw orders (m, n) of n pictures."""
    rng = np.random.default_rng(0)
    return rng.permuted(np.tile(np.arange(n), (rule.permutations, 1)), axis=1)


@dataclass
class Half:
    """One half of the pictures: latents f (n, d) by column, and truth (n, c) by row and column."""

    f: sparse.csc_array
    truth: sparse.csr_array
    cls: sparse.csc_array
    images: int

    def __post_init__(self) -> None:
        self.shown = self.truth.tocsc()
        self.positives = np.diff(self.shown.indptr)

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return self.truth.shape[0] // self.images

    def patches_with(self, concept: int) -> Array:
        """Return the numbers of the patches that show a concept."""
        return self.shown.indices[self.shown.indptr[concept] : self.shown.indptr[concept + 1]]

    def pictures_with(self, concepts: Sequence[int] | Array) -> Array:
        """Return which pictures show concepts anywhere: (c, images) bool."""
        shown = np.zeros((len(concepts), self.images), bool)
        for row, concept in enumerate(concepts):
            shown[row, self.patches_with(concept) // self.patches] = True
        return shown

    def iou(self, latent: int, concept: int) -> float:
        """IoU of the patches where a latent is active with those that show a concept."""
        patch, where = self.ranked(latent)[0], self.patches_with(concept)
        hits = len(np.intersect1d(patch, where))
        return hits / max(1, len(patch) + len(where) - hits)

    def ranked(self, latent: int, cls: bool = False) -> tuple[Array, Array]:
        """Return the patches where a latent is active (or the pictures in whose CLS it is), the
        strongest first, and how strongly."""
        f = self.cls if cls else self.f
        entries = slice(f.indptr[latent], f.indptr[latent + 1])
        order = np.argsort(-f.data[entries], kind="stable")
        return f.indices[entries][order], f.data[entries][order]


def halves_of(f: Activity, truth: PatchTruth) -> tuple[Half, Half]:
    """Split pictures into their first and their second half (see `truth.halves` for why)."""
    (images, patches, c), first = truth.shape.tolist(), truth.first.numpy()
    ones = np.ones(len(truth.concept), np.int32)
    shown = sparse.csr_array(
        (ones, truth.concept.numpy().astype(np.int32), first), shape=(images * patches, c)
    )
    middle = images // 2

    def part(start: int, stop: int) -> Half:
        rows = slice(start * patches, stop * patches)
        cls = f.cls[start:stop].tocsc()
        return Half(f.patches[rows].tocsc(), shown[rows], cls, stop - start)

    return part(0, middle), part(middle, images)


# --- choosing on the first half -----------------------------------------------------------------


def choose(a: Half, b: Half, kept: Array, rule: NamingRule, n: int = 3) -> dict[str, Array]:
    """Choose the `n` concepts of each latent, and their cuts, on half `a`.

    Those that its strongest patches show come first, then by φ. The cut is that of the best IoU.
    Returns `concept` (d, n), numbers of concepts, `cut` (d, n), activations, and `iou` (d, n) of
    half `b`.
    """
    chosen: dict[str, list[Array]] = {"concept": [], "cut": [], "iou": []}
    truth_a, truth_b = a.truth[:, kept], b.truth[:, kept]
    shown_a, shown_b = a.positives[kept], b.positives[kept]
    patches, strongest = a.truth.shape[0], RANKS.index(rule.strongest)
    for start in range(0, a.f.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        cuts = cuts_of(a.f[:, block])
        hits, fires = hits_of(a.f[:, block], truth_a, cuts)
        share = hits[:, strongest] / np.maximum(1, fires[:, strongest, None])
        phi = phi_of(hits, fires, shown_a, patches).max(1)
        score = phi + 2 * rule.reached(share, shown_a / patches)
        concept = np.argsort(-score, axis=1, kind="stable")[:, :n]
        row = np.arange(len(score))[:, None]
        level = iou_of(hits, fires, shown_a).argmax(1)[row, concept]
        iou = iou_of(*hits_of(b.f[:, block], truth_b, cuts), shown_b)
        chosen["concept"].append(kept[concept])
        chosen["cut"].append(cuts[level, row])
        chosen["iou"].append(iou[row, level, concept])
    return {key: np.concatenate(parts) for key, parts in chosen.items()}


def choose_by_cls(a: Half, concepts: Array) -> Array:
    """Choose the concept of a picture (d,) that the CLS of half `a` ranks best by a latent."""
    shown = a.pictures_with(concepts)
    ranked = (a.ranked(latent, cls=True)[0] for latent in range(a.f.shape[1]))
    return concepts[[int(average_precision(order, shown).argmax()) for order in ranked]]


# --- scoring on the second half -----------------------------------------------------------------


def score_patches(b: Half, concept: Array, cut: Array, rule: NamingRule) -> pd.DataFrame:
    """Score latents with one concept and cut (d,) each: `active` (patches), `precision` among the
    strongest, `ap`, `z`, and `p`, which is 1 for those below the floor. NaN without activity."""
    orders, shown = permutations_of(b.images, rule), np.zeros(b.truth.shape[0], bool)
    rows = []
    for latent, (c, above) in enumerate(zip(concept, cut, strict=True)):
        where, (patch, value) = b.patches_with(c), b.ranked(latent)
        shown[where] = True
        precision = shown[patch[: rule.strongest]].mean() if len(patch) else np.nan
        overlap = Overlap(patch[value > above], where, b.patches, b.images)
        p = overlap.p(orders) if rule.reached(precision, len(where) / len(shown)) else 1.0
        ap = float(average_precision(patch, shown))
        rows.append((len(patch), precision, ap, overlap.z(), p))
        shown[where] = False
    return pd.DataFrame(rows, columns=["active", "precision", "ap", "z", "p"])


def score_cls(b: Half, concept: Array, rule: NamingRule) -> pd.DataFrame:
    """Score CLS with one concept (d,) each: `active` (pictures), `ap`, and `p` against shuffled
    pictures, which is 1 for those below the floor."""
    orders, rows = permutations_of(b.images, rule), []
    for latent, c in enumerate(concept):
        shown, (picture, _) = b.pictures_with([c])[0], b.ranked(latent, cls=True)
        ap, p = float(average_precision(picture, shown)), 1.0
        if rule.reached(ap, shown.mean()):
            shuffled = average_precision(picture, shown[orders])
            p = (1 + (shuffled >= ap).sum()) / (1 + len(orders))
        rows.append((len(picture), ap, p))
    return pd.DataFrame(rows, columns=["active", "ap", "p"])


def lies_on(b: Half, latent: int, rule: NamingRule) -> str:
    """Say what the strongest patches of a latent show: up to three single concepts, each on a
    tenth of them at least and twice as often as elsewhere."""
    patch = b.ranked(latent)[0][: rule.strongest]
    if not len(patch):
        return "never active"
    share = np.bincount(b.truth[patch].indices, minlength=len(CONCEPTS)) / len(patch)
    usual, kinds = b.positives / b.truth.shape[0], np.array([kind for kind, _ in CONCEPTS])
    is_said = (share >= 0.1) & (share >= 2 * usual) & np.isin(kinds, LYING_KINDS)
    first = [i for i in np.argsort(-share, kind="stable") if is_said[i]][:3]
    words = ", ".join(f"{100 * share[i]:.0f} % {spoken(CONCEPTS[i])}" for i in first)
    return f"of its strongest {len(patch)} patches: {words or 'nothing in particular'}"


def name_latents(f: Activity, truth: PatchTruth, rule: NamingRule = RULE) -> pd.DataFrame:
    """Name latents by what the same pictures show: one row a latent.

    - `found`: it has a name by the rule; `name`: in words, or "no name"; `by`: "patches", "CLS"
      for those that only CLS names, or "".
    - `kind`, `concept`: of `CONCEPTS`; without a name, the one that came nearest, and "" for a
      latent that is not `testable`: active on too few patches.
    - `iou` (0..1) of patches, and `active`, `precision`, `ap`, `z`, `p` (`score_patches`).
    - `cls_concept`, `cls_ap`: the concept that CLS ranks best by it, and its average precision.
    - `runners_up`: the next two concepts, with their IoU; `lies_on`: what its strongest patches
      show, in words.

    Raises `ValueError` if no concept is on enough patches.
    """
    a, b = halves_of(f, truth)
    kept = np.flatnonzero(np.minimum(a.positives, b.positives) >= rule.minimum)
    of_patch = kept[[CONCEPTS[i][0] != "style" for i in kept]]
    if not len(of_patch):
        raise ValueError(f"no concept fills {rule.minimum} patches in both halves of the pictures")
    of_picture = kept[[CONCEPTS[i][0] in PICTURE_KINDS for i in kept]]
    chosen, by_cls = choose(a, b, of_patch, rule), choose_by_cls(a, of_picture)
    by_patch = chosen["concept"][:, 0]
    patches = score_patches(b, by_patch, chosen["cut"][:, 0], rule)
    cls = score_cls(b, by_cls, rule)
    first = np.diff(a.f.indptr), np.diff(a.cls.indptr)  # active patches and pictures
    testable = np.minimum(first, [patches["active"], cls["active"]]) >= rule.minimum
    found = testable.copy()
    found[testable] = significant(np.stack([patches["p"], cls["p"]])[testable], rule)
    only_cls = found[1] & ~found[0]
    iou = [b.iou(i, by_cls[i]) if only_cls[i] else x for i, x in enumerate(chosen["iou"][:, 0])]
    words = _words(np.where(only_cls, by_cls, by_patch), found, testable[0] | only_cls)
    patches = patches.assign(cls_concept=[spoken(CONCEPTS[i]) for i in by_cls], cls_ap=cls["ap"])
    patches["runners_up"] = _runners_up(chosen)
    patches["lies_on"] = [lies_on(b, latent, rule) for latent in range(len(patches))]
    return words.assign(testable=testable[0], iou=iou).join(patches)


def significant(p: Array, rule: NamingRule = RULE) -> Array:
    """Return which p-values (n,) are discoveries at the rule's rate: bool."""
    return stats.false_discovery_control(p) <= rule.rate


def _words(concept: Array, found: Array, shown: Array) -> pd.DataFrame:
    """Return `kind`, `concept`, `found`, `name` and `by` of concepts (d,): `found` (2, d) by
    patches and by CLS; kind and concept are "" where they are not `shown` (d,)."""
    pairs = [
        CONCEPTS[i] if is_shown else ("", "") for i, is_shown in zip(concept, shown, strict=True)
    ]
    names, has_name = [spoken(CONCEPTS[i]) for i in concept], found[0] | found[1]
    table = pd.DataFrame(pairs, columns=["kind", "concept"])
    table["found"], table["name"] = has_name, np.where(has_name, names, NO_NAME)
    table["by"] = np.select([found[0], found[1]], ["patches", "CLS"], "")
    return table


def _runners_up(chosen: dict[str, Array]) -> list[str]:
    """Say the concepts after the first, with their IoU."""
    pairs = zip(chosen["concept"][:, 1:], chosen["iou"][:, 1:], strict=True)
    return [
        ", ".join(f"{spoken(CONCEPTS[c])} {x:.2f}" for c, x in zip(concepts, iou, strict=True))
        for concepts, iou in pairs
    ]


def too_rare(truth: PatchTruth, minimum: int) -> list[Concept]:
    """List the single concepts that fill fewer than `minimum` patches in either half."""
    middle = int(truth.first[int(truth.shape[0]) // 2 * int(truth.shape[1])])
    parts = truth.concept[:middle], truth.concept[middle:]
    counts = torch.stack([part.long().bincount(minlength=len(CONCEPTS)) for part in parts]).amin(0)
    return [CONCEPTS[i] for i in (counts < minimum).nonzero()[:, 0].tolist() if i < N_SINGLE]


def mask_shares(masks: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of the weight of masks (d, k, rows, columns) that lies inside regions
    (d, k, patches) bool, and the share of patches that do: means (d,) over those of a latent's k
    pictures where it is active. It checks a name on pictures that were not used to find it."""
    weight = masks.flatten(2).double()
    is_active = (weight.sum(2) > 0).double()
    share = (weight * inside).sum(2) / weight.sum(2).clamp_min(1e-12)
    n = is_active.sum(1).clamp_min(1)
    return share.sum(1) / n, (inside.double().mean(2) * is_active).sum(1) / n
