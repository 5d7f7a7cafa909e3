"""A source of pictures: which there are and what their classes are, before one of them is read.

One module for each kind lists what is there: `folders`, `torchvision_sets`, `webdataset`,
`huggingface`. Class names and their order are those of the paper's data loaders (CoOp's and
MaPLe's), so that base and novel classes are the same.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from torchvision.datasets.folder import IMG_EXTENSIONS

from patchsae_lib.pictures.decoding import Item

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "validation", "valid", "eval", "dev")  # the best first
SUFFIXES = (*IMG_EXTENSIONS, ".gif", ".avif", ".jp2", ".jfif")
MOST_CLASSES = 100_000  # that are called by their numbers: a table has a column for each
LENIENT = "utf-8", "surrogateescape"  # as the names of files are
NUMBER = re.compile(r" \(no\. \d+\)$")  # tells classes of the same name apart, and is not spoken
SYNSET = re.compile(r"n\d{8}")  # WordNet's id of an ImageNet class


@dataclass(frozen=True)
class Source:
    """Pictures that can be read in any order: `item(i)` is the i-th, `labels[i]` its class.

    A picture without a class has label −1. `divided`: these are the pictures of the split asked
    for; otherwise they are all there are, and a test split is still to be held out. `files` are
    those that hold the pictures, and `places` where in them each lies, as far as that is known.
    `skipped` has a line for each file that is no picture to read, and `notes` say what else a
    reader may miss.
    """

    item: Callable[[int], Item]
    labels: Sequence[int]
    class_names: tuple[str, ...]
    divided: bool
    files: Sequence[str | Path] = ()
    places: Sequence[Any] = ()
    skipped: Sequence[str] = ()
    notes: Sequence[str] = ()


def readable(names: Sequence[str]) -> tuple[str, ...]:
    """Write class names as in a sentence, spaces for underscores, and number equal ones.

    >>> readable(["red_owl", "red owl", "crane"])
    ('red owl', 'red owl (no. 2)', 'crane')
    """
    unique: dict[str, None] = {}
    for name in (name.replace("_", " ").strip() for name in names):
        numbers = (f"{name} (no. {number})" for number in count(2))
        unique[next(x for x in chain([name], numbers) if x not in unique)] = None
    return tuple(unique)


def spoken(names: Sequence[str]) -> list[str]:
    """Return class names as prompts have them: without the number that tells equal ones apart.

    >>> spoken(["red_owl (no. 2)"])
    ['red owl']
    """
    return [NUMBER.sub("", name.replace("_", " ")) for name in names]


def numbered(labels: Iterable[int], where: str) -> tuple[str, ...]:
    """Return the numbers of classes as their names; `ValueError` for more than 100,000."""
    if (n := max(labels, default=-1) + 1) > MOST_CLASSES:
        raise ValueError(
            f"{where}: a label is {n - 1:,}, but classes are numbered from 0 and at most "
            f"{MOST_CLASSES:,}: number them anew"
        )
    return tuple(map(str, range(n)))


def listed_names(folder: Path) -> tuple[Path, list[str]] | None:
    """Return the `classnames.txt` in a folder or one up, and its lines; None without it.

    Raises `ValueError` for a blank line between others, which would be a class without a name.
    """
    paths = [place / "classnames.txt" for place in (folder, folder.parent)]
    if (path := next(filter(Path.is_file, paths), None)) is None:
        return None
    content = path.read_bytes()
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text.rstrip())]
    if "" in lines[1:]:
        raise ValueError(f"{path}: line {lines.index('', 1) + 1} is blank: give a name a line")
    return path, lines if text.strip() else []


def stamps(files: Iterable[str | Path]) -> Iterator[str]:
    """Return what tells files and their contents from others, one stat each: path, size, and when
    it was last changed by its own account and by the file system's, which nothing sets back."""
    for path in files:
        try:
            stat = os.stat(path)
            times = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
        except OSError:  # a dead link, for example
            times = "missing"
        yield f"{path} {times}\n"


def brief(error: BaseException, most: int = 160) -> str:
    """Return the message of a library's error in one line, of at most so many characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[: most - 1]}…"
