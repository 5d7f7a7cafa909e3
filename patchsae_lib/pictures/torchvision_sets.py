"""Data sets that torchvision reads from disk, with CoOp's class names: `torchvision:NAME`."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
from torchvision import datasets

from patchsae_lib.pictures.decoding import Item
from patchsae_lib.pictures.listing import Source, numbered, readable

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
COOP_NAME: dict[str, Callable[[str], str]] = {
    "Caltech101": lambda name: CALTECH.get(name, name),
    "EuroSAT": lambda name: EUROSAT.get(name, name),
    "OxfordIIITPet": str.lower,
    "StanfordCars": lambda name: " ".join([name.split()[-1], *name.split()[:-1]]),  # year first
    "SUN397": lambda name: " ".join(reversed(name.split("/"))),
}
OWN_FOLDER = ("_base_folder", "base_folder", "_data_dir", "_data_path", "raw_folder", "root")
NO_TEST_LABELS = ("ImageNet", "Imagenette", "Places365")  # their test split is "val"
ADD_VAL = ("Flowers102", "DTD")  # whose train split is too small for 16 shots


def torchvision(name: str, split: str) -> Source:
    """List a data set of torchvision's in `$TORCHVISION_DATA`, or CoOp's frames of UCF101.

    Deviation: the paper's numbers are of CoOp's own split files. Here pictures are divided as
    torchvision divides them; where it does not, a fixed fifth is the test split.
    """
    root = data_root()
    if name == "UCF101":
        return _ucf101(Path(root), split)
    if name not in datasets.__all__:
        raise ValueError(f"torchvision has no data set {name!r} (it has CIFAR10, for example)")
    arguments = inspect.signature(getattr(datasets, name)).parameters
    parts = _open(name, root, split, arguments)
    labels = [label for part in parts for label in class_labels(part)]
    names = class_names(parts[0], labels)
    places = [(part, row) for part in parts for row in range(len(part))]
    if name == "Caltech101":  # CoOp leaves one of the two sets of faces out
        places, labels, names = _without("Faces_easy", places, labels, names)
    names = [COOP_NAME[name](x) for x in names] if name in COOP_NAME else names
    divided = "train" in arguments or "split" in arguments
    files = [path for part in parts for path in _files(part, root)]
    return Source(_reader(name, places), labels, readable(names), divided, files)


def data_root() -> str:
    """Return the folder that torchvision's data sets are in."""
    return os.environ.get("TORCHVISION_DATA") or "pictures"


def class_labels(data: Any) -> list[int]:
    """Return the class of every picture of a data set, from wherever it keeps them."""
    for name in ("targets", "labels", "_labels", "y"):
        if hasattr(data, name):
            return [int(label) for label in getattr(data, name)]
    if hasattr(data, "_samples"):
        return [int(label) for _, label in data._samples]
    raise ValueError(f"{type(data).__name__} has no class labels: give one for classification")


def class_names(data: Any, labels: Sequence[int]) -> list[str]:
    """Return the names of a data set's classes, or their numbers if they have none."""
    names = getattr(data, "classes", None) or getattr(data, "categories", None)
    if isinstance(data, datasets.ImageNet) and len(data.classes) == 1000:
        names = open_clip.IMAGENET_CLASSNAMES  # CLIP's, which tell WordNet's two cranes apart
    names = names or numbered(labels, type(data).__name__)
    return [name if isinstance(name, str) else name[0] for name in names]


def _open(name: str, root: str, split: str, arguments: Any) -> list[Any]:
    """Open the parts of a data set that make up a split."""
    make, options = getattr(datasets, name), _options(name, split, arguments)
    try:
        parts = [make(root, **options)]
        if name in ADD_VAL and split == "train":
            parts.append(make(root, **options, split="val"))
    except ImportError as error:
        raise ImportError(f"{name} is read with the package {error.name}: install it") from error
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        hint = f"no {name} in {root} (set TORCHVISION_DATA; nothing is downloaded)"
        why = re.sub(r"You \w+ \w+ download=True[^.]*", "", str(error)).rstrip(" .")
        raise FileNotFoundError(f"{hint}: {why}") from error
    return parts


