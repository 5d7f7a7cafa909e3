"""A study: what it opens, that nothing is another's, its splits, and its tasks."""

import io
import socket
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from patchsae_lib import artefacts, maple
from patchsae_lib import study as study_module
from patchsae_lib import tokens as tokens_module
from patchsae_lib.ablation import by_score, mask_latents
from patchsae_lib.artefacts import DATA, ArtefactError, weights_hash
from patchsae_lib.clip import SplitCLIP
from patchsae_lib.evaluation import evaluate_sae
from patchsae_lib.explorer.files import read_shard
from patchsae_lib.explorer.studies import write_latents, write_study
from patchsae_lib.interop import load_clip, save_prompts, save_sae
from patchsae_lib.interop.openclip import WordTokenizer, create_small_clip, small_clip_config
from patchsae_lib.latents import LatentTable, image_levels
from patchsae_lib.maple import adapt
from patchsae_lib.pictures import Subset, captions_of, few_shot, labels_of
from patchsae_lib.profiles import (
    ModelConfig,
    PicturesConfig,
    Profile,
    PromptsConfig,
    SAEConfig,
    StatisticsConfig,
    TrainConfig,
    load_profile,
)
from patchsae_lib.sae import SAE
from patchsae_lib.splits import Split
from patchsae_lib.study import Study, shipped_identity
from patchsae_lib.world import CLASSES, TASKS, World, all_words
from patchsae_lib.world.pairs import pairs
from patchsae_lib.world.tasks import STYLE_TEMPLATES
from patchsae_lib.world.truth import world_truth
from recipes.small_clip import predict

LAND = TASKS["land"].classes
TINY = Profile(
    "tiny",
    model=ModelConfig("small"),
    pictures=PicturesConfig("world:land", n_train=16, n_test=8),
    sae=SAEConfig(expansion=2),
    train=TrainConfig(batch_tokens=100, steps=50),
    statistics=StatisticsConfig(tau=0.2, k=2),
    prompts=PromptsConfig(depth=1, shots=2, epochs=1, augment=False),
    tasks=("world:land",),
)
D_VIT, N_TOKENS = 24, 17


def tiny_clip(block: int = -2, seed: int = 0) -> SplitCLIP:
    """A CLIP of three small blocks with random weights, which reads the world's words."""
    words = all_words()
    config = small_clip_config(words)
    config["model_cfg"]["vision_cfg"] |= dict(patch_size=28, width=D_VIT, layers=3, head_width=8)
    config["model_cfg"]["text_cfg"] |= dict(width=16, heads=2, layers=2)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = create_small_clip(config).eval().requires_grad_(False)
    return SplitCLIP(model, WordTokenizer(words), block)


def random_sae(seed: int) -> SAE:
    return SAE(D_VIT, 2 * D_VIT, seed=seed).eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the runs; `data/` is an empty one, and the CLIP of every profile is tiny."""
    monkeypatch.setenv("PATCHSAE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(study_module, "DATA", tmp_path / "data")
    monkeypatch.setattr(study_module, "load_clip", lambda config, _: tiny_clip(config.block))
    monkeypatch.setattr(tokens_module, "SHARD", 6)
    return tmp_path / "runs" / "tiny"


def sae_file(tmp_path: Path, seed: int = 0) -> str:
    save_sae(tmp_path / "an_sae.safetensors", random_sae(seed))
    return str(tmp_path / "an_sae.safetensors")


def save_pictures(folder: Path, n: int, first: int = 0) -> None:
    """Save pictures of the world as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(World("world", "test", first + n).batch(range(first, first + n))):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{first + i}.png")


def test_the_embedded_world_opens_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real CLIP, and `data/`
    monkeypatch.setattr(socket.socket, "connect", None)
    monkeypatch.setattr(socket, "getaddrinfo", None)
    study = Study("world")
    first = study.see(Subset(study.train.pictures, [0, 1]))
    assert study.sae.encode(first.tokens[:]).shape == (2, 197, 3072)
    assert study.clip.classify(first.tokens[:].float(), first.head).shape == (2, 35)


# --- what it opens -------------------------------------------------------------------------------


def test_a_study_opens_what_its_profile_says() -> None:
    study = Study(TINY)
    train, test = World("land", "train", 16), World("land", "test", 8)
    assert (len(study.train), len(study.test)) == (16, 8)
    assert study.train.class_names == study.test.class_names == LAND
    assert study.train.labels.tolist() == [i % 8 for i in range(16)]
    for split, world in ((study.train, train), (study.test, test)):
        z = study.clip.tokens(study.clip.preprocess(world.batch(range(len(world)))))
        assert split.tokens.shape == (len(world), N_TOKENS, D_VIT)
        assert torch.allclose(split.tokens[:].float(), z, rtol=0.01, atol=0.01)
    head = study.clip.text_features(LAND, TASKS["land"].templates)
    assert torch.equal(study.train.head, head)
    assert study.train is study.train
    assert repr(study) == (
        "profile tiny: 16 pictures to train on, 8 held out, 8 classes\n"
        "block 2 of 3: CLS and 4 × 4 patches of width 24"
    )


