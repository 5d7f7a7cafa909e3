"""What a page of JupyterLab asks for, and the kernel answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patchsae_lib.explorer.files import read_shard
from patchsae_lib.explorer.lens import Lens
from patchsae_lib.explorer.steering import Steering


class Kernel:
    """Answers what a page of JupyterLab asks for: files of a `bundle`, and what `lenses` (task →
    `Lens`) see. `pictures` are those that the user has added so far."""

    def __init__(self, bundle: Path, lenses: Mapping[str, Lens]) -> None:
        self.bundle, self.lenses = bundle, dict(lenses)
        self.pictures: list[dict[str, Any]] = []
        self.steering = Steering(self.lenses)

    def look(self, source: bytes | Path, name: str, task: str) -> dict[str, Any]:
        """Add a picture of the user's to a task, and return what the page shows of it."""
        self.pictures.append({"task": task, "picture": self._lens(task).picture(source, name)})
        return self.pictures[-1]

    def answer(self, message: Mapping[str, Any], buffers: Sequence[Any]) -> dict[str, Any]:
        """Return the answer to a message, with its number; `error` says what went wrong."""
        try:
            reply = self._reply(message, buffers)
        except Exception as error:  # of any kind: the page waits for an answer
            reply = {"error": str(error) or type(error).__name__}
        return {"answer": message.get("number"), **reply}

    def _reply(self, message: Mapping[str, Any], buffers: Sequence[Any]) -> dict[str, Any]:
        if name := message.get("load"):
            if not re.fullmatch(r"[a-z]+(-\d+){0,2}", name):
                raise ValueError(f"{name!r} is no file of a bundle")
            return {"shard": read_shard(self.bundle / f"{name}.js")}
        if "pictures" in message:
            return {"pictures": self.pictures}
        if "does" in message:
            asked = dict(message["asked"])
            if "task" in asked:  # a number in the bundle; there may be fewer lenses
                name = read_shard(self.bundle / "index.js")["tasks"][asked["task"]]["name"]
                self._lens(name)
                asked["task"] = list(self.lenses).index(name)
            return {"reply": self.steering.answer(message["does"], asked, buffers)}
        task = str(message.get("task"))
        if "picture" in message:
            return {"added": self.look(bytes(buffers[0]), str(message["picture"]), task)}
        lens, label = self._lens(task), message["label"]
        shares = lens.without(label, message["without"])
        return {"shares": shares, "n": int((lens.labels == label).sum())}

    def _lens(self, task: str) -> Lens:
        if not self.lenses:
            raise ValueError("no model to look with: give the explorer lenses, as notebook 6 does")
        if task not in self.lenses:
            raise ValueError(f"no model for the task {task!r}: {', '.join(self.lenses)}")
        return self.lenses[task]
