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

import torch
import torch.nn.functional as F
from tqdm import tqdm

from patchsae_lib.artefacts import run_dir, short
from patchsae_lib.clip import SplitCLIP
from patchsae_lib.distributed import best_device, free_memory, resolve_precision
from patchsae_lib.explorer.studies import MEASURED
from patchsae_lib.interop import load_clip
from patchsae_lib.interop.openclip import weights_place, weights_size
from patchsae_lib.maple import AdaptedCLIP, PromptLearner, text_tower
from patchsae_lib.parameters import absolute, check_names, profile_parser
from patchsae_lib.pictures import TEMPLATE, base_classes, open_pictures
from patchsae_lib.pictures.huggingface import is_kept
from patchsae_lib.pictures.torchvision_sets import data_root
from patchsae_lib.profiles import (
    ModelConfig,
    Profile,
    TuningConfig,
    fit_to,
    load_profile,
    with_pictures,
)
from patchsae_lib.sae import SAE
from patchsae_lib.study import PATCH, SCORED, TOWER
from patchsae_lib.training import Trainer

format_sizeof = tqdm.format_sizeof

ASKED = 10**8  # bytes: more than that is fetched only after a yes
SECONDS = 10.0  # of a calibration
N_TASK, PER_CLASS = 140, 5  # the notebooks' defaults: test pictures of a task, masked of a class
N_SCORED = 500  # pictures with per-pixel truth, at most
N_SETTINGS = 17  # trainings of the sweep, of its controls and of 5b, but for those of each seed
PROCESS = 1e9  # bytes of a kernel that has imported everything
TEXTS = 512, 16  # texts that CLIP reads at once, and arrays (texts, context, width) that it holds
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
    """What must be on this machine: its `size` in bytes (None: nobody says); where it comes from,
    if a notebook fetches it (`source`, else ""); where it lies or belongs; whether it is there."""

    name: str
    size: float | None
    source: str
    place: str
    is_there: bool


class Rate(NamedTuple):
    """Seconds that a piece of work takes: the median of some rounds, the least, and the most."""

    middle: float
    low: float
    high: float


# --- what must be there --------------------------------------------------------------------------


def needs(profile: Profile) -> list[Need]:
    """List the weights and the pictures that the notebooks of a profile read."""
    weights = [] if profile.model.name == "small" else [_weights(profile.model)]
    chosen = [spec for spec in specs(profile) if not spec.startswith("world")]
    return weights + [_pictures(spec, profile) for spec in chosen]


def to_fetch(profile: Profile) -> list[Need]:
    """List what a run of a profile would fetch, if that is more than `ASKED` or nobody says."""
    missing = [need for need in needs(profile) if need.source and not need.is_there]
    return missing if sum(need.size or math.inf for need in missing) > ASKED else []


def specs(profile: Profile) -> list[str]:
    """Return the specs of all pictures of a profile."""
    named = profile.pictures.spec, profile.pictures.test, *profile.tasks
    return [*dict.fromkeys(filter(None, named))]


def _weights(model: ModelConfig) -> Need:
    name, (repo, path) = f"weights of {model.name}", weights_place(model)
    if model.pretrained == "none":
        return Need(name, 0.0, "", "random numbers", True)
    place, size = path or model.weights or model.pretrained, weights_size(model.name)
    source = f"huggingface.co/{repo}" if repo else ""
    return Need(name, size, source, str(place), path is not None)


def _pictures(spec: str, profile: Profile) -> Need:
    kind, _, name = spec.partition(":")
    size, is_there = KNOWN.get(spec, (None,))[0], _found(spec, profile) is not None
    if kind == "hf":
        return Need(spec, size, f"huggingface.co/datasets/{name}", "the cache", is_there)
    return Need(spec, size, "", data_root() if kind == "torchvision" else name, is_there)


def _limits(spec: str, profile: Profile) -> tuple[int, int]:
    """Return how many pictures a `Study` trains and tests on at most (0: all); of a task, on all
    that there are to train on."""
    own = profile.pictures
    if spec in (own.spec, own.test):
        return own.n_train, own.n_test
    return 0, min(filter(None, (N_TASK, own.n_test)))


def _found(spec: str, profile: Profile) -> Counts | None:
    """Count pictures that are on this machine, but of the Hub only if they are kept there."""
    limits = dict(zip(("train", "test"), _limits(spec, profile), strict=True))
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
    if spec not in KNOWN:
        return None
    (train, test, classes), limits = KNOWN[spec][1], _limits(spec, profile)
    return Counts(min(train, limits[0] or train), min(test, limits[1] or test), classes)


# --- what is computed ----------------------------------------------------------------------------