def test_tokens_are_collected_once_in_shards(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    z = Study(TINY).train.tokens[:]
    (folder,) = (place / "tokens").iterdir()
    assert len(list(folder.glob("*.safetensors"))) == 3
    monkeypatch.setattr(SplitCLIP, "tokens", None)  # a second collection would fail
    assert torch.equal(Study(TINY).train.tokens[:], z)


def test_the_parameters_of_a_study_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no profile 'wrld'"):
        Study("wrld")
    assert Study("smoke", shots=5).profile.prompts.shots == 5
    assert Study("smoke").profile == load_profile("smoke")
    replaced = Study("smoke", images="folder:/my/photos").profile
    assert (replaced.pictures.spec, replaced.pictures.test) == ("folder:/my/photos", "")
    assert replaced.tasks == ()
    cells = ["", "profile = 'smoke'\nn = 1", "# Parameters\nprofile = 'smoke'\nm = 2\n"]
    monkeypatch.setattr(study_module, "executed_cells", lambda: cells)
    with pytest.raises(ValueError, match="unknown parameter 'm'; known are n, profile"):
        Study("smoke")


@pytest.mark.parametrize(
    ("name", "d_vit", "n", "expected"),
    [
        ("world", 192, 2400, 350),
        ("smoke", 192, 175, 70),
        ("clip", 768, 77, 77),
        ("clip", 768, 50_000, 756),
        ("paper", 768, 10**6, 500),
    ],
)
def test_scored_pictures_fit_into_memory(name: str, d_vit: int, n: int, expected: int) -> None:
    study = Study(name)
    clip = SimpleNamespace(n_tokens=197, d_vit=d_vit)
    study.__dict__ |= {"clip": clip, "train": range(n), "open": lambda *given: given}
    assert study.scored == ("world", "test", expected)


@pytest.mark.parametrize(("n", "expected"), [(2400, 2400), (175, 175), (16, 70), (10**6, 2400)])
def test_pictures_that_name_latents_are_of_a_split_of_their_own(n: int, expected: int) -> None:
    study = Study("world")
    study.__dict__ |= {"train": range(n), "open": lambda *given: given}
    assert study.naming == ("world", "names", expected)


def test_truth_is_rendered_once_where_tokens_are_kept(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(TINY)
    split = study.open("world:land", "test", 8)
    truth = split.truth
    assert torch.equal(truth, world_truth(World("land", "test", 8), range(8), grid=(4, 4)))
    monkeypatch.setattr("patchsae_lib.splits.sparse_truth", None)
    again = Study(TINY).open("world:land", "test", 8)
    assert torch.equal(again.truth, truth)
    monkeypatch.setattr("patchsae_lib.splits.CONCEPTS", ())  # other concepts, other truth
    with pytest.raises(TypeError):
        _ = Study(TINY).open("world:land", "test", 8).truth


def test_training_is_fitted_to_the_tokens() -> None:
    study = Study(replace(TINY, train=replace(TINY.train, passes=2.0)))
    assert study.fitted().train.steps == -(-2 * 16 * N_TOKENS // 100)
    assert study.fitted(1000).train.steps == 20
    assert Study(TINY).fitted() == TINY  # no limit


def test_another_block_reads_the_same_pictures(place: Path) -> None:
    study = Study(TINY, sae="live")
    study.keep("sae.safetensors", random_sae(0))
    first = study.at_block(0, 5)
    assert (first.clip.block, len(first.train), len(first.test)) == (0, 5, 8)
    images = study.clip.preprocess(World("land", "train", 16).batch(range(5)))
    z = tiny_clip(0).tokens(images)
    assert torch.allclose(first.train.tokens[:].float(), z, rtol=0.01, atol=0.01)
    assert first.train.labels.tolist() == [0, 1, 2, 3, 4]
    folders = {split.keep[0] for split in (first.train, first.test, study.train, study.test)}
    assert len(folders) == 4
    assert first.profile.model.block == 0
    same = study.at_block(1, 5)  # which are collected already
    assert torch.equal(same.train.tokens[:], study.train.tokens[:5])
    assert not same.train.keep[0].exists()


def test_a_clip_of_random_weights_reads_the_same_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = lambda c, _: tiny_clip(c.block, seed=7 if c.pretrained == "none" else 0)  # noqa: E731
    monkeypatch.setattr(study_module, "load_clip", asked)
    study = Study(TINY)
    control = study.untrained(5)
    assert (control.clip.block, len(control.train), len(control.test)) == (1, 5, 8)
    z = tiny_clip(seed=7).tokens(study.clip.preprocess(World("land", "test", 8).batch(range(8))))
    assert torch.allclose(control.test.tokens[:].float(), z, rtol=0.01, atol=0.01)
    assert torch.equal(control.test.labels, study.test.labels)
    assert control.test.keep[0] != study.test.keep[0]


# --- nothing is another's ------------------------------------------------------------------------


def counted_again(monkeypatch: pytest.MonkeyPatch, study: Study) -> bool:
    """Whether a study counts its table, instead of reading the one that is kept."""
    calls = []
    scan_tokens = study_module.scan_tokens

    def scan(*arguments: Any) -> LatentTable:
        calls.append(arguments)
        return scan_tokens(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(study_module, "scan_tokens", scan)
        _ = study.table
    return bool(calls)


def test_a_table_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sae_file(tmp_path)
    assert counted_again(monkeypatch, Study(TINY, sae=path))
    study = Study(TINY, sae=path)
    assert not counted_again(monkeypatch, study)
    assert study.table.images == 16
    assert study.table.size == (2 * D_VIT, 2)
    assert study.table.class_names == LAND
    levels = image_levels(study.sae, study.train.tokens)
    assert torch.allclose(study.table.top_values, levels.topk(2, dim=0).values.T, atol=1e-6)


def test_the_references_of_a_latent_are_its_highest_pictures(tmp_path: Path) -> None:
    study = Study(TINY, sae=sae_file(tmp_path))
    levels = image_levels(study.sae, study.train.tokens)
    latent = int((levels > 0).sum(0).argmax())
    highest = levels[:, latent].topk(2).indices
    references = study.references(latent)
    assert torch.equal(references.pictures.batch([0, 1]), study.train.pictures.batch(highest))
    assert torch.equal(references.tokens[:], study.train.tokens[highest])
    assert len(study.references(latent, 1)) == 1
    for latent in (-1, 2 * D_VIT):
        with pytest.raises(IndexError, match=f"latent {latent}: there are 0 to {2 * D_VIT - 1}"):
            study.references(latent)


def test_masks_are_of_the_pictures_of_a_split(tmp_path: Path) -> None:
    study = Study(TINY, sae=sae_file(tmp_path))
    split, sae = study.test, random_sae(5)
    given = split.tokens, split.labels, split.head
    rankings = {"any": torch.randperm(2 * D_VIT).expand(8, -1)}
    for autoencoder in (study.sae, sae):
        masked = study.mask(split, rankings, (1, 4), None if autoencoder is study.sae else sae)
        expected = mask_latents(study.clip, autoencoder, *given, rankings, (1, 4))
        assert torch.equal(masked.predictions["any"], expected.predictions["any"])
        assert torch.equal(masked.all_on, expected.all_on)
        assert torch.equal(masked.labels, split.labels)


def test_a_table_of_other_weights_at_the_same_path_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Study(TINY, sae=sae_file(tmp_path, seed=0))
    first.keep("curve.json", [1, 2])
    total = first.table.total
    second = Study(TINY, sae=sae_file(tmp_path, seed=1))  # the same path
    hashes = f"sae: '{weights_hash(random_sae(0))}' there, '{weights_hash(random_sae(1))}' here"
    for name in ("latents.safetensors", "curve.json"):
        with pytest.raises(ArtefactError, match=rf"{name} .*\({hashes}\): run 2_stat\w+ again"):
            second.kept(name, "2_statistics")
    assert counted_again(monkeypatch, second)
    assert not torch.equal(second.table.total, total)
    assert not counted_again(monkeypatch, Study(TINY, sae=sae_file(tmp_path, seed=1)))


def changed_clip(monkeypatch: pytest.MonkeyPatch, folder: Path, sae: str) -> Study:
    monkeypatch.setattr(study_module, "load_clip", lambda c, _: tiny_clip(c.block, seed=1))
    return Study(TINY, images=f"folder:{folder}", sae=sae)


def changed_tau(_patch: pytest.MonkeyPatch, folder: Path, sae: str) -> Study:
    profile = replace(TINY, statistics=StatisticsConfig(tau=0.3, k=2))
    return Study(profile, images=f"folder:{folder}", sae=sae)


def changed_spec(_patch: pytest.MonkeyPatch, folder: Path, sae: str) -> Study:
    save_pictures(folder.parent / "more" / "a", 6)
    return Study(TINY, images=f"folder:{folder.parent / 'more'}", sae=sae)


def one_more_picture(_patch: pytest.MonkeyPatch, folder: Path, sae: str) -> Study:
    save_pictures(folder / "a", 1, first=6)
    return Study(TINY, images=f"folder:{folder}", sae=sae)


def another_first_picture(_patch: pytest.MonkeyPatch, folder: Path, sae: str) -> Study:
    pictures = Study(TINY, images=f"folder:{folder}").train.pictures
    path = pictures.source.item(pictures.order[0])
    Image.new("RGB", (112, 112), "red").save(path)
    return Study(TINY, images=f"folder:{folder}", sae=sae)


def another_picture_in_between(_patch: pytest.MonkeyPatch, folder: Path, sae: str) -> Study:
    pictures = Study(TINY, images=f"folder:{folder}").train.pictures
    Image.new("RGB", (112, 112), "red").save(pictures.source.item(pictures.order[2]))
    return Study(TINY, images=f"folder:{folder}", sae=sae)


def renamed_class(_patch: pytest.MonkeyPatch, folder: Path, sae: str) -> Study:
    (folder / "a").rename(folder / "aa")
    return Study(TINY, images=f"folder:{folder}", sae=sae)


Change = Callable[[pytest.MonkeyPatch, Path, str], Study]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed_clip, r"\(model.weights: '\w{16}' there, '\w{16}' here\)"),
        (changed_tau, r"\(profile.statistics.tau: 0.2 there, 0.3 here\)"),
        (changed_spec, r"pictures.spec: 'folder:\S+/photos' there, 'folder:\S+/more' here"),
        (one_more_picture, r"pictures.n: 5 there, 6 here"),
        (another_first_picture, r"\(pictures.hash: '\w{16}' there, '\w{16}' here\)"),
        (another_picture_in_between, r"\(pictures.hash: '\w{16}' there, '\w{16}' here\)"),
        (renamed_class, r"\(pictures.hash: '\w{16}' there, '\w{16}' here\)"),
    ],
)
def test_a_table_of_anything_else_is_not_used_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, message: str
) -> None:
    folder, sae = tmp_path / "photos", sae_file(tmp_path)
    save_pictures(folder / "a", 5)
    save_pictures(folder / "b", 1)  # the held-out fifth is one of six
    before = Study(TINY, images=f"folder:{folder}", sae=sae)
    assert counted_again(monkeypatch, before)
    assert not counted_again(monkeypatch, Study(TINY, images=f"folder:{folder}", sae=sae))
    after = change(monkeypatch, folder, sae)
    with pytest.raises(ArtefactError, match=message):
        after.kept("latents.safetensors", "2_statistics")
    assert counted_again(monkeypatch, after)
    assert after.table.images == len(after.train)
    images = after.train.pictures.batch(range(len(after.train)))
    z = after.clip.tokens(after.clip.preprocess(images))
    assert torch.allclose(after.train.tokens[:].float(), z, rtol=0.01, atol=0.01)


