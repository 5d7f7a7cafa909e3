"""Files on the Hugging Face Hub: `hf://owner/repo[/folder or file][@revision]`."""

from __future__ import annotations

import glob
import re
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
from huggingface_hub.errors import DryRunError, HTTPError
from safetensors import SafetensorError, safe_open

from patchsae_lib.interop.files import CONFIGS, WEIGHTS, one_line

ADDRESS = re.compile(r"hf://([^/@]+/[^/@]+)(?:/([^@]*?))?/?(?:@(.+))?")


def parse(address: str) -> tuple[str, str, str | None]:
    """Split an address into the repository, the path in it ("": all) and the revision, if any.

    >>> parse("hf://me/saes/block-2@v1"), parse("hf://me/saes")
    (('me/saes', 'block-2', 'v1'), ('me/saes', '', None))

    Raises `ValueError` for an address of another form.
    """
    if not (match := ADDRESS.fullmatch(address)):
        raise ValueError(f"{address!r} is not hf://owner/repo[/folder or file][@revision]")
    return match[1], match[2] or "", match[3]


def local_path(path: str | Path) -> Path:
    """Return a path, with `~` as the user's home, and of an `hf://` address that of a local copy.

    Raises `ValueError` for an address elsewhere, and for none.
    """
    if isinstance(path, str) and path.startswith("hf://"):
        return fetch(path)
    if re.match(r"\w\w+:/", str(path)) or not str(path):
        raise ValueError(
            f"{str(path)!r} is no path: download the file, or give hf://owner/repo/file"
        )
    return Path(path).expanduser()


def fetch(address: str) -> Path:
    """Download a file and what describes it, or a folder with an SAE; return the local path.

    What is downloaded is printed, with its size: only what the Hugging Face cache does not have,
    and of a folder only files with the names that SAEs have. Without a network the cache is used.

    Raises `ValueError` for a malformed address, `FileNotFoundError` if there is no such file or it
    cannot be reached.
    """
    repo, inside, revision = parse(address)
    patterns = _patterns(inside)
    try:
        _announce(repo, revision, patterns)
        snapshot = snapshot_download(repo, revision=revision, allow_patterns=patterns)
    except (OSError, HTTPError) as error:
        reason = one_line(error)
        raise FileNotFoundError(f"{address} is neither cached nor to be had: {reason}") from error
    local = Path(snapshot) / inside
    if not local.is_file() and not any((local / name).is_file() for name in WEIGHTS):
        raise FileNotFoundError(
            f"{address} has no {', '.join(WEIGHTS)}: give the path of a file in {repo}"
        )
    return local


def push(source: Path, address: str) -> str:
    """Upload a file of ours, or a folder for SAELens, as one commit; return its address.

    A missing repository is created, private. The token is that of `hf auth login`.

    Raises `ValueError` for a malformed address or another file, `OSError` if the Hub refuses.
    """
    repo, inside, revision = parse(address)
    files = [source] if source.is_file() else [source / "cfg.json", source / WEIGHTS[0]]
    if source.is_file() and not _is_ours(source):
        raise ValueError(f"{source} is no file of ours: `convert` it, or give SAELens' folder")
    sizes = ", ".join(f"{file.name} ({file.stat().st_size / 1e6:.1f} MB)" for file in files)
    print(f"uploading to {repo}: {sizes}")
    adds = [CommitOperationAdd(str(PurePosixPath(inside) / f.name), str(f)) for f in files]
    message = f"Upload {', '.join(f.name for f in files)}"
    try:
        HfApi().create_repo(repo, private=True, exist_ok=True)
        commit = HfApi().create_commit(repo, adds, commit_message=message, revision=revision)
    except HTTPError as error:
        raise OSError(f"{address} was not uploaded: {one_line(error)}") from error
    return str(commit.commit_url)


def _patterns(inside: str) -> list[str]:
    """List the paths to download for a path in a repository, which may be a file or a folder."""
    path = PurePosixPath(inside)
    paths = [path, *(path / name for name in (*WEIGHTS, *CONFIGS))]
    if inside:
        beside = (*WEIGHTS, *CONFIGS) if inside.endswith(".json") else CONFIGS
        paths += [path.parent / name for name in beside]
    return [glob.escape(str(path)) for path in paths]


def _announce(repo: str, revision: str | None, patterns: list[str]) -> None:
    """Print what the cache does not have, with its size."""
    try:
        files = snapshot_download(repo, revision=revision, allow_patterns=patterns, dry_run=True)
    except DryRunError:  # the Hub cannot be reached: perhaps the cache has it
        return
    if new := sorted((f for f in files if f.will_download), key=lambda f: f.filename):
        sizes = ", ".join(f"{f.filename} ({(f.file_size or 0) / 1e6:.1f} MB)" for f in new)
        print(f"downloading from {repo}: {sizes}")


def _is_ours(path: Path) -> bool:
    """Return whether a file is no pickle and alone describes its SAE."""
    try:
        with safe_open(path, framework="pt") as file:
            return "activation" in (file.metadata() or {})
    except SafetensorError:
        return False
