"""The table of `make bench`: python benchmarks/report.py results.json"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def against(
    benchmark: Any,
    what: str,
    way: str,
    bound: float | None = None,
    count: int = 0,
    unit: str = "",
) -> None:
    """Note what a benchmark measures: ways of doing the same `what` are compared with the first,
    `bound` is how many times as fast the operations that cannot be saved allow, and `count` things
    of a `unit` are done in a round."""
    benchmark.group = what
    benchmark.extra_info |= {
        "what": what, "way": way, "bound": bound, "count": count, "unit": unit,
    }  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """Markdown, a row a way: its median, and how many times as fast as the first of its group."""
    lines = ["| what | way | median | rate | times as fast | bound |", "|---|---|---|---|---|---|"]
    first: dict[str, float] = {}
    for one in sorted(results["benchmarks"], key=lambda one: one["extra_info"]["what"]):
        info, median = one["extra_info"], one["stats"]["median"]
        ratio = first.setdefault(info["what"], median) / median
        bound = f"{info['bound']:.1f}" if info["bound"] and ratio != 1 else ""
        rate = f"{info['count'] / median:,.0f} {info['unit']}/s" if info["count"] else ""
        cells = [info["what"], info["way"], f"{median:.3g} s", rate, f"{ratio:.2f}", bound]
        lines.append(f"| {' | '.join(cells)} |")
    cpu = results["machine_info"]["cpu"]
    return "\n".join([*lines, "", f"{cpu.get('brand_raw', 'CPU')}, {cpu.get('count')} cores"])


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text("utf-8"))))