def test_constants_are_part_of_the_identity() -> None:
    study = Study(TINY, sae="")
    study.keep("curve.json", [1, 2], n_task=140, shots=4)
    assert study.kept("curve.json", "5_maple", n_task=140, shots=4) == [1, 2]
    with pytest.raises(ArtefactError, match=r"\(shots: 4 there, 8 here\): run 5_maple again"):
        study.kept("curve.json", "5_maple", n_task=140, shots=8)
    with pytest.raises(ArtefactError, match=r"none.json is not there: run 5_maple first"):
        study.kept("none.json", "5_maple")


def test_what_is_measured_of_tasks_is_of_their_pictures_shots_and_prompts(tmp_path: Path) -> None:
    file, photos = tmp_path / "prompts.safetensors", tmp_path / "photos"
    file.write_bytes(b"some")
    for name in ("train/a", "train/b", "test/a", "test/b"):
        save_pictures(photos / name, 2)
    profile = replace(TINY, tasks=(f"folder:{photos}",))
    given = {"sae": "", "prompts": str(file)}
    study = Study(profile, **given)
    study.keep("levels.json", [1], tasks=True)
    assert Study(profile, **given).kept("levels.json", "5_maple", tasks=True) == [1]
    options = {r"test\.n": dict(n_task=3), "shots": dict(shots=3), "prompts": dict(prompts="")}
    for name, option in options.items():
        with pytest.raises(ArtefactError, match=name):
            Study(profile, **{**given, **option}).kept("levels.json", "5_maple", tasks=True)
    file.write_bytes(b"others")
    with pytest.raises(ArtefactError, match="prompts"):
        study.kept("levels.json", "5_maple", tasks=True)
    file.write_bytes(b"some")
    Image.new("RGB", (8, 8)).save(photos / "test" / "a" / "0.png")
    with pytest.raises(ArtefactError, match=r"test\.hash"):
        Study(profile, **given).kept("levels.json", "5_maple", tasks=True)


def test_an_artefact_of_another_precision_is_not_used() -> None:
    study = Study(TINY, sae="")
    study.keep("curve.json", [1])
    study.clip.first = torch.nn.Identity()
    with pytest.raises(ArtefactError, match=r"precision: 'float32' there, 'bfloat16' here"):
        study.kept("curve.json", "2_statistics")


def test_without_an_autoencoder_no_tokens_are_collected_for_a_table() -> None:
    study = Study(TINY, sae="live")
    with pytest.raises(ArtefactError, match=r"sae.safetensors is not there: run 1_training first"):
        _ = study.table
    assert not (study.folder / "tokens").exists()


def test_held_out_pictures_of_other_classes_are_refused(tmp_path: Path) -> None:
    for i, name in enumerate("abcd"):
        save_pictures(tmp_path / ("seen" if i < 2 else "other") / name, 3)
    spec, other = f"folder:{tmp_path / 'seen'}", f"folder:{tmp_path / 'other'}"
    study = Study(replace(TINY, pictures=PicturesConfig(spec, test=other)))
    with pytest.raises(
        ValueError, match=r"the classes of folder:.*other are not those of folder:"
    ):
        _ = study.test


def test_autoencoders_are_kept_by_number_or_name_and_replaced_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = Study(TINY, sae="live")
    study.keep_autoencoders("seed", {0: random_sae(0), 10: random_sae(10), 2: random_sae(2)})
    study.keep_autoencoders("block", {5: random_sae(5)})
    study.keep_autoencoders("null", {"shuffled tokens": random_sae(4), "frozen": random_sae(3)})
    kept = Study(TINY, sae="live").autoencoders("seed")
    assert list(kept) == [0, 2, 10]
    assert all(weights_hash(kept[n]) == weights_hash(random_sae(n)) for n in kept)
    study.keep_autoencoders("seed", {1: random_sae(1)})
    assert list(study.autoencoders("seed")) == [1]
    assert list(study.autoencoders("block")) == [5]
    nulls = study.autoencoders("null")
    assert list(nulls) == ["frozen", "shuffled tokens"]
    assert weights_hash(nulls["frozen"]) == weights_hash(random_sae(3))
    monkeypatch.setattr(study_module, "load_clip", lambda c, _: tiny_clip(c.block, seed=1))
    with pytest.raises(ArtefactError, match=r"\(model.weights: .*\): run 1_training again"):
        Study(TINY, sae="live").autoencoders("seed")


def test_the_live_autoencoder_is_the_one_that_was_kept_last() -> None:
    for seed in (0, 1):
        Study(TINY, sae="").keep("sae.safetensors", random_sae(seed))
        assert Study(TINY, sae="live").sae_hash == weights_hash(random_sae(seed))
    changed = replace(TINY, sae=SAEConfig(expansion=2, l1=1.0))
    with pytest.raises(ArtefactError, match=r"profile.sae.l1: 8e-05 there, 1.0 here.*1_training"):
        _ = Study(changed, sae="live").sae


