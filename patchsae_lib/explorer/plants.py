"""Planted changes to look at and to guess: what each method said of them, and what was the truth.

All comes from a table of answers (`diffing.METHODS`, asked about `world.planting.Plant`s); nothing
is computed in the page. `plants.js` shows it; without JavaScript a table of grades has to do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from patchsae_lib.world.planting import NOTHING, PARTS, ZERO, Range

FOLDER = Path(__file__).parent
SHARES = (*PARTS, "change", "old", "created", "unexplained", "overlap")  # shown in percent
QUANTITIES = (*SHARES, "alpha", "auroc", "points")
WORDS = {
    "change": "change beyond noise", "old": "of the change old", "created": "of the change new",
    "unexplained": "of the change unexplained", "alpha": "α", "auroc": "AUROC of new latents",
    "points": "points of accuracy",
}  # fmt: skip


@dataclass(frozen=True, repr=False)
class PlantGame:
    """Plants to choose or to guess, as HTML.

    `answers` has a row for each plant, seed and method: `plant`, `seed`, `method`, `grade` (right,
    wrong or abstains), and a column for each quantity of `QUANTITIES` (NaN: not said). `required`
    has for each plant and seed the ranges that are right (`Plant.required`).
    """

    answers: pd.DataFrame
    required: Mapping[tuple[str, int], Mapping[str, Range]]

    def _repr_html_(self) -> str:
        rounds = self.rounds()
        kinds = list(dict.fromkeys(x["kind"] for x in rounds))
        data = json.dumps({"kinds": kinds, "rounds": rounds}, ensure_ascii=False)
        style, script = ((FOLDER / f"plants.{x}").read_text("utf-8") for x in ("css", "js"))
        options = "".join(f"<option>{escape(title(x))}</option>" for x in rounds)
        modes = "".join(
            f'<label><input type="radio" name="plants" value="{value}"{extra}> {words}</label>'
            for value, words, extra in (
                ("look", "choose a plant", " checked"), ("guess", "guess what was planted", ""),
            )
        )  # fmt: skip
        held = data.replace("<", "\\u003c")
        return (
            f"<style>{style}</style>"
            '<section class="plants" aria-label="Planted changes to choose or to guess">'
            "<noscript>A plant can be chosen or guessed here when JavaScript is on; the scorecard "
            'has the grades.</noscript><div class="plants-game" hidden><div class="plants-modes" '
            f'role="group" aria-label="What to do">{modes}</div><div class="plants-tools">'
            f"<label>plant <select>{options}</select></label>"
            '<button type="button" class="plants-next">a random one</button>'
            '<span class="plants-score" role="status"></span></div>'
            '<dl class="plants-answers"></dl><div class="plants-kinds" role="group" '
            'aria-label="What was planted?"></div><p class="plants-truth" aria-live="polite"></p>'
            f'</div><script type="application/json">{held}</script><script>{script}</script>'
            "</section>"
        )

    def summary(self) -> str:
        """Say which plant fooled most methods, and which method was never fooled."""
        wrong = self.answers.query("grade == 'wrong'")
        methods = self.answers["method"].unique()
        never = [x for x in methods if x not in set(wrong["method"])]
        safe = f"never fooled: {', '.join(never) or 'no method'}"
        fooled = wrong.groupby("plant", sort=False)["method"].nunique()
        if fooled.empty:
            return f"no plant fooled a method; {safe}."
        most = f"{fooled.idxmax()} fooled {fooled.max()} of {len(methods)} methods"
        n_plants = self.answers["plant"].nunique()
        return f"{len(fooled)} of {n_plants} plants fooled a method, and {most}; {safe}."

    def rounds(self) -> list[dict[str, Any]]:
        """Return for each plant and seed its `kind`, the `truth` in words, and of each method what
        it `says` and its `grade`."""
        rounds = []
        keys = self.answers[["plant", "seed"]].drop_duplicates().itertuples(index=False)
        for plant, seed in ((str(x), int(i)) for x, i in keys):
            part = self.answers.query("plant == @plant and seed == @seed")
            methods = [
                {"method": row["method"], "says": spoken(row), "grade": row["grade"]}
                for row in part.to_dict("records")
            ]
            about = {"plant": plant, "seed": seed, "kind": kind_of(plant)}
            rounds.append({**about, "truth": wanted(self.required[plant, seed]), "of": methods})
        return rounds


def kind_of(plant: str) -> str:
    """Return what is guessed: the name of a plant without its strength.

    >>> kind_of("strengths × 0.3")
    'strengths'
    """
    return plant.split(" × ")[0]


def title(about: Mapping[str, Any]) -> str:
    """Return how a plant is called in the list."""
    return f"{about['plant']}, seed {about['seed']}"


def amount(name: str, value: float) -> str:
    """Return a quantity with its unit.

    >>> amount("new", -0.004), amount("alpha", 0.104), amount("points", 0.02)
    ('0%', '0.10', '+2.0')
    """
    if name in SHARES:
        return f"{round(100 * value)}%".replace("-", "−")
    return (f"{100 * value:+.1f}" if name == "points" else f"{value:.2f}").replace("-", "−")


def spoken(row: Mapping[Any, Any]) -> list[list[str]]:
    """Return pairs of a word and an amount, of all that a method says."""
    said_of = [x for x in QUANTITIES if not math.isnan(row.get(x, math.nan))]
    return [[WORDS.get(name, name), amount(name, row[name])] for name in said_of]


def wanted(required: Mapping[str, Range]) -> str:
    """Say in words what a method has to say of a plant to be right."""
    if dict(required) == NOTHING:
        return "nothing: all shares and the change are 0"
    parts = []
    for name, (low, high) in required.items():
        if (low, high) == ZERO:
            continue
        of_it = name.split(" or ")
        words, unit = " or ".join(WORDS.get(x, x) for x in of_it), of_it[0]
        if high == math.inf:
            parts.append(f"{words} at least {amount(unit, low)}")
        elif low == -math.inf:
            parts.append(f"{words} at most {amount(unit, high)}")
        else:
            parts.append(f"{words} {amount(unit, low)} to {amount(unit, high)}")
    return ", ".join(parts)
