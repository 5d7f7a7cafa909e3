"""The book's Sphinx extension: equations and figures without a CDN, and the generated pages.

Pages are generated from the last run (the scoreboard), from docstrings (the library) and from
imports (the house).
"""

from __future__ import annotations

import json
import pkgutil
import re
import shutil
from collections.abc import Callable
from html import escape
from inspect import ismodule
from pathlib import Path
from typing import Any

import plotly
from docutils import nodes
from myst_nb.core import render
from sphinx.application import Sphinx
from sphinx.ext.mathjax import html_visit_displaymath, html_visit_math
from sphinx.util import logging

import patchsae_lib
from claims import counted, decided, findings, number, scoreboard
from house import read_house
from house_page import page as house_page
from mime import ClaimRenderer, ExplorerRenderer, PlotlyRenderer
from patchsae_lib.explorer.files import read_shard
from patchsae_lib.explorer.presets import SIDE, presets
from patchsae_lib.names import NO_NAME
from schematics import FIGURES

VENDOR = Path(__file__).resolve().parents[1] / "_vendor"
LOGGER = logging.getLogger(__name__)
RUN_FILES = ("claims.json", "profile.json")


def library() -> str:
    """The exported names, then a section for each module, as MyST markdown."""
    found = [m.name for m in pkgutil.walk_packages(patchsae_lib.__path__, "patchsae_lib.")]
    sections = [module_section(name) for name in found if "._" not in name]
    return "\n\n".join([exported_names(), *sections])


def exported_names() -> str:
    """The names that `patchsae_lib` exports, a line a module, with links to their sections."""
    return "\n".join(
        f"- `patchsae_lib.{module}`: {', '.join(map(link_to, names))}"
        for module, names in patchsae_lib.EXPORTS.items()
    )


def link_to(name: str) -> str:
    """A MyST link to the documentation of an exported name.

    >>> link_to("load_profile")
    '{py:obj}`load_profile <patchsae_lib.profiles.load_profile>`'
    """
    exported = getattr(patchsae_lib, name)
    place = exported.__name__ if ismodule(exported) else f"{exported.__module__}.{name}"
    return f"{{py:obj}}`{name} <{place}>`"


def module_section(name: str) -> str:
    """The documentation of one module from its docstrings."""
    heading = "#" * (name.count(".") + 1)
    # a package's exports are documented where they are defined
    automodule = f".. automodule:: {name}\n   :members:\n   :ignore-module-all:"
    return f"{heading} {name.partition('.')[2]}\n\n```{{eval-rst}}\n{automodule}\n```"


def latest_run(folder: Path) -> Any:
    """The claims and the profile of the run whose files are in a folder. Raises `ValueError`
    without a run."""
    try:
        return [json.loads((folder / name).read_text("utf-8")) for name in RUN_FILES]
    except OSError:
        raise ValueError("there is no run to take claims from: make book") from None


def as_is(html: str) -> str:
    """HTML as MyST markdown."""
    return f"```{{raw}} html\n{html}\n```"


def glimpse(bundle: Path) -> str:
    """The front page's picture, which the explorer's script makes one to point at."""
    if not (bundle / "glimpse.js").is_file():
        raise ValueError(f"{bundle} has no glimpse.js: notebook 6 writes it")
    shard = read_shard(bundle / "glimpse.js")
    names = {latent["name"]: None for latent in shard["latents"]}  # in their order, once
    found = ", ".join([name for name in names if name not in ("", NO_NAME)][:6])
    alt = f"A picture in which CLIP's latents find: {found or 'nothing that has a name'}"
    picture = escape(shard["picture"])
    state = escape(json.dumps({"bundle": "explorer", "views": ["glimpse"]}))
    image = f'<img src="{picture}" alt="{escape(alt)}" width="384" height="384">'
    place = f'<div class="patchsae-explorer" data-state="{state}">{image}</div>'
    without = "<noscript><p>With JavaScript you can point at its patches.</p></noscript>"
    return as_is(f"{place}\n{without}")


