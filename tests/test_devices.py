"""Every public function that takes a model or tokens, on a pretended GPU: it computes where its
model is, moves what it is given there, and gives what the CPU gives; tables and results for each
picture are on the CPU. And how often a GPU is waited for."""

import copy
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pretended import CPU, CUDA, Gpu, pretended
from scipy import sparse as scipy_sparse
from test_maple import NAMES, random_prompts, tiny
from test_study import TINY, sae_file, tiny_clip
from torch import Tensor, nn
from torch.nn import functional as F

import patchsae_lib
import patchsae_lib.clip as clip_module
import patchsae_lib.study as study_module
from patchsae_lib import (
    ablation,
    check,
    crosscoder,
    diffing,
    evaluation,
    latents,
    localization,
    maple,
    names,
    plan,
    remapping,
    sparse,
    training,
    truth,
    tuning,
)
from patchsae_lib.explorer import drawings, film
from patchsae_lib.explorer.effects import class_effects
from patchsae_lib.explorer.examples import nearest
from patchsae_lib.explorer.lens import Lens
from patchsae_lib.explorer.studies import write_latents, write_study
from patchsae_lib.interop.openclip import other_pixels, with_other_gelu
from patchsae_lib.pictures import Subset
from patchsae_lib.profiles import (
    PromptsConfig,
    SAEConfig,
    StatisticsConfig,
    TrainConfig,
    TuningConfig,
    load_profile,
)
from patchsae_lib.sae import SAE
from patchsae_lib.splits import Split
from patchsae_lib.study import Study
from patchsae_lib.tokens import Tokens, collect
from patchsae_lib.world import World
from patchsae_lib.world.truth import sparse_truth

N, D = 12, 48
TRAIN = TrainConfig(batch_tokens=32, steps=4, precision="float32", warmup=2, dead_after=1)
SHOTS = PromptsConfig(depth=2, shots=1, epochs=1, batch=3)


class Fixed:
    """Pictures (n, 3, h, w) in memory."""

    class_names = tuple(NAMES)

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def label(self, index: int) -> int:
        return index % 3

    def batch(self, indices: Any) -> Tensor:
        return self.images[list(indices)]


def autoencoder(d_vit: int, activation: str = "relu") -> SAE:
    sae = SAE(d_vit, D, activation, k=6).eval().requires_grad_(False)
    sae.b_enc.fill_(-1.0)
    return sae


def small_pictures() -> Tensor:
    """Pictures of the world at the size that CLIP reads: resizing rounds otherwise on a GPU."""
    images = World("objects", "test", N).batch(range(N)).float()
    return F.interpolate(images, (32, 32), mode="area").round().to(torch.uint8)


@cache
def base() -> SimpleNamespace:
    """Models and what they are given, on the CPU."""
    clip, prompts, world = tiny(), random_prompts(), World("objects", "test", N)
    sae, images, labels = autoencoder(clip.d_vit), small_pictures(), torch.arange(N) % 3
    adapted = maple.adapt(clip, prompts, NAMES)
    with torch.no_grad():
        x = clip.preprocess(images)
        z, after = clip.tokens(x), adapted.tokens(x)
    table = latents.scan_tokens(sae, Tokens.hold(z), labels, NAMES)
    given = dict(
        z=z, after=after, images=images, x=x, labels=labels, W=sae.W_dec.clone(),
        head=clip.text_features(NAMES, ["a photo of a {}"]), text=adapted.text,
        ids=clip.tokenizer([f"a photo of a {name}" for name in NAMES]), f=sae.encode(z),
        order=ablation.by_score(table.class_above), references=table.top_images,
        chosen=table.top_images[:N, :2].clamp_min(0), levels=sae.encode(z).mean(1),
        inside=torch.rand(N, 4, generator=torch.Generator().manual_seed(0)) > 0.5,
        prompts=prompts.text, visual=prompts.visual,
    )  # fmt: skip
    shown = sparse_truth(world, range(N), grid=clip.grid)
    pictures = Subset(Fixed(images), range(N), labels=labels.tolist(), class_names=NAMES)
    return SimpleNamespace(given=given, clip=clip, shown=shown, pictures=pictures)


