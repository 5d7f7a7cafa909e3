"""Autoencoders from one format into another, and onto the Hugging Face Hub.

python -m patchsae_lib convert sae_in_any_format target.safetensors
python -m patchsae_lib convert hf://owner/repo/folder a_folder_for_SAELens
python -m patchsae_lib push a_folder_for_SAELens hf://owner/repo/folder
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from patchsae_lib.interop import hub
from patchsae_lib.interop.autoencoders import load_sae, read_config, save_sae
from patchsae_lib.interop.saelens import write_saelens


def main(argv: list[str] | None = None) -> None:
    """Run `python -m patchsae_lib convert`."""
    parser = _parser("convert")
    parser.add_argument(
        "source",
        help="a file or folder of ours, the authors', Prisma, SAELens or sparsify; or "
        "hf://owner/repo[/folder or file][@revision]",
    )
    parser.add_argument("target", type=Path, help="a .safetensors file, or a folder for SAELens")
    parser.add_argument(
        "--to", choices=("ours", "saelens"), help="instead of what the target's name says"
    )
    given = parser.parse_args(argv)
    sae = load_sae(given.source)
    config = json.loads(json.dumps(read_config(given.source), default=str))  # a dtype is no JSON
    is_file = given.target.suffix == ".safetensors"
    if (given.to or ("ours" if is_file else "saelens")) == "ours":
        save_sae(given.target, sae, config)
    else:
        write_saelens(given.target, sae, config)
    print(f"{given.target}: {sae.d_sae} latents of width {sae.d_vit}, {sae.activation}")


def push(argv: list[str] | None = None) -> None:
    """Run `python -m patchsae_lib push`."""
    parser = _parser("push")
    parser.add_argument("source", type=Path, help="what `convert` has written")
    parser.add_argument("target", help="hf://owner/repo[/folder][@branch]")
    given = parser.parse_args(argv)
    load_sae(given.source)  # what cannot be read is not uploaded
    print(hub.push(given.source, given.target))


def _parser(command: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"python -m patchsae_lib {command}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
