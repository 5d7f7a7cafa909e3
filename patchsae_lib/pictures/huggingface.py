"""Data sets of the Hugging Face Hub, streamed once into a shard on disk: `hf:NAME`."""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from patchsae_lib.pictures.listing import TEST_NAMES, Source
from patchsae_lib.pictures.webdataset import add_file, wds

SHARD = "000000.tar"


def hf(name: str, split: str, n: int) -> Source:
    """Stream `n` pictures (0: all) of a data set of the Hugging Face Hub, and list them.

    `name` is `OWNER/NAME`, `OWNER/NAME:CONFIG`, or a folder that `datasets` reads. The pictures
    are kept as a webdataset shard in `$XDG_CACHE_HOME/patchsae` and not streamed again. Of a data
    set without a test split, every fifth picture of the train split is held out.
    """
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise ImportError(f"hf:{name} is read with the package datasets: install it") from error
    folder = _cache_folder(name, split, n)
    if not (folder / SHARD).is_file():
        _keep(_Stream(library, name, split, n), folder)
    return replace(wds(str(folder / SHARD), split), divided=True)


def _cache_folder(name: str, split: str, n: int) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patchsae"
    legible = re.sub(r"\W+", "-", name).strip("-")[-60:]
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return cache / f"{legible}-{digest}-{split}-{n or 'all'}"


class _Stream:
    """The first `n` pictures (0: all) of a split, in a fixed random order, with their classes."""

    def __init__(self, library: Any, name: str, split: str, n: int) -> None:
        self.library, self.name, self.split, self.n = library, name, split, n
        path, _, config = name.partition(":")
        try:
            parts = library.load_dataset(path, config or None, streaming=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise FileNotFoundError(f"hf:{name} cannot be opened: {error}") from error
        self.part_name, self.holds_test = _part_of(parts, split)
        self.part = parts[self.part_name]
        features = self.part.features or {}
        columns = [key for key, kind in features.items() if isinstance(kind, library.Image)]
        if not columns:
            known = ", ".join(features) or "none"
            raise ValueError(f"hf:{name} has no column of images, but {known}")
        self.image_column = columns[0]
        labels = [key for key, kind in features.items() if isinstance(kind, library.ClassLabel)]
        self.label_column = labels[0] if labels else ""
        self.class_names: list[str] = features[labels[0]].names if labels else []

    def announce(self, folder: Path) -> int:
        """Print how much is streamed to where; return how many pictures (0: not known)."""
        info = (self.part.info.splits or {}).get(self.part_name)
        total = self.n or (info.num_examples if info else 0)
        megabytes = total * info.num_bytes / info.num_examples / 1e6 if info else None
        size = "size unknown" if megabytes is None else f"{megabytes:.0f} MB"
        source = f"{total or 'all'} pictures of hf:{self.name}, {self.part_name}"
        print(f"streaming {source} ({size}), into {folder}")
        return total

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        """Yield the file and the class of each picture."""
        part = self.part.cast_column(self.image_column, self.library.Image(decode=False))
        # shards one at a time: together their threads would decide the order
        part = part.shuffle(0, buffer_size=1000, max_buffer_input_shards=1)
        rows = (row for row in part if row[self.image_column] is not None)
        in_test = self.split == "test"
        if self.holds_test:  # every fifth picture is the test split's
            rows = (row for i, row in enumerate(rows) if (i % 5 == 0) == in_test)
        for row in islice(rows, self.n or None):
            label = row[self.label_column] if self.label_column else -1
            yield _file_content(self.library, row[self.image_column]), label


def _keep(stream: _Stream, folder: Path) -> None:
    """Write the pictures of a stream into `folder` as one shard, whole or not at all."""
    total = stream.announce(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        unfinished = Path(temporary) / "shard"
        unfinished.mkdir()
        with tarfile.open(unfinished / SHARD, "w") as tar:
            try:
                for i, (content, label) in enumerate(tqdm(stream, total=total or None)):
                    add_file(tar, f"{i:08}.jpg", content)
                    if stream.label_column:
                        add_file(tar, f"{i:08}.cls", str(label).encode())
            except (OSError, ValueError, RuntimeError) as error:
                raise OSError(f"hf:{stream.name} broke off: {error}") from error
        if stream.label_column:
            names = "\n".join(stream.class_names)
            (unfinished / "classnames.txt").write_text(names, "utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)


def _file_content(library: Any, picture: dict[str, Any]) -> bytes:
    """Return a picture's file; if it is a member of another file, the same pixels as PNG."""
    if picture["bytes"]:
        return picture["bytes"]
    content = io.BytesIO()
    library.Image().decode_example(picture).save(content, "png")
    return content.getvalue()


def _part_of(parts: Mapping[str, Any], split: str) -> tuple[str, bool]:
    """Return the name of the part that a split is read from, and whether the train part also
    holds the test split. A test part whose labels are all −1 (kept secret) does not count."""

    def has_labels(name: str) -> bool:
        if "label" not in (parts[name].features or {}):
            return True
        return next(iter(parts[name].select_columns(["label"])), {"label": 0})["label"] != -1

    tests = [name for name in TEST_NAMES if name in parts and has_labels(name)]
    if split == "test" and tests:
        return tests[0], False
    return "train" if "train" in parts else next(iter(parts)), not tests
