"""Folders of a build: locked against a second build, marked as its own, deleted and replaced."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from patchsae_lib.artefacts import short

MARKER = ".patchsae-build"


class NotebookError(Exception):
    """A notebook or the book cannot be built; the message says where and why."""


@contextmanager
def only_build(folder: Path) -> Iterator[None]:
    """Hold the lock of a build folder; if another build holds it, say so and wait.

    Raises `NotebookError` where there is nothing to lock, e.g. on a disk that is read-only.
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            waiting = f"another build is running in {short(folder)}: waiting for it to end"
            print(waiting, file=sys.stderr, flush=True)
            lock.acquire()
    except OSError as error:
        raise NotebookError(f"cannot lock {short(folder)}: {error}") from None
    try:
        yield
    finally:
        lock.release()


def mark(folder: Path) -> None:
    """Create a folder if it does not exist, and mark it as one that a build may delete."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text("Made by book/build.py, which deletes this folder.\n")


def require_marked(*folders: Path) -> None:
    """Raise `NotebookError` for the first of these folders that exists without the marker."""
    for folder in folders:
        if folder.is_symlink() or (folder.exists() and not (folder / MARKER).is_file()):
            raise NotebookError(
                f"{short(folder)} is in the way, and it was not made by this program (it holds no "
                f"{MARKER}): move or delete it, then build again"
            )


def remove_folder(folder: Path) -> None:
    """Delete a folder that a build has marked. Raises `NotebookError` for any other folder."""
    require_marked(folder)
    if not folder.exists():
        return
    for entry in folder.iterdir():  # the marker goes last: an interrupted deletion can be repeated
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != MARKER:
            entry.unlink()
    shutil.rmtree(folder)


def replace_folder(new: Path, place: Path) -> None:
    """Put the folder `new` at `place`, and keep the old one until the last moment."""
    old = place.with_name(f"{place.name}.old")
    require_marked(place)
    remove_folder(old)
    if place.exists():
        place.rename(old)
    new.rename(place)
    remove_folder(old)
