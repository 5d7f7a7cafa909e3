"""Pictures in tar files of webdataset's layout, read where they lie: `wds:PATTERN`."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from patchsae_lib.pictures.decoding import Item
from patchsae_lib.pictures.listing import SUFFIXES, TEST_NAMES, Source, readable

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

    `pattern` may have `*`, `{000..012}`, and `{split}`, which stands for `train`, or `test` (or
    `val`); without it, a fixed fifth is the test split. Only the headers are read; nothing is
    unpacked. Class names are the lines of a `classnames.txt` beside the shards or one folder up,
    else numbers. A picture without `.cls` has label −1.
    """
    paths, divided = _shards(pattern, split)
    hide_bar = None if len(paths) >= SHOW_BAR_FROM else True  # None: hide it outside a terminal
    bar = tqdm(paths, desc="shards", unit=" files", disable=hide_bar)
    places = [place for path in bar for place in _index(path)]
    if not places:
        raise FileNotFoundError(f"wds:{pattern}: no pictures in {len(paths)} shards")

    def item(i: int) -> Item:
        return _read(places[i])

    labels = [place.label for place in places]
    names = _class_names(paths[0].parent, max(labels) + 1)
    return Source(item, labels, names, divided, paths)


def _read(place: Place) -> io.BytesIO:
    with place.shard.open("rb") as file:
        file.seek(place.start)
        content = io.BytesIO(file.read(place.size))
    content.name = f"{place.shard}/{place.member}"
    return content


def _class_names(folder: Path, n: int) -> tuple[str, ...]:
    paths = [place / "classnames.txt" for place in (folder, folder.parent)]
    lists = [path for path in paths if path.is_file()]
    names = lists[0].read_text("utf-8").splitlines() if lists else [str(i) for i in range(n)]
    if len(names) < n:
        raise ValueError(f"{lists[0]} names {len(names)} classes, the shards have {n}")
    return readable(names) if n else ()


def _shards(pattern: str, split: str) -> tuple[list[Path], bool]:
    """Find the files of a pattern, sorted, and whether they are those of the split only."""
    if "://" in pattern:
        raise ValueError(f"wds:{pattern}: shards are read from disk, not from the network")
    divided = "{split}" in pattern
    names = ("train",) if split == "train" else TEST_NAMES
    for name in names if divided else ("",):
        paths = _expand(pattern.replace("{split}", name))
        missing = [path for path in paths if not path.is_file()]
        if paths and not missing:
            return paths, divided
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


def _index(shard: Path) -> Iterator[Place]:
    """List the pictures of a shard, in its order, from its headers."""
    pictures: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                key = f"{folder}/{stem}"
                if f".{extension.lower()}" in SUFFIXES:
                    pictures[key] = member.name, member.offset_data, member.size
                elif extension == "cls":
                    labels[key] = _label(tar, member)
                tar.members = []  # type: ignore[attr-defined]  # or it would hold all headers
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{shard} is not a whole, uncompressed shard: {error}") from error
    except ValueError as error:
        raise ValueError(f"{shard}: {error}") from error
    for key, picture in pictures.items():
        yield Place(shard, *picture, labels.get(key, -1))


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    text = tar.extractfile(member).read()  # type: ignore[union-attr]
    if not text.strip().isdigit():
        raise ValueError(f"{member.name} holds {text[:20]!r}, not a class's number")
    return int(text)
