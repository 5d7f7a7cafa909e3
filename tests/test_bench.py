"""The table of `make bench` says what was measured, and what cannot have been."""

import importlib.util

from patchsae_lib.artefacts import ROOT

spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks" / "report.py")
report = importlib.util.module_from_spec(spec)
spec.loader.exec_module(report)


MACHINE = {"machine_info": {"cpu": {"count": 2}}, "datetime": "2026-11-27T10:00"}


def measured(way: str, median: float, bound: float | None = None, count: int = 0) -> dict:
    info = {"what": "masks", "way": way, "bound": bound, "count": count, "unit": "pictures"}
    return {"extra_info": info, "stats": {"median": median}}


def test_a_ratio_above_what_can_be_is_no_result() -> None:
    ways = [measured("plain", 30.0), measured("ours", 2.0, 22.9), measured("other", 1.0, 22.9)]
    rows = report.table({"benchmarks": ways, **MACHINE}).splitlines()[2:5]
    assert rows == [
        "| masks | plain | 30 s |  | 1.00 |  |",
        "|  | ours | 2 s |  | 15.00 | 22.9 |",
        "|  | other | 1 s |  | 30.00, above its limit: no result | 22.9 |",
    ]


def test_rates_are_of_what_was_counted() -> None:
    way = measured("ours", 4.0, count=1000)
    row = report.table({"benchmarks": [way], **MACHINE}).splitlines()[2]
    assert row == "| masks | ours | 4 s | 250 pictures/s | 1.00 |  |"
