"""Rows of pictures with words beside them, and links from a notebook's page to the explorer's."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from urllib.parse import quote, urlencode

from PIL import Image

IMAGE = (  # dark-light: as it is on a dark page
    '<img class="dark-light" width="82" height="82" loading="lazy" style="margin:0;padding:0;'
    'border-radius:3px" src="{0}" alt="{1}{2}" title="{1}">'
)


ROW = '<div style="display:flex;flex-wrap:wrap;gap:{0}">{1}</div>'
GROUP = '<div><small style="opacity:.75">{0}</small>{1}</div>'


@dataclass(repr=False)
class Strips:
    """Rows of pictures with words beside them, as HTML; "latent 12" leads to the explorer.

    `rows`: (title, what to know of it, pictures, one description a picture). Where all
    descriptions of a row begin with a group, as in "CLIP: rose", pictures stand below its name.
    """

    rows: Sequence[tuple[str, str, Sequence[Image.Image], Sequence[str]]]

    def _repr_html_(self) -> str:
        strips = []
        for title, note, pictures, descriptions in self.rows:
            found = re.search(r"latent \d+", f"{title} {note}")
            lit = f", lit where {found[0]} is active" if found else ""
            pairs = zip(map(webp_uri, pictures), map(html.escape, descriptions), strict=True)
            images = [IMAGE.format(*pair, lit) for pair in pairs]
            head = f"<b>{linked(html.escape(title))}</b> · {linked(html.escape(note))}"
            shown = in_groups(images, descriptions)
            strips.append(f'<div>{head}<div style="margin:.2rem 0 1rem">{shown}</div></div>')
        return "\n".join(["<figure style='margin:0'>", *strips, "</figure>"])


def in_groups(images: Sequence[str], descriptions: Sequence[str]) -> str:
    """Lay out images, as HTML, below the names of their groups, if there are several."""
    names = [words.rpartition(": ")[0] for words in descriptions]
    if not all(names) or len(set(names)) < 2:
        return ROW.format("3px", "".join(images))
    groups = []
    for name, numbers in groupby(range(len(names)), names.__getitem__):
        inside = ROW.format("3px", "".join(images[i] for i in numbers))
        groups.append(GROUP.format(html.escape(name), inside))
    return ROW.format("3px 14px", "".join(groups))


def explorer_link(text: str, **state: object) -> str:
    """A link, from the page of a notebook, to the explorer's page in some `state`, as HTML."""
    named = {"class" if name == "label" else name: value for name, value in state.items()}
    address = html.escape(f"../explorer.html#{urlencode(named, quote_via=quote)}")
    return f'<a href="{address}">{html.escape(text)}</a>'


def latent_link(latent: int) -> str:
    """The number of a latent as a link to the explorer: for tables (`Styler.format`)."""
    return explorer_link(str(latent), latent=latent, view="latent")


def linked(text: str) -> str:
    """HTML with every "latent 12" as a link to the explorer."""
    return re.sub(r"\b(latent )(\d+)", lambda m: m[1] + latent_link(int(m[2])), text)


def webp_uri(picture: Image.Image, method: int = 6, quality: int = 82) -> str:
    """A picture as a data URI; `method` from 0 (fast) to 6 (small), `quality` up to 100."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=method)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
