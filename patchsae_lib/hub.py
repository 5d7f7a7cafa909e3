"""Files on the Hugging Face Hub: `hf://owner/repo[/folder or file][@revision]`."""

from __future__ import annotations

import glob
import re
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
from huggingface_hub.errors import DryRunError, HTTPError
from safetensors import SafetensorError, safe_open

from patchsae_lib.formats import CONFIGS, WEIGHTS

ADDRESS = re.compile(r"hf://([^/@]+/[^/@]+)(?:/([^@]*?))?/?(?:@(.+))?")


def parse(address: str) -> tuple[str, str, str | None]:
    """(repository, path in it or "", revision or None).

    >>> parse("hf://me/saes/block-2@v1"), parse("hf://me/saes")
    (('me/saes', 'block-2', 'v1'), ('me/saes', '', None))

    Raises `ValueError` for anything else than the form above.
    """
    if not (found := ADDRESS.fullmatch(address)):
        raise ValueError(f"{address!r} is not hf://owner/repo[/folder or file][@revision]")
    return found[1], found[2] or "", found[3]


def fetch(address: str) -> Path:
    """The local copy of a file, with what describes it beside, or of a folder with an SAE.

    Says what is downloaded and how large it is, and downloads only what the Hugging Face cache
    does not have; of a folder, only files of the names that SAEs have. Without a network the
    cache is enough.

    Raises `ValueError` for a malformed address, `FileNotFoundError` if nothing is there or it
    cannot be reached.
    """
    repo, inside, revision = parse(address)
    beside = (*WEIGHTS, *CONFIGS) if inside.endswith(".json") else CONFIGS
    path = PurePosixPath(inside)
    wanted = [path, *(path / name for name in (*WEIGHTS, *CONFIGS))]
    wanted += [path.parent / name for name in beside] if inside else []
    names = [glob.escape(str(name)) for name in wanted]
    try:
        try:
            files = snapshot_download(repo, revision=revision, allow_patterns=names, dry_run=True)
            if new := sorted((f for f in files if f.will_download), key=lambda f: f.filename):
                what = ", ".join(f"{f.filename} ({(f.file_size or 0) / 1e6:.1f} MB)" for f in new)
                print(f"downloading from {repo}: {what}")
        except DryRunError:  # the hub cannot be reached: perhaps the cache has it
            pass
        local = Path(snapshot_download(repo, revision=revision, allow_patterns=names)) / inside
    except (OSError, HTTPError) as error:
        raise FileNotFoundError(f"{address} is neither cached nor to be had: {error}") from error
    if not local.is_file() and not any((local / name).is_file() for name in WEIGHTS):
        raise FileNotFoundError(
            f"{address} has no {', '.join(WEIGHTS)}: give the path of a file in {repo}"
        )
    return local


def push(source: Path, address: str) -> str:
    """Upload a file of ours, or SAELens' folder, as one commit; the address of that commit.

    A repository that is not there is made, private. The token is that of `hf auth login`.

    Raises `ValueError` for a malformed address or another file, `OSError` if the hub refuses.
    """
    repo, inside, revision = parse(address)
    files = [source] if source.is_file() else [source / "cfg.json", source / WEIGHTS[0]]
    if source.is_file() and not _ours(source):
        raise ValueError(f"{source} is no file of ours: `convert` it, or give SAELens' folder")
    sizes = ", ".join(f"{file.name} ({file.stat().st_size / 1e6:.1f} MB)" for file in files)
    print(f"uploading to {repo}: {sizes}")
    adds = [CommitOperationAdd(str(PurePosixPath(inside) / f.name), str(f)) for f in files]
    message = f"Upload {', '.join(f.name for f in files)}"
    try:
        HfApi().create_repo(repo, private=True, exist_ok=True)
        commit = HfApi().create_commit(repo, adds, commit_message=message, revision=revision)
    except HTTPError as error:
        raise OSError(f"{address} was not uploaded: {error}") from error
    return str(commit.commit_url)


def _ours(path: Path) -> bool:
    """Whether all there is to know about the SAE is in that one file, and it is no pickle."""
    try:
        with safe_open(path, framework="pt") as file:
            return "activation" in (file.metadata() or {})
    except SafetensorError:
        return False
