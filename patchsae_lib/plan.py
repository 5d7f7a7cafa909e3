"""What a profile will fetch, keep and compute, said before it begins: `make plan PROFILE=clip`.

Sizes are counted from the profile. Times are the rates of a calibration of some ten seconds, on
this device and with random weights of the same shape, times the work that is counted here, of
notebooks 1 to 6. Nothing is fetched, and nothing is written.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import NamedTuple

import open_clip
import torch
import torch.nn.functional as F

from patchsae_lib.artefacts import ROOT, run_dir, short
from patchsae_lib.clip import SplitCLIP
from patchsae_lib.distributed import best_device, free_memory
from patchsae_lib.explorer.studies import MEASURED
from patchsae_lib.interop import load_clip
from patchsae_lib.interop.openclip import weights_place
from patchsae_lib.maple import AdaptedCLIP, PromptLearner
from patchsae_lib.parameters import absolute, check_names, profile_parser
from patchsae_lib.pictures import TEMPLATE, base_classes, open_pictures
from patchsae_lib.pictures.huggingface import is_kept
from patchsae_lib.pictures.torchvision_sets import data_root
from patchsae_lib.profiles import Profile, fit_to, load_profile, with_pictures
from patchsae_lib.sae import SAE
from patchsae_lib.study import PATCH, SCORED
from patchsae_lib.training import Trainer

ASKED = 10**8  # bytes: more than that is fetched only after a yes
SECONDS = 10.0  # of a calibration
N_TASK, PER_CLASS = 140, 5  # the notebooks' defaults: test pictures of a task, masked of a class
N_SCORED = 500  # pictures with per-pixel truth, at most
N_SETTINGS = 17  # trainings of the sweep, of its controls and of 5b, but for those of each seed
PROCESS = 1e9  # bytes of a kernel that has imported everything
GUESSED = 100  # classes of pictures that are not there
KINDS = {
    "first": "pictures through CLIP's first half",
    "tokens": "tokens",
    "encoded": "pictures encoded",
    "rest": "masked pictures through the rest of CLIP",
    "pictures": "pictures learnt from",
    "texts": "class names read meanwhile",
}


class Counts(NamedTuple):
    """Pictures to train on and to test on, and classes."""

    train: int
    test: int
    classes: int


# What pages and archives of data sets say: bytes to fetch (None: they do not), and pictures.
KNOWN: dict[str, tuple[float | None, Counts]] = {
    "torchvision:Caltech101": (1.4e8, Counts(6594, 1648, 100)),
    "torchvision:DTD": (6.3e8, Counts(3760, 1880, 47)),
    "torchvision:EuroSAT": (9.5e7, Counts(21_600, 5400, 10)),
    "torchvision:FGVCAircraft": (2.8e9, Counts(6667, 3333, 100)),
    "torchvision:Flowers102": (3.5e8, Counts(2040, 6149, 102)),
    "torchvision:Food101": (5.0e9, Counts(75_750, 25_250, 101)),
    "torchvision:ImageNet": (1.55e11, Counts(1_281_167, 50_000, 1000)),
    "torchvision:OxfordIIITPet": (8.1e8, Counts(3680, 3669, 37)),
    "torchvision:StanfordCars": (2.0e9, Counts(8144, 8041, 196)),
    "torchvision:SUN397": (3.9e10, Counts(87_003, 21_751, 397)),
    "torchvision:UCF101": (None, Counts(9537, 3783, 101)),
    "hf:timm/mini-imagenet": (7.4e9, Counts(50_000, 5000, 100)),
}


class Need(NamedTuple):
    """What must be on this machine: its `size` in bytes (None: nobody says), where it `comes`
    from, the `place` where it lies, and whether a notebook `fetches` it where it is missing."""

    name: str
    size: float | None
    comes: str
    place: str
    is_there: bool
    fetches: bool


class Rate(NamedTuple):
    """Seconds that a piece of work takes: the median of some rounds, the least, and the most."""

    middle: float
    low: float
    high: float


# --- what must be there --------------------------------------------------------------------------


def needs(profile: Profile) -> list[Need]:
    """List the weights and the pictures that the notebooks of a profile read."""
    weights = [] if profile.model.name == "small" else [_weights(profile)]
    chosen = [spec for spec in specs(profile) if not spec.startswith("world")]
    return weights + [_pictures(spec, profile) for spec in chosen]


def to_fetch(profile: Profile) -> list[Need]:
    """List what a run of a profile would fetch, if that is more than `ASKED` or nobody says."""
    missing = [need for need in needs(profile) if need.fetches and not need.is_there]
    return missing if sum(need.size or math.inf for need in missing) > ASKED else []


def specs(profile: Profile) -> list[str]:
    """Return the specs of all pictures of a profile."""
    named = profile.pictures.spec, profile.pictures.test, *profile.tasks
    return [*dict.fromkeys(filter(None, named))]


def _weights(profile: Profile) -> Need:
    comes, place = weights_place(profile.model)
    config = open_clip.get_model_config(profile.model.name)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    with torch.device("meta"):  # which holds no numbers
        n = sum(p.numel() for p in kind(**config).parameters())
    name = f"weights of {profile.model.name}"
    size = 4.0 * n if profile.model.pretrained != "none" else 0.0
    return Need(name, size, comes, place, bool(place), comes.startswith("huggingface.co"))


def _pictures(spec: str, profile: Profile) -> Need:
    kind, _, name = spec.partition(":")
    size, is_there = KNOWN.get(spec, (None,))[0], _found(spec, profile) is not None
    if kind == "hf":
        return Need(spec, size, f"huggingface.co/datasets/{name}", "the cache", is_there, True)
    place = f"{data_root()}" if kind == "torchvision" else name
    return Need(spec, size, f"you: into {place}", place, is_there, False)


def _found(spec: str, profile: Profile) -> Counts | None:
    """Count pictures that are on this machine, but of the Hub only if they are kept there."""
    pictures = profile.pictures
    limits = {"train": pictures.n_train, "test": pictures.n_test}
    if spec.startswith("hf:") and not all(is_kept(spec[3:], *x) for x in limits.items()):
        return None
    try:
        train, test = (open_pictures(spec, x, n, check=False) for x, n in limits.items())
    except (OSError, ValueError, ImportError):
        return None
    return Counts(len(train), len(test), len(train.class_names))


def count(profile: Profile, spec: str) -> Counts | None:
    """Count the pictures of a spec, at most those that a profile uses; None: nobody knows."""
    if found := _found(spec, profile):
        return found
    limits = profile.pictures.n_train, profile.pictures.n_test
    if spec in KNOWN:
        train, test, classes = KNOWN[spec][1]
        train, test = (min(n, limit or n) for n, limit in zip((train, test), limits, strict=True))
        return Counts(train, test, classes)
    return Counts(*limits, GUESSED) if all(limits) else None


# --- what is computed ----------------------------------------------------------------------------


def work(
    profile: Profile, clip: SplitCLIP, counts: Mapping[str, Counts]
) -> dict[str, dict[str, float]]:
    """Count what notebooks 1 to 6 compute, by part: pictures through the `first` half of CLIP;
    `tokens` that autoencoders are trained on; pictures that are `encoded`; passes of masked ones
    through the `rest` of CLIP; `pictures` and `texts` that prompts are trained on."""
    own, seeds = counts[profile.pictures.spec], profile.seeds
    fitted, n_ks = fit_to(profile, own.train * clip.n_tokens), len(profile.statistics.ks)
    train, prompts = fitted.train, profile.prompts
    long, swept = train.steps * train.batch_tokens, fitted.sweep_steps or train.steps
    sweep = swept * (fitted.sweep_batch or train.batch_tokens)
    blocks = len(range(1, clip.n_blocks - 2, max(1, clip.n_blocks // 4)))  # beside the hooked one
    scored, counted = min(N_SCORED, own.test), max(own.train // 8, 2 * own.classes)
    masked = min(own.test, PER_CLASS * own.classes)
    tasks = [counts[spec] for spec in profile.tasks if spec in counts] or [own]
    tested = sum(min(N_TASK, task.test) for task in tasks)
    bases = [base_classes(task.classes) for task in tasks]
    learnt = [prompts.shots * base for base in bases]
    steps = [(seeds + 3) * prompts.epochs * (n // prompts.batch) for n in learnt]
    if profile.model.name == "small":  # whose prompts are in `data/prompts`, but for one task
        steps = [steps[0] // (seeds + 3)]
    texts = sum(n * base for n, base in zip(steps, bases, strict=False))
    of_world = 9 * scored + (4 + seeds) * tested + 2 * sum(learnt)
    encoded = 2.25 * own.train + (2 * seeds + 4) * (own.test + counted) + 9 * scored
    removed = 9 * min(MEASURED, profile.sae.expansion * clip.d_vit)
    of_seeds = 20 * own.classes * seeds * max(1, n_ks - 5)
    return {
        "tokens of the pictures": {"first": own.train + own.test},
        "an autoencoder": {"tokens": long},
        f"{blocks + 1 + 2 * seeds + N_SETTINGS} other trainings (1, 5b)": {
            "first": (blocks + 1) * (own.train // 2 + own.test),
            "tokens": (blocks + 1) * long + (2 * seeds + N_SETTINGS) * sweep,
        },
        "statistics of latents": {"encoded": encoded},
        "masks": {"rest": masked * (16 * n_ks + 10) + of_seeds + tested * 8 * n_ks + removed},
        f"prompts of {len(tasks)} tasks": {"pictures": prompts.batch * sum(steps), "texts": texts},
        "tokens of tasks and of the world": {"first": of_world},
    }


@torch.no_grad()
def rates(profile: Profile, clip: SplitCLIP, seconds: float = SECONDS) -> dict[str, Rate]:
    """Measure the seconds that one of each kind of `work` takes on CLIP's device."""
    side, n, device = clip.visual.image_size[0], clip.at_once, clip.device
    pictures = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)
    z = clip.tokens(clip.preprocess(pictures))
    names = 8 * ["photo"]  # a word that every tokenizer knows
    head, flat = clip.text_features(names, [TEMPLATE]), z.flatten(0, 1).float()
    sae = SAE(clip.d_vit, profile.sae.expansion * clip.d_vit, profile.sae.activation)
    trainer = Trainer(sae.to(device), profile.sae, replace(profile.train, precision="float32"))
    batch = flat[:1024]
    trainer.start(batch)

    def step() -> None:
        with torch.enable_grad():
            trainer.step(batch / trainer.scale)

    def learn() -> None:
        with torch.enable_grad():
            adapted = AdaptedCLIP(clip, PromptLearner(clip, profile.prompts, TEMPLATE)())
            features = adapted.encode_text(clip.tokenizer(names).to(device))
            logits = adapted.classify(adapted.tokens(clip.preprocess(pictures[:2])), features)
            F.cross_entropy(logits, torch.zeros(2, dtype=torch.long, device=device)).backward()

    share = seconds / 5
    found = {
        "first": timed(lambda: clip.tokens(clip.preprocess(pictures)), n, share),
        "tokens": timed(step, len(batch), share),
        "encoded": timed(lambda: sae.encode(z[:8]), min(8, n), share),
        "rest": timed(lambda: clip.classify(z, head), n, share),
    }
    text = timed(lambda: clip.text_features(names, [TEMPLATE]), len(names), share / 2)
    picture = found["first"].middle + found["rest"].middle
    learning = timed(learn, 1, share / 2)
    factor = [seconds / (2 * picture + len(names) * text.middle) for seconds in learning]
    found["pictures"] = Rate(*(x * picture for x in factor))
    return found | {"texts": Rate(*(x * text.middle for x in factor))}


