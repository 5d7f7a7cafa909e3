"""The authors' released files: read exactly, refused in one line, and tried end to end."""

import json
import math
import pickle
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import build
import records
from execution import execute
from patchsae_lib.artefacts import ROOT
from patchsae_lib.interop import authors, load_prompts, load_sae
from patchsae_lib.interop.authors import find_files, read_metrics, read_table, write_table
from patchsae_lib.latents import LatentTable
from recipes.authors_trial import MOVED, write_files

PARITY = Path(__file__).parent / "parity"
GOLDEN = {
    name.removeprefix("stats."): tensor
    for name, tensor in load_file(PARITY / "authors_statistics.safetensors").items()
}
PLACE = "out/feature_data/sae_base/base/caltech101"
SILENT, N = 7, 120


def write(folder: Path, **changed: object) -> Path:
    """The folder of a data set in the authors' layout, with the values of their code; None leaves
    a file out, bytes replace it."""
    folder = folder / PLACE
    folder.mkdir(parents=True, exist_ok=True)
    images = GOLDEN["max_activating_image_indices"]
    contents = {
        "max_activating_image_values.pt": GOLDEN["max_activating_image_values"],
        "max_activating_image_indices.pt": images,
        "max_activating_image_label_indices.pt": GOLDEN["labels"][images.long()],
        "sae_sparsity.pt": GOLDEN["sae_sparsity"],
        "sae_mean_acts.pt": GOLDEN["sae_mean_acts"],
        "cls_sae_cnt.npy": GOLDEN["class_counts_threshold_0.2"].double().numpy(),
    }
    for name, content in (contents | dict(changed.get("files", {}))).items():
        (folder / name).unlink(missing_ok=True)
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        elif isinstance(content, np.ndarray):
            np.save(folder / name, content, allow_pickle=True)
        elif content is not None:
            torch.save(content, folder / name)
    return folder


def test_the_values_of_their_code_are_read_exactly(tmp_path):
    table = read_table(write(tmp_path))
    is_active = torch.arange(64) != SILENT
    assert torch.equal(table.top_values, GOLDEN["max_activating_image_values"])
    is_filled = table.top_values > 0
    images = GOLDEN["max_activating_image_indices"].long()
    assert torch.equal(table.top_images[is_filled], images[is_filled])
    assert torch.equal(table.top_labels[is_filled], GOLDEN["labels"][images][is_filled])
    assert (table.top_images[~is_filled] == -1).all()
    assert (table.top_labels[~is_filled] == -1).all()
    assert torch.equal(table.frequency, GOLDEN["sae_sparsity"])
    assert torch.equal(table.mean[is_active], GOLDEN["sae_mean_acts"][is_active])
    assert table.mean[SILENT] == 0
    assert torch.equal(table.class_above.float(), GOLDEN["class_counts_threshold_0.2"])
    assert torch.equal(table.n_above, table.class_above.sum(0))
    is_whole = is_filled.all(1)
    entropy = GOLDEN["label_entropy"][is_whole]
    assert torch.allclose(table.entropy[is_whole].float(), entropy, atol=1e-5)
    assert table.entropy[~is_whole].isnan().all()
    assert table.tau == 0.2
    assert table.about["sae_sparsity.pt"] == "shares of images"
    assert table.about["sae_mean_acts.pt"] == "means (100.00% of the active latents agree)"


def test_what_they_did_not_store_is_absent_and_not_zero(tmp_path):
    table = read_table(write(tmp_path))
    frame = table.frame()
    for name in ("n_images", "token_frequency", "token_mean", "n_active"):
        assert frame[name].isna().all(), name
    assert math.isnan(table.images)
    assert math.isnan(table.tokens)
    assert table.class_images.isnan().all()
    assert table.class_per_image.isnan().all()
    assert table.total.isnan().all()
    few = ("max_activating_image_label_indices.pt", "cls_sae_cnt.npy", "sae_sparsity.pt")
    table = read_table(write(tmp_path, files=dict.fromkeys(few)))
    assert table.class_above.shape == (0, 64)
    for x in (table.n_above, table.entropy, table.label_std, table.frequency):
        assert x.isnan().all()
    assert {table.about[name] for name in few} == {"not there"}
    assert table.frame()["mean"].notna().all()