@pytest.fixture
def shipped(tmp_path: Path) -> SAE:
    """An autoencoder in `data/`, of the tiny CLIP."""
    study, sae = Study(TINY), random_sae(7)
    identity = shipped_identity(TINY, study.clip_hash, study.clip)
    writer = SimpleNamespace(save=lambda path: save_sae(path, sae))
    artefacts.save(tmp_path / "data" / "sae.safetensors", writer, identity)
    return sae


def test_the_shipped_autoencoder_is_for_its_clip_whatever_the_profile_is_called(
    shipped: SAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for profile in (TINY, replace(TINY, name="world"), replace(TINY, tasks=())):
        assert Study(profile).sae_hash == weights_hash(shipped)
    for changed in (
        replace(TINY, model=replace(TINY.model, block=0)),
        replace(TINY, sae=SAEConfig(expansion=4)),
        replace(TINY, sae=SAEConfig(expansion=2, activation="topk")),
    ):
        assert Study(changed).shipped is None
    Study(TINY).keep("sae.safetensors", random_sae(3))
    assert Study(TINY).sae_hash == weights_hash(shipped)
    assert Study(TINY, sae="live").sae_hash == weights_hash(random_sae(3))
    save_sae(tmp_path / "data" / "sae.safetensors", random_sae(8))  # without its identity
    assert Study(TINY).sae_hash == weights_hash(random_sae(3))
    monkeypatch.setattr(study_module, "load_clip", lambda c, _: tiny_clip(c.block, seed=1))
    assert Study(TINY).shipped is None
    with pytest.raises(ArtefactError, match=r"model.weights: .*run 1_training again"):
        _ = Study(TINY).sae


def test_the_autoencoder_in_data_fits_the_world_and_no_other_profile() -> None:
    clip = load_clip(ModelConfig("small"))
    given = weights_hash(clip.model), clip
    for name, fits in (("world", True), ("smoke", False)):
        identity = shipped_identity(load_profile(name), *given)
        try:
            artefacts.load(DATA / "sae.safetensors", identity, made_by="recipes.autoencoder")
        except ArtefactError:
            assert not fits
        else:
            assert fits


def test_autoencoders_of_other_seeds_and_blocks_ship_beside_that_of_the_world(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(study_module, "load_clip", load_clip)
    monkeypatch.setattr(study_module, "DATA", DATA)
    study = Study("world")
    seeds, blocks = study.alike("seed"), study.alike("block")
    assert ([*seeds], [*blocks]) == ([0, 1, 2], [2, 3, 4, 5])
    assert seeds[0] is blocks[study.clip.block + 1] is study.sae
    assert len({weights_hash(x) for x in (*seeds.values(), *blocks.values())}) == 6
    assert all(x.W_enc.shape == study.sae.W_enc.shape for x in blocks.values())
    assert Study("world", sae="live").alike("seed") == {}  # those of notebook 1 alone
    swapped = {"block-3.safetensors": "block-2.safetensors"}
    load = artefacts.load
    monkeypatch.setattr(
        artefacts, "load",
        lambda path, *a, **k: load(path.with_name(swapped.get(path.name, path.name)), *a, **k),
    )  # fmt: skip
    assert [*Study("world").alike("block")] == [2, 4, 5]  # 3 was trained at another block


def test_claims_are_recorded_in_the_runs_folder(place: Path) -> None:
    Study(TINY).claim("2-depth", "0.5", True)
    assert '"2-depth"' in (place / "claims.json").read_text()


# --- pictures without classes --------------------------------------------------------------------


def test_unlabelled_pictures_get_the_zero_shot_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pictures(tmp_path / "photos", 10)
    study = Study(TINY, images=f"folder:{tmp_path / 'photos'}")
    train, test = study.train, study.test
    assert (len(train), len(test)) == (8, 2)
    head = study.clip.text_features(CLASSES, ["a photo of a {}."])
    logits = predict(study.clip, train.pictures.batch(range(8)), head)
    expected = [CLASSES[i] for i in logits.argmax(1)]
    assert [train.class_names[i] for i in train.labels] == expected
    assert [train.class_names[train.pictures.label(i)] for i in range(8)] == expected
    assert set(train.class_names) == set(train.pictures.class_names) == set(expected)
    assert list(train.class_names) == sorted(set(expected), key=CLASSES.index)
    assert test.class_names == train.class_names
    part = head[[CLASSES.index(name) for name in train.class_names]]
    logits = predict(study.clip, test.pictures.batch(range(2)), part)
    assert test.labels.tolist() == logits.argmax(1).tolist()
    assert f"zero-shot predictions of {len(CLASSES)} names" in capsys.readouterr().out


def test_unlabelled_pictures_are_no_task_to_adapt_to(tmp_path: Path) -> None:
    save_pictures(tmp_path / "flat", 3)
    assert Study(TINY).task_specs == ("world:land",)
    spec = f"folder:{tmp_path / 'flat'}"
    assert Study(TINY, images=spec).task_specs == ("world:flowers", "world:land")
    for name in "ab":
        save_pictures(tmp_path / "classes" / name, 2)
    spec = f"folder:{tmp_path / 'classes'}"
    assert Study(TINY, images=spec).task_specs == (spec,)


# --- splits --------------------------------------------------------------------------------------


@pytest.fixture(params=["shards", "memory"])
def split(request: pytest.FixtureRequest) -> Split:
    """Sixteen pictures of eight classes."""
    train = Study(TINY).train
    return train if request.param == "shards" else replace(train, keep=None)


@pytest.mark.parametrize("is_collected", [True, False])
def test_a_selection_keeps_pictures_labels_and_tokens_together(
    split: Split, is_collected: bool
) -> None:
    z, pixels = split.tokens[:], split.pictures.batch(range(16))
    if not is_collected:
        split = replace(split)  # without its tokens
    rows = torch.tensor([11, 2, 2, 15])
    part = split.select(rows)
    again = part.select([3, 0])
    for chosen, expected in ((part, rows), (again, torch.tensor([15, 11]))):
        n = len(expected)
        assert len(chosen) == n
        assert torch.equal(chosen.pictures.batch(range(n)), pixels[expected])
        assert torch.equal(chosen.labels, split.labels[expected])
        assert [chosen.pictures.label(i) for i in range(n)] == chosen.labels.tolist()
        assert torch.allclose(chosen.tokens[:].float(), z[expected].float(), atol=0.02)
        assert chosen.tokens.indices.tolist() == list(range(n))  # row i is picture i
        assert chosen.class_names == LAND
    assert part.keep is None


def test_tokens_that_are_there_are_not_collected_again(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, head = split.tokens[:], split.head
    monkeypatch.setattr(SplitCLIP, "tokens", None)
    monkeypatch.setattr(SplitCLIP, "text_features", None)
    assert torch.equal(split.select([3, 1]).tokens[:], z[[3, 1]])
    assert split.select([3, 1]).head is head


def test_classes_are_chosen_and_numbered_from_0(split: Split) -> None:
    part = split.of_classes(2, 5)
    assert part.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert part.class_names == LAND[2:5]
    assert torch.equal(part.head, split.head[2:5])
    rows = [2, 3, 4, 10, 11, 12]
    assert torch.equal(part.pictures.batch(range(6)), split.pictures.batch(rows))
    assert len(split.of_classes(2, 5, 4)) == 4
    assert split.of_classes(2, 5, 4).labels.tolist() == [0, 1, 2, 0]


def test_the_first_of_each_class(split: Split) -> None:
    z = split.tokens[:]
    split.labels = torch.tensor([3, 3, -1, 0, 3, 0, 0, -1] + [7] * 8)
    part = split.first_of_each_class(2)
    assert part.labels.tolist() == [3, 3, 0, 0, 7, 7]
    assert torch.equal(part.tokens[:], z[[0, 1, 3, 5, 8, 9]])
    assert part.label_names == [LAND[i] for i in part.labels]
    assert split.label_names[2] == ""


def test_predictions_are_the_nearest_texts(split: Split) -> None:
    features = split.clip.features(split.tokens[:].float())
    split.head = features[[5, 0, 9]]
    logits = features @ split.head.T
    assert torch.equal(split.predictions(), logits.argmax(1))
    assert split.predictions()[[5, 0, 9]].tolist() == [0, 1, 2]
    split.labels = torch.zeros(16, dtype=torch.long)
    split.labels[0] = 1
    assert split.correct().tolist() == (logits.argmax(1) == split.labels).double().tolist()


def test_another_model_sees_the_same_pictures_with_tokens_of_its_own(split: Split) -> None:
    other, head = tiny_clip(seed=1), torch.eye(8, 128)
    z = split.tokens[:]
    after = split.seen_by(other, head)
    expected = other.tokens(other.preprocess(split.pictures.batch(range(16))))
    assert torch.allclose(after.tokens[:].float(), expected, rtol=0.01, atol=0.01)
    assert after.head is head
    assert torch.equal(after.labels, split.labels)
    assert torch.equal(split.tokens[:], z)


def test_the_truth_of_a_selection_is_that_of_its_pictures(tmp_path: Path) -> None:
    split = Study(TINY).test
    truth = world_truth(World("land", "test", 8), [6, 1], grid=(4, 4))
    for part in (split.select([6, 1]), split.select([5, 1, 6]).select([2, 1])):
        assert part.is_world
        assert torch.equal(part.truth, truth)
    assert torch.equal(split.truth[[6, 1]], truth)
    save_pictures(tmp_path / "photos" / "a", 5)
    photos = Study(TINY, images=f"folder:{tmp_path / 'photos'}").test
    assert not photos.is_world
    with pytest.raises(ValueError, match="only pictures of the embedded world have a truth"):
        _ = photos.truth


def test_held_out_pictures_have_captions(split: Split) -> None:
    held_out = split.select([1, 0]).held_out
    world = World("land", "train", 16)
    texts = [TASKS["land"].templates[0].format(LAND[i]) for i in (1, 0)]
    assert torch.allclose(held_out.captions, split.clip.text_features(texts, ["{}"]), atol=1e-6)
    texts = [world.caption(i) for i in range(16)]
    expected = split.clip.text_features(texts, ["{}"])
    assert torch.allclose(split.held_out.captions, expected, atol=1e-6)
    assert torch.equal(held_out.labels, split.labels[[1, 0]])


# --- pictures that cannot be read ----------------------------------------------------------------


class Flaky:
    """Pictures of which some numbers cannot be read."""

    def __init__(self, pictures: Any, *bad: int) -> None:
        self.pictures, self.bad, self.class_names = pictures, bad, pictures.class_names

    def __len__(self) -> int:
        return len(self.pictures)

    def label(self, index: int) -> int:
        return self.pictures.label(index)

    def batch(self, indices: list[int]) -> Tensor:
        if set(self.bad) & set(indices):
            raise OSError("cannot be read")
        return self.pictures.batch(indices)


class Colours:
    """Picture i is one colour, and of class i modulo 3."""

    class_names = ("red", "green", "blue")

    def __len__(self) -> int:
        return 110

    def label(self, index: int) -> int:
        return index % 3

    def batch(self, indices: list[int]) -> Tensor:
        values = torch.tensor([[i, 255 - i, (7 * i) % 256] for i in indices], dtype=torch.uint8)
        return values.view(-1, 3, 1, 1).expand(-1, 3, 112, 112)


def opened(study: Study, pictures: Any, monkeypatch: pytest.MonkeyPatch) -> Split:
    monkeypatch.setattr(tokens_module, "SHARD", 40)
    monkeypatch.setattr(study, "open_pictures", lambda *_: pictures)
    return study.train


def test_pictures_that_were_not_tried_are_left_out_if_they_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(study_module, "CHECKED", 100)
    study = Study(TINY, sae=sae_file(tmp_path))
    train = opened(study, Flaky(Colours(), 50), monkeypatch)
    readable = [i for i in range(110) if i != 50]
    assert len(train) == len(train.tokens) == 109
    assert train.labels.tolist() == [i % 3 for i in readable]
    images = Colours().batch(readable)
    assert torch.equal(train.pictures.batch(range(109)), images)
    z = study.clip.tokens(study.clip.preprocess(images))
    assert torch.allclose(train.tokens[:].float(), z, rtol=0.01, atol=0.01)
    assert train.tokens.skipped == (50,)
    assert next(train.tokens.mixed(TINY.train, 0)).shape == (100, D_VIT)  # to train on
    levels = image_levels(study.sae, train.tokens)
    latent = int(levels[60:].amax(0).sub(levels[:50].amax(0)).argmax())
    first = study.table.top_images[latent, 0]
    assert first == levels[:, latent].argmax()
    assert study.table.top_labels[latent, 0] == train.pictures.label(int(first))
    nameless = Flaky(Colours(), 50)
    nameless.class_names = ()
    unlabelled = opened(Study(replace(TINY, name="nameless")), nameless, monkeypatch)
    assert len(unlabelled) == len(unlabelled.tokens) == len(unlabelled.labels) == 109
    assert torch.equal(unlabelled.tokens[:], train.tokens[:])
    sound = opened(Study(replace(TINY, name="sound")), Colours(), monkeypatch)
    assert isinstance(sound.pictures, Colours)  # nothing to leave out


def test_pictures_that_were_tried_must_be_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    train = opened(Study(TINY), Flaky(Colours(), 50), monkeypatch)
    assert len(train) == 110
    with pytest.raises(ValueError, match=r"1 of 110 pictures .* number 50\. Mend them, delete"):
        _ = train.tokens


# --- tasks ---------------------------------------------------------------------------------------


def test_a_task_has_base_and_novel_pictures_in_clip_and_adapted() -> None:
    study = Study(TINY)
    (task,) = study.tasks.values()
    assert list(study.tasks) == ["Land cover from above"] == [task.title]
    assert (task.base.class_names, task.novel.class_names) == (LAND[:4], LAND[4:])
    assert task.base.labels.tolist() == task.novel.labels.tolist() == [0, 1, 2, 3]
    test = World("land", "test", 8)
    assert torch.equal(task.novel.pictures.batch([2]), test.batch([6]))
    assert task.learnt.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(task.counted) == 8
    adapted = task.adapted(0)
    assert task.adapted(0) is adapted
    prompts = study.prompts("world:land", 0)
    assert torch.equal(adapted.clip.text, adapt(study.clip, prompts, LAND).text)
    for name in ("base", "novel", "counted"):
        before, after = getattr(task, name), getattr(adapted, name)
        assert torch.equal(before.pictures.batch([1]), after.pictures.batch([1]))
        assert torch.equal(before.labels, after.labels)
        assert after.tokens.shape == (len(before), N_TOKENS + 2, D_VIT)
        assert before.tokens.shape == (len(before), N_TOKENS, D_VIT)
    assert torch.equal(adapted.novel.head, adapted.clip.text[4:])
    head = study.clip.text_features(LAND[:4], [TASKS["land"].templates[0]])
    assert torch.allclose(task.base.head, head, atol=1e-6)


def test_two_tasks_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"called 'Land cover from above'"):
        _ = Study(replace(TINY, tasks=("world:land", "world:land"))).tasks


def test_latents_are_counted_on_as_many_pictures_of_each_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("patchsae_lib.splits.COUNTED", 12)
    pictures = replace(TINY.pictures, n_train=40)
    profile = replace(TINY, pictures=pictures, prompts=replace(TINY.prompts, shots=5))
    (task,) = Study(profile).tasks.values()
    assert len(task.learnt) == 20
    assert task.counted.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert torch.equal(task.counted.pictures.batch([3]), task.learnt.pictures.batch([5]))
    assert torch.equal(task.counted.tokens[3:4], task.learnt.tokens[5:6])


def test_a_control_swaps_the_names_of_the_base_classes() -> None:
    study = Study(TINY)
    (task,) = study.tasks.values()
    swapped = task.adapted(0, "swapped")
    prompts = study.prompts("world:land", 0, "swapped")
    names = (*LAND[1:4], LAND[0], *LAND[4:])
    assert prompts.config["classes"] == list(names[:4])
    assert torch.equal(swapped.clip.text, adapt(study.clip, prompts, names).text)
    picture = study.prompts("world:land", 0, "picture")
    assert len(picture.text) == 0
    assert len(picture.visual) == 1
    text = study.prompts("world:land", 0, "text")
    assert text.text.shape[:2] == (1, 2)
    assert len(text.visual) == 0
    with pytest.raises(ValueError, match=r"control 'words' is not swapped, .*, text"):
        study.prompts("world:land", 0, "words")


def test_a_task_is_adapted_in_other_ways(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    flowers = replace(TINY, tasks=("world:flowers",))  # in a sentence of its own
    study = Study(flowers)
    (task,) = study.tasks.values()
    n_base = len(task.base.class_names)
    head, n = torch.cat([task.base.head, task.novel.head]), len(task.base)
    changed = {}
    for kind in ("text", "picture", "lora", "tuned", "probe"):
        adapted = task.adapted(0, kind)
        changed[kind] = not torch.equal(adapted.base.tokens[:][:, :N_TOKENS], task.base.tokens[:])
        assert adapted.base.correct().shape == (n,)
        assert adapted.clip.unadapted().features(task.base.tokens[:].float()).shape[0] == n
        is_own = kind in ("picture", "lora", "tuned")
        assert torch.allclose(adapted.clip.text, head, atol=1e-6) == is_own, kind
    assert changed == {"text": False, "picture": True, "lora": True, "tuned": True, "probe": False}
    probe = task.adapted(0, "probe").clip
    assert torch.allclose(probe.text[n_base:], head[n_base:], atol=1e-6)
    learnt = study.see(task.learnt.pictures)
    right = (learnt.features() @ probe.text[:n_base].T).argmax(1) == task.learnt.labels
    assert right.double().mean() > 2 / n_base
    assert [p.name for p in (place / "lora").iterdir()] == ["flowers-0.safetensors"]
    with pytest.raises(ValueError, match=r"'lorra': give one of swapped, .*, lora, tuned, probe"):
        task.adapted(0, "lorra")
    monkeypatch.setattr(study_module, "tune", None)  # a second training would fail
    again = Study(flowers).lora("world:flowers")
    assert torch.equal(again.up, study.lora("world:flowers").up)
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        Study(flowers).lora("world:flowers", 1)


def test_prompts_are_trained_once_and_for_this_clip_only(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Study(TINY).prompts("world:land", 1)
    assert [path.name for path in (place / "prompts").iterdir()] == ["land-1.safetensors"]
    train_prompts = study_module.train_prompts
    monkeypatch.setattr(study_module, "train_prompts", None)  # a second training would fail
    assert torch.equal(Study(TINY).prompts("world:land", 1).text, first.text)
    save_prompts(tmp_path / "given.safetensors", replace(first, text=first.text + 1))
    given = Study(TINY, prompts=str(tmp_path / "given.safetensors"))
    assert torch.equal(given.prompts("world:land", 0).text, first.text + 1)
    for study, options in (
        (Study(TINY, shots=1), {}),
        (Study(TINY), {"train": True}),
        (given, {"control": "swapped"}),
    ):
        with pytest.raises(TypeError, match="'NoneType' object is not callable"):
            study.prompts("world:land", 1, **options)
    monkeypatch.setattr(study_module, "train_prompts", train_prompts)
    monkeypatch.setattr(study_module, "load_clip", lambda c, _: tiny_clip(c.block, seed=1))
    assert not torch.equal(Study(TINY).prompts("world:land", 1).text, first.text)


def test_a_watched_training_of_prompts_is_whole_also_after_a_killed_one(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, epochs = Study(TINY).prompts("world:land", 1), []
    save = maple.save_checkpoint

    def save_and_die(*args: Any, **state: Any) -> None:
        save(*args, **state)
        raise KeyboardInterrupt

    monkeypatch.setattr(maple, "save_checkpoint", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        Study(TINY).prompts("world:land", 1, train=True)
    assert (place / "prompts" / ".land-1.safetensors").is_file()
    watched = Study(TINY).prompts(
        "world:land", 1, train=True, watch=lambda done, _: epochs.append(done)
    )
    assert (epochs[0], epochs[-1]) == (0, TINY.prompts.epochs)
    assert torch.equal(watched.visual, usual.visual)
    assert not (place / "prompts" / ".land-1.safetensors").exists()


def test_prompts_of_other_pictures_with_the_same_names_are_not_used(tmp_path: Path) -> None:
    learnt = []
    for number, parent in enumerate(("one", "two")):
        for i, name in enumerate(("cat", "dog", "owl")):
            save_pictures(tmp_path / parent / "pets" / name, 3, first=10 * number + 3 * i)
        study = Study(TINY, images=f"folder:{tmp_path / parent / 'pets'}")
        learnt.append(study.prompts(study.task_specs[0]))
    assert learnt[0].config == learnt[1].config  # but for the pixels, all is the same
    assert not torch.equal(learnt[0].visual, learnt[1].visual)


def test_pictures_of_any_origin_are_seen(place: Path) -> None:
    study, scenes = Study(TINY), pairs("style", [0, 1])
    split = study.see(scenes)
    assert split.labels.tolist() == [0, 0, 1, 1]
    assert split.class_names == scenes.class_names
    assert torch.equal(split.head, study.clip.text_features(CLASSES, scenes.task.templates))
    z = study.clip.tokens(study.clip.preprocess(scenes.batch(range(4))))
    assert torch.allclose(split.tokens[:].float(), z, rtol=0.01, atol=0.01)
    assert not list(place.glob("tokens/*"))  # they stay in memory
    for name in ("world", "styles"):
        assert study.see(World(name, "test", 1)).templates is STYLE_TEMPLATES


def test_the_papers_numbers_are_read_without_their_comments(tmp_path: Path) -> None:
    (tmp_path / "data" / "paper").mkdir(parents=True)
    (tmp_path / "data" / "paper" / "t.csv").write_text("# Where from\nlayer,mse\n11,0.5\n")
    assert Study(TINY).reported("t").to_dict("list") == {"layer": [11], "mse": [0.5]}


def test_an_identity_has_the_shots_of_the_profile_and_no_predicted_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Study(TINY, sae="", shots=3).identity() == Study(TINY, sae="").identity()
    save_pictures(tmp_path / "flat", 6)
    monkeypatch.setattr(SplitCLIP, "tokens", None)  # to predict labels would fail
    images = Study(TINY, images=f"folder:{tmp_path / 'flat'}", sae="").identity()["pictures"]
    assert images["n"] == 5


def photos(folder: Path, n: int = 12) -> str:
    """Pictures of two classes whose names the small CLIP knows; the spec of them."""
    for first, name in ((0, "forest"), (n, "desert")):
        save_pictures(folder / name, n, first)
    return f"folder:{folder}"


def packed(folder: Path, labels: Sequence[int | None]) -> str:
    """Pictures of land in a shard, of which those of None have no class; the spec of them."""
    world = World("land", "test", len(labels))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classnames.txt").write_text("\n".join(LAND))
    with tarfile.open(folder / "a.tar", "w") as tar:
        for i, label in enumerate(labels):
            content = io.BytesIO()
            Image.fromarray(world.batch([i])[0].permute(1, 2, 0).numpy()).save(content, "PNG")
            files = {"png": content.getvalue(), "cls": b"%d" % label if label is not None else b""}
            for ending, data in files.items():
                member = tarfile.TarInfo(f"{i:03}.{ending}")
                member.size = len(data)
                if data:
                    tar.addfile(member, io.BytesIO(data))
    return f"wds:{folder / 'a.tar'}"


def renamed(folder: Path) -> None:
    (folder / "forest" / "11.png").rename(folder / "forest" / "00b.png")


def exchanged(folder: Path) -> None:
    a, b = folder / "forest" / "3.png", folder / "desert" / "15.png"
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)


def of_another_class(folder: Path) -> None:
    (folder / "forest" / "3.png").rename(folder / "desert" / "3.png")


def repacked(folder: Path) -> None:
    packed(folder, [2, 3, 4, 5, 6, 7, 0, 1] * 3)


@pytest.mark.parametrize("change", [renamed, exchanged, of_another_class, repacked])
def test_kept_tokens_are_never_those_of_other_pictures(tmp_path: Path, change: Callable) -> None:
    folder = tmp_path / "own"
    spec = packed(folder, [*range(8)] * 3) if change is repacked else photos(folder)
    before, again = (Study(TINY, images=spec).train for _ in range(2))
    assert before.keep == again.keep
    _ = before.tokens
    change(folder)
    after = Study(TINY, images=spec).train
    assert after.keep[0] != before.keep[0]
    z = after.clip.tokens(after.clip.preprocess(after.pictures.batch(range(len(after)))))
    assert torch.equal(after.tokens[:], z.bfloat16())


def test_a_picture_without_a_label_is_of_no_class(tmp_path: Path) -> None:
    labels = [i % 8 if i % 3 else None for i in range(80)]
    profile = replace(TINY, pictures=replace(TINY.pictures, n_train=60))
    spec = packed(tmp_path / "own", labels)
    study = Study(profile, images=spec, sae=sae_file(tmp_path))
    split = study.train
    is_labelled = split.labels >= 0
    assert 0 < is_labelled.sum() < len(split)
    right = split.predictions() == split.labels
    assert torch.equal(split.correct(), right[is_labelled].double())
    assert [bool(name) for name in split.label_names] == is_labelled.tolist()
    assert (split.first_of_each_class(1).labels >= 0).all()
    assert split.held_out.original[1].tolist() == right[is_labelled].tolist()
    texts = captions_of(split.pictures)
    assert [text == "a photo of a picture." for text in texts] == (~is_labelled).tolist()
    report = evaluate_sae(study.sae, split.held_out)
    assert len(report.correct) == int(is_labelled.sum())
    (task,) = study.tasks.values()
    for part in (task.base, task.novel, task.learnt, task.counted):
        assert (part.labels >= 0).all()
    assert study.table.class_images.sum() == (study.train.labels >= 0).sum()


def test_pictures_of_which_none_has_a_label_get_predicted_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = Study(TINY)
    secret = Subset(World("land", "test", 8), labels=[-1] * 8)
    pictures = {"train": World("land", "train", 16), "test": secret}
    monkeypatch.setattr(study, "open_pictures", lambda _spec, split, _n: pictures[split])
    assert study.test.class_names == study.train.class_names == LAND
    assert (study.test.labels >= 0).all()


def test_equal_class_names_are_told_apart_by_a_number_that_is_not_spoken(tmp_path: Path) -> None:
    for i, name in enumerate(("forest", "forest_", "desert", "desert_")):
        save_pictures(tmp_path / "own" / name, 5, 5 * i)
    study = Study(TINY, images=f"folder:{tmp_path / 'own'}", sae=sae_file(tmp_path))
    with pytest.warns(UserWarning, match=r"'desert \(no\. 2\)'"):
        _ = study.train
    names = "desert", "desert (no. 2)", "forest", "forest (no. 2)"
    assert study.train.class_names == names
    head = study.train.head
    assert torch.equal(head[0], head[1])
    assert not torch.equal(head[1], head[2])
    assert {*study.table.frame()["top_class"]} <= {*names, ""}
    chosen = study.train.first_of_each_class(2)
    masked = study.mask(chosen, {"class-level": by_score(study.table.class_per_image)}, [1, 5])
    shares = pd.DataFrame(masked.shares("class-level", 4)[0, 0].numpy(), [1, 5], names)
    assert shares.columns.is_unique
    (task,) = study.tasks.values()  # with prompts that are learnt and heads of an adapted model
    assert task.adapted(0).base.head.shape == (2, 128)


def test_the_truth_of_chosen_pictures_is_not_that_of_the_first(tmp_path: Path) -> None:
    objects = replace(TINY.pictures, spec="world:objects")
    split = Study(replace(TINY, pictures=objects)).test
    truth = world_truth(World("objects", "test", 8), [6, 1], grid=(4, 4))
    assert truth[0].any()
    assert not torch.equal(truth[0], truth[1])  # not vacuous
    assert torch.equal(split.select([6, 1]).truth, truth)


def test_a_third_of_the_novel_pictures_is_tested_on() -> None:
    study = Study(replace(TINY, pictures=replace(TINY.pictures, n_test=44)))
    (task,) = study.tasks.values()
    assert len(task.base) == 24
    assert len(task.novel) == 6  # of 20


def test_a_task_learns_from_the_pictures_of_seed_0_and_adapts_with_any() -> None:
    study = Study(TINY, shots=1)
    (task,) = study.tasks.values()
    train = World("land", "train", 16)
    rows = [few_shot(labels_of(train), 4, 1, seed).tolist() for seed in (0, 1)]
    assert rows[0] != rows[1]  # not vacuous
    assert torch.equal(task.learnt.pictures.batch(range(4)), train.batch(rows[0]))
    prompts = study.prompts("world:land", 1)
    assert prompts.config["pictures"] == rows[1]
    text = task.adapted(1).clip.text
    assert torch.equal(text, adapt(study.clip, prompts, LAND).text)
    assert not torch.equal(text, task.adapted(0).clip.text)


def test_each_split_of_an_adapted_task_has_the_texts_of_its_classes() -> None:
    (task,) = Study(TINY).tasks.values()
    after = task.adapted(0)
    assert torch.equal(after.base.head, after.clip.text[:4])
    assert torch.equal(after.novel.head, after.clip.text[4:])
    assert torch.equal(after.counted.head, after.clip.text[:4])


def test_tokens_of_a_task_are_kept_for_each_model_and_choice_of_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (task,) = Study(TINY).tasks.values()
    splits = [task.base, task.learnt, task.adapted(0).base, task.adapted(1).base]
    splits.append(task.adapted(0, "shuffled").base)
    (other,) = Study(TINY, shots=1).tasks.values()
    assert len({split.keep[0] for split in (*splits, other.learnt)}) == 6
    assert other.base.keep[0] == task.base.keep[0]
    tokens = [split.tokens[:] for split in splits]
    (again,) = Study(TINY).tasks.values()
    monkeypatch.setattr(SplitCLIP, "tokens", None)  # nothing is computed again
    assert torch.equal(again.base.tokens[:], tokens[0])
    assert torch.equal(again.learnt.tokens[:], tokens[1])
    assert torch.equal(again.adapted(1).base.tokens[:], tokens[3])


def test_latents_are_counted_on_two_pictures_of_a_class_at_least(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("patchsae_lib.splits.COUNTED", 4)
    (task,) = Study(TINY).tasks.values()
    assert task.counted.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_prompts_of_data_are_used_and_those_of_the_run_before_them(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Study(TINY).prompts("world:land", control="picture")
    made = Study(TINY).prompts("world:land")
    names = {path.name for path in (place / "prompts").iterdir()}
    assert names == {"land-0.safetensors", "land-picture-0.safetensors"}
    monkeypatch.setattr(study_module, "train_prompts", None)  # training would fail
    given = tmp_path / "data" / "prompts" / "land-0.safetensors"
    given.parent.mkdir(parents=True)
    save_prompts(given, replace(made, text=made.text + 1))
    assert torch.equal(Study(TINY).prompts("world:land").text, made.text)
    (place / "prompts" / "land-0.safetensors").unlink()
    assert torch.equal(Study(TINY).prompts("world:land").text, made.text + 1)


def test_references_are_the_first_pictures_of_a_latent() -> None:
    study = Study(TINY)
    study.__dict__["table"] = SimpleNamespace(
        size=(2, 2), top_images=torch.tensor([[0, 7], [5, -1]])
    )
    for latent, n, rows in ((0, 8, [0, 7]), (0, 1, [0]), (1, 8, [5])):
        references = study.references(latent, n)
        assert len(references) == len(rows)
        assert torch.equal(references.tokens[:], study.train.tokens[rows])


def test_masks_may_be_of_other_classes_and_with_the_error(tmp_path: Path) -> None:
    study = Study(TINY, sae=sae_file(tmp_path))
    split = study.test
    given = split.clip, study.sae, split.tokens, split.labels, split.head
    rankings = {"any": torch.stack([torch.randperm(48) for _ in range(8)])}
    plain = mask_latents(*given, rankings, (1, 4))
    for options in ({"classes": split.labels.flip(0)}, {"error": True}):
        masked, wanted = (
            study.mask(split, rankings, (1, 4), **options),
            mask_latents(*given, rankings, (1, 4), **options),
        )
        assert torch.equal(masked.predictions["any"], wanted.predictions["any"])
        assert not torch.equal(wanted.predictions["any"], plain.predictions["any"])  # not vacuous


@pytest.mark.parametrize(("d_vit", "n", "expected"), [(48, 30, 70), (2**16, 500, 20)])
def test_scored_pictures_are_never_too_few(d_vit: int, n: int, expected: int) -> None:
    study = Study("clip")
    clip = SimpleNamespace(n_tokens=197, d_vit=d_vit)
    study.__dict__ |= {"clip": clip, "train": range(n), "open": lambda *given: given}
    assert study.scored == ("world", "test", expected)


def test_pictures_come_from_the_spec_that_a_profile_gives_them() -> None:
    study = Study(replace(TINY, pictures=replace(TINY.pictures, n_train=12)))
    assert study.train.class_names == study.test.class_names == LAND
    assert len(study.training_pictures("world:land")) == 12
    assert len(study.training_pictures("world:flowers")) > 12  # all of another task's


def test_pictures_of_one_class_are_no_task(tmp_path: Path) -> None:
    save_pictures(tmp_path / "one" / "cat", 5)
    study = Study(TINY, images=f"folder:{tmp_path / 'one'}")
    assert study.task_specs == ("world:flowers", "world:land")


def test_prompts_may_be_kept_in_a_folder_of_their_own(place: Path, tmp_path: Path) -> None:
    Study(TINY).prompts("world:land", folders=[tmp_path / "mine"])
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["land-0.safetensors"]
    assert not (place / "prompts").exists()


def test_a_study_writes_its_tasks_as_both_models_see_them(tmp_path: Path) -> None:
    study = Study(TINY, sae=sae_file(tmp_path))
    write_latents(study, pd.DataFrame({"frequency": study.table.frequency.numpy()}))
    (title,) = study.tasks
    before, after = study.tasks[title].base, study.tasks[title].adapted(0).base
    own = torch.rand(2, 4, study.sae.d_sae, generator=torch.Generator().manual_seed(0))
    levels = {f"{title}/CLIP": own[0], f"{title}/MaPLe": own[1]}
    tasks, lenses = write_study(study, levels, n_shown=3)
    trained, adapted = tasks
    assert list(lenses) == [trained.name, adapted.name] == ["world", "land"]
    assert (trained.title, adapted.title) == ("The kind it was trained on", title)
    assert (trained.class_names, adapted.class_names) == (LAND, LAND[:4])
    assert (trained.models, adapted.models) == (["CLIP"], ["CLIP", "MaPLe"])
    assert (list(trained.rows), list(adapted.rows)) == (list(range(24)), [0, 1, 2])
    assert torch.equal(trained.levels[0], study.table.class_per_image)
    assert all(map(torch.equal, adapted.levels, own))
    assert adapted.ks == [1, 5, 10]  # of 48 latents
    for split, ranked, curves in zip((before, after), own, adapted.curves, strict=True):
        given = split.clip, study.sae, split.tokens, split.labels, split.head
        masked = mask_latents(*given, {"own": by_score(ranked)}, adapted.ks)
        assert torch.equal(curves, masked.shares("own", 4))
    for i, split in enumerate((before, after)):
        z = split.clip.tokens(split.clip.preprocess(before.pictures.batch([2])))
        said = split.clip.classify(z, split.head).softmax(1)[0]
        assert adapted.looks[2]["said"][i] == pytest.approx(said.tolist(), abs=1e-5)
    lens = lenses["land"]
    assert torch.equal(lens.pictures, before.pictures.batch(range(4)))
    assert torch.equal(lens.labels, before.labels)
    index = read_shard(study.folder / "explorer" / "index.js")
    assert [task["name"] for task in index["tasks"]] == ["world", "land"]
