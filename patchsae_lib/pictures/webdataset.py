"""Pictures in tar files of webdataset's layout, read where they lie: `wds:PATTERN`."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from patchsae_lib.pictures.decoding import Item
from patchsae_lib.pictures.listing import (
    SUFFIXES,
    SYNSET,
    TEST_NAMES,
    Source,
    listed_names,
    numbered,
    readable,
)

DOTTED = "has a dot in its key, which by webdataset's rule ends at the first"
ENDINGS = tuple(suffix.removeprefix(".") for suffix in SUFFIXES)
SHOW_BAR_FROM = 10  # shards: from so many on a progress bar is shown


class Place(NamedTuple):
    """Where a picture lies in a shard: `size` bytes from `start`, called `member` in the tar."""

    shard: Path
    member: str
    start: int
    size: int
    label: int


def wds(pattern: str, split: str) -> Source:
    """List tar files with `KEY.jpg` (or another format) and `KEY.cls`, in webdataset's layout.

    A key ends at the first dot of a name, as webdataset has it, and endings may be in capitals.
    `pattern` may have `*`, `{000..012}`, and `{split}`, which stands for `train`, or `test` (or
    `val`); without it, a fixed fifth is the test split. Only the headers are read; nothing is
    unpacked. Class names are the lines of a `classnames.txt` beside the shards or one folder up
    (after ImageNet's ids, if every line has one), else numbers. A picture without `.cls`, or with
    −1 in it, has label −1.

    Raises `ValueError`, with the shard's name, for one that is cut short or holds a file twice.
    """
    paths, divided = _shards(pattern, split)
    hide_bar = None if len(paths) >= SHOW_BAR_FROM else True  # None: hide it outside a terminal
    bar = tqdm(paths, desc="shards", unit=" files", disable=hide_bar)
    skipped: list[str] = []
    places = [place for path in bar for place in _index(path, skipped)]
    if not places:
        reason = f": {skipped[0]}" if skipped else ""
        raise FileNotFoundError(f"wds:{pattern}: no pictures in {len(paths)} shards{reason}")

    def item(i: int) -> Item:
        return _read(places[i])

    labels = [place.label for place in places]
    names = _class_names(paths[0].parent, labels)
    return Source(item, labels, readable(names), divided, paths, places, skipped)


def _read(place: Place) -> io.BytesIO:
    with place.shard.open("rb") as file:
        file.seek(place.start)
        content = io.BytesIO(file.read(place.size))
    content.name = f"{place.shard}/{place.member}"
    return content


def _class_names(folder: Path, labels: Sequence[int]) -> Sequence[str]:
    """Return the names of classes, as listed beside the shards; none without any label."""
    listed, n = listed_names(folder), max(labels) + 1
    if not listed or not n:
        return numbered(labels, str(folder))
    path, names = listed
    if len(names) < n:
        raise ValueError(f"{path} names {len(names):,} classes, a label is {n - 1:,}")
    parts = [line.split(None, 1) for line in names]
    has_ids = all(len(part) == 2 and SYNSET.fullmatch(part[0]) for part in parts)
    return [part[1] for part in parts] if has_ids else names


def _shards(pattern: str, split: str) -> tuple[list[Path], bool]:
    """Find the files of a pattern, sorted, and whether they are those of the split only."""
    if "://" in pattern:
        raise ValueError(f"wds:{pattern}: shards are read from disk, not from the network")
    divided = "{split}" in pattern
    names = ("train",) if split == "train" else TEST_NAMES
    missing: list[Path] = []
    for name in names if divided else ("",):
        paths = _expand(pattern.replace("{split}", name))
        absent = [path for path in paths if not path.is_file()]
        if paths and not absent:
            return paths, divided
        missing += absent
    raise FileNotFoundError(f"wds:{pattern}: no file {missing[0] if missing else pattern}")


def _expand(pattern: str) -> list[Path]:
    paths: list[Path] = []
    for name in _braces(pattern):
        path = Path(name).expanduser()
        paths += sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
    return paths


def _braces(pattern: str) -> Iterator[str]:
    """`a-{00..02}.tar` → `a-00.tar`, `a-01.tar`, `a-02.tar`."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not match:
        yield pattern
        return
    first, last = match.groups()
    before, after = pattern[: match.start()], pattern[match.end() :]
    for number in range(int(first), int(last) + 1):
        yield from _braces(f"{before}{number:0{len(first)}}{after}")


def _index(shard: Path, skipped: list[str]) -> Iterator[Place]:
    """List the pictures of a shard, in its order, from its headers; add to `skipped` a line for
    each that is not read."""
    pictures: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    rejected: list[tuple[str, str, str]] = []  # key, name, reason
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # or it would hold all headers
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                key, extension = f"{folder}/{stem}", extension.lower()
                is_file = member.isreg() and not member.issparse()
                if extension == "cls" and is_file:
                    labels[key] = _label(tar, member)
                if not stem or not extension.endswith(ENDINGS):
                    continue
                if reason := _reason(member, extension, is_file, pictures.get(key)):
                    rejected.append((key, member.name, reason))
                else:
                    pictures[key] = member.name, member.offset_data, member.size
            _require_whole(tar)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{shard} is not a whole, uncompressed shard: {error}") from error
    except ValueError as error:
        raise ValueError(f"{shard}: {error}") from error
    skipped += [
        f"{shard}/{name} {reason}"
        for key, name, reason in rejected
        if reason != DOTTED or key not in pictures  # a mask, left.jpg beside .jpg, ...
    ]
    for key, picture in pictures.items():
        yield Place(shard, *picture, labels.get(key, -1))


def _reason(
    member: tarfile.TarInfo, extension: str, is_file: bool, known: tuple[str, int, int] | None
) -> str:
    """Return why a picture of a shard is not read, or nothing; `known` is one of the same key.

    Raises `ValueError` if it is in the shard twice.
    """
    if not is_file:
        return "is a link, not a file"
    if "." in extension:
        return DOTTED
    if known and known[0] == member.name:
        raise ValueError(f"it holds {member.name} twice: give each sample a key of its own")
    return f"has the same key as {known[0]}" if known else ""


def _require_whole(tar: tarfile.TarFile) -> None:
    """Raise `ReadError` unless a tar that was read to its end goes on with zeros, as all do."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    end = tar.fileobj.read(2**20)
    if len(end) < tarfile.BLOCKSIZE or end.strip(b"\0"):
        is_zero = len(end) >= tarfile.BLOCKSIZE and not end[: tarfile.BLOCKSIZE].strip(b"\0")
        raise tarfile.ReadError("it goes on after its end" if is_zero else "it is cut short")


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    text = tar.extractfile(member).read()  # type: ignore[union-attr]
    if text.strip() == b"-1":
        return -1
    if not text.strip().isdigit():
        raise ValueError(f"{member.name} holds {text[:20]!r}, not a class's number")
    return int(text)
