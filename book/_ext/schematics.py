"""The schematics of the page about the method, after figures of the paper, as SVG.

Each is a row of panels, `WIDTH` units wide, that stand side by side on a wide page and below each
other on a narrow one. `photo` and `repaired` compute what is real in them while the book is built.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape

import numpy as np
import torch
from torch import Tensor

from patchsae_lib import Study
from patchsae_lib.ablation import Decomposition, class_level, masked_logits
from patchsae_lib.latents import scan_tokens
from patchsae_lib.localization import latent_masks
from patchsae_lib.pictures.sources import world_of
from patchsae_lib.splits import Split
from patchsae_lib.world.truth import on_object
from sheets import webp

WIDTH, EDGE = 300, 12  # units, pixels where a page is narrow: of a panel, and free beside its rim
K = 50  # latents of a class that a mask keeps or removes, as in notebook 4
N_MASKS = 4  # latents that the first schematic shows
N_PICTURES = 5  # pictures of a class that the second one shows
STATES = {"all": "all on", "on": f"on top-{K}", "off": f"off top-{K}", "none": "all off"}
CELL = 9.2  # from one square of a latent to the next


# --- what is real --------------------------------------------------------------------------------


@cache
def world_study() -> Study:
    """Return the study of the embedded world, whatever the profile of the book."""
    return Study("world", device="cpu")


@dataclass(frozen=True)
class Photo:
    """A test photo and its class, for the second and third schematic.

    `active` (n,) are the latents active in it, those of the class's first `K` first: `n_of_class`
    of them. `latent` has `activations` (rows, columns) on its patches, which are `counted` above
    τ; `n_image` are all such tokens, `counts` those of the first training `pictures` of the class,
    and `n_class` those of all `n_pictures`. `answers[state]` (classes,) are probabilities.
    """

    pixels: np.ndarray
    name: str
    l0: float
    active: Tensor
    n_of_class: int
    latent: int
    activations: Tensor
    counted: Tensor
    n_image: int
    pictures: list[np.ndarray]
    counts: list[int]
    n_class: int
    n_pictures: int
    answers: dict[str, Tensor]


@cache
def photo() -> Photo:
    """Compute the first photo (not a sketch, painting or silhouette) among the test pictures.

    The latent that is shown is the one, of the class's ten first, above τ on most of the patches
    with the object.
    """
    study = world_study()
    world, sae = world_of(study.test.pictures), study.sae
    assert world is not None
    row = next(i for i in range(len(world)) if world.scene(i).style == "photo")
    split = study.test.select([row])
    label, z = int(split.labels[0]), split.tokens[torch.tensor([0])].float()
    of_class = study.train.select((study.train.labels == label).nonzero()[:, 0])
    counted = of_class.tokens, of_class.labels, of_class.class_names, study.profile.statistics
    table = scan_tokens(sae, *counted)
    order = class_level(table)[label]
    f, cut, thing = sae.encode(z[0]), sae.cuts(table.tau), on_object(split.truth)[0]
    latent = int(order[(f[1:, order[:10]] > cut[order[:10]])[thing].sum(0).argmax()])
    is_active, shown = (f[:, order] > 0).any(0), of_class.select(range(N_PICTURES))
    mask = latent_masks(sae, z, [latent], study.clip.grid)[0, 0]
    encoded = (sae.encode(x[0])[:, latent] for x in shown.tokens.split(1))
    return Photo(
        pixels=world.picture(row).pixels,
        name=split.label_names[0],
        l0=float((f > 0).sum(1).float().mean()),
        active=order[is_active],
        n_of_class=int(is_active[:K].sum()),
        latent=latent,
        activations=mask,
        counted=mask > cut[latent],
        n_image=int((f[:, latent] > cut[latent]).sum()),
        pictures=pixels_of(shown),
        counts=[int((x > cut[latent]).sum()) for x in encoded],
        n_class=int(table.class_above[label, latent]),
        n_pictures=len(of_class),
        answers=answers(split, order),
    )


def pixels_of(split: Split) -> list[np.ndarray]:
    """Return the pictures of a split, each (height, width, 3) uint8."""
    pictures = split.pictures.batch(list(range(len(split))))
    return list(pictures.permute(0, 2, 3, 1).numpy())


def answers(split: Split, order: Tensor) -> dict[str, Tensor]:
    """Return the probabilities (classes,) of the first picture of a split under each mask of
    `STATES`, made of the first `K` latents of an order (d_sae,)."""
    study = world_study()
    z = Decomposition.of(study.sae, split.tokens[torch.tensor([0])].float())
    rank = order.argsort().int()[None]
    with torch.no_grad():
        (masked,) = masked_logits(split.clip, z, split.head, rank, (K,))
        unmasked = [split.clip.classify(x, split.head) for x in (z.base + z.decoded, z.base)]
    logits = (unmasked[0], *masked, unmasked[1])
    return {state: x.softmax(-1).flatten() for state, x in zip(STATES, logits, strict=True)}


@dataclass(frozen=True)
class Repaired:
    """A picture that CLIP gets wrong and the adapted CLIP right, for the first and last schematic.

    `latents` (n,) have `activations` (n, rows, columns) and are above τ on `before` and `after`
    (n,) patches of it, and on `per_picture` (n,) tokens of a picture of its class. `names` are
    its class, the wrong one, and the next by CLIP's probability, `shares` (2, 3) the probabilities
    of these in both models; `shape` (depth, tokens) is that of the prompts.
    """

    pixels: np.ndarray
    l0: float
    latents: list[int]
    activations: Tensor
    before: list[int]
    after: list[int]
    per_picture: list[float]
    n_pictures: int
    n_same: int
    names: list[str]
    shares: Tensor
    shape: tuple[int, int]


@cache
def repaired() -> Repaired:
    """Compute the first base test picture of flower species that CLIP gets wrong and the adapted
    CLIP (few-shot seed 0) right, and the latents above τ on most of its patches with the flower.
    """
    study = world_study()
    task, sae, grid = study.tasks["Flower species"], study.sae, study.clip.grid
    adapted = task.adapted(0)
    models = task.base, adapted.base
    hit_before, hit_after = (split.correct() for split in models)
    row = int((hit_after > hit_before).nonzero()[0])
    single = [split.select([row]) for split in models]
    z = [split.tokens[torch.tensor([0])].float() for split in single]
    cut, flower = sae.cuts(study.profile.statistics.tau), on_object(single[0].truth)[0]
    above = [latent_masks(sae, x, range(sae.d_sae), grid)[0].flatten(1) > cut[:, None] for x in z]
    ranked = [x[:, flower].sum(1).argsort(descending=True, stable=True) for x in above]
    latents, label = ranked[0][:N_MASKS], int(single[0].labels[0])
    n_blocks, n_tokens, _ = study.prompts("world:flowers").text.shape
    share = torch.stack(
        [logits(split, x).softmax(-1)[0] for split, x in zip(single, z, strict=True)]
    )
    rivals = [c for c in share[0].argsort(descending=True).tolist() if c != label]
    counted = task.counted.select((task.counted.labels == label).nonzero()[:, 0])
    table = scan_tokens(sae, counted.tokens, counted.labels, counted.class_names)
    return Repaired(
        pixels=pixels_of(single[0])[0],
        l0=float((sae.encode(z[0]) > 0).sum(-1).float().mean()),
        latents=latents.tolist(),
        activations=latent_masks(sae, z[0], latents.tolist(), grid)[0],
        before=above[0][latents].sum(1).tolist(),
        after=above[1][latents].sum(1).tolist(),
        per_picture=table.class_per_image[label, latents].tolist(),
        n_pictures=len(counted),
        n_same=int(torch.isin(*(x[:10] for x in ranked)).sum()),
        names=[task.base.class_names[c] for c in (label, *rivals[:2])],
        shares=share[:, [label, *rivals[:2]]],
        shape=(n_blocks, n_tokens),
    )


@torch.no_grad()
def logits(split: Split, z: Tensor) -> Tensor:
    """Compute the logits (b, classes) of tokens in a split's model and head."""
    return split.clip.classify(z, split.head)


