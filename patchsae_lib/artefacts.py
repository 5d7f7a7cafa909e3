"""Files that a run leaves behind: written whole or not at all, and never mistaken for another's.

An artefact is one file in `runs/<profile>/` (tensors as safetensors, a table as parquet, anything
else as JSON) with a sidecar `<file>.meta.json` that says what made it. `load` refuses a file that
another config made, that was cut short, or whose inputs have changed since.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from patchsae_lib import __version__

ROOT = Path(__file__).resolve().parents[1]
VERDICTS = ("reproduced", "partly", "not", "not testable here")


class ArtefactError(ValueError):
    """An artefact is missing, broken, or somebody else's; the message says what to run."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, obj: object) -> None:
    """Write `obj` as readable JSON, whole or not at all."""
    # default=float: numbers of numpy and torch
    text = json.dumps(obj, indent=1, ensure_ascii=False, allow_nan=False, default=float)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def run_dir(profile_name: str) -> Path:
    """Where the run of a profile keeps its artefacts: `runs/<profile>/` in the repository, or
    below the folder that the environment variable PATCHSAE_RUNS names."""
    return Path(os.environ.get("PATCHSAE_RUNS") or ROOT / "runs") / profile_name


def config_hash(config: object) -> str:
    """The first 16 hex digits of the SHA-256 of a config, a dataclass or a mapping.

    >>> config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(_plain(config), sort_keys=True).encode()).hexdigest()[:16]


def save(
    path: str | Path,
    obj: Any,
    config: object,
    *,
    inputs: Iterable[str | Path] = (),
    seed: int | None = None,
) -> None:
    """Write an artefact and its sidecar.

    `obj` is a dict of tensors (`.safetensors`), a DataFrame (`.parquet`) or what JSON can hold
    (`.json`); `config` a dataclass or mapping with all that decides its content; `inputs` are the
    artefacts it was made from.
    """
    path = Path(path)
    made_from = {os.path.relpath(p, path.parent): _sha256(Path(p)) for p in inputs}
    with atomic_path(path) as temporary:
        _write(temporary, obj, path.suffix)
        digest = _sha256(temporary)
    meta = {"config": _plain(config), "config_hash": config_hash(config), "seed": seed}
    meta |= {"versions": _versions(), "git_commit": _git_commit()}
    meta |= {"inputs": made_from, "sha256": digest}
    write_json(_sidecar(path), meta)


def load(path: str | Path, config: object, *, made_by: str) -> Any:
    """Read an artefact back as `save` was given it (tensors on the CPU).

    `made_by` is the notebook that writes it, for the message of the `ArtefactError` that is raised
    when the file is missing, broken, made by another config, or older than its inputs.
    """
    path = Path(path)
    name = os.path.relpath(path, ROOT) if path.is_relative_to(ROOT) else str(path)
    again = f"run {made_by} again"
    if not path.is_file():
        raise ArtefactError(f"{name} is not there: run {made_by} first")
    try:
        meta = json.loads(_sidecar(path).read_text(encoding="utf-8"))
        digest, made_with = meta["sha256"], meta["config_hash"]
    except (OSError, ValueError, KeyError):
        raise ArtefactError(f"{name} has no readable sidecar: {again}") from None
    if _sha256(path) != digest:
        raise ArtefactError(f"{name} is not the file its sidecar describes: {again}")
    if made_with != config_hash(config):
        differ = _difference(meta["config"], _plain(config))
        both = f"config {made_with}, this is {config_hash(config)}"
        raise ArtefactError(f"{name} was made by {both} ({differ}): {again}")
    for source, was in meta["inputs"].items():
        if (path.parent / source).is_file() and _sha256(path.parent / source) != was:
            raise ArtefactError(f"{name} was made from another {source}: {again}")
    return _read(path)


def record_claim(
    folder: str | Path,
    *,
    id: str,
    where: str,
    paper: str | float,
    measured: str | float,
    verdict: str,
    interval: tuple[float, float] | None = None,
    note: str = "",
    notebook: str = "",
) -> None:
    """Put one claim of the paper and our verdict into `<folder>/claims.json`, by its `id`.

    `where` is a place in the paper ("Fig. 3"), `interval` (low, high) over seeds or pictures (both
    NaN: there is none), `verdict` one of `VERDICTS`, `notebook` ("1_training") the page with the
    evidence.
    """
    if verdict not in VERDICTS:
        raise ValueError(f"claim {id}: verdict {verdict!r} is none of {', '.join(VERDICTS)}")
    if interval is not None and all(map(math.isnan, interval)):
        interval = None
    if interval is not None and not interval[0] <= interval[1]:
        raise ValueError(f"claim {id}: interval {interval} is not (low, high)")
    path = Path(folder) / "claims.json"
    claims = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    claim = dict(id=id, where=where, paper=paper, measured=measured, interval=interval)
    claim |= dict(verdict=verdict, note=note, notebook=notebook)
    others = [c for c in claims if c["id"] != id]
    write_json(path, sorted([*others, claim], key=lambda c: c["id"]))


def verdict(reproduced: bool, partly: bool = False) -> str:
    """The word for a claim: `reproduced` if its rule is met, else `partly` if a weaker one is.

    >>> verdict(0.93 > 0.9), verdict(0.85 > 0.9, partly=0.85 > 0.8)
    ('reproduced', 'partly')
    """
    return VERDICTS[0] if reproduced else VERDICTS[1] if partly else VERDICTS[2]


def _plain(config: object) -> dict[str, Any]:
    """The config as JSON would hold it (tuples become lists)."""
    if is_dataclass(config) and not isinstance(config, type):
        config = asdict(config)
    if not isinstance(config, Mapping):
        raise TypeError(f"a config is a dataclass or a mapping, not {type(config).__name__}")
    return json.loads(json.dumps(dict(config), default=str))


def _difference(there: Any, here: Any, name: str = "") -> str:
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [k for k in sorted({*there, *here}) if there.get(k) != here.get(k)]
        return "; ".join(_difference(there.get(k), here.get(k), f"{name}.{k}") for k in keys)
    return f"{name.lstrip('.')}: {there!r} there, {here!r} here"


def _write(path: Path, obj: Any, suffix: str) -> None:
    if suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({k: v.detach().cpu().contiguous() for k, v in obj.items()}, path)
    elif suffix == ".parquet":
        obj.to_parquet(path)
    elif suffix == ".json":
        write_json(path, obj)
    else:
        raise ValueError(f"an artefact is .safetensors, .parquet or .json, not {suffix!r}")


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix == ".parquet":
        import pandas as pd

        return pd.read_parquet(path)
    return json.loads(path.read_text(encoding="utf-8"))


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.meta.json")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "open_clip_torch", "numpy")}
    return {"python": platform.python_version(), "patchsae_lib": __version__, **packages}


def _git_commit() -> str:
    """The commit of the code, "-dirty" if it was changed since, "" outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""
