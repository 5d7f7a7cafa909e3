"""Pictures in a folder: `folder:PATH`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import open_clip

from patchsae_lib.pictures.listing import (
    SUFFIXES,
    SYNSET,
    TEST_NAMES,
    TRAIN_NAMES,
    Source,
    listed_names,
    readable,
)

# Folders and files of operating systems and network disks, in lower case; hidden ones are too.
JUNK = {
    "__macosx", "@eadir", "@recycle", "#recycle", "$recycle.bin", "recycler", "thumbs.db",
    "system volume information", "lost+found", "desktop.ini",
}  # fmt: skip
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xls", ".xlsx")
TEXTS = (  # files that nobody misses among pictures
    *TABLES, ".txt", ".md", ".rst", ".xml", ".yaml", ".yml", ".html", ".pdf", ".ini", ".py",
    ".ipynb", ".log", ".mat",
)  # fmt: skip
ALL_PICTURES = {"images", "image", "imgs", "img", "pictures", "photos", "jpegimages"}


class Level(NamedTuple):
    """A folder: its `pictures`, by the sub-folder that they lie in ("": in none), and its visible
    sub-folders, with pictures and without."""

    path: Path
    pictures: dict[str, list[str]]
    folders: list[str]

    @property
    def classes(self) -> list[str]:
        """The sub-folders that hold pictures, by name."""
        return [name for name in self.folders if name in self.pictures]

    @property
    def splits(self) -> tuple[list[str], list[str]]:
        """The sub-folders of a training and of a test split, the best first; none if the folder is
        not divided: one of them beside classes is a class."""
        by_name = {name.lower(): name for name in self.folders}
        kinds = TRAIN_NAMES, TEST_NAMES
        trains, tests = ([by_name[x] for x in names if x in by_name] for names in kinds)
        is_divided = (trains and tests) or {*self.classes} <= {*trains, *tests}
        return (trains, tests) if is_divided else ([], [])

    def below(self, name: str) -> Level:
        """Return the level of a sub-folder."""
        return _level(self.path / name, self.pictures.get(name, []))


def folder(name: str, split: str) -> Source:
    """List the pictures of a folder that has one sub-folder per class, or only pictures.

    A divided folder has such folders called `train` and `test` (or `val`, `training`, ...); its
    classes are those of `train`. With `train` alone, a fifth of it is the test split. A folder in
    which all lies in a single one is opened there. Classes and files are sorted by name; hidden
    ones, and those that systems leave behind, are left out. ImageNet's synset ids get its names,
    or those in a `classnames.txt` beside the folders, with lines like `n01440764 tench`.

    Raises `FileNotFoundError` without pictures, and `ValueError` for a name that is not UTF-8.
    """
    root = Path(name).expanduser()
    try:
        files = list(_walk(root))
        top = _enter(_level(root, [path for path in files if _is_picture(path)]))
        level, classes, divided = _choose(top, split)
        if not level.pictures:
            raise FileNotFoundError(f"no file in it ends in {', '.join(SUFFIXES)}")
    except OSError as error:
        raise FileNotFoundError(
            f"folder:{name} wants pictures, or one sub-folder of them a class: {error}"
        ) from error
    of_class = [level.pictures.get(name, []) for name in classes or [""]]
    where = [level.path / name for name in classes or [""]]
    paths = [str(at / x) for at, names in zip(where, of_class, strict=True) for x in names]
    labels = [i for i, names in enumerate(of_class, 0 if classes else -1) for _ in names]
    skipped = [*_not_read(root, level, files), *_beside(top, level)]
    names, notes = _class_names(level.path, classes)
    notes += _other_notes(root, level)
    about = dict(files=paths, skipped=skipped, notes=notes)
    return Source(paths.__getitem__, labels, readable(names), divided, **about)


def _walk(root: Path) -> Iterator[str]:
    """Yield the visible files below a folder, relative to it; the order of folders is that of
    their whole paths."""
    found = []
    for path, folders, files in os.walk(root, onerror=_raise, followlinks=True):
        folders[:] = [x for x in folders if _is_visible(x) and not _leads_back(path, x)]
        found.append((path, sorted(filter(_is_visible, files))))
    for path, files in sorted(found):
        within = os.path.relpath(path, root)
        yield from files if within == os.curdir else (f"{within}{os.sep}{x}" for x in files)


def _raise(error: OSError) -> None:
    raise error


def _leads_back(path: str, name: str) -> bool:
    """Return whether a folder is a link to one that it lies in."""
    link = os.path.join(path, name)
    inside = os.path.realpath(path) + os.sep
    return os.path.islink(link) and inside.startswith(os.path.realpath(link) + os.sep)


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in JUNK


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _level(path: Path, pictures: Sequence[str]) -> Level:
    """Group the pictures below a folder, which are given relative to it."""
    groups: dict[str, list[str]] = {}
    for picture in pictures:
        first, slash, below = picture.partition(os.sep)
        groups.setdefault(first if slash else "", []).append(below or first)
    folders = (x.name for x in os.scandir(path) if x.is_dir() and _is_visible(x.name))
    return Level(path, groups, sorted(folders))


def _enter(level: Level) -> Level:
    """Go down while all pictures lie in a single folder that is no class: in which there are
    folders only, or which is called `images`, or which has a table beside it, of labels."""
    while len(level.classes) == 1 and "" not in level.pictures and not any(level.splits):
        only = level.below(level.classes[0])
        holds_all = only.path.name.lower() in ALL_PICTURES or _tables(level.path)
        if "" in only.pictures and (only.classes or not holds_all):
            break
        level = only
    return level


def _tables(path: Path) -> list[str]:
    return sorted(x.name for x in os.scandir(path) if x.name.lower().endswith(TABLES))


def _choose(top: Level, split: str) -> tuple[Level, list[str], bool]:
    """Choose the folder of a split: it, its classes, and whether `top` has one for each split."""
    trains, tests = top.splits
    if not trains and not tests:
        return top, top.classes, False
    if split == "train" and not trains:
        raise FileNotFoundError(f"{top.path} has {tests[0]}, but no folder train: rename it")
    names = top.below([*trains, *tests][0]).classes
    if split == "train" or not tests:
        return top.below(trains[0]), names, bool(tests)
    parts = [top.below(test) for test in tests]
    faults = [_fault(part, names) for part in parts]
    if "" not in faults:
        raise FileNotFoundError(f"{parts[0].path} {faults[0]}: mend or rename it")
    return parts[faults.index("")], names, True


def _fault(test: Level, names: Sequence[str]) -> str:
    """Return why a folder is no test split for classes of these names, or nothing."""
    if not test.pictures:
        return "has no pictures"
    if unknown := sorted({*test.classes} - {*names}):
        return f"has classes that train has not: {', '.join(unknown)}"
    return "has no folders of classes, as train has" if names and not test.classes else ""


# --- what is left out, and what classes are called ---------------------------------------------


def _not_read(root: Path, level: Level, files: Sequence[str]) -> Iterator[str]:
    """Yield a line for each file in the folder that is neither a picture to read nor a text."""
    for path in files:
        absolute = root / path
        if not path.lower().endswith((*SUFFIXES, *TEXTS)) and level.path in absolute.parents:
            yield f"{absolute} is not read: its ending is none of a picture's"


def _beside(top: Level, level: Level) -> Iterator[str]:
    """Yield a line for each picture that lies beside the folders of classes or of splits."""
    splits = {name for names in top.splits for name in names}
    for name in top.pictures if splits else []:
        for path in top.pictures[name] if name not in splits else []:
            yield f"{top.path / name / path} lies beside the folders of splits"
    for path in level.pictures.get("", []) if level.classes else []:
        yield f"{level.path / path} lies beside the folders of classes"


def _other_notes(root: Path, level: Level) -> Iterator[str]:
    """Say which folders are empty, and which tables may hold the classes of pictures."""
    for name in level.folders:
        if name not in level.pictures:
            yield f"there are no pictures in {level.path / name}"
    beside = [level.path] if level.path == root else [level.path, level.path.parent]
    for path in [] if level.classes else beside:
        for name in _tables(path):
            yield f"{path / name} is not read: the pictures have no classes"


def _class_names(path: Path, folders: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what the classes of folders are called, and notes about those without a name."""
    for name in folders:
        if any("\ud800" <= x <= "\udfff" for x in name):
            shown = os.fsencode(path / name).decode("utf-8", "backslashreplace")
            raise ValueError(f"the name of the folder {shown} is not UTF-8: rename it")
    listed = listed_names(path)
    pairs = (line.split(None, 1) for line in (listed[1] if listed else []))
    called = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
    if {*folders} <= {*called}:
        return [called[name] for name in folders], []
    if not any(map(SYNSET.fullmatch, folders)):
        return list(folders), []
    about = importlib.import_module("timm.data.imagenet_info").ImageNetInfo()
    called = dict(zip(about.label_names(), open_clip.IMAGENET_CLASSNAMES, strict=True))
    unknown = [x for x in folders if SYNSET.fullmatch(x) and x not in called]
    advice = f"name them in {path / 'classnames.txt'}, in lines like n01440764 tench"
    notes = [f"{len(unknown)} classes are called like {unknown[0]}: {advice}"] if unknown else []
    return [called.get(name, name) for name in folders], notes
