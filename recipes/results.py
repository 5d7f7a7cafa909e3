"""The README's table of results: python -m recipes.results [runs/world].

The claims of a run go to `data/results.json`, and from there into the README. A test says whether
the two agree with each other, and with `data/paper/claims.toml`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from patchsae_lib.artefacts import DATA, ROOT, write_json

HEAD = "| claim of the paper | here | verdict |\n|---|---|---|\n"
WORDS = {"partly": "partly", "not": "not reproduced"}  # others as they are
RESULTS, README = DATA / "results.json", ROOT / "README.md"


def table(claims: Sequence[dict[str, Any]]) -> str:
    """Return claims as a table in markdown, in the order of their ids."""
    return HEAD + "".join(f"| {' | '.join(row(claim))} |\n" for claim in claims)


def row(claim: dict[str, Any]) -> tuple[str, str, str]:
    """Return the sentence, what was measured with its interval, and the verdict.

    >>> row({"claim": "a rises", "where": "Fig. 1", "measured": "2", "interval": [1, 3.14159],
    ...      "interval_of": "rise", "over": "pictures", "verdict": "not"})
    ('a rises (Fig. 1)', '2 (rise 1 to 3.14 over pictures)', 'not reproduced')
    """
    text = str(claim["measured"])
    if claim["interval"]:
        low, high = (f"{x:.3g}".replace("-", "−") for x in claim["interval"])
        words = claim.get("interval_of", ""), low, "to", high, "over", claim["over"]
        text += f" ({' '.join(filter(None, words))})"
    sentence = f"{claim['claim']} ({claim['where']})"
    text = re.sub(r"(?<=\d)%", " %", text)
    return sentence, text, WORDS.get(claim["verdict"], claim["verdict"])


def fill(text: str, claims: Sequence[dict[str, Any]]) -> str:
    """Return the README's text with the table of these claims in the place of its own."""
    found = re.search(re.escape(HEAD) + r"(?:\|.*\n)*", text)
    if found is None:
        raise ValueError("the README has no table of results")
    return text[: found.start()] + table(claims) + text[found.end() :]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.results", description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", default=ROOT / "runs" / "world")
    given = parser.parse_args(argv)
    claims = json.loads((given.run / "claims.json").read_text(encoding="utf-8"))
    write_json(RESULTS, claims)
    README.write_text(fill(README.read_text(encoding="utf-8"), claims), encoding="utf-8")


if __name__ == "__main__":
    main()
