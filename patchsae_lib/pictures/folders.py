"""Pictures in a folder: `folder:PATH`."""

from __future__ import annotations

from pathlib import Path

from torchvision import datasets

from patchsae_lib.pictures.listing import SUFFIXES, TEST_NAMES, Source, readable


def folder(name: str, split: str) -> Source:
    """List the pictures of a folder that has one sub-folder per class, or only pictures.

    A divided folder has such folders called `train` and `test` (or `val`); its classes are those
    of `train`. Classes and files are sorted by name; hidden ones are left out.
    """
    root = Path(name).expanduser()
    try:
        root, names, divided = _divide(root, split)
        if names:
            paths, labels = _by_class(root, names)
        else:
            paths = sorted(str(path) for path in root.iterdir() if _is_picture(path.name))
            labels = [-1] * len(paths)
        if not paths:
            raise FileNotFoundError(f"no file in it ends in {', '.join(SUFFIXES)}")
    except OSError as error:
        raise FileNotFoundError(
            f"folder:{name} wants pictures, or one sub-folder of them a class: {error}"
        ) from error
    return Source(paths.__getitem__, labels, readable(names), divided, paths)


def _divide(root: Path, split: str) -> tuple[Path, list[str], bool]:
    """Find the folder of a split, the names of its classes, and whether `root` is divided."""
    tests = [root / test for test in TEST_NAMES if (root / test).is_dir()]
    if not tests or not (root / "train").is_dir():
        return root, _sub_folders(root), False
    names = _sub_folders(root / "train")
    root = root / "train" if split == "train" else tests[0]
    if unknown := sorted({*_sub_folders(root)} - {*names}):
        raise FileNotFoundError(f"{root} has classes that train has not: {', '.join(unknown)}")
    return root, names, True


def _by_class(root: Path, names: list[str]) -> tuple[list[str], list[int]]:
    """List the files of every class's folder, and the classes of the files."""
    data = _VisibleFolders(str(root), loader=str, is_valid_file=_is_picture)
    labels = [names.index(data.classes[label]) for label in data.targets]
    return [path for path, _ in data.samples], labels


class _VisibleFolders(datasets.ImageFolder):
    """ImageFolder without hidden folders, such as Jupyter's."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        names = _sub_folders(Path(directory))
        return names, {name: i for i, name in enumerate(names)}


def _sub_folders(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not Path(name).name.startswith(".")