@cache
def setting(models: torch.device, inputs: torch.device) -> SimpleNamespace:
    """Models on one device, and what they are given on another or the same."""
    w = SimpleNamespace(**{name: value.to(inputs) for name, value in base().given.items()})
    w.clip, w.sae = copy.deepcopy(base().clip).to(models), autoencoder(base().clip.d_vit)
    w.sae, w.pictures, w.shown = w.sae.to(models), base().pictures, base().shown
    w.prompts = maple.Prompts(w.prompts, w.visual)
    w.adapted, w.grid = maple.adapt(w.clip, w.prompts, NAMES), w.clip.grid
    w.tokens, w.moved = Tokens.hold(w.z), Tokens.hold(w.after)
    w.split = Split(w.clip, w.pictures, w.labels.cpu(), tuple(NAMES), ["a photo of a {}"])
    w.adapted_split = w.split.seen_by(w.adapted, w.adapted.text)
    w.held_out = evaluation.HeldOut(w.clip, w.tokens, w.labels, w.head, w.head[w.labels])
    seen_by = {"CLIP": (w.clip, w.head), "MaPLe": (w.adapted, w.text)}
    w.lens = Lens(w.sae, seen_by, w.images, w.labels)
    return w


def untrained(w: SimpleNamespace, activation: str = "relu") -> training.Trainer:
    new, config = SAE(w.clip.d_vit, D, activation, k=4), SAEConfig(activation=activation, l1=1e-3)
    return training.Trainer(new.to(w.clip.device), replace(config, k=4), TRAIN)


def trained(w: SimpleNamespace, activation: str = "relu") -> Any:
    config = SAEConfig(expansion=2, activation=activation, k=6, l1=1e-3)
    return training.train(w.tokens, config, TRAIN, device=w.sae.W_dec.device, progress=False)


def stepped(w: SimpleNamespace) -> Any:
    z, trainer = w.z.flatten(0, 1).to(w.clip.device), untrained(w)
    trainer.start(z)
    losses = [trainer.step(z) for _ in range(4)]
    return losses, trainer.history, trainer.finish()


def masked(w: SimpleNamespace) -> Any:
    rankings = {"own": w.order, "random": ablation.at_random(D).to(w.order.device)}
    given = w.labels, w.head, rankings, (1, 5, 20)
    return (
        ablation.mask_latents(w.clip, w.sae, w.tokens, *given),
        ablation.mask_latents(w.adapted, w.sae, w.after, *given, error=True, prompts=True),
    )


def logits(w: SimpleNamespace) -> Any:
    split = ablation.Decomposition.of(w.sae, w.z)
    rank = w.order.argsort(1)[w.labels]
    return split, list(ablation.masked_logits(w.clip, split, w.head, rank, (2, 9)))


def units(w: SimpleNamespace) -> dict[str, Tensor]:
    """Values of units, but of components with any sign and order, where tokens are."""
    fitted = truth.baselines(w.z[:, 1:], 5)
    chosen = {name: unit(w.z[:2, 1:]) for name, unit in fitted.items() if "indep" not in name}
    return chosen | {"latents": truth.latents_of(w.sae)(w.z[:2, 1:])}


def compared(w: SimpleNamespace) -> pd.DataFrame:
    z, sets = w.z[:, 1:], truth.baselines(w.z[:, 1:], 5) | {"latents": truth.latents_of(w.sae)}
    return truth.compare_units(sets | {"values": w.f[:, 1:]}, z, w.shown.dense().to(z.device), 4)


COMPARED = (
    *("Change.kept", "Change.prompts", "Change.difference", "Change.halves", "Change.latents"),
    *("Change.latents_of", "Change.scaling", "Change.noise", "Change.is_nothing"),
    *("Change.is_readable", "Change.aligned"),
    *("sparse_latents", "written", "features_of", "explained_by"),
)


def compared_models(w: SimpleNamespace) -> Any:
    change = diffing.Change(w.sae, w.z, w.after, w.labels, (w.head, w.text), w.adapted)
    rows = change.halves[1]
    return (
        *(change.kept, change.prompts, change.difference, change.halves, change.latents),
        *(change.latents_of(rows), change.scaling, change.noise.after, change.aligned.after),
        *(change.is_nothing, change.is_readable),
        diffing.written(diffing.sparse_latents(w.sae, w.z), w.sae, w.z.cpu()),
        diffing.features_of(w.clip, w.z),
        diffing.explained_by(change.scaling.after, change, rows),
    )


FILMED = ("film_training", "frame", "levels", "in_pictures", "choose", "by_class", "encoded")