def test_class_counts_alone_are_a_table_and_their_longer_axis_is_that_of_latents(tmp_path):
    names = [name for name in authors.NAMES if name != "cls_sae_cnt.npy"]
    counts = GOLDEN["class_counts_threshold_0.2"].numpy()
    table = read_table(
        write(tmp_path, files={**dict.fromkeys(names), "cls_sae_cnt.npy": counts.T})
    )
    assert np.array_equal(table.class_above.numpy(), counts)
    assert table.about["cls_sae_cnt.npy"] == "tokens above τ in 9 classes, transposed"
    for x in (table.entropy, table.frequency, table.mean):
        assert x.isnan().all()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.float32])
def test_counts_are_turned_by_their_shape(tmp_path, transposed, dtype):
    counts = GOLDEN["class_counts_threshold_0.2"].numpy().astype(dtype)
    stored = counts.T if transposed else counts
    table = read_table(write(tmp_path, files={"cls_sae_cnt.npy": stored}))
    assert np.array_equal(table.class_above.numpy(), counts)


def test_numbers_and_sums_are_told_from_shares_and_means(tmp_path):
    numbers = (GOLDEN["sae_sparsity"] * N).round()
    sums = (GOLDEN["sae_mean_acts"] * numbers).nan_to_num(0)
    files = {"sae_sparsity.pt": numbers, "sae_mean_acts.pt": sums}
    table = read_table(write(tmp_path, files=files))
    assert torch.equal(table.n_images, numbers.long())
    assert table.frequency.isnan().all()  # of how many is not stored
    assert torch.allclose(table.mean, GOLDEN["sae_mean_acts"].nan_to_num(0), rtol=1e-6)
    assert "of how many" in table.about["sae_sparsity.pt"]
    assert table.about["sae_mean_acts.pt"].startswith("sums (100")
    table = read_table(write(tmp_path, files={"sae_mean_acts.pt": sums}))
    assert table.mean[GOLDEN["sae_sparsity"] > 0].isnan().all()  # sums over unknown numbers
    without = dict.fromkeys(authors.NAMES[:3])
    table = read_table(write(tmp_path, files=without))
    assert table.mean.isnan().all()
    assert "not told" in table.about["sae_mean_acts.pt"]


def trained_like(d: int, images: int, seed: int) -> LatentTable:
    """A table of random image-level activations, counted by us; 3 classes, some silent latents."""
    random = torch.Generator().manual_seed(seed)
    table = LatentTable.empty(d, ["a", "b", "c"])
    f = (torch.rand(images, 5, d, generator=random) - 0.7).clamp_min(0) * 3
    f[:, :, 0] = 0
    labels = torch.randint(3, (images,), generator=random)
    table.images, table.tokens = images, images * 5
    table._count(f.sum(1), (f > 0).sum(1), (f > 0.2).sum(1), labels)
    order = torch.arange(images).expand(d, -1)
    table._rank(f.mean(1).T, order, labels.expand(d, -1))
    return table


@settings(max_examples=25, deadline=None)
@given(
    d=st.integers(4, 40), images=st.integers(2, 30), seed=st.integers(0, 99), sums=st.booleans()
)
def test_a_table_of_ours_comes_back_from_their_layout(tmp_path_factory, d, images, seed, sums):
    table, folder = trained_like(d, images, seed), tmp_path_factory.mktemp("a")
    write_table(folder, table, sums)
    for name in authors.NAMES[1:3]:  # as theirs
        assert not torch.load(folder / name, weights_only=True)[table.top_images < 0].any()
    if (table.n_images <= 1).all() or (table.n_images % images == 0).all():
        return  # what cannot be told
    back = read_table(folder, ["a", "b", "c"])
    for name in ("top_values", "top_images", "top_labels", "class_above", "n_above"):
        assert torch.equal(getattr(back, name).long(), getattr(table, name).long()), name
    assert torch.equal(back.top_values, table.top_values)
    assert torch.allclose(back.mean.double(), table.mean.double(), rtol=1e-5)
    kept = back.n_images if sums else back.frequency
    assert torch.allclose(kept.double(), (table.n_images if sums else table.frequency).double())
    assert torch.allclose(back.entropy, table.entropy, equal_nan=True)
    assert torch.allclose(back.label_std, table.label_std, equal_nan=True)


