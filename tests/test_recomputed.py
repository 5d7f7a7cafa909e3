"""Six numbers of the scoreboard, computed again from what a run left behind.

The library only opens things here: the models, the pictures with their tokens and labels, and the
texts' features. Every measurement is written out below, in numpy, pandas and torch's arithmetic,
and compared with the claims to the precision that they print.

For a run in runs/world: python tests/test_recomputed.py runs/world
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from patchsae_lib import Study

NUMBER = re.compile(r"[-+−]?(?:\d[\d,]*\.\d+|\.\d+|\d[\d,]*)\s?%?")


def printed(text):
    """The numbers in a text as (value, half of the last digit), of percentages both over 100."""
    for match in NUMBER.finditer(text):
        number = match[0].replace(",", "").replace("−", "-")
        unit = 0.01 if number.endswith("%") else 1
        digits = len(number.rstrip("% ").partition(".")[2])
        yield float(number.rstrip("% ")) * unit, 0.5 * 10**-digits * unit


def is_printed(number, text):
    """Whether one of the numbers in a text is this one, rounded."""
    return any(abs(number - value) <= half + 1e-6 for value, half in printed(text))


# --- arithmetic


def latents_of(z, sae):
    return ((z - sae["b_dec"]) @ sae["W_enc"] + sae["b_enc"]).clamp_min(0)


def accuracy(features, head, labels):
    return float(((features @ head.T).argmax(1) == labels).double().mean())


def features_of(clip, states):
    return torch.cat([clip.features(z) for z in states])


def of_pictures(tokens, n=25):
    return (z.float() for z in tokens.split(n))


def loss(images, texts, scale, n=128):
    """CLIP's loss: the mean negative log-probability of a picture's text, and of a text's picture,
    among n pairs; pairs that do not fill a batch are left out."""
    n, losses = min(n, len(images)), []
    for i in range(0, len(images) - n + 1, n):
        logits = scale * images[i : i + n].double() @ texts[i : i + n].double().T
        sums = logits.exp().sum(0).log() + logits.exp().sum(1).log()
        losses.append(float((sums / 2 - logits.diagonal()).mean()))
    return sum(losses) / len(losses)


def class_counts(study, sae):
    """How many tokens of a class's pictures a latent writes more than τ to: (classes, d_sae)."""
    lengths = sae["W_dec"].square().sum(1).sqrt()
    counts = torch.zeros(len(study.train.class_names), len(lengths), dtype=torch.long)
    labels = study.train.labels.split(25)
    for z, label in zip(of_pictures(study.train.tokens), labels, strict=True):
        above = latents_of(z, sae) * lengths > study.profile.statistics.tau
        counts.index_add_(0, label, above.sum(1))
    return counts


# --- claims: each yields what it says, and numbers that its text must print


def autoencoders_of_seeds(study):
    """Accuracy kept (of that above chance) and the contrastive loss, means over the seeds."""
    test, clip = study.test, study.clip
    texts, labels, chance = test.held_out.captions, test.labels, 1 / len(test.class_names)
    untouched = features_of(clip, of_pictures(test.tokens))
    original, kept, losses = accuracy(untouched, test.head, labels), [], []
    for path in sorted(study.folder.glob("sae-seed-*.safetensors")):
        sae = load_file(path)
        states = (
            latents_of(z, sae) @ sae["W_dec"] + sae["b_dec"] for z in of_pictures(test.tokens)
        )
        decoded = features_of(clip, states)
        kept.append((accuracy(decoded, test.head, labels) - chance) / (original - chance))
        losses.append(loss(decoded, texts, clip.logit_scale))
    yield "1-accuracy-kept", [sum(kept) / len(kept)]
    yield "1-contrastive", [sum(losses) / len(losses), loss(untouched, texts, clip.logit_scale)]


def sweep(study):
    """By what factor λ changes L0, and by what the other settings do at most, where they train."""
    table = pd.read_parquet(study.folder / "table2.parquet").set_index("setting")
    mean = table[table.index.str.startswith("main")].mean()
    trains = table["explained_variance"] > mean["explained_variance"] / 2
    factor = table["l0"][trains] / mean["l0"]
    factor = pd.concat([factor, 1 / factor], axis=1).max(axis=1)
    others = factor.filter(regex="expansion|ghost|b_dec")
    yield "1-lambda", [factor.filter(like="λ").max(), others.max()]