def filmed(w: SimpleNamespace) -> Any:
    """Frames of a film, in CLIP and adapted, and what they are made of."""
    kept = [(0.0, w.prompts), (1.0, w.prompts)]
    names, config = [str(i) for i in range(D)], StatisticsConfig(tau=0.2)
    made = film.film_training(w.clip, w.sae, w.split, kept, names, config)
    latents, states = torch.tensor([0, 3]), (w.split, w.adapted_split)
    frames = [film.frame(w.sae, x, latents, 0.2, 1.0) for x in states]
    before, after = (film.levels(w.sae, x, 0.2) for x in states)
    counts = film.in_pictures(w.sae, w.adapted_split, latents, 0.2)
    first = torch.tensor([len(made.frames), *film.choose(before, after).shape])
    parts = [x for f in (*frames, *made.frames) for x in (f.levels, f.effects, f.answers)]
    return before, after, *counts, first, film.by_class(counts[0], w.split), parts


def crossed(w: SimpleNamespace) -> Any:
    change = diffing.Change(w.sae, w.z, w.after, w.labels, (w.head, w.text), w.adapted)
    pair = change.before, change.kept
    dictionary = SAEConfig("batchtopk", 1, k=4, scale_inputs=True)
    read = crosscoder.crosscoder(*pair, TRAIN, dictionary, device=w.clip.device)
    shifts = crosscoder.shift(read)
    return (
        *(crosscoder.side_by_side(*pair), crosscoder.row_lengths(read), shifts),
        crosscoder.surely_changed(shifts, shifts),
        torch.tensor([*crosscoder.answer(change, read, shifts).says.values()]),
    )


def prompts_learnt(w: SimpleNamespace) -> Any:
    learner = maple.PromptLearner(w.clip, SHOTS, "a photo of a {}.").to(w.clip.device)
    return learner(), maple.train_prompts(w.clip, w.pictures, NAMES, SHOTS, progress=False)


def tuned(w: SimpleNamespace) -> Any:
    """What LoRA, fine-tuning and a probe give; `w.pictures` are small."""
    config = TuningConfig(rank=2, shots=1, epochs=1, batch=3)
    lora, whole = (
        tuning.tune(w.clip, w.pictures, NAMES, c, progress=False)[0]
        for c in (config, replace(config, rank=0))
    )
    pair = tuning.TunedCLIP(w.clip, whole, tuning.head_of(w.clip, NAMES))
    low = tuning.LowRank(w.clip.d_vit, 2, torch.Generator()).to(w.clip.device)
    models = tuning.with_lora(w.clip, lora, NAMES), pair, pair.unadapted()
    weight = w.clip.visual.transformer.resblocks[0].attn.in_proj_weight
    return [model.tokens(w.x) for model in models], low(weight), tuning.own_tower(w.clip).visual


def learnt(w: SimpleNamespace) -> Any:
    """Parts of training that work in place."""
    trainer, device = untrained(w), w.clip.device
    trainer.start(w.z.flatten(0, 1))
    sae, dead = trainer.sae, torch.arange(3, device=device)
    sae.learn_threshold(w.f)
    parts, *_ = training.objective(sae, w.z[0].to(device), 1e-3, dead)
    parts["loss"].backward()
    sae.remove_parallel_gradient()
    sae.normalise_decoder()
    return sae, sae.W_dec.grad


def repacked(w: SimpleNamespace) -> Any:
    z, trainer = w.z.flatten(0, 1).to(w.clip.device), untrained(w)
    trainer.start(z)
    trainer.step(z)
    packed = training.pack(trainer.sae, trainer.adam) | {"silent": trainer.silent}
    stored = {name: x.cpu() for name, x in packed.items()}
    trainer.restore(stored, {"step": 1, "scale": 1.0, "history": []})
    return trainer.step(z), trainer.sae


def counted(w: SimpleNamespace) -> Any:
    table = latents.LatentTable.empty(D, NAMES)
    for part in (slice(0, 5), slice(5, N)):
        table.add(w.sae, w.z[part], torch.arange(N)[part], w.labels[part])
    return table.merge(table.to(CPU)), latents.scan_tokens(w.sae, w.tokens, w.labels, NAMES)


def entries(w: SimpleNamespace) -> Any:
    found = sparse.SparseLatents.encode(w.sae, w.z.to(w.sae.W_dec.device), 4)
    cuts = w.sae.cuts(0.2)
    return (
        found, found.image, found.decode(w.sae.W_dec), found.per_image(),
        sparse.image_counts(f := w.sae.encode(w.z.to(cuts.device)), cuts),
        torch.tensor(sparse.is_sparse(f), device=cuts.device),
    )  # fmt: skip