def timed(run: Callable[[], object], n: int, seconds: float) -> Rate:
    """Time a piece of work of n units for so long, but in three rounds at least, after a first."""
    rounds, end = list[float](), math.inf
    while len(rounds) < 4 or time.perf_counter() < end:
        start = time.perf_counter()
        end = start + seconds if end == math.inf else end
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        rounds.append((time.perf_counter() - start) / n)
    return Rate(median(rounds[1:]), min(rounds[1:]), max(rounds[1:]))


def kept(profile: Profile, clip: SplitCLIP, counts: Mapping[str, Counts]) -> dict[str, float]:
    """Count the bytes that notebooks 1 to 6 keep in the run's folder."""
    own, d_sae = counts[profile.pictures.spec], profile.sae.expansion * clip.d_vit
    parts = work(profile, clip, counts).values()
    n, n_kept = sum(part.get("first", 0) for part in parts), profile.seeds + 9
    return {
        "tokens of CLIP": 2.0 * n * clip.n_tokens * clip.d_vit,
        "autoencoders": 8.0 * clip.d_vit * d_sae * (n_kept + 3),  # 3: a checkpoint with moments
        "tables of latents": 4.0 * d_sae * (2 * own.classes + 50),
    }


def memory(profile: Profile, clip: SplitCLIP, counts: Mapping[str, Counts]) -> float:
    """Return the bytes that a notebook holds at most: the autoencoder in training (weights,
    gradients, Adam's moments), or the pictures on whose patches units are scored."""
    own, weights = counts[profile.pictures.spec], sum(p.numel() for p in clip.model.parameters())
    training = 32.0 * clip.d_vit * profile.sae.expansion * clip.d_vit
    patch = PATCH[0] * clip.d_vit + PATCH[1]
    scoring = min(SCORED, min(N_SCORED, own.test or N_SCORED) * (clip.n_tokens - 1) * patch)
    return PROCESS + 4.0 * weights + max(training, scoring)