def _files(part: Any, root: str) -> list[str]:
    """Return the files of a data set: its samples, or all in the folder that is its own."""
    if hasattr(part, "samples"):
        return [path for path, _ in part.samples]
    names = (getattr(part, attribute, None) for attribute in OWN_FOLDER)
    places = [Path(root) / name for name in names if isinstance(name, str | Path)]
    own = [place for place in places if place.is_dir() and place != Path(root)]
    walked = os.walk(own[0]) if own else [(root, [], os.listdir(root))]
    return sorted(os.path.join(folder, name) for folder, _, names in walked for name in names)


def _options(name: str, split: str, arguments: Any) -> dict[str, Any]:
    """Return what to call a data set with for a split, without downloading or reading pictures."""
    options: dict[str, Any] = {"download": False} if "download" in arguments else {}
    if "loader" in arguments or name == "ImageNet":  # which hands it on to ImageFolder
        options["loader"] = str
    if "train" in arguments:
        options["train"] = split == "train"
    elif "split" in arguments and split == "test":  # the default is train, or trainval, or ...
        options["split"] = "val" if name in NO_TEST_LABELS else "test"
    return options


def _without(
    name: str, places: list[tuple[Any, int]], labels: list[int], names: list[str]
) -> tuple[list[tuple[Any, int]], list[int], list[str]]:
    """Leave a class and its pictures out; the later classes move up by one."""
    if name not in names:
        return places, labels, names
    left_out = names.index(name)
    kept = [i for i, label in enumerate(labels) if label != left_out]
    moved = [labels[i] - (labels[i] > left_out) for i in kept]
    return [places[i] for i in kept], moved, [x for x in names if x != name]


def _reader(name: str, places: Sequence[tuple[Any, int]]) -> Callable[[int], Item]:
    def item(i: int) -> Item:
        part, row = places[i]
        try:
            return part[row][0]  # a path; some data sets open their pictures themselves
        except Exception as error:
            raise OSError(f"{name}, number {i}, cannot be read as a picture: {error}") from error

    return item


# --- UCF101, whose videos torchvision would decode ---------------------------------------------


def _ucf101(root: Path, split: str) -> Source:
    """List UCF101 as CoOp keeps it: the middle frame of every video, one folder per class.

    The folders are in `UCF-101-midframes/`; `ucfTrainTestlist/` beside it has the first of the
    official splits, or is missing.
    """
    frames = _ucf101_frames(root)
    lists = frames.with_name("ucfTrainTestlist")
    if len(list(lists.glob("*list01.txt"))) == 1:
        raise FileNotFoundError(f"{lists} wants both trainlist01.txt and testlist01.txt, or none")
    data = datasets.ImageFolder(str(frames), loader=str)
    names = _official_order(data.classes, _lines(lists, "classInd"))
    videos = {Path(line.split()[0]).stem for line in _lines(lists, f"{split}list01")}
    samples = [s for s in data.samples if not videos or Path(s[0]).stem in videos]
    labels = [names.index(data.classes[label]) for _, label in samples]
    paths = [path for path, _ in samples]
    return Source(paths.__getitem__, labels, readable(names), bool(videos), paths)


def _ucf101_frames(root: Path) -> Path:
    for folder in (root / "ucf101", root):
        if (folder / "UCF-101-midframes").is_dir():
            return folder / "UCF-101-midframes"
    raise FileNotFoundError(
        f"no UCF-101-midframes in {root} or {root / 'ucf101'} (set TORCHVISION_DATA): the "
        "middle frames of UCF101's videos, one folder a class, as CoOp prepares them"
    )


def _official_order(names: list[str], lines: list[str]) -> list[str]:
    """Sort classes by their numbers in lines like `1 ApplyEyeMakeup`; without lines, keep them."""

    def key(name: str) -> str:
        return name.replace("_", "").lower()

    numbers = {key(line.split()[1]): int(line.split()[0]) for line in lines}
    return sorted(names, key=lambda name: numbers.get(key(name), len(numbers)))


def _lines(lists: Path, name: str) -> list[str]:
    path = lists / f"{name}.txt"
    return [line for line in path.read_text().splitlines() if line] if path.is_file() else []