#: what models give where they are
STAY: dict[str, Callable[[SimpleNamespace], Any]] = {
    "clip.SplitCLIP.preprocess": lambda w: w.clip.preprocess(w.images),
    "clip.SplitCLIP.tokens": lambda w: w.clip.tokens(w.x),
    "clip.SplitCLIP.neurons": lambda w: w.clip.neurons(w.x),
    "clip.SplitCLIP.features": lambda w: w.clip.features(w.z),
    "clip.SplitCLIP.classify": lambda w: w.clip.classify(w.z, w.head),
    "clip.SplitCLIP.encode_text": lambda w: w.clip.encode_text(w.ids),
    "maple.AdaptedCLIP.encode_text": lambda w: w.adapted.encode_text(w.ids),
    "maple.AdaptedCLIP.changes tuning.TunedCLIP.changes": lambda w: [
        *w.adapted.changes.values(),
        *tuning.TunedCLIP(w.clip, copy.deepcopy(w.clip.model), w.text).changes.values(),
    ],
    "maple.AdaptedCLIP.unadapted": lambda w: w.adapted.unadapted().tokens(w.x),
    "sae.SAE.encode sae.SAE.pre_activations sae.SAE.activate": lambda w: w.sae.encode(w.z),
    "sae.SAE.decode": lambda w: w.sae.decode(w.f),
    "sae.SAE.forward": lambda w: w.sae(w.z),
    "sae.SAE.cuts sae.SAE.encoder_bias": lambda w: (w.sae.cuts(0.2), w.sae.encoder_bias()),
    "sae.SAE.fold": lambda w: w.sae.fold(2.0),
    "sae.SAE.normalise_decoder sae.SAE.remove_parallel_gradient sae.SAE.learn_threshold "
    "training.objective training.dense_pass": learnt,
    "sparse.SparseLatents.encode sparse.SparseLatents.from_dense sparse.SparseLatents.image "
    "sparse.SparseLatents.decode sparse.SparseLatents.per_image sparse.SparseLatents.select "
    "sparse.sum_rows sparse.image_counts sparse.is_sparse": entries,
    "ablation.Decomposition.of ablation.masked_logits": logits,
    "training.Trainer.start training.Trainer.step training.Trainer.finish": stepped,
    "training.Trainer.restore training.pack training.unpack": repacked,
    "training.train": trained,
    "training.train BatchTopK": lambda w: trained(w, "batchtopk"),
    "maple.PromptLearner.forward maple.train_prompts maple.teach": prompts_learnt,
    "tuning.tune tuning.with_lora tuning.own_tower tuning.LowRank.forward "
    "tuning.TunedCLIP.unadapted": tuned,
    "clip.SplitCLIP.at_block clip.SplitCLIP.in_bfloat16": lambda w: [
        model.tokens(w.x).float()
        for model in (
            w.clip.at_block(0),
            w.clip.at_block(0).in_bfloat16(),
            with_other_gelu(w.clip),
        )
    ],
    "check.tokens_of": lambda w: [
        other_pixels(w.clip, w.x),
        check.tokens_of(w.clip, w.x),
    ],
    "truth.latents_of truth.baselines": units,
    "truth.random_directions": lambda w: truth.random_directions(w.z[:, 1:], 5)(w.z[:2, 1:]),
}
#: tables, and results for each picture or latent: on the CPU
RETURN: dict[str, Callable[[SimpleNamespace], Any]] = {
    "clip.SplitCLIP.text_features": lambda w: w.clip.text_features(NAMES, ["a {}", "red {}"]),
    "clip.SplitCLIP.logit_scale": lambda w: w.clip.logit_scale,
    "clip.accuracy": lambda w: clip_module.accuracy(w.clip.classify(w.z, w.head), w.labels),
    "maple.adapt": lambda w: w.adapted.text,
    "tuning.head_of": lambda w: tuning.head_of(w.clip, NAMES),
    "tuning.probe_head": lambda w: tuning.probe_head(w.levels, w.labels, 3),
    "splits.Split.features": lambda w: w.split.features(),
    "tokens.collect": lambda w: collect(w.clip, w.pictures),
    "tokens.Tokens.mixed training.shuffled": lambda w: [
        next(training.shuffled(w.tokens, TRAIN)(0)).cpu(),
        next(w.tokens.mixed(TRAIN, 0)).cpu(),
    ],
    "crosscoder.crosscoder crosscoder.side_by_side crosscoder.row_lengths crosscoder.shift "
    "crosscoder.surely_changed crosscoder.answer": crossed,
    "latents.scan": lambda w: latents.scan(w.adapted, w.sae, w.pictures, progress=False),
    "latents.LatentTable.add latents.LatentTable.merge latents.LatentTable.to "
    "latents.scan_tokens": counted,
    "latents.image_levels": lambda w: latents.image_levels(w.sae, w.z),
    "latents.responses": lambda w: latents.responses(w.levels, 2 * w.levels[None]).cpu(),
    "latents.selectivity": lambda w: [x.cpu() for x in latents.selectivity(w.levels, w.levels)],
    "latents.partners": lambda w: latents.partners(w.sae.W_dec, w.W),
    "latents.monosemanticity": lambda w: latents.monosemanticity(
        [(w.levels.cpu(), w.clip.features(w.z))]
    ),
    "localization.latent_masks": lambda w: localization.latent_masks(
        w.sae, w.tokens, [3, 0], w.grid
    ),
    "localization.share_inside": lambda w: localization.share_inside(
        w.sae, w.tokens, w.chosen, w.inside
    ),
    "localization.patch_changes": lambda w: localization.patch_changes(
        w.sae, w.z, w.after, w.inside
    ),
    "localization.reference_masks": lambda w: localization.reference_masks(
        w.sae, w.tokens, w.references, w.grid
    ),
    "evaluation.HeldOut.features evaluation.HeldOut.quality evaluation.HeldOut.original "
    "evaluation.evaluate_sae": lambda w: evaluation.evaluate_sae(w.sae, w.held_out),
    "evaluation.accuracy_kept": lambda w: evaluation.accuracy_kept(
        *(x[None] if i == 0 else x for i, x in enumerate(
            (evaluation.evaluate_sae(w.sae, w.held_out).correct, w.held_out.original[1])
        )), 0.1, 0.9,
    ),
    "ablation.mask_latents": masked,
    "ablation.latent_effects": lambda w: ablation.latent_effects(
        w.adapted, w.sae, w.after, w.labels, w.head
    ),
    "ablation.removal_effects": lambda w: ablation.removal_effects(
        w.clip, w.sae, w.z, w.labels, w.head, w.chosen[:, 0]
    ),
    "remapping.with_noise": lambda w: remapping.with_noise(w.z.cpu(), w.after[:, :5]),
    "remapping.levels_by_place": lambda w: remapping.levels_by_place(
        w.sae, w.z, w.labels, NAMES
    ),
    "remapping.correct_at": lambda w: [
        remapping.correct_at(place, w.adapted, w.head, w.z, w.moved, w.labels)
        for place in remapping.PLACES
    ],
    "remapping.decompose": lambda w: [
        remapping.decompose(w.adapted, w.sae, w.z, w.moved, w.labels, (w.head, w.text), per)
        for per in ("token", "picture")
    ],
    " ".join(f"diffing.{name}" for name in COMPARED): compared_models,
    "diffing.Change.between": lambda w: [
        (x.before, x.after, x.heads)
        for x in [diffing.Change.between(w.sae, w.split, w.adapted_split)]
    ],
    " ".join(f"explorer.film.{name}" for name in FILMED): filmed,
    "names.activity": lambda w: names.activity(w.sae, w.tokens),
    "truth.compare_units truth.concept_scores truth.thresholds truth.iou_tables truth.enough "
    "truth.halves": compared,
    "truth.bounds truth.probe": lambda w: truth.bounds(
        w.z[:, 1:], w.shown.dense().to(w.z.device), 4
    ),
    "splits.Split.tokens splits.Split.head splits.Split.predictions splits.Split.correct": (
        lambda w: [
            (x.tokens, x.head, x.predictions(), x.correct()) for x in (w.split, w.adapted_split)
        ]
    ),
    "splits.Split.select splits.Split.of_classes splits.Split.seen_by "
    "splits.Split.first_of_each_class": lambda w: [
        part.predictions()
        for part in (w.split.select([3, 1]), w.split.of_classes(1, 3),
                     w.split.first_of_each_class(1), w.adapted_split)
    ],
    "explorer.lens.Lens.tokens": lambda w: w.lens.tokens(w.images),
    "explorer.lens.Lens.look explorer.lens.Lens.picture": lambda w: w.lens.look(w.images[:3]),
    "explorer.lens.Lens.without": lambda w: w.lens.without(1, [0, 5, 7]),
    "explorer.drawings.highlight explorer.drawings.before_and_after": (
        lambda w: drawings.before_and_after(w.sae, 3, w.split, w.adapted_split, w.split)
    ),
    "check.zero_shot check.predict": lambda w: [*check.zero_shot(w.split, w.images)],
    "check.autoencoder check.explains": lambda w: [*check.autoencoder(w.sae, w.clip, w.x)],
    "plan.rates": lambda w: [
        *plan.rates(replace(load_profile("smoke"), prompts=SHOTS), w.clip, seconds=0)
    ],
    "explorer.examples.nearest": lambda w: nearest(w.W),
    "explorer.effects.class_effects": lambda w: class_effects(
        w.clip, w.sae, w.tokens, torch.arange(2 * w.sae.d_sae).view(-1, 2) % N, w.head
    ),
}  # fmt: skip
CASES = STAY | RETURN


