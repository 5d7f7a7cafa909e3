"""Data sets of the Hugging Face Hub, streamed once into a file of Arrow's on disk: `hf:NAME`.

`datasets` streams, writes and reads it. Folders and shards it does not read for us, as version 5.2
showed: without a word it drops the labels of a folder with a single class or with pictures beside
or below the classes' folders, all that a `metadata.csv` does not list, and dead links; it refuses
shards in which a picture lacks a label or differs in format, and copies what is not read in order.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from patchsae_lib.artefacts import atomic_path
from patchsae_lib.pictures.listing import LENIENT, TEST_NAMES, Source, brief, readable, stamps

LABELS = ("label", "labels", "class", "cls", "category", "target")  # columns of classes
N_ASKED = 20  # pictures of a test part, whether one has a label


def hf(name: str, split: str, n: int) -> Source:
    """Stream `n` pictures (0: all) of a data set of the Hugging Face Hub, and list them.

    `name` is `OWNER/NAME`, `OWNER/NAME:CONFIG`, or a folder that `datasets` reads. The pictures
    are kept in `$XDG_CACHE_HOME/patchsae` and not streamed again. Of a data set without a test
    split, every fifth picture of the train split is held out. A picture without a label has −1.
    Without a column of `ClassLabel`, the classes are the values of a column of numbers, words or
    truth values that is called `label` (or as in `LABELS`).

    Raises `ImportError` without the package, and `OSError` for what it cannot open or read.
    """
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise ImportError(f"hf:{name} is read with the package datasets: install it") from error
    path = _cache_path(name, split, n)
    if not path.is_file():
        _keep(_Stream(library, name, split, n), path)
    kept = library.Dataset.from_file(str(path))  # memory-mapped

    def item(i: int) -> io.BytesIO:
        content = io.BytesIO(kept[i]["picture"])
        content.name = f"{path}, number {i},"
        return content

    labels = [-1 if label is None else label for label in kept["label"]]
    names = getattr(kept.features["label"], "names", ())
    return Source(item, labels, readable(names), True, [path])


def is_kept(name: str, split: str, n: int) -> bool:
    """Say whether `hf` would stream nothing."""
    return _cache_path(name, split, n).is_file()


def _cache_path(name: str, split: str, n: int) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patchsae"
    legible = re.sub(r"\W+", "-", name).strip("-")[-60:]
    folder = Path(name)  # a folder may change, unlike what has been published
    files = sorted(folder.rglob("*")) if folder.is_dir() else []
    digest = hashlib.sha256("".join([name, *stamps(files)]).encode(*LENIENT)).hexdigest()[:8]
    return cache / f"{legible}-{digest}-{split}-{n or 'all'}.arrow"


class _Stream:
    """The first `n` pictures (0: all) of a split, in a fixed random order, with their classes."""

    values: dict[Any, int] | None = None  # of a column that is not of `ClassLabel`: their numbers

    def __init__(self, library: Any, name: str, split: str, n: int) -> None:
        self.library, self.name, self.split, self.n = library, name, split, n
        path, _, config = name.partition(":")
        try:
            parts = library.load_dataset(path, config or None, streaming=True)
        except Exception as error:  # of the data set's files, a package or a proxy: of any kind
            raise FileNotFoundError(f"hf:{name} cannot be opened: {brief(error)}") from error
        self.part_name, self.holds_test = _part_of(parts, split, library)
        self.part = parts[self.part_name]
        features = self.part.features or {}
        self.image_column = _column(features, library.Image)
        if not self.image_column:
            known = ", ".join(features) or "none"
            raise ValueError(f"hf:{name} has no column of images, but {known}")
        self.label_column = _label_column(features, library)
        label = features.get(self.label_column, library.Value("int64"))
        if self.label_column and not isinstance(label, library.ClassLabel):
            self.values = _values(library, path, config, self.label_column)
            label = library.ClassLabel(names=[str(value) for value in self.values])
        self.features = library.Features({"picture": library.Value("binary"), "label": label})

    def announce(self, path: Path) -> int:
        """Print how much is streamed to where; return how many pictures (0: not known)."""
        info = (self.part.info.splits or {}).get(self.part_name)
        total = self.n or (info.num_examples if info else 0)
        megabytes = total * info.num_bytes / info.num_examples / 1e6 if info else None
        size = "size unknown" if megabytes is None else f"{megabytes:.0f} MB"
        source = f"{total or 'all'} pictures of hf:{self.name}, {self.part_name}"
        classes = (
            f"classes of the column {self.label_column!r}" if self.label_column else "no classes"
        )
        print(f"streaming {source} ({size}), {classes}, into {path}")
        return total

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the file of each picture and its class, as `features` says."""
        part = self.part.cast_column(self.image_column, self.library.Image(decode=False))
        # shards one at a time: together their threads would decide the order
        part = part.shuffle(0, buffer_size=1000, max_buffer_input_shards=1)
        rows = (row for row in part if row[self.image_column] is not None)
        in_test = self.split == "test"
        if self.holds_test:  # every fifth picture is the test split's
            rows = (row for i, row in enumerate(rows) if (i % 5 == 0) == in_test)
        for row in islice(rows, self.n or None):
            content = pa.array([row[self.image_column]], self.library.Image().pa_type)
            (embedded,) = self.library.Image().embed_storage(content).to_pylist()
            yield {"picture": embedded["bytes"], "label": self._label(row)}

    def _label(self, row: Mapping[str, Any]) -> int | None:
        """Return the class of a row, −1 or None without."""
        value = row.get(self.label_column)
        if self.values is None or _is_none(value):
            return value if self.values is None else None
        if value not in self.values:
            raise ValueError(f"{self.label_column} is {value!r}, which no picture of train has")
        return self.values[value]


