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
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from patchsae_lib.artefacts import atomic_path
from patchsae_lib.pictures.listing import TEST_NAMES, Source, readable


def hf(name: str, split: str, n: int) -> Source:
    """Stream `n` pictures (0: all) of a data set of the Hugging Face Hub, and list them.

    `name` is `OWNER/NAME`, `OWNER/NAME:CONFIG`, or a folder that `datasets` reads. The pictures
    are kept in `$XDG_CACHE_HOME/patchsae` and not streamed again. Of a data set without a test
    split, every fifth picture of the train split is held out. A picture without a label has −1.
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


def _cache_path(name: str, split: str, n: int) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patchsae"
    legible = re.sub(r"\W+", "-", name).strip("-")[-60:]
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return cache / f"{legible}-{digest}-{split}-{n or 'all'}.arrow"


class _Stream:
    """The first `n` pictures (0: all) of a split, in a fixed random order, with their classes."""

    def __init__(self, library: Any, name: str, split: str, n: int) -> None:
        self.library, self.name, self.split, self.n = library, name, split, n
        path, _, config = name.partition(":")
        try:
            parts = library.load_dataset(path, config or None, streaming=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise FileNotFoundError(f"hf:{name} cannot be opened: {error}") from error
        self.part_name, self.holds_test = _part_of(parts, split, library.ClassLabel)
        self.part = parts[self.part_name]
        features = self.part.features or {}
        self.image_column = _column(features, library.Image)
        if not self.image_column:
            known = ", ".join(features) or "none"
            raise ValueError(f"hf:{name} has no column of images, but {known}")
        self.label_column = _column(features, library.ClassLabel)
        label = features[self.label_column] if self.label_column else library.Value("int64")
        self.features = library.Features({"picture": library.Value("binary"), "label": label})

    def announce(self, path: Path) -> int:
        """Print how much is streamed to where; return how many pictures (0: not known)."""
        info = (self.part.info.splits or {}).get(self.part_name)
        total = self.n or (info.num_examples if info else 0)
        megabytes = total * info.num_bytes / info.num_examples / 1e6 if info else None
        size = "size unknown" if megabytes is None else f"{megabytes:.0f} MB"
        source = f"{total or 'all'} pictures of hf:{self.name}, {self.part_name}"
        print(f"streaming {source} ({size}), into {path}")
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
            yield {"picture": embedded["bytes"], "label": row.get(self.label_column)}


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
        except (OSError, ValueError, RuntimeError) as error:
            raise OSError(f"hf:{stream.name} broke off: {error}") from error


def _column(features: Mapping[str, Any], kind: type) -> str:
    """Return the first column of a kind, or "" without any."""
    return next((name for name, feature in features.items() if isinstance(feature, kind)), "")


def _part_of(parts: Mapping[str, Any], split: str, label_kind: type) -> tuple[str, bool]:
    """Return the name of the part that a split is read from, and whether the train part also
    holds the test split. A test part whose labels are all −1 (kept secret) does not count."""

    def has_labels(name: str) -> bool:
        column = _column(parts[name].features or {}, label_kind)
        first: dict[str, Any] = (
            next(iter(parts[name].select_columns([column])), {}) if column else {}
        )
        return first.get(column) != -1

    tests = [name for name in TEST_NAMES if name in parts and has_labels(name)]
    if split == "test" and tests:
        return tests[0], False
    return "train" if "train" in parts else next(iter(parts)), not tests