# --- the plan ------------------------------------------------------------------------------------


def lines(profile: Profile, seconds: float = SECONDS) -> Iterator[str]:
    """Yield the lines of a plan; the calibration runs before those on time."""
    device = best_device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} cores"
    yield f"profile {profile.name}, on {name}\n"
    yield from needed(needs(profile))
    counts = {spec: found for spec in specs(profile) if (found := count(profile, spec))}
    if profile.pictures.spec not in counts:
        yield f"\nWhat is kept and computed depends on how many pictures {profile.pictures.spec}"
        yield "has: fetch them, or write n_train and n_test into the profile"
        return
    clip = load_clip(replace(profile.model, pretrained="none"), device)
    folder = run_dir(profile.name)
    sizes, free = kept(profile, clip, counts), shutil.disk_usage(ROOT).free
    yield f"\nkept in {short(folder)}, where {bytes_of(free)} are free"
    yield from (f"  {kind:32} {bytes_of(size):>8}" for kind, size in sizes.items())
    need, room = memory(profile, clip, counts), free_memory()
    limit = f" of {bytes_of(room)} that are free" if math.isfinite(room) else ""
    yield f"\nmemory of a notebook: about {bytes_of(need)}{limit}; two run side by side"
    yield f"\ntime, if one notebook runs at a time, by a calibration of {seconds:.0f} s"
    measured, total = rates(profile, clip, seconds), Rate(0, 0, 0)
    for part, amounts in work(profile, clip, counts).items():
        spent = [
            sum(n * getattr(measured[k], x) for k, n in amounts.items()) for x in Rate._fields
        ]
        total = Rate(*(a + b for a, b in zip(total, spent, strict=True)))
        words = ", ".join(f"{n:,.0f} {KINDS[kind]}" for kind, n in amounts.items())
        yield f"  {part:36} {duration(spent[0]):>8}  {words}"
    middle, low, high = map(duration, total)
    yield f"  {'in all':36} {middle:>8}  {low} to {high}, by the quickest and the slowest rounds"