def _keep(stream: _Stream, path: Path) -> None:
    """Write the pictures of a stream into a file, whole or not at all."""
    writer = importlib.import_module("datasets.arrow_writer").ArrowWriter
    total = stream.announce(path)
    with atomic_path(path) as temporary:
        about = dict(path=str(temporary), features=stream.features, writer_batch_size=100)
        try:
            with writer(**about) as out:
                for row in tqdm(stream, total=total or None):
                    out.write(row)
                out.finalize()
        except Exception as error:  # of any kind, see above
            raise OSError(f"hf:{stream.name} broke off: {brief(error)}") from error


def _column(features: Mapping[str, Any], kind: type) -> str:
    """Return the first column of a kind, or "" without any."""
    return next((name for name, feature in features.items() if isinstance(feature, kind)), "")


def _label_column(features: Mapping[str, Any], library: Any) -> str:
    """Return the column of classes: the first of `ClassLabel`, else one that is called so."""
    plain = [name for name in LABELS if _is_plain(features.get(name), library)]
    return _column(features, library.ClassLabel) or next(iter(plain), "")


def _is_plain(feature: Any, library: Any) -> bool:
    """Return whether a column holds truth values, whole numbers or words."""
    kinds = ("bool", "int", "uint", "string", "large_string")
    return isinstance(feature, library.Value) and feature.dtype.rstrip("0123456789") in kinds


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, int) and value < 0)


def _values(library: Any, path: str, config: str, column: str) -> dict[Any, int]:
    """Return the classes in a plain column of the train part, in order, with their numbers."""
    open_stream = partial(library.load_dataset, path, config or None, streaming=True)
    try:
        parts = open_stream(columns=[column])  # of parquet: the pictures are not downloaded
    except (TypeError, ValueError):
        parts = open_stream()
    part = parts.get("train") or next(iter(parts.values()))
    found = {row[column] for row in part.select_columns([column])}
    classes = sorted(value for value in found if not _is_none(value))
    return {value: number for number, value in enumerate(classes)}


def _part_of(parts: Mapping[str, Any], split: str, library: Any) -> tuple[str, bool]:
    """Return the name of the part that a split is read from, and whether the train part also
    holds the test split. A test part whose labels are missing or −1 (kept secret) does not count.
    """

    def has_labels(name: str) -> bool:
        column = _label_column(parts[name].features or {}, library)
        rows = islice(parts[name].select_columns([column]), N_ASKED) if column else ()
        return not column or not all(_is_none(row[column]) for row in rows)

    tests = [name for name in TEST_NAMES if name in parts and has_labels(name)]
    if split == "test" and tests:
        return tests[0], False
    return "train" if "train" in parts else next(iter(parts)), not tests