def preset_cards(bundle: Path) -> str:
    """A few latents, each with four of its pictures: links into the explorer."""
    cards = []
    for preset in presets(bundle):
        name, latent = escape(preset.title), f"latent={preset.latent}&amp;view=latent"
        alt = f"Four pictures, bright where latent {preset.latent} is active: {name}"
        image = f'<img src="{preset.picture}" alt="{alt}" width="{SIDE}" height="{SIDE}">'
        text = f"<b>{name}</b><span>{escape(preset.note)}</span>"
        cards.append(f'<a href="explorer.html#{latent}">{image}{text}</a>')
    return f'<div class="presets">{"".join(cards)}</div>'


def fill_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the generated parts where a page asks for them with a comment."""
    run = Path(app.srcdir) / "notebooks"
    parts: dict[str, Callable[[], str]] = {
        "<!-- scoreboard -->": lambda: as_is(scoreboard(*latest_run(run))),
        "<!-- findings -->": lambda: as_is(findings(latest_run(run)[0])),
        "<!-- verdicts -->": lambda: counted(latest_run(run)[0]),
        "<!-- glimpse -->": lambda: glimpse(run / "explorer"),
        "<!-- presets -->": lambda: as_is(preset_cards(run / "explorer")),
        "<!-- library -->": library,
        "<!-- house -->": lambda: house_page(read_house()),
        **{f"<!-- schematic: {name} -->": draw for name, draw in FIGURES.items()},
    }
    for comment in (comment for comment in parts if comment in source[0]):
        try:
            text = parts[comment]()
        except ValueError as error:
            LOGGER.warning(str(error), location=docname)
            text = ""
        source[0] = source[0].replace(comment, text)


def fold_code(app: Sphinx, doctree: nodes.document) -> None:
    """Fold the code of every cell, as the tag `hide-input` does; one switch opens all."""
    for cell in doctree.findall(nodes.container):
        if cell.get("nb_element") == "cell_code":
            cell.setdefault("hide_mode", "input")
            cell["prompt_show"], cell["prompt_hide"] = "Show code", "Fold code"


def print_results(app: Sphinx, doctree: nodes.document) -> None:
    """Make a paragraph of a line that a cell prints and that begins with "Result: "."""
    for printed in list(doctree.findall(nodes.literal_block)):
        if "stream" in printed["classes"] and printed.astext().startswith("Result: "):
            result, _, text = printed.astext().strip().partition(": ")
            words = nodes.strong(text=f"{result}: "), nodes.Text(number(text))
            printed.parent.replace(printed, nodes.paragraph("", "", *words, classes=["result"]))


def verdicts_first(app: Sphinx, doctree: nodes.document) -> None:
    """Say what the page of a notebook finds after its first paragraphs, before any code."""
    folder, _, page = app.env.docname.rpartition("/")
    if folder != "notebooks":
        return
    claims, _ = latest_run(Path(app.srcdir) / "notebooks")
    text = decided([claim for claim in claims if claim["notebook"] == page])
    for section in [*doctree.findall(nodes.section)][: bool(text)]:
        is_code = [isinstance(x, nodes.section) or x.get("nb_element") for x in section[1:]]
        place = 1 + next((i for i, found in enumerate(is_code) if found), len(is_code))
        section.insert(place, nodes.raw("", text, format="html"))


def plain_docstring(
    app: Sphinx, kind: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Let docstrings be plain text with `code`, paragraphs, lists and doctests: what else
    reStructuredText would read into them (`*`, `|`, a trailing `_`) is escaped."""
    doctest = False
    for i, line in enumerate(lines):
        doctest = bool(line.strip()) and (doctest or line.lstrip().startswith(">>>"))
        if not doctest:
            parts = re.split(r"(``?[^`]+``?)", line)
            lines[i] = "".join(p if p.startswith("`") else escaped(p) for p in parts)


def escaped(text: str) -> str:
    r"""Text without the characters that reStructuredText would take for markup.

    >>> print(escaped("* b_ = |x|*2"))
    * b\_ = \|x\|\*2
    """
    bullet = re.match(r"\s*(\* )?", text)
    head = bullet[0] if bullet else ""
    return head + re.sub(r"([*|\\]|_(?=\W|$))", r"\\\1", text[len(head) :])