def masks(study):
    """Accuracy untouched, with all latents and with none; and of 100 latents of the true class."""
    made_by = json.loads((study.folder / "ablation.parquet.meta.json").read_text())["config"]
    sae, clip, test = study.sae.state_dict(), study.clip, study.test
    order = class_counts(study, sae).argsort(dim=1, descending=True, stable=True)
    n = min(100, max(k for k in study.profile.statistics.ks if k < order.shape[1]))
    nth = torch.zeros_like(test.labels)  # of its class
    for label in test.labels.unique():
        nth[test.labels == label] = torch.arange(int((test.labels == label).sum()))
    rows = (nth < made_by["per_class"]).nonzero()[:, 0]
    z, labels = test.tokens[rows].float(), test.labels[rows]
    f = latents_of(z, sae)
    is_on = torch.zeros(len(rows), f.shape[2]).scatter_(1, order[labels][:, :n], 1)[:, None]
    variants = [f, 0 * f, f * is_on, f * (1 - is_on)]
    states = [z, *(x @ sae["W_dec"] + sae["b_dec"] for x in variants)]
    original, full, none, on, off = (
        accuracy(features_of(clip, x.split(25)), test.head, labels) for x in states
    )
    yield "4-reference", [original, full, none]
    yield "4-topk", [n, on, off]


def adaptation(study):
    """On how many tasks MaPLe is better on novel classes, from predictions of both models."""
    rises, table = [], pd.read_parquet(study.folder / "adaptation.parquet")
    table = table.set_index(["task", "classes"])["accuracy"]
    for title, task in study.tasks.items():
        adapted = [task.adapted(seed) for seed in range(study.profile.seeds)]
        for half in ("base", "novel"):
            splits = [getattr(x, half) for x in (task, *adapted)]
            before, *after = (
                accuracy(features_of(x.clip, of_pictures(x.tokens)), x.head, x.labels)
                for x in splits
            )
            mean = sum(after) / len(after)
            assert table[title, f"{half}, CLIP"] == pytest.approx(before, abs=1e-6)
            assert table[title, f"{half}, MaPLe"] == pytest.approx(mean, abs=1e-6)
        rises.append(mean > before + 1e-9)
    yield "5-adapts", [len(rises), sum(rises)]


@torch.no_grad()
def recomputed(folder):
    """Yield the id of a claim, its text, and the numbers that must be in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATCHSAE_RUNS", str(folder.parent))
        study = Study(folder.name, device="cpu")
        claims = json.loads((folder / "claims.json").read_text("utf-8"))
        texts = {claim["id"]: claim["measured"] for claim in claims}
        for part in (autoencoders_of_seeds, sweep, masks, adaptation):
            yield from ((id, texts[id], numbers) for id, numbers in part(study))


def test_numbers_are_found_as_they_are_printed():
    found = np.array([*printed("744 of 3,072 (+0.60); 12.5 % or -3%")])
    wanted = [(744, 0.5), (3072, 0.5), (0.6, 0.005), (0.125, 0.0005), (-0.03, 0.005)]
    assert found == pytest.approx(np.array(wanted))
    assert is_printed(0.9244, "92.4% is kept")
    assert not is_printed(0.9249, "92.3% is kept, 93 %")


def test_six_numbers_of_the_scoreboard_are_right(build):
    found = list(recomputed(Path(build).parent / "runs" / "smoke"))
    assert len(found) == 6
    for id, text, numbers in found:
        assert [x for x in numbers if not is_printed(x, text)] == [], (id, text)


if __name__ == "__main__":
    wrong = 0
    for id, text, numbers in recomputed(Path(sys.argv[1]).absolute()):
        missing = [x for x in numbers if not is_printed(x, text)]
        wrong += len(missing)
        print(
            id, "wrong" if missing else "right", [round(x, 4) for x in numbers], text, sep="\n  "
        )
    sys.exit(bool(wrong))
