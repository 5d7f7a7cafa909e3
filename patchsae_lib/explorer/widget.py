"""The explorer in a notebook: live with a kernel, and in the static book without one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from patchsae_lib.explorer.kernel import Kernel
from patchsae_lib.explorer.lens import Lens

EXPLORER = "application/vnd.patchsae.explorer+json"
FOLDER = Path(__file__).parent
VIEWS = ("map", "latent", "picture", "steer", "draw", "class", "guess")


class Explorer(anywidget.AnyWidget):
    """Shows the latents of a bundle on disk, in `views`.

    The selection can be set and observed: `latent`, `task` (a name), `image` (its number),
    `patch` (row by row; −1: none), `model` and `label` (a class); `masks` draws masks, and
    `compare` shows both models at once. With `lenses` (task → `Lens`) the kernel can look at the
    user's own pictures (`add`) and switch latents off; `marked` are those on the user's list, and
    `pinned` is one to compare with (−1: none).
    Below a scatter plot of latents the explorer follows clicks on it. Raises `FileNotFoundError`
    for a folder without a bundle.
    """

    _esm, _css = FOLDER / "explorer.mjs", FOLDER / "explorer.css"
    latent, image, label = (traitlets.Int(0, min=0).tag(sync=True) for _ in range(3))
    patch, pinned = (traitlets.Int(-1, min=-1).tag(sync=True) for _ in range(2))
    task, model, switches, names, marked = (traitlets.Unicode().tag(sync=True) for _ in range(5))
    masks, compare = (traitlets.Bool(True).tag(sync=True) for _ in range(2))
    views = traitlets.List(traitlets.Enum(VIEWS), list(VIEWS)).tag(sync=True)
    live = traitlets.Bool(False, read_only=True).tag(sync=True)

    def __init__(
        self, bundle: str | Path, lenses: Mapping[str, Lens] | None = None, **state: Any
    ) -> None:
        self.bundle, self.kernel = Path(bundle), Kernel(Path(bundle), lenses or {})
        if not (self.bundle / "index.js").is_file():
            raise FileNotFoundError(f"{bundle} has no index.js: write_bundle makes it")
        super().__init__(**state)
        self.set_trait("live", bool(lenses))
        self.on_msg(self._answer)

    def add(self, path: str | Path, task: str = "") -> None:
        """Show a picture of the user's with those of a task (default: the chosen task)."""
        task = task or self.task or next(iter(self.kernel.lenses), "")
        self.send({"added": self.kernel.look(Path(path), Path(path).name, task)})

    def _answer(self, _: Any, message: dict[str, Any], buffers: Any) -> None:
        self.send(self.kernel.answer(message, buffers))

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, about = super()._repr_mimebundle_(**options) or ({}, {})
        names = ["latent", "task", "image", "patch", "model", "label", "masks", "compare", "views"]
        names += ["switches", "names", "marked", "pinned"]
        state = {"bundle": self.bundle.name} | {name: getattr(self, name) for name in names}
        return data | {EXPLORER: state, "text/plain": "The explorer of latents"}, about
