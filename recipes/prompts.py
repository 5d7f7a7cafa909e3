"""What adapts the small CLIP, in `data/prompts/` and `data/lora/`: python -m recipes.prompts.

Prompts for every task, of several few-shot seeds and with controls, and LoRA's maps of one seed.
Those that exist already are kept; notebook 5 trains one of them before the reader's eyes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from patchsae_lib.artefacts import DATA
from patchsae_lib.study import CONTROLS, Study


def make(study: Study, out: Path, tasks: Sequence[str]) -> None:
    """Train the prompts of tasks of a study that `out` does not have yet, and the maps that the
    folder `lora` beside it does not have."""
    for spec in tasks:
        study.lora(spec, folders=[out.with_name("lora")])
    seeds = [(seed, "") for seed in range(study.profile.seeds)]
    for seed, control in [*((0, control) for control in CONTROLS[1:]), *seeds]:
        for spec in tasks:
            study.prompts(spec, seed, control, folders=[out])


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.prompts", description=__doc__)
    parser.add_argument("--out", type=Path, default=DATA / "prompts")
    parser.add_argument("--task", action="append", help="one of the tasks only: world:land")
    given, study = parser.parse_args(argv), Study("world")
    make(study, given.out, given.task or study.task_specs)


if __name__ == "__main__":
    main()