def plain(x: Any) -> list[Any]:
    """What a result holds: tensors, arrays, numbers and words, in order."""
    if isinstance(x, (Tensor, np.ndarray, int, float, str, type(None))):
        return [x]
    if isinstance(x, pd.DataFrame):
        return [column.to_numpy() for _, column in x.items()]
    if isinstance(x, Image.Image):
        return [np.asarray(x).astype(float)]
    if isinstance(x, nn.Module):
        return [*x.state_dict().values()]
    if isinstance(x, scipy_sparse.sparray):
        return [x.toarray()]
    if isinstance(x, Tokens):
        return [x[:].float(), x.indices]
    if is_dataclass(x):
        x = [getattr(x, field.name) for field in fields(x)]
    values = x.values() if isinstance(x, dict) else x
    return [part for value in values for part in plain(value)]


@pytest.fixture(scope="module")
def expected() -> dict[str, list[Any]]:
    return {name: plain(run(setting(CPU, CPU))) for name, run in CASES.items()}


@pytest.mark.parametrize("inputs", [CPU, CUDA], ids=["inputs on the CPU", "inputs on the device"])
@pytest.mark.parametrize("name", CASES)
def test_it_computes_where_its_model_is(name: str, inputs: torch.device, expected) -> None:
    wanted = expected[name]
    with pretended():
        found = plain(CASES[name](setting(CUDA, inputs)))
        tensors = [x for x in found if isinstance(x, Tensor)]
        where = {x.device for x in tensors}
        assert len(found) == len(wanted)
        if name in RETURN:
            assert where <= {CPU}
        found = [x.detach().cpu() if isinstance(x, Tensor) else x for x in found]
    for a, b in zip(found, wanted, strict=True):
        if isinstance(a, Tensor):
            torch.testing.assert_close(a, b.detach(), rtol=1e-3, atol=1e-4, equal_nan=True)
        elif isinstance(a, np.ndarray) and a.dtype.kind in "fiub":
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
        elif isinstance(a, float):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-5, nan_ok=True)
        else:
            assert np.array_equal(a, b)


