"""What adapts the small CLIP, in `data/prompts/` and `data/lora/`: python -m recipes.prompts.

Prompts for every task, of several few-shot seeds and with controls, and LoRA's maps of one seed.
Those that exist already are kept; notebook 5 trains one of them before the reader's eyes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from patchsae_lib.artefacts import DATA
from patchsae_lib.study import CONTROLS, Study


def make(study: Study, out: Path) -> None:
    """Train the prompts of a study's tasks that `out` does not have yet, and the maps that the
    folder `lora` beside it does not have."""
    for spec in study.task_specs:
        study.lora(spec, folders=[out.with_name("lora")])
    seeds = [(seed, "") for seed in range(study.profile.seeds)]
    for seed, control in [*((0, control) for control in CONTROLS[1:]), *seeds]:
        for spec in study.task_specs:
            study.prompts(spec, seed, control, folders=[out])


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.prompts", description=__doc__)
    parser.add_argument("--out", type=Path, default=DATA / "prompts")
    given = parser.parse_args(argv)
    make(Study("world"), given.out)


if __name__ == "__main__":
    main()