def page_assets(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """KaTeX on pages with equations."""
    if app.env.get_domain("math").has_equations(pagename):  # type: ignore[attr-defined]
        app.add_js_file("vendor/katex/katex.min.js", defer="defer")
        app.add_css_file("vendor/katex/katex.min.css")


def page_buttons(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """One button opens or folds the code of a notebook, and one downloads it; other pages have
    neither."""
    buttons = [b for b in context.get("header_buttons", []) if b["label"] != "download-buttons"]
    if pagename.startswith("notebooks/"):
        source = context["pathto"](f"_sources/{context['sourcename']}", 1)
        download = {"type": "link", "url": source, "icon": "fas fa-download"}
        download |= {"tooltip": "Download this notebook", "label": "download-notebook-button"}
        code = {"type": "javascript", "javascript": "", "label": "code-switch"}
        code |= {"text": "Show code", "tooltip": "Show or fold all code, on every page"}
        buttons[:0] = [code, download]
    context["header_buttons"] = buttons


def name_the_run(app: Sphinx, config: Any) -> None:
    """Every page says from which profile the book was built."""
    path = Path(app.srcdir) / "notebooks" / "profile.json"
    if path.is_file():
        name = json.loads(path.read_text("utf-8"))["name"]
        config.html_theme_options["extra_footer"] = (
            f"<p>Built with the profile <em>{name}</em></p>"
        )


def remove_thebe(app: Sphinx) -> None:
    """jupyter-book always loads sphinx-thebe, which puts scripts into every page that are of no
    use without a server: take its handlers out again."""
    for listeners in app.events.listeners.values():
        listeners[:] = [
            x for x in listeners if not x.handler.__module__.startswith("sphinx_thebe")
        ]
    app.registry.css_files = [x for x in app.registry.css_files if x[0] != "sphinx-thebe.css"]


def copy_assets(app: Sphinx, error: Exception | None) -> None:
    """KaTeX from `_vendor`, plotly.js from the installed plotly, the explorer and its data: into
    the folder of the pages."""
    if error or app.builder.format != "html":
        return
    vendor = Path(app.outdir) / "_static" / "vendor"
    shutil.copytree(VENDOR / "katex", vendor / "katex", dirs_exist_ok=True)
    shutil.copy(Path(plotly.__file__).parent / "package_data" / "plotly.min.js", vendor)
    # 1.5 MB on every page, for icons that the theme's fonts draw as well
    (vendor.parent / "scripts" / "fontawesome.js").write_text("// icons: see the fonts\n", "utf-8")
    place, source = vendor.with_name("explorer"), Path(patchsae_lib.__path__[0]) / "explorer"
    place.mkdir(exist_ok=True)
    shutil.copy(source / "explorer.css", place)
    module = (source / "explorer.mjs").read_text("utf-8")
    (place / "explorer.js").write_text(classic_script(module), "utf-8")
    data = Path(app.srcdir) / "notebooks" / "explorer"
    if data.is_dir():
        shutil.copytree(data, place / "data", dirs_exist_ok=True)


def classic_script(module: str) -> str:
    """The explorer's module as a script that sets `patchsaeExplorer`: pages opened from a disk may
    not load modules.

    >>> classic_script("const render = 1;\\nexport default { render };\\n").split("\\n")[-2]
    'globalThis.patchsaeExplorer = { render }; })();'
    """
    head, _, tail = module.partition("export default ")
    if tail.strip() != "{ render };":
        raise ValueError("explorer.mjs does not end with its only export, { render }")
    return f"(() => {{ 'use strict';\n{head}globalThis.patchsaeExplorer = {tail.strip()} }})();\n"


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the above."""
    app.add_html_math_renderer("katex", (html_visit_math, None), (html_visit_displaymath, None))
    # instead of entry points, which the library would have to declare
    render.load_mime_renders = lambda: [PlotlyRenderer, ExplorerRenderer, ClaimRenderer]
    remove_thebe(app)
    app.connect("source-read", fill_page)
    app.connect("doctree-read", fold_code)
    app.connect("doctree-read", print_results)
    app.connect("doctree-read", verdicts_first)
    app.connect("autodoc-process-docstring", plain_docstring)
    app.connect("html-page-context", page_assets)
    app.connect("html-page-context", page_buttons, priority=900)
    app.connect("config-inited", name_the_run)
    app.connect("build-finished", copy_assets)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
