"""Sources of pictures: folders, torchvision's data sets, the Hugging Face Hub, webdataset shards.

Each function lists what there is and reads no picture. Class names are those that the paper's
data loaders (CoOp's and MaPLe's) give, in their order, so that base and novel classes are theirs.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import io
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

import open_clip
from PIL import Image
from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

#: whatever `images.read_image` reads
Item = str | Path | IO[bytes] | Image.Image

TESTS = ("test", "val", "validation", "valid")  # what a test split is called, the best first
SUFFIXES = (*IMG_EXTENSIONS, ".gif", ".avif", ".jp2", ".jfif")


@dataclass(frozen=True)
class Source:
    """Pictures that can be read in any order: `item(i)` is the i-th, `labels[i]` its class.

    Label −1 is none. `divided`: these are the split that was asked for, and not all there is.
    """

    item: Callable[[int], Item]
    labels: Sequence[int]
    class_names: tuple[str, ...]
    divided: bool


# --- folders -----------------------------------------------------------------------------------


def folder(name: str, split: str) -> Source:
    """A folder with one sub-folder a class, or pictures only; or `train` and `test` (or `val`)
    folders of that kind. Sorted by the names of classes and files; hidden ones are passed over.

    Of a divided folder the classes are those of `train`.
    """
    root = Path(name).expanduser()
    tests = [root / test for test in TESTS if (root / test).is_dir()]
    divided = bool(tests) and (root / "train").is_dir()
    if divided:
        root = root / "train" if split == "train" else tests[0]
    try:
        names = _folders(root.parent / "train" if divided else root)
        if unknown := sorted({*_folders(root)} - {*names}):
            raise FileNotFoundError(f"{root} has classes that train has not: {', '.join(unknown)}")
        if names:
            data = _Folders(str(root), loader=str, is_valid_file=_is_picture)
            labels = [names.index(data.classes[label]) for label in data.targets]
            paths = [path for path, _ in data.samples]
            return Source(paths.__getitem__, labels, readable(names), divided)
        paths = sorted(str(p) for p in root.iterdir() if _is_picture(p.name))
        if not paths:
            raise FileNotFoundError(f"no file in it ends in {', '.join(SUFFIXES)}")
    except OSError as error:
        raise FileNotFoundError(
            f"folder:{name} wants pictures, or one sub-folder of them a class: {error}"
        ) from error
    return Source(paths.__getitem__, [-1] * len(paths), (), divided)


def _folders(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not Path(name).name.startswith(".")


class _Folders(datasets.ImageFolder):
    """ImageFolder without hidden folders, such as Jupyter's."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        names = _folders(Path(directory))
        return names, {name: i for i, name in enumerate(names)}


# --- torchvision -------------------------------------------------------------------------------