# --- none is left out ------------------------------------------------------------------------

#: a model, tokens, or what holds them
MODELS = (
    r"\b(SAE|SplitCLIP|AdaptedCLIP|PromptLearner|Prompts|Tokens|MixedTokens|HeldOut|Split|Trainer"
    r"|Decomposition|SparseLatents|Units)\b"
)
TOKENS = ("z", "images", "pictures", "f", "before", "after")  # tensors of these names
EXEMPT = {
    "files, read onto the CPU, but by `load_clip`, which is in every Study": "interop",
    "a Study of a device, and functions that are here": "jobs explorer.studies "
    "explorer.live explorer.glimpse",
    "tables and files": "explorer.bundle explorer.files explorer.widget latents.LatentTable "
    "remapping.groups remapping.latents_by_class remapping.overlaps maple.run_of",
    "tokens that stay where they are": "tokens.Tokens tokens.open_shards",
    "as `collect`, into files": "tokens.collect_shards",
    "the CPU's way to do what `dense_pass` does": "training.sparse_pass sparse.EncodeDecode",
    "safetensors copies from a device by itself": "training.Trainer.save",
    "no tensors": "sae.SAE.images_at_once clip.SplitCLIP.at_once clip.SplitCLIP.device "
    "clip.SplitCLIP.visual splits.Split.label_names splits.Split.is_world splits.Split.shown "
    "splits.Split.truth splits.Split.readable",
    "parts of `training.train`": "sae.relu sae.topk sae.batchtopk sae.reconstruction_loss "
    "sae.l1_loss sae.nested_loss sae.ghost_loss sae.initial_b_dec sae.explained_variance sae.l0 "
    "sae.require_tokens",
    "arithmetic on the tensors of one device": "ablation.keep ablation.drop",
    "made of splits and lenses": "splits.Split.held_out splits.Task splits.AdaptedTask "
    "explorer.kernel explorer.steering",
    "counts of a profile": "plan.work plan.kept plan.memory",
    "tested below": "study",
}


