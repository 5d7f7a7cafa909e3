"""Do these weights, pictures and names go together? `python -m patchsae_lib check --profile clip`.

What is published goes wrong in known ways. A check takes pictures as the study takes them, and in
each of these other ways; if another is surely better (more than three standard errors of the
pictures on which the two differ), something is wrong with ours. It takes a minute, and sees what
matters: a fault that hardly changes the answers is not noticed (`make faults`: which are).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest
from torch import Tensor

from patchsae_lib.clip import SplitCLIP
from patchsae_lib.interop.openclip import other_pixels, with_other_gelu
from patchsae_lib.parameters import check_names, profile_parser
from patchsae_lib.pictures import labels_of, spoken
from patchsae_lib.pictures.sources import repeated, unwrapped
from patchsae_lib.sae import SAE, l0
from patchsae_lib.splits import Split
from patchsae_lib.study import Study

N_PICTURES = {"cpu": 160, "cuda": 1024}  # a minute's worth
SURE = 3.0  # standard errors
PAPER = "ViT-B-16-quickgelu", "openai", "torchvision:ImageNet"  # of what it reports
UNEVEN = 0.2  # standard deviation of the decoder rows' lengths, of their mean
MARGIN = 0.02  # of explained variance; what is less may be chance, or a smoother input


class Finding(NamedTuple):
    """What a check says: `ok`, and in words what was measured."""

    ok: bool
    words: str


def check(study: Study, n: int = 0) -> Iterator[Finding]:
    """Yield findings on the first `n` test pictures of a study (0: a minute's worth)."""
    test, clip = study.test, study.clip
    rows = torch.linspace(0, len(test) - 1, min(len(test), n or N_PICTURES[study.device.type]))
    part = test.select(rows.long().unique())
    pictures, below = part.pictures.batch(range(len(part))), unwrapped(test.pictures)[0]
    if not below.class_names or (labels_of(below) < 0).all():  # else CLIP would be its own judge
        part = replace(part, labels=torch.full_like(part.labels, -1))
    names = spoken(test.class_names)
    if same := len(names) - len(set(names)):
        yield Finding(False, f"{same} classes have the name of another: one text for two labels")
    model, spec = study.profile.model, study.profile.pictures.test or study.profile.pictures.spec
    is_papers = (model.name, model.pretrained, spec) == PAPER
    accuracy = study.reported("accuracy")["accuracy"][0] / 100 if is_papers else None
    yield from zero_shot(part, pictures, accuracy)
    is_papers &= study.sae.d_sae == 64 * clip.d_vit
    l0_there = study.reported("table2")["l0"][0] if is_papers else None
    yield from autoencoder(study.sae, clip, clip.preprocess(pictures), l0_there)
    twice, n_train = repeated(pictures, study.train.pictures, 10 * len(pictures))
    words = f"{twice} of {len(pictures)} test pictures are among {n_train:,} training pictures"
    yield Finding(not twice, words)


# --- CLIP ----------------------------------------------------------------------------------------


@torch.no_grad()
def zero_shot(part: Split, pictures: Tensor, reported: float | None = None) -> Iterator[Finding]:
    """Yield findings on the zero-shot accuracy of pictures (n, 3, h, w) uint8 with labels, and on
    whether it can be the one that the paper has `reported`."""
    clip, head, has_label = part.clip, part.head, part.labels >= 0
    pictures, labels = pictures[has_label], part.labels[has_label]
    if not len(labels) or len(head) < 2:
        yield Finding(True, "pictures without classes: preprocessing and names are not checked")
        return
    normed = clip.preprocess(pictures)
    right = (predicted := predict(clip, normed, head)) == labels
    low, high = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    words = f"zero-shot accuracy {right.float().mean():.1%} ({low:.1%} to {high:.1%})"
    yield Finding(bool(low > 1 / len(head)), f"{words}, chance {1 / len(head):.1%}")
    if reported is not None:
        error = (reported * (1 - reported) / len(right)) ** 0.5
        is_near = abs(float(right.float().mean()) - reported) < SURE * error
        yield Finding(is_near, f"the paper reports {reported:.1%} on all of these pictures")
    for name, images in other_pixels(clip, normed).items():
        yield compared(right, predict(clip, images, head) == labels, name, len(head))
    changed = with_other_gelu(clip)
    texts = changed.text_features(spoken(part.class_names), part.templates)
    yield compared(right, predict(changed, normed, texts) == labels, "with the other GELU")
    yield from names_in_order(predicted, labels, len(head))


def predict(clip: SplitCLIP, images: Tensor, head: Tensor) -> Tensor:
    """Return the classes (n,) of preprocessed images (n, 3, h, w), on the CPU."""
    parts = (clip.classify(clip.tokens(x), head) for x in images.split(clip.at_once))
    return torch.cat([logits.argmax(1).cpu() for logits in parts])


def compared(right: Tensor, right_then: Tensor, name: str, n_classes: int = 2) -> Finding:
    """Compare which pictures (n,) are right in ours and in another way, by McNemar's statistic.

    Some pictures are to be read the other way if that is right in surely more than a quarter (with
    few classes: 2 / `n_classes`, above chance) of those that ours gets wrong."""
    gained, lost = int((right_then & ~right).sum()), int((right & ~right_then).sum())
    is_better = gained - lost > SURE * (gained + lost) ** 0.5
    n, share = int((~right).sum()), max(0.25, 2 / n_classes)
    is_some = gained - share * n > SURE * (n * share * (1 - share)) ** 0.5
    words = f"{name}: {right_then.float().mean():.1%}"
    if is_better:
        words += ", which is better: is ours wrong?"
    elif is_some:
        words += f", right in {gained} of the {n} that ours gets wrong: is ours wrong there?"
    return Finding(not (is_better or is_some), words)


def names_in_order(predicted: Tensor, labels: Tensor, n_classes: int) -> Iterator[Finding]:
    """Yield findings on whether other names for the labels (n,) fit the predictions (n,) better:
    all shifted by as many places, or exchanged one for one, as half of the pictures suggest."""
    shifts = (predicted - labels) % n_classes
    shift = int(shifts.bincount(minlength=n_classes).argmax())
    if shift:
        way = f"{shift} further" if 2 * shift <= n_classes else f"{n_classes - shift} back"
        yield compared(shifts == 0, shifts == shift, f"with names {way}")
    halves = torch.arange(len(labels)) % 2 == 0
    counts = torch.zeros(n_classes, n_classes)
    pairs = labels[halves], predicted[halves]
    counts.index_put_(pairs, torch.ones(len(pairs[0])), accumulate=True)
    counts += 0.5 * torch.eye(n_classes)  # a name stays, unless the pictures want another
    renamed = torch.from_numpy(linear_sum_assignment(-counts.numpy())[1])
    later, found = labels[~halves], predicted[~halves]
    yield compared(found == later, found == renamed[later], "with names in another order")


# --- the autoencoder -----------------------------------------------------------------------------


@torch.no_grad()
def autoencoder(
    sae: SAE, clip: SplitCLIP, images: Tensor, reported: float | None = None
) -> Iterator[Finding]:
    """Yield findings on an autoencoder and the tokens of preprocessed images (n, 3, h, w), and on
    whether half to twice the `reported` number of latents is active in a token."""
    z = tokens_of(clip, images)
    explained, active = explains(sae, z), l0(sae.encode(z[:16]))
    share = float(explained.mean())
    yield Finding(share > 0.5, f"the autoencoder explains {share:.1%} of a picture's variance")
    words = f"{active:.1f} of its {sae.d_sae:,} latents are active in a token"
    low, high = (1, sae.d_sae / 10) if reported is None else (reported / 2, 2 * reported)
    words += "" if reported is None else f" (the paper reports {reported:.1f})"
    yield Finding(low <= active <= high, words)
    uneven = float((lengths := sae.W_dec.norm(dim=1)).std() / lengths.mean())
    words = (
        f"decoder rows differ in length by {uneven:.0%} (if they do, activations do not compare)"
    )
    yield Finding(uneven < UNEVEN, words)
    blocks = [b for b in (clip.block - 1, clip.block + 1) if 0 <= b < clip.n_blocks]
    ways: dict[str, Callable[[], Tensor]] = {
        f"of block {b + 1}, not {clip.block + 1}": partial(tokens_of, clip.at_block(b), images)
        for b in blocks
    }
    mean, length = z.mean((0, 1)), z.norm(dim=-1).mean()
    ways |= {
        "divided by their mean length": lambda: z / length,
        "of mean length √width": lambda: z * (clip.d_vit**0.5 / length),
        "without their mean": lambda: z - mean,
        "normalised one by one": lambda: F.layer_norm(z, z.shape[-1:]),
    }
    for name, tokens in ways.items():
        gain = explains(sae, tokens()) - explained
        error = float(gain.std()) / len(gain) ** 0.5
        is_better = float(gain.mean()) > max(SURE * error, MARGIN)
        words = f"tokens {name}: {max(0.0, share + float(gain.mean())):.1%}"
        yield Finding(not is_better, words + ", which is better: is ours wrong?" * is_better)


def tokens_of(clip: SplitCLIP, images: Tensor) -> Tensor:
    """Return the tokens (n, n_tokens, d_vit) of preprocessed images, in float32."""
    return torch.cat(
        [clip.tokens(x)[:, : clip.n_tokens].float() for x in images.split(clip.at_once)]
    )


def explains(sae: SAE, z: Tensor) -> Tensor:
    """Return the share (n,) of the variance of each picture's tokens z (n, t, d_vit), around the
    mean of all, that the reconstruction explains."""
    decoded = torch.cat([sae(part) for part in z.split(sae.images_at_once(z.shape[1]))])
    error, spread = (x.pow(2).sum((1, 2)) for x in (z - decoded, z - z.mean((0, 1))))
    return 1 - error / spread


def main(argv: Sequence[str] | None = None) -> None:
    """Run `python -m patchsae_lib check`. Raises `ValueError` if something looks wrong."""
    parser = profile_parser("python -m patchsae_lib check", "Try weights, pictures and names.")
    given = parser.parse_args(argv)
    check_names(parameters := dict(given.parameters), ("images", "sae"))
    wrong = 0
    for ok, words in check(Study(given.profile, **parameters)):
        wrong += not ok
        print(f"{'ok   ' if ok else 'LOOK '} {words}", flush=True)
    if wrong:
        raise ValueError(f"{wrong} of these look wrong")
