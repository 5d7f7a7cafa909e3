"""The commands: they plan, check, train, scan, convert and upload without a notebook."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# module, function and purpose of each; the module is imported when the command is given
COMMANDS = {
    "plan": ("plan", "main", "say what a profile fetches, keeps and computes"),
    "check": ("check", "main", "try whether weights, pictures and names go together"),
    "train": ("jobs", "train", "train an autoencoder, also under torchrun"),
    "scan": ("jobs", "scan", "count what activates every latent, also under torchrun"),
    "convert": ("interop.convert", "main", "convert an autoencoder to another format"),
    "push": ("interop.convert", "push", "upload an autoencoder to the Hugging Face Hub"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 1, and one line on stderr, if it fails."""
    parser = argparse.ArgumentParser(prog="python -m patchsae_lib", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, (*_, purpose) in COMMANDS.items():
        subparsers.add_parser(name, help=purpose, add_help=False)
    given, arguments = parser.parse_known_args(argv)
    module, function, _ = COMMANDS[given.command]
    try:
        getattr(importlib.import_module(f"patchsae_lib.{module}"), function)(arguments)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