def work(
    profile: Profile, clip: SplitCLIP, counts: Mapping[str, Counts]
) -> dict[str, dict[str, float]]:
    """Count what notebooks 1 to 7b compute, by part: pictures through the `first` half of CLIP;
    `tokens` that autoencoders are trained on; pictures that are `encoded`; passes of masked ones
    through the `rest` of CLIP; `pictures` and `texts` that adaptations learn from."""
    own, seeds = _own(profile, counts), profile.seeds
    fitted, n_ks = fit_to(profile, own.train * clip.n_tokens), len(profile.statistics.ks)
    train, prompts = fitted.train, profile.prompts
    long, swept = train.steps * train.batch_tokens, fitted.sweep_steps or train.steps
    sweep = swept * (fitted.sweep_batch or train.batch_tokens)
    blocks = len(range(1, clip.n_blocks - 2, max(1, clip.n_blocks // 4)))  # beside the hooked one
    scored, counted = min(N_SCORED, own.test), max(own.train // 8, 2 * own.classes)
    masked = min(own.test, PER_CLASS * own.classes)
    tasks = [counts[spec] for spec in profile.tasks if spec in counts] or [own]
    tested = sum(min(N_TASK, task.test) for task in tasks)  # own.test may be more
    bases = [base_classes(task.classes) for task in tasks]
    learnt = [prompts.shots * base for base in bases]
    steps = [(seeds + 4) * prompts.epochs * (n // prompts.batch) for n in learnt]
    tuned = TOWER["epochs"] * sum(sorted(learnt)[:2])  # every weight, for two tasks
    if profile.model.name == "small":  # what it learns is in `data`, but for prompts of one task
        steps = [steps[0] // (seeds + 4)]
    else:
        tuned += TuningConfig().epochs * sum(learnt)  # LoRA
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
        f"adaptation, tasks: {len(tasks)}": {
            "pictures": prompts.batch * sum(steps) + tuned,
            "texts": texts,
        },
        "tokens of tasks and of the world": {"first": of_world},
    }


def _own(profile: Profile, counts: Mapping[str, Counts]) -> Counts:
    """Count the profile's own pictures: those to test on may be of another spec."""
    pictures = profile.pictures
    test = counts.get(pictures.test, counts[pictures.spec]).test
    return counts[pictures.spec]._replace(test=test)


@torch.no_grad()
def rates(profile: Profile, clip: SplitCLIP, seconds: float = SECONDS) -> dict[str, Rate]:
    """Measure the seconds that one of each kind of `work` takes on CLIP's device."""
    side, n, device = clip.visual.image_size[0], clip.at_once, clip.device
    pictures = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)
    z = clip.tokens(clip.preprocess(pictures))
    names = 8 * ["photo"]  # a word that every tokenizer knows
    head, flat = clip.text_features(names, [TEMPLATE]), z.flatten(0, 1).float()
    d_sae, config = profile.sae.expansion * clip.d_vit, profile.sae
    sae = SAE(clip.d_vit, d_sae, config.activation, config.k).to(device)
    precision = resolve_precision(profile.train.precision, device)
    trainer = Trainer(sae, config, replace(profile.train, precision=precision))
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
    d_sae = profile.sae.expansion * clip.d_vit
    parts = work(profile, clip, counts).values()
    n, n_kept = sum(part.get("first", 0) for part in parts), profile.seeds + 9
    return {
        "tokens of CLIP": 2.0 * n * clip.n_tokens * clip.d_vit,
        "autoencoders": 8.0 * clip.d_vit * d_sae * (n_kept + 3),  # 3: a checkpoint with moments
    }


def memory(profile: Profile, clip: SplitCLIP, counts: Mapping[str, Counts]) -> float:
    """Return the bytes that a notebook holds at most, without files that are mapped: two CLIPs,
    one reading texts, and the autoencoder in training (weights, gradients, Adam's moments) or the
    pictures on whose patches units are scored."""
    own, tower = _own(profile, counts), text_tower(clip.model)
    weights = sum(p.numel() for p in clip.model.parameters())
    texts = math.prod(TEXTS) * tower.positional_embedding.numel()
    training = 32.0 * clip.d_vit * profile.sae.expansion * clip.d_vit
    patch = PATCH[0] * clip.d_vit + PATCH[1]
    scoring = min(SCORED, min(N_SCORED, own.test or N_SCORED) * (clip.n_tokens - 1) * patch)
    return PROCESS + 4.0 * (2 * weights + texts) + max(training, scoring)


# --- the plan ------------------------------------------------------------------------------------


def lines(profile: Profile, seconds: float = SECONDS) -> Iterator[str]:
    """Yield the lines of a plan; the calibration runs before those on time."""
    device = best_device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} cores"
    yield f"profile {profile.name}, on {name}\n"
    yield from needed(needs(profile))
    counts = {spec: found for spec in specs(profile) if (found := count(profile, spec))}
    if profile.pictures.spec not in counts:
        yield f"\nThe rest depends on the number of pictures: get {profile.pictures.spec} first"
        return
    clip = load_clip(replace(profile.model, pretrained="none"), device)
    folder, sizes = run_dir(profile.name), kept(profile, clip, counts)
    free = shutil.disk_usage(next(x for x in folder.parents if x.exists())).free
    yield f"\nkept in {short(folder)}, where {format_sizeof(free, 'B')} are free"
    yield from (f"  {kind:32} {format_sizeof(size, 'B'):>8}" for kind, size in sizes.items())
    need, room = memory(profile, clip, counts), free_memory()
    limit = f" of {format_sizeof(room, 'B')} that are free" if math.isfinite(room) else ""
    yield f"\nmemory of a notebook: about {format_sizeof(need, 'B')}{limit}; two run side by side"
    yield f"\ntime, if one notebook runs at a time, by a calibration of {seconds:.0f} s"
    measured, total = rates(profile, clip, seconds), Rate(0, 0, 0)
    for part, amounts in work(profile, clip, counts).items():
        shares = [[n * x for x in measured[kind]] for kind, n in amounts.items()]
        spent = [*map(sum, zip(*shares, strict=True))]
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
        size = (
            "size not known"
            if need.size is None
            else format_sizeof(need.size, "B")
            if need.size
            else ""
        )
        place = f"is there: {need.place}"
        if not need.is_there:
            place = f"MISSING, to be put into {need.place}"
            place = f"is fetched from {need.source}" if need.source else place
        yield f"  {need.name:36} {size:>14}  {place}"


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
