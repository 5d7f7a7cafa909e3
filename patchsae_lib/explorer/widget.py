"""The explorer in a notebook: live with a kernel, and as the same thing in the static book."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from patchsae_lib.explorer.bundle import read_shard

EXPLORER = "application/vnd.patchsae.explorer+json"
HERE = Path(__file__).parent


class Explorer(anywidget.AnyWidget):
    """Reference images of a latent and where it is active in them, from a bundle on disk.

    Shown below a scatter plot of latents it follows it: pointing shows a latent's first reference
    image, a click shows all. `latent` and `masks` (are they drawn?) can be set and observed.
    """

    _esm = HERE / "explorer.mjs"
    _css = HERE / "explorer.css"
    latent = traitlets.Int(0, min=0).tag(sync=True)
    masks = traitlets.Bool(True).tag(sync=True)

    def __init__(self, bundle: str | Path, **state: Any) -> None:
        self.bundle = Path(bundle)
        if not (self.bundle / "index.js").is_file():
            raise FileNotFoundError(f"{bundle} has no index.js: write_bundle makes it")
        super().__init__(**state)
        self.on_msg(self._answer)

    def _answer(self, _: Any, message: dict[str, Any], buffers: Any) -> None:
        """Send a file of the bundle that the page has asked for."""
        name = str(message.get("load", ""))
        if not re.fullmatch(r"index|(latents|pictures)-\d+", name):
            return
        try:
            self.send({"loaded": name, "shard": read_shard(self.bundle / f"{name}.js")})
        except (OSError, ValueError):
            self.send({"loaded": name, "shard": None})

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, about = super()._repr_mimebundle_(**options) or ({}, {})
        state = {"bundle": self.bundle.name, "latent": self.latent, "masks": self.masks}
        return data | {EXPLORER: state, "text/plain": "Reference images of latents"}, about