# CoOp's names where they are not torchvision's own.
EUROSAT = {
    "AnnualCrop": "Annual Crop Land", "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road", "Industrial": "Industrial Buildings", "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land", "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}  # fmt: skip
CALTECH = {
    "airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike",
}  # fmt: skip
NAMES: dict[str, Callable[[str], str]] = {
    "Caltech101": lambda name: CALTECH.get(name, name),
    "EuroSAT": lambda name: EUROSAT.get(name, name),
    "OxfordIIITPet": str.lower,
    "StanfordCars": lambda name: " ".join([name.split()[-1], *name.split()[:-1]]),  # year first
    "SUN397": lambda name: " ".join(reversed(name.split("/"))),
}


def torchvision(name: str, split: str) -> Source:
    """A data set of torchvision's on disk in `$TORCHVISION_DATA`, or CoOp's frames of UCF101.

    Deviation: pictures are divided as torchvision divides them, or a fixed fifth is the test
    split where it does not; the paper's numbers are of CoOp's own split files.
    """
    root = os.environ.get("TORCHVISION_DATA") or "pictures"
    if name == "UCF101":
        return _ucf101(Path(root), split)
    if name not in datasets.__all__:
        raise ValueError(f"torchvision has no data set {name!r} (it has CIFAR10, for example)")
    takes = inspect.signature(make := getattr(datasets, name)).parameters
    options: dict[str, Any] = {"download": False} if "download" in takes else {}
    if "loader" in takes or name == "ImageNet":  # which hands it on to ImageFolder
        options["loader"] = str
    if "train" in takes:
        options["train"] = split == "train"
    elif "split" in takes and split == "test":  # the default is train, or trainval, or ...
        no_test_labels = ("ImageNet", "Imagenette", "Places365")
        options["split"] = "val" if name in no_test_labels else "test"
    try:
        parts = [make(root, **options)]
        if name in ("Flowers102", "DTD") and split == "train":  # too few in train for 16 shots
            parts.append(make(root, **options, split="val"))
    except ImportError as error:
        raise ImportError(f"{name} is read with the package {error.name}: install it") from error
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        what = f"no {name} in {root} (set TORCHVISION_DATA; nothing is downloaded)"
        raise FileNotFoundError(f"{what}: {error}") from error
    labels = [label for part in parts for label in _labels(part)]
    names = _class_names(parts[0], labels)
    places = [(part, i) for part in parts for i in range(len(part))]
    if name == "Caltech101":  # CoOp leaves one of the two sets of faces out
        left_out = [i for i, x in enumerate(names) if x == "Faces_easy"]
        kept = [i for i, label in enumerate(labels) if label not in left_out]
        places = [places[i] for i in kept]
        labels = [labels[i] - sum(x < labels[i] for x in left_out) for i in kept]
        names = [x for x in names if x != "Faces_easy"]
    names = [NAMES[name](x) for x in names] if name in NAMES else names

    def item(i: int) -> Item:
        part, at = places[i]
        try:
            return part[at][0]  # a path, but of those that open their pictures themselves
        except Exception as error:
            raise OSError(f"{name}, number {i}, cannot be read as a picture: {error}") from error

    return Source(item, labels, readable(names), bool({"train", "split"} & set(takes)))


def _ucf101(root: Path, split: str) -> Source:
    """UCF101 as CoOp keeps it: `UCF-101-midframes/<Class_Name>/<video>.jpg`, one frame a video,
    and `ucfTrainTestlist/` with the first of the official divisions."""
    found = [p for p in (root / "ucf101", root) if (p / "UCF-101-midframes").is_dir()]
    if not found:
        raise FileNotFoundError(
            f"no UCF-101-midframes in {root} or {root / 'ucf101'} (set TORCHVISION_DATA): the "
            "middle frames of UCF101's videos, one folder a class, as CoOp prepares them"
        )
    data = datasets.ImageFolder(str(found[0] / "UCF-101-midframes"), loader=str)
    lists = found[0] / "ucfTrainTestlist"
    if len(list(lists.glob("*list01.txt"))) == 1:
        raise FileNotFoundError(f"{lists} wants both trainlist01.txt and testlist01.txt, or none")
    order = data.classes
    if (lists / "classInd.txt").is_file():
        numbers = {
            _plain(line.split()[1]): int(line.split()[0]) for line in _lines(lists, "classInd")
        }
        order = sorted(order, key=lambda name: numbers.get(_plain(name), len(numbers)))
    label = {data.class_to_idx[name]: i for i, name in enumerate(order)}
    wanted = {Path(line.split()[0]).stem for line in _lines(lists, f"{split}list01")}
    samples = [s for s in data.samples if not wanted or Path(s[0]).stem in wanted]
    paths = [path for path, _ in samples]
    labels = [label[was] for _, was in samples]
    return Source(paths.__getitem__, labels, readable(order), bool(wanted))


def _lines(lists: Path, name: str) -> list[str]:
    path = lists / f"{name}.txt"
    return [line for line in path.read_text().splitlines() if line] if path.is_file() else []


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _labels(data: Any) -> list[int]:
    """The class of every picture, without reading one, wherever the data set keeps them."""
    for name in ("targets", "labels", "_labels", "y"):
        if hasattr(data, name):
            return [int(label) for label in getattr(data, name)]
    if hasattr(data, "_samples"):
        return [int(label) for _, label in data._samples]
    raise ValueError(f"{type(data).__name__} has no class labels: give one for classification")


def _class_names(data: Any, labels: list[int]) -> list[str]:
    """The names a data set has for its classes, or else their numbers."""
    names = getattr(data, "classes", None) or getattr(data, "categories", None)
    if isinstance(data, datasets.ImageNet) and len(data.classes) == 1000:
        names = open_clip.IMAGENET_CLASSNAMES  # CLIP's, which tell WordNet's two cranes apart
    names = names or [str(i) for i in range(max(labels, default=-1) + 1)]
    return [n if isinstance(n, str) else n[0] for n in names]


def readable(names: Sequence[str]) -> tuple[str, ...]:
    """Names of classes as one writes them in a sentence."""
    return tuple(name.replace("_", " ") for name in names)


# --- webdataset shards -------------------------------------------------------------------------


def wds(pattern: str, split: str) -> Source:
    """Tar files of webdataset's layout on disk: `KEY.jpg` (or another format) and `KEY.cls`.

    The pattern may have `*`, `{000..012}`, and `{split}` for `train`, or `test` (or `val`); where
    it has none, a fixed fifth is the test split. A shard's index is its headers: pictures are read
    where they lie, without unpacking. Names of classes: the lines of a `classnames.txt` beside the
    shards or one folder up, else numbers. A picture without `.cls` has label −1.
    """
    paths, divided = _shards(pattern, split)
    places: list[tuple[Path, int, int, str]] = []
    labels: list[int] = []
    for path in tqdm(
        paths, desc="shards", unit=" files", disable=True if len(paths) < 10 else None
    ):
        for member, start, size, label in _index(path):
            places.append((path, start, size, member))
            labels.append(label)
    if not places:
        raise FileNotFoundError(f"wds:{pattern}: no pictures in {len(paths)} shards")

    def item(i: int) -> Item:
        path, start, size, member = places[i]
        with path.open("rb") as file:
            file.seek(start)
            content = io.BytesIO(file.read(size))
        content.name = f"{path}/{member}"
        return content

    beside = [folder / "classnames.txt" for folder in (paths[0].parent, paths[0].parent.parent)]
    lists = [path for path in beside if path.is_file()]
    n = max(labels) + 1
    names = lists[0].read_text("utf-8").splitlines() if lists else [str(i) for i in range(n)]
    if len(names) < n:
        raise ValueError(f"{lists[0]} names {len(names)} classes, the shards have {n}")
    return Source(item, labels, readable(names) if n else (), divided)


def _shards(pattern: str, split: str) -> tuple[list[Path], bool]:
    """The files of a pattern, sorted, and whether it tells the split."""
    divided = "{split}" in pattern
    for name in ("train",) if split == "train" else TESTS:
        found: list[Path] = []
        for one in _braces(pattern.replace("{split}", name)):
            path = Path(one).expanduser()
            found += sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
        if found and all(path.is_file() for path in found):
            return found, divided
        if not divided:
            break
    if "://" in pattern:
        raise ValueError(f"wds:{pattern}: shards are read from disk, not from the network")
    missing = [path for path in found if not path.is_file()]
    raise FileNotFoundError(f"wds:{pattern}: no file {missing[0] if missing else pattern}")


def _braces(pattern: str) -> Iterator[str]:
    """`a-{00..02}.tar` → `a-00.tar`, `a-01.tar`, `a-02.tar`."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not found:
        yield pattern
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        yield from _braces(
            f"{pattern[: found.start()]}{number:0{len(first)}}{pattern[found.end() :]}"
        )


def _index(path: Path) -> Iterator[tuple[str, int, int, int]]:
    """(name, start, size, label) of every picture in a shard."""
    pictures: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                key = f"{folder}/{stem}"
                if f".{extension.lower()}" in SUFFIXES:
                    pictures[key] = member.name, member.offset_data, member.size
                elif extension == "cls":
                    text = tar.extractfile(member).read()  # type: ignore[union-attr]
                    if not text.strip().isdigit():
                        raise ValueError(
                            f"{member.name} holds {text[:20]!r}, not a class's number"
                        )
                    labels[key] = int(text)
                tar.members = []  # type: ignore[attr-defined]  # or it would hold all headers
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} is not a whole, uncompressed shard: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for key, place in pictures.items():
        yield *place, labels.get(key, -1)


# --- Hugging Face ------------------------------------------------------------------------------


def hf(name: str, split: str, n: int) -> Source:
    """`n` pictures (0: all) of a data set of the Hugging Face Hub, or of files on disk, streamed.

    `name` is `OWNER/NAME`, or `OWNER/NAME:CONFIG`, or a folder that `datasets` reads. What was
    streamed is kept as a webdataset shard in `$XDG_CACHE_HOME/patchsae`, and not streamed again.
    Where a data set has no test split, every fifth picture of its train split is that.
    """
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise ImportError(f"hf:{name} is read with the package datasets: install it") from error
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patchsae"
    plain = re.sub(r"\W+", "-", name).strip("-")[-60:]
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    kept = cache / f"{plain}-{digest}-{split}-{n or 'all'}"
    if not (kept / "000000.tar").is_file():
        _stream(library, name, split, n, kept)
    return replace(wds(str(kept / "000000.tar"), split), divided=True)


def _stream(library: Any, name: str, split: str, n: int, kept: Path) -> None:
    """Write the shard that `hf` keeps, whole or not at all."""
    path, _, config = name.partition(":")
    try:
        parts = library.load_dataset(path, config or None, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise FileNotFoundError(f"hf:{name} cannot be opened: {error}") from error
    chosen, every = _part(parts, split)
    part = parts[chosen]
    features = part.features or {}
    images = [key for key, kind in features.items() if isinstance(kind, library.Image)]
    if not images:
        raise ValueError(f"hf:{name} has no column of images, but {', '.join(features) or 'none'}")
    classes = [key for key, kind in features.items() if isinstance(kind, library.ClassLabel)]
    known = (part.info.splits or {}).get(chosen)
    total = n or (known.num_examples if known else 0)
    size = (
        f"{total * known.num_bytes / known.num_examples / 1e6:.0f} MB" if known else "size unknown"
    )
    print(f"streaming {total or 'all'} pictures of hf:{name}, {chosen} ({size}), into {kept}")
    part = part.cast_column(images[0], library.Image(decode=False))
    # shards one at a time: together their threads would decide the order
    part = part.shuffle(0, buffer_size=1000, max_buffer_input_shards=1)
    # of a data set without test split every fifth picture is the test split's
    wanted = (row for row in part if row[images[0]] is not None)
    rows = (row for i, row in enumerate(wanted) if not every or (i % 5 == 0) == (split == "test"))
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as temporary:
        folder = Path(temporary) / "whole"
        folder.mkdir()
        with tarfile.open(folder / "000000.tar", "w") as tar:
            try:
                for i, row in enumerate(tqdm(islice(rows, n or None), total=total or None)):
                    _add(tar, f"{i:08}.jpg", _bytes(library, row[images[0]]))
                    if classes:
                        _add(tar, f"{i:08}.cls", str(row[classes[0]]).encode())
            except (OSError, ValueError, RuntimeError) as error:
                raise OSError(f"hf:{name} broke off: {error}") from error
        if classes:
            names = "\n".join(features[classes[0]].names)
            (folder / "classnames.txt").write_text(names, "utf-8")
        shutil.rmtree(kept, ignore_errors=True)
        folder.rename(kept)


def _bytes(library: Any, picture: dict[str, Any]) -> bytes:
    """A picture's file; where it is inside another one, the same pixels as PNG."""
    if picture["bytes"]:
        return picture["bytes"]
    content = io.BytesIO()
    library.Image().decode_example(picture).save(content, "png")
    return content.getvalue()


def _part(parts: Mapping[str, Any], split: str) -> tuple[str, bool]:
    """The name of a data set's part that is, or that holds, a split; and whether it only holds
    it. A test split that keeps its labels to itself (−1) is none."""

    def labelled(name: str) -> bool:
        first = next(iter(parts[name].select_columns(["label"])), {"label": 0})
        return first["label"] != -1

    tests = [
        t
        for t in TESTS
        if t in parts and ("label" not in (parts[t].features or {}) or labelled(t))
    ]
    if split == "test" and tests:
        return tests[0], False
    return "train" if "train" in parts else next(iter(parts)), not tests


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