def public() -> dict[str, str]:
    """Public functions and methods outside pictures, world and figures: name → signature."""
    found = {}
    for info in pkgutil.walk_packages(patchsae_lib.__path__, "patchsae_lib."):
        room = info.name.split(".")[1]
        if room in ("pictures", "world", "figures", "__main__"):
            continue
        for name, value in vars(importlib.import_module(info.name)).items():
            if name.startswith("_") or getattr(value, "__module__", "") != info.name:
                continue
            at = f"{info.name.removeprefix('patchsae_lib.')}.{name}"
            if inspect.isfunction(value):
                found[at] = str(inspect.signature(value))
            if inspect.isclass(value):
                held = str(inspect.signature(value)) if "__init__" in vars(value) else ""
                held += "Tensor, SAE" if issubclass(value, nn.Module) else ""
                for key, method in vars(value).items():
                    method = getattr(method, "__func__", getattr(method, "func", method))
                    method = method.fget if isinstance(method, property) else method
                    if not key.startswith("_") and inspect.isfunction(method):
                        found[f"{at}.{key}"] = held + str(inspect.signature(method))
    return found


def takes_a_model(signature: str) -> bool:
    names = "|".join(TOKENS)
    return bool(re.search(MODELS, signature) or re.search(rf"\b({names}): '\w*Tensor", signature))


def test_every_public_function_that_takes_a_model_or_tokens_is_tested() -> None:
    tested = {name for case in CASES for name in case.split()}
    exempt = tuple(f"{name}." for group in EXEMPT.values() for name in group.split())
    wanted = {name for name, signature in public().items() if takes_a_model(signature)}
    left_out = {name for name in wanted - tested if not f"{name}.".startswith(exempt)}
    assert sorted(left_out) == []
    assert tested - {*public()} == {"BatchTopK"}
    assert len(wanted) > 60  # the search finds what it is for


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    with pretended() as device:
        yield device


# --- waiting ---------------------------------------------------------------------------------


