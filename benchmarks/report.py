"""The table of `make bench`: python benchmarks/report.py results.json [data/bench.md]

With a second name that file is written, too: the table, and what it means for ImageNet. It is what
the book's page on cost shows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TOKENS, WIDTH = 197, 768  # of a picture, in ViT-B/16
IMAGENET, SEEN = 1_281_167, 2_621_440  # its training pictures; those the paper trains on
HOUR, DAY = 3600, 86_400


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
    """Markdown, a row a way: its median, how many times as fast as the first of its group, and of
    that either the bound or the share of the matrix products alone."""
    lines = ["| what | way | median | rate | times as fast | limit |", "|---|---|---|---|---|---|"]
    first: dict[str, float] = {}
    before = ""
    products = {
        (one["extra_info"]["what"], one["extra_info"]["way"].split(", ")[1]): one
        for one in results["benchmarks"]
        if one["extra_info"]["way"].startswith("five matrix products")
    }
    for one in sorted(results["benchmarks"], key=lambda one: one["extra_info"]["what"]):
        info, median = one["extra_info"], one["stats"]["median"]
        ratio = first.setdefault(info["what"], median) / median
        bound = f"{info['bound']:.1f}" if info["bound"] and ratio != 1 else ""
        for (group, dtype), limit in products.items():
            if info["what"] == group and info["way"].startswith(f"ours, {dtype}"):
                bound = f"{limit['stats']['median'] / median:.0%} of {dtype}'s products"
        pace = info["count"] / median
        rate = f"{pace:,.0f}" if pace > 99 else f"{pace:.3g}"
        rate = f"{rate} {info['unit']}/s" if info["count"] else ""
        what = "" if info["what"] == before else info["what"]  # once for all its rows
        before = info["what"]
        faster = f"{ratio:.2f}"
        if info["bound"] and ratio > info["bound"]:  # which cannot be: the run was disturbed
            faster += ", above its limit: no result"
        cells = [what, info["way"], f"{median:.3g} s", rate, faster, bound]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", machine(results)])


def machine(results: dict[str, Any]) -> str:
    """What it was measured on, and when."""
    cpu, when = results["machine_info"]["cpu"], results["datetime"][:10]
    said = f"{cpu.get('brand_raw', 'CPU')}, {cpu.get('count')} cores, {when}."
    return f"{said} {results.get('note', '')}".rstrip()


def cost(results: dict[str, Any]) -> str:
    """What ImageNet takes at the measured rates: rates × counts, as Markdown."""
    rates = {
        (info["what"], info["way"]): info["count"] / one["stats"]["median"]
        for one in results["benchmarks"]
        if (info := one["extra_info"])["count"]
    }

    def rate(what: str, *ways: str) -> float:
        """Of the first of the ways that has been measured."""
        there = [(b, r) for (a, b), r in rates.items() if what in a]
        return next(r for way in ways for b, r in there if b.startswith(way))

    trained = "ours, bfloat16, 150", "ours, float32, 150"  # not everywhere is there bfloat16
    step, clip_step = rate("→ 49,152", *trained), rate("→ 24,576", *trained)
    first, scan = rate("scan, ViT-B/16", "first half"), rate("scan, ViT-B/16", "scan")
    quick = rate("scan, ViT-B/16", "first half, bfloat16", "first half")
    disk = TOKENS * WIDTH * 2  # bfloat16
    parameters = 2 * WIDTH * 64 * WIDTH * 4
    seen = SEEN * TOKENS
    rows = [
        ("`paper`: tokens of ImageNet", f"{IMAGENET:,} pictures", IMAGENET / first, IMAGENET),
        ("`paper`: training, 49,152 latents", f"{seen:,} tokens", seen / step, 0),
        ("`paper`: scan of ImageNet", f"{IMAGENET:,} pictures", IMAGENET / scan, 0),
        ("`clip`: tokens", "50,000 pictures", 50_000 / quick, 50_000),
        ("`clip`: training (as if 24,576 latents)", "40,960,000 tokens", 4.096e7 / clip_step, 0),
        ("`clip` with 1,000 pictures: tokens", "1,000 pictures", 1_000 / quick, 1_000),
        ("`clip` with 1,000 pictures: training", "1,970,000 tokens", 1.97e6 / clip_step, 0),
    ]
    lines = ["| step | how much | time | disk |", "|---|---|---|---|"]
    for what, much, seconds, pictures in rows:
        time = f"{seconds / DAY:.1f} days" if seconds > DAY else f"{seconds / HOUR:.1f} h"
        time = time if seconds > HOUR else f"{seconds / 60:.0f} min"
        size = f"{disk * pictures / 1e9:,.1f} GB" if pictures else ""
        lines.append(f"| {what} | {much} | {time} | {size} |")
    operations = seen * 5 * 2 * WIDTH * 64 * WIDTH
    lines += [
        "",
        f"Memory of the training at 49,152 latents: weights, gradients and Adam's two moments, "
        f"{4 * parameters / 1e9:.1f} GB, and some chunks of latents; of the scan the weights. The "
        f"training's {operations:.1e} operations (five dense products) are what a GPU is for.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    print(table(found))
    for name in sys.argv[2:]:
        said = f"{cost(found)}\n\n## Everything measured\n\n{table(found)}\n"
        Path(name).write_text(said, "utf-8")