def needed(found: Sequence[Need]) -> Iterator[str]:
    """Yield a line for each need: its size, and where it is or what is to be done."""
    if not found:
        yield "  nothing to fetch"
    for need in found:
        size = "size not known" if need.size is None else bytes_of(need.size) if need.size else ""
        todo = "is fetched from" if need.fetches else "MISSING, to be fetched by"
        place = f"is there: {need.place}" if need.is_there else f"{todo} {need.comes}"
        yield f"  {need.name:36} {size:>14}  {place}"


def bytes_of(n: float) -> str:
    """Write a number of bytes.

    >>> bytes_of(598_500_000), bytes_of(16.6e9), bytes_of(1500)
    ('598 MB', '16.6 GB', '0 MB')
    """
    return f"{n / 1e9:.3g} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    """Write a duration.

    >>> duration(5), duration(400), duration(7000), duration(9e5)
    ('5 s', '7 min', '1.9 h', '10 days')
    """
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length - length * (unit != "days"):
            return f"{seconds / length:.{1 if unit == 'h' and seconds < 36_000 else 0}f} {unit}"
    return f"{seconds:.0f} s"


def main(argv: Sequence[str] | None = None) -> None:
    """Run `python -m patchsae_lib plan`."""
    parser = profile_parser("python -m patchsae_lib plan", "What a profile fetches and costs.")
    given = parser.parse_args(argv)
    parameters = dict(given.parameters)
    check_names(parameters, ("images", "sae", "authors"))
    profile = load_profile(parameters.pop("profile", given.profile))
    images = absolute(parameters.get("images", ""))
    logging.disable(logging.WARNING)  # open_clip's, that weights are random
    for line in lines(with_pictures(profile, images) if images else profile):
        print(line, flush=True)