def test_a_place_with_index_minus_one_is_empty(tmp_path):
    values, images = (GOLDEN[f"max_activating_image_{x}"].clone() for x in ("values", "indices"))
    values[3, 9], images[3, 9], images[4, 9] = 0, -1, -1
    files = {
        "max_activating_image_values.pt": values,
        "max_activating_image_indices.pt": images,
    }
    table = read_table(write(tmp_path, files=files))
    assert table.top_images[3].tolist() == [*images[3, :9].long().tolist(), -1]
    assert table.top_labels[3, 9] == table.top_labels[4, 9] == table.top_images[4, 9] == -1
    assert table.entropy[3].isnan()
    assert (table.top_images[SILENT] == -1).all()


PICKLED = b"\x80\x04cos\nsystem\n"
WRONG = {
    "a file is missing": ({"max_activating_image_values.pt": None}, "is missing: unpack out.zip"),
    "another is missing": ({"max_activating_image_indices.pt": None}, "is missing: unpack"),
    "another run": ({"sae_sparsity.pt": GOLDEN["sae_sparsity"].roll(1)}, "which latents are a"),
    "cut short": ({"sae_sparsity.pt": b"PK\x03\x04 cut"}, "damaged or cut short"),
    "a bare pickle": ({"sae_sparsity.pt": PICKLED}, "bare pickle"),
    "empty": ({"sae_mean_acts.pt": b""}, "is empty"),
    "a web page": ({"sae_mean_acts.pt": b"<html>"}, "is a web page"),
    "no tensor": ({"sae_mean_acts.pt": {"a": 1}}, "holds dict, expected a tensor of 1 axes"),
    "two axes": ({"sae_sparsity.pt": torch.rand(64, 2)}, "holds (64, 2)"),
    "latents": ({"sae_sparsity.pt": torch.rand(63)}, "autoencoders of [63, 64] latents"),
    "NaN": ({"max_activating_image_values.pt": torch.full((64, 10), torch.nan)}, "not finite"),
    "infinite": ({"sae_mean_acts.pt": torch.full((64,), torch.inf)}, "not finite"),
    "below 0": ({"sae_sparsity.pt": -torch.rand(64)}, "below 0"),
    "fractions of images": (
        {"max_activating_image_indices.pt": torch.full((64, 10), 0.5)}, "expected whole numbers",
    ),
    "neither": ({"sae_sparsity.pt": torch.rand(64) + 1}, "fractions above 1: neither numbers"),
    "only ones": ({"sae_sparsity.pt": torch.ones(64)}, "only 0 and 1: neither numbers"),
    "neither means nor sums": (
        {"sae_mean_acts.pt": GOLDEN["max_activating_image_values"][:, 0]
         * torch.tensor([0.5, 2]).repeat(32)}, "neither means nor sums",
    ),
    "k": ({"max_activating_image_indices.pt": torch.zeros(64, 9)}, "of different shapes"),
    "counts of other latents": ({"cls_sae_cnt.npy": np.zeros((9, 63))}, "must be that of the 64"),
    "square counts": ({"cls_sae_cnt.npy": np.zeros((64, 64))}, "must be that of the 64"),
    "counts below 0": ({"cls_sae_cnt.npy": np.full((9, 64), -1.0)}, "no number of tokens"),
    "counts in halves": ({"cls_sae_cnt.npy": np.full((9, 64), 0.5)}, "no number of tokens"),
    "texts": ({"cls_sae_cnt.npy": np.full((9, 64), "a")}, "must be that of the 64"),
    "objects": ({"cls_sae_cnt.npy": np.full((9, 64), None)}, "cut short or no plain array"),
    "cut counts": ({"cls_sae_cnt.npy": b"\x93NUMPY"}, "cut short or no plain array"),
    "few classes": ({"cls_sae_cnt.npy": np.zeros((3, 64))}, "counts of 3 classes, labels of 9"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_one_line(tmp_path, name):
    files, message = WRONG[name]
    folder = write(tmp_path, files=files)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read_table(folder)
    text = str(error.value).replace(str(tmp_path), "")
    assert message in text
    assert "\n" not in text
    assert len(text) <= 200


@pytest.mark.parametrize("name", authors.NAMES)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_a_file_that_is_cut_anywhere_is_refused(tmp_path, name, share):
    path = write(tmp_path) / name
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=name):
        read_table(path.parent)


def test_nothing_in_a_file_is_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    folder = write(tmp_path, files={"sae_sparsity.pt": Bomb()})
    with pytest.raises(ValueError, match="sae_sparsity"):
        read_table(folder)
    write(tmp_path, files={"cls_sae_cnt.npy": np.array([[Bomb()]], dtype=object)})
    with pytest.raises(ValueError, match="cls_sae_cnt"):
        read_table(folder)
    write(tmp_path, files={"cls_sae_cnt.npy": pickle.dumps(Bomb())})
    with pytest.raises(ValueError, match="cls_sae_cnt"):
        read_table(folder)
    assert not (tmp_path / "ran").exists()


def test_what_is_in_the_folder_is_listed(tmp_path):
    folder = write(tmp_path)
    other = folder.parents[1] / "maple" / "imagenet"
    other.mkdir(parents=True)
    (other / "cls_sae_cnt.npy").write_bytes((folder / "cls_sae_cnt.npy").read_bytes())
    (folder.parent / "empty").mkdir()
    for path in ("data/sae_weight/base/out.pt", "data/clip/maple/imagenet/model.pth.tar-2"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    (tmp_path / "eval_outputs").mkdir()
    (tmp_path / "eval_outputs/metrics.csv").write_text("x")
    for start in (tmp_path, tmp_path / "out"):
        files = find_files(start)
        known = [("sae_base", "base", "caltech101"), ("sae_base", "maple", "imagenet")]
        assert list(files.tables) == known
        assert files.tables["sae_base", "base", "caltech101"] == folder
        assert list(files.metrics) == ["eval_outputs"]
        assert [x.name for x in files.autoencoders] == ["out.pt"]
        assert [x.name for x in files.prompts] == ["model.pth.tar-2"]
    for nowhere in (tmp_path / "data", tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"unpack the authors' out.zip there"):
            find_files(nowhere)


def test_imagenet_has_its_names_and_other_data_sets_numbers(tmp_path):
    folder = write(tmp_path, files={"cls_sae_cnt.npy": None})
    assert read_table(folder).class_names[:2] == ("class 0", "class 1")
    named = folder.rename(folder.with_name("imagenet-sketch"))
    names = read_table(named).class_names
    assert (len(set(names)), names[0], names[151]) == (1000, "tench", "Chihuahua")
    np.save(named / "cls_sae_cnt.npy", np.ones((500, 64)))  # base classes only
    assert read_table(named).class_names[499] == "class 499"
    with pytest.raises(ValueError, match="labels of 9, 2 names: give the names of all"):
        read_table(named, ["a", "b"])
    (named / "max_activating_image_label_indices.pt").unlink()
    with pytest.raises(ValueError, match="counts of 500 classes, labels of 0, 501 names"):
        read_table(named, [str(i) for i in range(501)])


def accuracy(ks: list[int]) -> dict[str, list[float]]:
    """Per cent of each of three classes: rising with k when on, falling when off."""
    on = {f"on_{k}": [100 * (i + 1) / len(ks)] * 3 for i, k in enumerate(ks)}
    off = {f"off_{k}": [90 - 90 * (i + 1) / len(ks)] * 3 for i, k in enumerate(ks)}
    pairs = (item for k in ks for item in ((f"on_{k}", on), (f"off_{k}", off)))
    return {"no_sae": [97.0, 98.0, 99.0]} | {name: table[name] for name, table in pairs}


@pytest.mark.parametrize("is_named", [True, False])
def test_masks_are_read_with_and_without_names(tmp_path, is_named):
    ks = [1, 2, 5, 10, 50, 100, 500, 1000, 2000, 49_152]
    pd.DataFrame(accuracy(ks)).T.to_csv(tmp_path / "metrics.csv", index=is_named)
    table = read_metrics(tmp_path / "metrics.csv")
    means = table.groupby(["mask", "k"])["accuracy"].mean()
    assert means["none", 0] == pytest.approx(0.98)
    assert means["on", 100] == pytest.approx(0.6)
    assert means["off", 49_152] == 0
    assert len(table) == 21 * 3


def test_masks_in_another_order_or_of_another_kind_are_refused(tmp_path):
    path, rows = tmp_path / "metrics.csv", pd.DataFrame(accuracy([1, 10, 100, 1000, 49_152])).T
    rows.iloc[[0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9]].to_csv(path, index=False)
    with pytest.raises(ValueError, match="unknown order"):
        read_metrics(path)
    rows[::-1].to_csv(path)  # with names any order will do, and any accuracy
    assert read_metrics(path).query("mask == 'on' and k == 1")["accuracy"].iloc[0] == 0.2
    (rows * 0).to_csv(path)
    assert not read_metrics(path)["accuracy"].any()
    for wrong in (rows.iloc[:7], rows * 2, rows.rename(str.upper), rows * math.nan):
        wrong.to_csv(path, index=wrong.index[0] != "no_sae")
        with pytest.raises(ValueError, match="is no table of masks") as error:
            read_metrics(path)
        assert "\n" not in str(error.value)
    for text in ("", "\0\xff", "a,b\n1"):
        path.write_text(text)
        with pytest.raises(ValueError, match="is no table of masks"):
            read_metrics(path)


# --- files of the real layout, end to end --------------------------------------------------------


@pytest.fixture(scope="module")
def trial(tmp_path_factory) -> Path:
    """The trial's files, shrunk: 600 latents, 200 classes."""
    folder = tmp_path_factory.mktemp("authors")
    write_files(folder, d=600, n_classes=200, d_vit=8)
    return folder


def test_the_trials_files_hold_what_they_say(trial):
    files = find_files(trial)
    base, maple = (read_table(path) for path in files.tables.values())
    assert base.about["sae_mean_acts.pt"].startswith("means")
    assert base.entropy[0].item() == pytest.approx(0)
    assert base.entropy[1].item() == pytest.approx(math.log(10))
    assert base.label_std[1].item() == pytest.approx(math.sqrt(8.25))
    assert (base.top_images[2] == -1).all()
    assert base.entropy[3].isnan()
    assert maple.about["cls_sae_cnt.npy"].endswith("transposed")
    for i in (0, 199):
        tops = [set(x.class_above[i].topk(50).indices.tolist()) for x in (base, maple)]
        assert len(tops[0] - tops[1]) == MOVED
    (masks,) = (read_metrics(path) for path in files.metrics.values())
    assert masks.query("mask == 'none'")["accuracy"].mean() == pytest.approx(0.7)
    sae, prompts = load_sae(files.autoencoders[0]), load_prompts(files.prompts[0])
    assert (sae.d_vit, sae.d_sae, tuple(prompts.visual.shape)) == (8, 600, (9, 2, 8))


def test_the_page_finds_in_the_trials_files_what_is_planted(trial, tmp_path):
    target = tmp_path / "8.ipynb"
    execute(ROOT / "notebooks/8_authors.ipynb", {"authors": str(trial)}, target)
    outputs = [
        "".join(output.get("text", "")) + "".join(output.get("data", {}).get("text/html", ""))
        for cell in json.loads(target.read_text("utf-8"))["cells"]
        for output in cell.get("outputs", [])
    ]
    text = " ".join(
        re.sub(r"<style.*?</style>|<[^>]+>", " ", " ".join(outputs), flags=re.S).split()
    )
    for fact in (
        "sae_base / base / imagenet 600 599 598 1",  # latents, active, with ten, of one class
        "sae_base / maple / imagenet 45.00 5.00 5.00 0.90",
        "2 groups, at most 1 in a Gaussian",
        "0.90 of 50 (all tokens)",
        "70.0% untouched, 65.0% with all latents, 0.0% with none",
        "2 prompt tokens of width 8 before each of 9 blocks",
        "600 latents of width 8; decoder rows 1.000 to 1.000 long",
        "the authors' files (computed here)",
    ):
        assert fact in text, fact
    assert "stand-in" not in text
    related = text[text.index(" small spread 1 ") :]
    assert (
        related.split(" large spread ")[0].count("Chihuahua") == 0
    )  # 200 classes are not ImageNet's
    assert re.match(
        r" small spread 1 class 151, class 152, .*? class 160 \S+ \S+ 2.30 2.87", related
    )


def test_a_folder_that_is_not_there_is_refused_before_anything_runs(capsys):
    assert build.main(["-p", "authors", "nowhere"]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"-p authors: there is no \S+nowhere\n", error)


def test_a_build_notices_that_the_authors_folder_has_changed(trial):
    before = records.named_files(str(trial))
    (trial / "new").touch()
    records.listing_hash.cache_clear()
    assert before
    assert records.named_files(str(trial)) != before