def waits_of(device: Gpu, run: Callable[[], Any]) -> int:
    device.reset()
    run()
    return device.waits


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of three pictures, of which there are four."""
    monkeypatch.setattr(SAE, "images_at_once", lambda *_, **__: 3)
    monkeypatch.setattr(clip_module.SplitCLIP, "at_once", 3)
    monkeypatch.setattr(latents, "BATCH", 3)


@pytest.mark.parametrize("activation", ["relu", "topk", "batchtopk"])
def test_a_training_step_waits_twice_at_most(gpu, activation: str) -> None:
    w = setting.__wrapped__(CUDA, CPU)
    z, trainer = w.z.flatten(0, 1).to(CUDA), untrained(w, activation)
    trainer.start(z)
    counts = [waits_of(gpu, lambda: trainer.step(z)) for _ in range(5)]
    assert max(counts) <= 2, gpu.places
    assert any(row["ghost"] for row in trainer.history) or activation == "relu"  # dead ones, too


def test_a_scan_waits_twice_a_batch_at_most(gpu, pieces) -> None:
    w, batches, at_the_end = setting.__wrapped__(CUDA, CPU), 4, len(latents.TENSORS)
    n = waits_of(gpu, lambda: latents.scan_tokens(w.sae, w.tokens, w.labels, NAMES))
    assert n <= 2 * batches + at_the_end, gpu.places
    assert gpu.to_cpu < 10 * w.sae.d_sae * 10 * 8 * batches
    n = waits_of(gpu, lambda: latents.scan(w.clip, w.sae, w.pictures, progress=False))
    assert n <= 2 * batches + at_the_end, gpu.places


def test_masks_wait_twice_a_batch_at_most(gpu, pieces) -> None:
    w, batches = setting.__wrapped__(CUDA, CPU), 4
    rankings = {"own": w.order, "random": ablation.at_random(D)}
    given = w.labels, w.head, rankings, (1, 3, 5, 9)
    at_the_end = 3 + len(rankings)  # predictions
    run = lambda: ablation.mask_latents(w.clip, w.sae, w.tokens, *given)  # noqa: E731
    assert waits_of(gpu, run) <= 2 * batches + at_the_end, gpu.places
    run = lambda: localization.latent_masks(w.sae, w.tokens, [1, 2], w.grid)  # noqa: E731
    assert waits_of(gpu, run) <= 2 * batches, gpu.places
    run = lambda: localization.reference_masks(w.sae, w.tokens, w.references, w.grid)  # noqa: E731
    assert waits_of(gpu, run) <= 2 * batches, gpu.places
    run = lambda: evaluation.evaluate_sae(w.sae, w.held_out)  # noqa: E731
    assert waits_of(gpu, run) <= 3 * batches + 9, gpu.places


# --- the pretence itself ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.ones(4, 3) @ x.T,
        lambda x: torch.ones(4)[torch.zeros(1, dtype=torch.long, device="cuda")],
        lambda x: torch.zeros(4).index_add_(0, torch.tensor([0]), x[:1, 0]),
        lambda x: torch.ones(()).add_(x.sum()),
        lambda x: torch.rand(3, device="cuda", generator=torch.Generator()),
        lambda x: x.numpy(),
        np.asarray,
    ],
)
def test_devices_do_not_mix(gpu, mix: Callable[[Tensor], Any]) -> None:
    with pytest.raises((RuntimeError, TypeError), match=r"same device|generator|numpy"):
        mix(torch.ones(4, 3).to("cuda"))


def test_what_cuda_allows_is_allowed_and_counted(gpu) -> None:
    x = torch.arange(12.0).view(4, 3).to("cuda")
    assert (x.device, gpu.to_device, gpu.waits) == (CUDA, 48, 0)
    assert {y.device for y in (x + torch.tensor(1.0), x[torch.tensor([1, 2])], x[[2]])} == {CUDA}
    assert torch.arange(3).device == CPU
    assert torch.zeros(3, device=x.device).device == torch.tensor([1], device="cuda").device
    x[x > 5] = 0.0
    assert gpu.waits == 0
    assert x[[1], [2]].cpu().tolist() == [5.0]
    assert (gpu.waits, gpu.to_cpu) == (1, 4)
    asks = [x.tolist, x.sum().item, lambda: bool(x[0, 1]), x.nonzero, lambda: x[x > 1], x.unique]
    assert [waits_of(gpu, ask) for ask in asks] == [1] * 6
    leaf = torch.ones(3, device="cuda", requires_grad=True)
    (leaf * x[0]).sum().backward()
    assert leaf.grad.device == CUDA
    assert leaf.grad.tolist() == [0.0, 1.0, 2.0]


# --- a study ---------------------------------------------------------------------------------


def findings(device: str, folder: Path) -> Any:
    """What a study of one device finds, and keeps in a folder."""
    study = Study(TINY, sae=sae_file(folder), n_task=16, device=device)
    (task,), order = study.tasks.values(), ablation.at_random(study.sae.d_sae)
    adapted = task.adapted(0)
    study.keep_autoencoders("seed", {0: study.sae})
    levels = {
        f"{task.title}/{name}": study.table.class_per_image[:4] for name in ("CLIP", "MaPLe")
    }
    write_latents(study, study.table.frame()[["frequency"]])
    _, lenses = write_study(study, levels, 1)
    return (
        study.table, study.references(0, 2).tokens, study.mask(study.test, {"one": order}, [3]),
        [x.correct() for x in (task.base, task.novel, adapted.base, adapted.novel)],
        adapted.clip.text, study.autoencoders("seed")[0], study.identity(tasks=True)["sae"],
        lenses["land"].without(0, [1]),
    )  # fmt: skip


def test_a_study_of_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    monkeypatch.setattr(study_module, "DATA", tmp_path / "data")
    monkeypatch.setattr(
        study_module, "load_clip", lambda config, place: tiny_clip(config.block).to(place)
    )
    with pretended():
        for device in ("cpu", "cuda"):
            (tmp_path / device).mkdir()
            monkeypatch.setenv("PATCHSAE_RUNS", str(tmp_path / device))
            found[device] = plain(findings(device, tmp_path / device))
        assert CUDA in {x.device for x in found["cuda"] if isinstance(x, Tensor)}
        for x, y in zip(*found.values(), strict=True):
            if isinstance(x, Tensor):
                torch.testing.assert_close(y.cpu(), x, rtol=1e-3, atol=1e-3)
            elif not isinstance(x, np.ndarray):
                assert x == y
