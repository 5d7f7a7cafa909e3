"""The command line: `python -m patchsae_lib book`, and what else runs without a notebook."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from patchsae_lib.notebooks import NotebookError, make_book, short

# Loaded when asked for: torch takes seconds.
SCRIPTS = {
    "train": ("jobs", "train", "train an autoencoder, also under torchrun, from shards of tokens"),
    "scan": ("jobs", "scan", "one pass over pictures, also under torchrun: every latent's table"),
    "pretrain": ("pretrain", "main", "train the small CLIP again"),
    "card": ("card", "main", "measure the small CLIP and write its card"),
    "sae": ("shipped", "main", "train the autoencoder that ships, and write its card"),
    "prompts": ("shipped", "prompts", "train the prompts that ship"),
    "convert": ("convert", "main", "write an autoencoder of any format in ours or SAELens'"),
    "push": ("convert", "push", "upload an autoencoder to the Hugging Face Hub"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m patchsae_lib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    book = commands.add_parser("book", help="run the notebooks and build the book")
    book.add_argument("--profile", default="world", help="smoke, world, clip, paper or a .toml")
    book.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters",
        help="a parameter of the notebooks, e.g. -p images folder:/my/photos",
    )  # fmt: skip
    for name, (*_, what) in SCRIPTS.items():
        commands.add_parser(name, help=what, add_help=False)
    options, rest = parser.parse_known_args(argv)
    if options.command in SCRIPTS:
        module, function, _ = SCRIPTS[options.command]
        try:
            getattr(importlib.import_module(f"patchsae_lib.{module}"), function)(rest)
        except (ValueError, OSError, FloatingPointError) as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    if rest:
        book.error(f"unknown: {' '.join(rest)}")
    return run_book(options.profile, dict(options.parameters))


def run_book(profile: str, parameters: dict[str, str]) -> int:
    """`make book`: everything from the notebooks to the pages, or one line that says why not."""
    try:
        index = make_book(profile, parameters)
    except (ValueError, NotebookError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"the book: {short(index)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