# --- how it is drawn -----------------------------------------------------------------------------


def tag(name: str, content: str = "", **attributes: object) -> str:
    """Return an element; `kind` is its class, and `_` in names of attributes is a hyphen.

    >>> tag("rect", kind="box", stroke_width=2)
    '<rect class="box" stroke-width="2"></rect>'
    """
    names = {name: "class" if name == "kind" else name.replace("_", "-") for name in attributes}
    pairs = "".join(
        f' {names[name]}="{round(value, 1) if isinstance(value, float) else value}"'
        for name, value in attributes.items()
        if value != ""
    )
    return f"<{name}{pairs}>{content}</{name}>"


INDEX = '<tspan class="index" dy="3">\\1</tspan><tspan dy="-3">\u200b</tspan>'


def say(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Return a line of text, in which *x* is a symbol and ~s~ an index."""
    marked = re.sub(r"\*(.+?)\*", r'<tspan class="symbol">\1</tspan>', escape(words, quote=False))
    marked = re.sub("~(.+?)~", INDEX, marked)
    return tag("text", marked, kind=kind, x=x, y=y, text_anchor=anchor)


def box(x: float, y: float, width: float, height: float, kind: str = "box", *lines: str) -> str:
    """Return a rectangle with lines of text in its middle."""
    rect = tag("rect", kind=kind, x=x, y=y, width=width, height=height, rx=4)
    top = y + height / 2 + 4.2 - 7 * (len(lines) - 1)
    texts = (say(x + width / 2, top + 14 * i, s, "", "middle") for i, s in enumerate(lines))
    return rect + "".join(texts)


def line(d: str, kind: str = "arrow") -> str:
    """Return a path; one of the kind `arrow` has a head."""
    return tag("path", kind=kind, d=d)


def cells(
    x: float, y: float, n: int, pitch: float, size: float, kind: str = "", lit: Container[int] = ()
) -> str:
    """Return n square cells of a kind side by side, some of which are lit."""
    kinds = ("cell lit" if i in lit else f"cell {kind}" for i in range(n))
    return "".join(
        tag("rect", kind=k, x=x + i * pitch, y=y, width=size, height=size, rx=2)
        for i, k in enumerate(kinds)
    )


def bend(x0: float, y0: float, x1: float, y1: float) -> str:
    """Return the path of a line that leaves and arrives horizontally."""
    middle = (x0 + x1) / 2
    return f"M{x0} {y0}C{middle} {y0} {middle} {y1} {x1} {y1}"


def squares(places: Iterable[Sequence[int]]) -> str:
    """Return the path of unit squares at (column, row).

    >>> squares([(0, 0), (3, 1)])
    'M0 0h1v1h-1zM3 1h1v1h-1z'
    """
    return "".join(f"M{x} {y}h1v1h-1z" for x, y in places)


def image(pixels: np.ndarray, x: float, y: float, size: float, kind: str = "") -> str:
    """Return a picture, in the page itself."""
    address = f"data:image/webp;base64,{base64.b64encode(webp(pixels)).decode()}"
    rim = tag("rect", kind="rim", x=x, y=y, width=size, height=size, rx=3)
    return tag("image", kind=kind, x=x, y=y, width=size, height=size, href=address) + rim


def mask(values: Tensor, x: float, y: float, size: float, n_levels: int = 5) -> str:
    """Return the patches where `values` (rows, columns) ≥ 0 are not 0, in `n_levels` strengths."""
    level = (values / values.max().clamp_min(1e-9)).sqrt().mul(n_levels).ceil()
    places = {n: (level == n).nonzero().flip(1).tolist() for n in range(1, n_levels + 1)}
    paths = (
        tag("path", d=squares(at), opacity=0.85 * n / n_levels) for n, at in places.items() if at
    )
    place = f"translate({x} {y}) scale({size / len(values):.4f})"
    return tag("g", "".join(paths), kind="mask", transform=place)


def masked(pixels: np.ndarray, values: Tensor, x: float, y: float, size: float) -> str:
    """Return a picture in grey, with a mask."""
    return image(pixels, x, y, size, "grey") + mask(values, x, y, size)


HEAD = (
    '<marker id="{}" class="{}" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="8" '
    'markerHeight="8" markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0.5L7 4L0 7.5z"/>'
    "</marker>"
)  # of an arrow


def panel(title: str, about: str, height: int, *parts: str) -> str:
    """Return an SVG of `WIDTH` × `height` with a title, and a description for those who cannot
    see it."""
    name = "schematic-" + title.lower().replace(" ", "-")
    ends = {colour: f"{name}-{colour}" for colour in ("grey", "teal", "orange")}
    heads = "".join(HEAD.format(place, colour) for colour, place in ends.items())
    content = (
        f'<title id="{name}">{escape(title)}</title>'
        f'<desc id="{name}-about">{escape(about)}</desc><defs>{heads}</defs>'
    )
    return tag(
        "svg",
        content + say(EDGE, 24, title, "title") + "".join(parts),
        viewBox=f"0 0 {WIDTH} {height}",
        role="group",
        aria_labelledby=f"{name} {name}-about",
        style="; ".join(f"--{colour}-end: url(#{place})" for colour, place in ends.items()),
    )


def schematic(kind: str, panels: Sequence[str], caption: str, above: str = "") -> str:
    """Return a figure, as MyST markdown: what stands above the panels, the panels, the caption."""
    content = f'{above}<div class="panels">{"".join(panels)}</div>'
    content += tag("figcaption", caption)
    figure = tag("figure", content, kind=f"schematic {kind}")
    return f"```{{raw}} html\n{figure}\n```"


# --- the four ------------------------------------------------------------------------------------


def story() -> str:
    """Return the whole story in one picture, after Fig. 1."""
    r = repaired()
    caption = (
        f"<strong>The story in one picture</strong> (after Fig. 1 of the paper, redrawn). Left: a "
        f"picture becomes tokens, and each token a short list of latents; a latent has a place in "
        f"the picture, and a class has latents that it uses. Right: look at the middle, where "
        f"nothing moves, then at the lines, which do. The picture, of a {r.names[0]}, is the "
        f"first test picture of the task “Flower species” that CLIP gets wrong and the adapted "
        f"CLIP right. The latents are the {len(r.latents)} that are above τ on most of its "
        f"patches with the flower, with their masks in CLIP; of the ten first by this rule, "
        f"{r.n_same} are the same in both models. Masks, counts and probabilities are measured; "
        f"the lit squares are a sketch, and the lines only say what each model answers."
    )
    return schematic("story", [reading(r), remapping(r)], caption)


def reading(r: Repaired) -> str:
    """Return the first panel: from a picture to latents, and where and in which class they are."""
    parts = [
        image(r.pixels, 12, 38, 84),
        tag("path", kind="grid", d=grid_lines(12, 38, 84, r.activations.shape[-1])),
        line("M100 80H113"),
        box(118, 58, 74, 44, "box", "first half", "of CLIP"),
        line("M196 80H209"),
        *(
            tag("rect", kind="cell", x=214, y=46 + 14 * i, width=74, height=9, rx=2)
            for i in range(5)
        ),
        say(288, 136, "tokens *z*", "note", "end"),
        line("M251 144V155"),
        box(202, 160, 86, 44, "box", "sparse", "autoencoder"),
        line("M198 182H181"),
        cells(12, 166, 12, 14, 11, lit=(4,)),
        cells(12, 180, 12, 14, 11, lit=(7, 9)),
        say(12, 156, "latents *f*(*z*)", "note"),
        say(12, 224, "Where is a latent active?", "name"),
        line("M12 404H288", "base"),
        say(288, 423, f"tokens per picture, {r.n_pictures} pictures", "note", "end"),
        say(12, 337, f"Which latents does “{r.names[0]}” use?", "name"),
    ]
    for i, latent in enumerate(r.latents):
        x, high = 12 + 70.67 * i, 44 * r.per_picture[i] / max(r.per_picture)
        parts += [
            masked(r.pixels, r.activations[i], x, 233, 64),
            say(x + 32, 311, f"no. {latent}", "note", "middle"),
            tag("rect", kind="bar", x=x + 16, y=404 - high, width=32, height=high),
            say(x + 32, 400 - high, f"{r.per_picture[i]:.0f}", "note", "middle"),
        ]
    about = (
        f"A picture goes through the first half of CLIP and becomes tokens; the autoencoder "
        f"writes each as latents, about {r.l0:.0f} of them active. Below, the masks of latents "
        f"{listed(r.latents)} on the picture, and on how many tokens of a picture of the class "
        f"{r.names[0]} each counts: {listed(f'{n:.0f}' for n in r.per_picture)}."
    )
    return panel("From a picture to latents", about, 432, *parts)


def remapping(r: Repaired) -> str:
    """Return the second panel: the same latents go to another class name."""
    parts = [
        say(12, 52, "CLIP", "name clip"),
        say(150, 52, "latents", "name", "middle"),
        say(288, 52, "adapted CLIP", "name adapted", "end"),
    ]
    middles = (330, 122, 226)  # of the boxes of the class names
    sides = (("clip", 1, 12, 118, 80), ("adapted", 0, 220, 182, 220))
    for (colour, answer, x, start, end), shares in zip(sides, r.shares.tolist(), strict=True):
        for i in range(len(r.latents)):
            parts.append(line(bend(start, 98 + 84 * i, end, middles[answer]), colour))
        for i, name in enumerate(r.names):
            kind = f"box {colour}" if i == answer else "box faint"
            parts.append(box(x, middles[i] - 21, 68, 42, kind, name, f"{shares[i]:.1%}"))
    for i, patches in enumerate(zip(r.before, r.after, strict=True)):
        parts += [
            masked(r.pixels, r.activations[i], 118, 66 + 84 * i, 64),
            say(150, 143 + 84 * i, "{} → {}".format(*patches), "note", "middle"),
        ]
    about = (
        f"The latents {listed(r.latents)} are above τ on {listed(r.before)} patches in CLIP and "
        f" on {listed(r.after)} in the adapted CLIP. In CLIP lines lead from them to the "
        f"class {r.names[1]}, in the adapted CLIP to {r.names[0]}, which is right."
    )
    note = say(150, 423, "patches above τ, before → after", "note", "middle")
    return panel("Same latents, other class", about, 432, *parts, note)


def grid_lines(x: float, y: float, size: float, n: int) -> str:
    """Return the path of the lines between n × n patches."""
    steps = [round(size / n * i, 2) for i in range(1, n)]
    across = "".join(f"M{x} {y + s:g}h{size}" for s in steps)
    return across + "".join(f"M{x + s:g} {y}v{size}" for s in steps)


def listed(values: Iterable[object]) -> str:
    """Return values as words.

    >>> listed([1, 2, 3])
    '1, 2 and 3'
    """
    *most, last = map(str, values)
    return f"{', '.join(most)} and {last}" if most else last


def autoencoder() -> str:
    """Return the autoencoder in the ViT, and the pyramid of counts, after Fig. 2."""
    p, study = photo(), world_study()
    caption = (
        f"<strong>The autoencoder in the vision transformer, and what is counted</strong> (after "
        f"Fig. 2 of the paper, redrawn for the small CLIP). Left: CLIP is hooked after block "
        f"{study.clip.block + 1} of {study.clip.n_blocks}; every token there, CLS or patch, is "
        f"written as latents and back. The lit squares are a sketch of how few are active: "
        f"{p.l0:.0f} of {study.sae.d_sae:,} in the mean over this picture’s tokens. Right, for "
        f"the section on counts below: they are sums, of tokens, then of images, then of "
        f"classes. The picture is the first photo among the test pictures; the latent, no. "
        f"{p.latent}, is the one of the ten that count most in its class that is above τ on most "
        f"patches of the {p.name}."
    )
    return schematic("vit", [hooked(p), pyramid(p)], caption)


def hooked(p: Photo) -> str:
    """Return the first panel: the blocks, the hook, the encoder and the decoder."""
    study = world_study()
    n, at = study.clip.n_blocks, study.clip.block
    lefts = [84 + 24 * i + (20 if i > at else 0) for i in range(n)]
    hook, last = lefts[at] + 32, lefts[-1] + 20
    parts = [
        say(84, 50, "blocks of the ViT", "note"),
        say(hook, 50, "hook", "note teal", "middle"),
        image(p.pixels, 12, 58, 52),
        line("M67 84H78"),
        *(box(x, 58, 20, 52, "box", str(i + 1)) for i, x in enumerate(lefts)),
        line(f"M{lefts[at] + 20} 84H{lefts[at + 1]}", "plain"),
        tag("circle", kind="hook", cx=hook, cy=84, r=4.5),
        line(f"M{last} 84H{last + 11}"),
        say(WIDTH - EDGE, 88, "class", "", "end"),
        line(f"M{hook} 84V126H150V138", "arrow teal"),
        cells(96, 143, 9, 12, 10),
        say(88, 152, "*z*", "", "end"),
        say(212, 152, f"width {study.clip.d_vit}", "note"),
        tag("path", kind="box", d="M94 159H206L276 201H24z"),
        say(150, 176, "encoder", "", "middle"),
        say(150, 193, "ReLU((*z* − *b*~dec~) *W*~enc~ + *b*~enc~)", "note", "middle"),
        cells(24, 207, 21, 12, 10, lit=(5, 13)),
        cells(24, 219, 21, 12, 10, lit=(9,)),
        say(19, 222, "*f*", "", "end"),
        tag("path", kind="box", d="M24 235H276L206 277H94z"),
        say(150, 253, "decoder", "", "middle"),
        say(150, 269, "*f* *W*~dec~ + *b*~dec~", "note", "middle"),
        cells(96, 283, 9, 12, 10),
        say(88, 292, "*ẑ*", "", "end"),
        line(f"M208 288H288V126H{lefts[-1] + 10}V114", "arrow dashed"),
        say(12, 324, f"{p.l0:.0f} of {study.sae.d_sae:,} latents are active", "name"),
        say(12, 340, "dashed: only when latents are switched off", "note"),
    ]
    about = (
        f"The picture's tokens pass {n} blocks. After block {at + 1} a token z of "
        f"{study.clip.d_vit} numbers goes to the encoder, which writes {study.sae.d_sae:,} "
        f"latents, {p.l0:.0f} of them active; the decoder makes the reconstruction of them, which "
        f"replaces the token before block {at + 2} when latents are switched off."
    )
    return panel("The autoencoder in the ViT", about, 356, *parts)


def pyramid(p: Photo) -> str:
    """Return the second panel: counts over τ of patches, of an image, a class and a data set."""
    names = world_study().train.class_names
    at = names.index(p.name)
    shown = (*names[at - 1 : at + 2], f"{len(names) - 3} more")
    parts = [
        masked(p.pixels, p.activations, 12, 42, 64),
        say(92, 68, "> *τ*", "note", "middle"),
        line("M81 76H101"),
        masked(p.pixels, p.counted.float(), 108, 42, 64),
        say(188, 62, "image:", "name"),
        say(188, 79, f"*n*~s~(*x*) = {p.n_image}", "name"),
        say(188, 96, "tokens above *τ*", "note"),
        line("M150 116V134"),
        say(12, 160, f"class: *n*~s~({p.name}) = {p.n_class:,}", "name"),
        say(12, 177, f"{p.n_pictures} pictures, the first {len(p.counts)} of them:", "note"),
    ]
    for i, pixels in enumerate(p.pictures):
        parts += [
            image(pixels, 12 + 57 * i, 186, 48),
            say(36 + 57 * i, 248, str(p.counts[i]), "note", "middle"),
        ]
    for i, name in enumerate(shown):
        parts.append(box(12 + 70.67 * i, 314, 64, 26, "box lit" if i == 1 else "box", name))
    parts += [
        line("M150 258V276"),
        say(12, 302, f"data set: *n*~s~(*D*) = sum over {len(names)} classes", "name"),
    ]
    about = (
        f"Latent {p.latent} is above τ on {p.n_image} tokens of the image. In pictures of the "
        f"class {p.name} it is on {listed(p.counts)} tokens and so on, {p.n_class:,} in all "
        f"{p.n_pictures}. The data set sums all {len(names)} classes."
    )
    return panel("From patches to the data set", about, 356, *parts)


def masks() -> str:
    """Return what masks keep and remove, with a switch, after Fig. 5a."""
    p = photo()
    at = world_study().test.class_names.index(p.name)
    shares = {s: f"{STATES[s]} {p.answers[s][at]:.0%}" for s in STATES}
    caption = (
        f"<strong>Latents switched on and off</strong> (after Fig. 5a of the paper, redrawn). "
        f"Choose above what stays on, and compare the squares with the bars. The picture is the "
        f"first photo among the test pictures, the squares are the {len(p.active)} latents active "
        f"in it, and {p.n_of_class} of them are among the {K} with the largest *n* of its class "
        f"over the training pictures. The {p.name} gets {listed(shares.values())}. "
        'That is one picture; <a href="notebooks/4_ablation.html">notebook 4</a> has all of them.'
    ).replace("*n*", "<em>n</em>")
    return schematic("masks", [switched(p), classified(p)], caption, switch())


CHECKED = ' checked=""'


def switch() -> str:
    """Return radio buttons, one a state; without them on, the figure shows "on"."""
    buttons = "".join(
        f'<label><input type="radio" name="schematic-mask" value="{state}"'
        f"{CHECKED * (state == 'on')}/> {words}</label>"
        for state, words in STATES.items()
    )
    return f'<fieldset class="switch"><legend>Latents</legend>{buttons}</fieldset>'


def switched(p: Photo) -> str:
    """Return the first panel: a square for each latent that is active in the picture."""
    columns = int((WIDTH - 2 * EDGE) // CELL)
    places = [(i % columns, i // columns) for i in range(len(p.active))]
    of_class, outside = places[: p.n_of_class], places[p.n_of_class :]
    parts = [
        image(p.pixels, 12, 38, 76),
        say(100, 52, f"{len(p.active)} latents are active", "name"),
        cells(100, 62, 1, 0, 10, "lit"),
        say(116, 71, f"{p.n_of_class} of {p.name}’s first {K}"),
        cells(100, 80, 1, 0, 10, "dark"),
        say(116, 89, f"{len(outside)} others"),
        cells(100, 98, 1, 0, 10, "off"),
        say(116, 107, "switched off"),
        tag("g", lights(of_class, "of-class") + lights(outside, "others"),
            transform="translate(12 130)"),
    ]  # fmt: skip
    about = (
        f"{len(p.active)} squares, one for each latent active in the picture: {p.n_of_class} are "
        f"among the first {K} of the class {p.name}. The chosen ones are filled."
    )
    return panel("Latents of the picture", about, 350, *parts)


def lights(places: Iterable[Sequence[int]], kind: str) -> str:
    """Return the path of the squares of latents at (column, row)."""
    side = CELL - 2.2
    d = "".join(f"M{x * CELL:.1f} {y * CELL:.1f}h{side:g}v{side:g}h-{side:g}z" for x, y in places)
    return tag("path", kind=f"lights {kind}", d=d)


def classified(p: Photo) -> str:
    """Return the second panel: the probabilities of five classes under each mask."""
    names = world_study().test.class_names
    at, most = names.index(p.name), torch.stack(list(p.answers.values())).amax(0)
    rivals = [c for c in most.argsort(descending=True).tolist() if c != at]
    parts = [
        box(12, 40, 66, 30, "box", "decoder"),
        line("M78 55H88"),
        cells(93, 50, 5, 12, 10),
        say(122, 45, "*ẑ*", "", "middle"),
        line("M153 55H162"),
        box(166, 40, 76, 30, "box", "last block"),
        line("M242 55H253"),
        say(288, 59, "class", "", "end"),
    ]
    for i, c in enumerate((at, *rivals[:4])):
        y, values = 100 + 50 * i, {s: float(p.answers[s][c]) for s in STATES}
        style = "; ".join(f"--{state}: {value:.4f}" for state, value in values.items())
        parts += [
            say(12, y, names[c], "name" if c == at else ""),
            *(say(288, y, f"{v:.0%}", f"state {s}", "end") for s, v in values.items()),
            tag("rect", kind="cell", x=12, y=y + 7, width=276, height=14, rx=2),
            tag("rect", kind="bar grows" if c == at else "bar grows dark", x=12, y=y + 7,
                width=276, height=14, rx=2, style=style),
        ]  # fmt: skip
    about = (
        "The decoder's reconstruction goes through the last block to the class names. "
        + " ".join(
            f"{words.capitalize()}: {names[int(p.answers[s].argmax())]} {p.answers[s].max():.0%}, "
            f"{p.name} {p.answers[s][at]:.0%}."
            for s, words in STATES.items()
        )
    )
    return panel("What CLIP makes of them", about, 350, *parts)


LIT = """
.prompts:has(.{0}:hover), .prompts:not(:has(.part:hover)):has(.{0}:focus-visible) {{
  .part:not(.{0}) {{ opacity: 0.15; }}
  .says .rest {{ visibility: hidden; }}
  .says .{0} {{ visibility: visible; }}
}}"""


def prompts() -> str:
    """Return MaPLe's prompts in both encoders, after Fig. 9."""
    (depth, n), study = repaired().shape, world_study()
    about = {
        f"depth-{i}": f"Block {i + 1}: the text's learnt context, and the map from it to the "
        "image's prompts."
        for i in range(depth)
    } | {
        "frozen": "The blocks of both encoders are those of CLIP: frozen.",
        "read": "The autoencoder reads CLS and the patches, where it reads them in CLIP.",
    }
    caption = (
        f"<strong>The adapted CLIP</strong> (after Fig. 9 of the paper, redrawn for the small "
        f"CLIP). Orange is learnt: {n} context tokens in each of the first {depth} blocks of the "
        f"text encoder, and maps F from these to {n} prompts behind the patches. All else is CLIP "
        f"as it was, so the autoencoder of CLIP reads the adapted model, too. A part that is "
        f"pointed at lights what it is coupled with. A sketch: the empty and the teal "
        f"squares stand for the words and for CLS and {study.clip.n_tokens - 1} patches."
    )
    spans = "".join(tag("span", words, kind=kind) for kind, words in about.items())
    first = tag("span", "Point at a part, or press the tab key.", kind="rest")
    says = f'<p class="says" aria-hidden="true">{first}{spans}</p>'
    style = f"<style>{''.join(map(LIT.format, about))}</style>"
    return schematic("prompts", [coupled(about, n), bypass(about, n)], caption, style + says)


def part(kind: str, label: str, *content: str) -> str:
    """Return a part that lights what else is of its kind; one with a label can be focused."""
    focus = {"tabindex": 0, "role": "img", "aria_label": label} if label else {}
    return tag("g", "".join(content), kind=f"part {kind}", **focus)


def coupled(about: dict[str, str], n: int) -> str:
    """Return the first panel: both encoders, and the maps between their prompts."""
    clip = world_study().clip
    n_text, depth = len(clip.model.transformer.resblocks), len(about) - 2
    tops = [94 + 54 * i for i in range(depth)]  # of the blocks that prompts enter
    later = [tops[-1] + 32 + 25 * i for i in range(clip.block + 1 - depth)]
    last = later[-1] + 44
    texts, images = tops[:n_text], [*tops, *later, last]
    blocks = [
        box(x, y, 104, 20, "box", f"block {i + 1}")
        for x, ys in ((12, texts), (184, images))
        for i, y in enumerate(ys)
    ]
    parts = [
        say(12, 50, "text encoder", "name"),
        say(288, 50, "image encoder", "name", "end"),
        part("frozen", about["frozen"], *blocks),
    ]
    for i, y in enumerate(tops):
        parts += [
            part("plain", "", *(cells(x, y - 18, 6 - n, 18, 14) for x in (12 + 18 * n, 184))),
            part(
                f"depth-{i}",
                about[f"depth-{i}"],
                tag("rect", kind="hit", x=8, y=y - 37, width=284, height=35),
                cells(12, y - 18, n, 18, 14, "learnt"),
                line(f"M{10 + 9 * n} {y - 20}V{y - 26}H{290 - 9 * n}V{y - 21}", "arrow orange"),
                box(134, y - 35, 32, 18, "box learnt", f"F~{i + 1}~"),
                cells(292 - 18 * n, y - 18, n, 18, 14, "learnt"),
            ),
        ]
    hook = say(226, later[-1] + 36, "hook", "note teal", "end")
    circle = tag("circle", kind="hook", cx=236, cy=later[-1] + 32, r=4.5)
    parts += [
        line(f"M236 {later[-1] + 20}V{last}", "plain"),
        part("read", "", circle, hook),
        line(f"M64 {texts[-1] + 22}V{last + 32}"),
        line(f"M236 {last + 22}V{last + 32}"),
        say(64, last + 47, "text features", "", "middle"),
        say(236, last + 47, "image features", "", "middle"),
    ]
    words = (
        f"Before each of the first {depth} blocks, {n} learnt context tokens enter the text "
        f"encoder, and a map of them gives {n} prompts behind the patches of the image encoder. "
        f"The blocks are frozen."
    )
    return panel("Prompts in both encoders", words, 366, *parts)


def bypass(about: dict[str, str], n: int) -> str:
    """Return the second panel: what goes through the autoencoder, and what past it."""
    clip = world_study().clip
    parts = [
        say(12, 50, f"tokens after block {clip.block + 1}", "name"),
        part(
            "read",
            about["read"],
            tag("rect", kind="hit", x=8, y=56, width=220, height=166),
            cells(12, 60, 12, 18, 14, "lit"),
            say(12, 90, "CLS", "note"),
            say(118, 90, f"{clip.n_tokens - 1} patches", "note", "middle"),
            line("M118 98V121"),
            box(12, 126, 212, 46, "box lit", "the autoencoder of CLIP:", "counts and masks"),
            line("M118 172V220"),
            say(128, 201, "*z*, or *ẑ* when masked", "note"),
        ),
        part(
            f"depth-{len(about) - 3}",
            "",
            cells(292 - 18 * n, 60, n, 18, 14, "learnt"),
            say(288, 90, f"{n} prompts", "note orange", "end"),
            line(f"M{290 - 9 * n} 98V220", "arrow orange"),
        ),
        part("frozen", "", box(12, 225, 276, 30, "box", f"block {clip.block + 2}")),
        line("M150 255V275"),
        box(12, 280, 276, 30, "box", "cosine with the texts of the classes"),
        cells(12, 340, 1, 0, 12, "learnt"),
        say(30, 350, "learnt"),
        cells(88, 340, 1, 0, 12),
        say(106, 350, "frozen"),
        cells(166, 340, 1, 0, 12, "lit"),
        say(184, 350, "autoencoder"),
    ]
    words = (
        f"Of the tokens after block {clip.block + 1} the autoencoder reads CLS and "
        f"{clip.n_tokens - 1} patches; the {n} prompts pass by it into block {clip.block + 2}."
    )
    return panel("What the autoencoder reads", words, 366, *parts)


FIGURES: dict[str, Callable[[], str]] = {
    "story": story, "autoencoder": autoencoder, "masks": masks, "prompts": prompts,
}  # fmt: skip
