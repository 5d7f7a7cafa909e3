"""The page about the embedded world: its gallery, its table of tasks and its numbers.

`{world-gallery}`, `{world-tasks}` and `{world-strip}` are directives, `` {world}`classes` `` is a
number of `NUMBERS`. Pictures are drawn while the book is built, into `_static/world`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import PIL
from docutils import nodes
from filelock import FileLock
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective, SphinxRole

import patchsae_lib.world
from gallery import write_gallery
from patchsae_lib.interop.openclip import small_clip_config
from patchsae_lib.world import CLASSES, GROUP_OF, TASKS
from patchsae_lib.world.canvas import SIZE
from patchsae_lib.world.objects import GROUPS
from patchsae_lib.world.scene import SPECIES
from patchsae_lib.world.vocabulary import BACKGROUNDS, COLOURS, STYLES, TEXTURES, WORDS
from sheets import task_examples

PATCH = small_clip_config([])["model_cfg"]["vision_cfg"]["patch_size"]
NUMBERS = {
    "classes": len(CLASSES),
    "groups": len(GROUPS),
    "styles": len(STYLES),
    "colours": len(COLOURS),
    "textures": len(TEXTURES),
    "backgrounds": len(BACKGROUNDS),
    "words": len(WORDS),
    "species": len(SPECIES),
    "tasks": len(TASKS),
    "size": SIZE,
    "patch": PATCH,
    "grid": SIZE // PATCH,
    "patches": (SIZE // PATCH) ** 2,
}
BUILD = Path(__file__).resolve().parents[2] / "_build"
VERSION = ".version"
FRONT = ("world_gallery.js", "world_gallery.css")
TABLE = '<table class="world-tasks">'
STRIP = (
    "Small drawn pictures of animals, vehicles, plants and houses in several styles and colours"
)


def choices() -> dict[str, Any]:
    """What the gallery offers, for its script."""
    groups: dict[str, list[str]] = {}
    for cls in CLASSES:
        groups.setdefault(GROUP_OF[cls], []).append(cls)
    colours = {name: "#{:02x}{:02x}{:02x}".format(*rgb) for name, rgb in COLOURS.items()}
    return {"size": SIZE, "patch": PATCH, "styles": STYLES, "groups": groups, "colours": colours}


class WorldGallery(SphinxDirective):
    """The container that `world_gallery.js` fills."""

    def run(self) -> list[nodes.Node]:
        """Emit it."""
        html = (
            f'<div class="world-gallery" data-base="{assets(self.env.docname)}">'
            f'<script type="application/json">{json.dumps(choices())}</script>'
            "<noscript>The gallery needs JavaScript; the table of tasks does not.</noscript></div>"
        )
        return [nodes.raw("", html, format="html")]


class WorldTasks(SphinxDirective):
    """Every task with its shift, its classes and eight of its test pictures."""

    def run(self) -> list[nodes.Node]:
        """Emit the table."""
        columns = ("Task", "Shift", "Classes", "Base classes, then novel ones")
        head = "".join(f'<th scope="col">{title}</th>' for title in columns)
        rows = "".join(task_row(name, assets(self.env.docname)) for name in TASKS)
        html = f"{TABLE}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        return [nodes.raw("", html, format="html")]


class WorldStrip(SphinxDirective):
    """Two rows of pictures, for the front page."""

    def run(self) -> list[nodes.Node]:
        """Emit them."""
        image = f'<img src="{assets(self.env.docname)}world-strip.webp" alt="{STRIP}">'
        return [nodes.raw("", f'<div class="world-strip">{image}</div>', format="html")]


def task_row(name: str, base: str) -> str:
    """A task as a row of the table."""
    task = TASKS[name]
    world, indices = task_examples(name)
    shown = ", ".join(world.class_names[world.label(i)] for i in indices)
    alt = escape(f"Eight test pictures: {shown}")
    return (
        f'<tr><th scope="row"><strong>{task.title}</strong>'
        f"<small>“{escape(task.templates[0].format('…'))}”</small></th><td>{task.shift}</td>"
        f"<td>{len(task.base)} + {len(task.novel)}</td>"
        f'<td><img src="{base}task-{name}.webp" alt="{alt}" loading="lazy" width="950" '
        f'height="{SIZE}"></td></tr>'
    )


class WorldNumber(SphinxRole):
    """A number of `NUMBERS`; another name is a warning, and so ends the build."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Look it up."""
        if self.text not in NUMBERS:
            known = ", ".join(NUMBERS)
            error = self.inliner.reporter.error(f"no number {self.text!r}; known are {known}")
            return [self.inliner.problematic(self.rawtext, self.rawtext, error)], [error]
        return [nodes.Text(str(NUMBERS[self.text]))], []


def assets(docname: str) -> str:
    """The folder of the gallery's files, as seen from a page."""
    return "../" * docname.count("/") + "_static/world/"


def version() -> str:
    """A digest of all that decides how the pictures look: the world's code and its libraries."""
    sources = sorted(Path(patchsae_lib.world.__path__[0]).glob("*.py"))
    versions = f"{np.__version__} {PIL.__version__} {sys.version}".encode()
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources) + versions).hexdigest()


def drawn() -> Path:
    """A folder with the pictures, which are drawn anew when their version has changed.

    The file `VERSION` in it is also the mark of a folder that may be deleted.
    """
    place = BUILD / "world"
    mark = place / VERSION
    if mark.is_file() and mark.read_text() == version():
        return place
    if place.exists() and not mark.is_file():
        raise ExtensionError(f"{place} was not drawn by the book: move or delete it")
    with TemporaryDirectory(dir=BUILD, prefix="drawing-") as temporary:
        new = Path(temporary, "world")
        write_gallery(new)
        (new / VERSION).write_text(version())
        if place.exists():
            place.rename(Path(temporary, "old"))
        new.rename(place)
    return place


def write_assets(app: Sphinx) -> None:
    """Put the gallery's pictures, script and styles beside the pages."""
    if app.builder.format == "html":
        folder = Path(app.outdir) / "_static" / "world"
        BUILD.mkdir(exist_ok=True)
        with FileLock(BUILD / "world.lock"):  # tests build pages at the same time
            ignore = shutil.ignore_patterns(VERSION)
            shutil.copytree(drawn(), folder, ignore=ignore, dirs_exist_ok=True)
        for name in FRONT:
            shutil.copy(Path(__file__).with_name(name), folder)


def page_assets(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """The script and the styles, on the pages that need them."""
    if 'class="world-' in context.get("body", ""):
        app.add_css_file("world/world_gallery.css")
        app.add_js_file("world/world_gallery.js", defer="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the above."""
    app.add_directive("world-gallery", WorldGallery)
    app.add_directive("world-tasks", WorldTasks)
    app.add_directive("world-strip", WorldStrip)
    app.add_role("world", WorldNumber())
    app.connect("builder-inited", write_assets)
    app.connect("html-page-context", page_assets)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
