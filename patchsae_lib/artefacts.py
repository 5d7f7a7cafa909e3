"""Files that a run leaves behind: written whole or not at all, and never mistaken for another's.

An artefact is one file in `runs/<profile>/` (tensors as safetensors, a table as parquet, anything
else as JSON) with a sidecar `<file>.meta.json` that holds its identity: the hashes of the weights
it was computed with, the pictures, the profile, and every constant that decides its content.
`load` refuses a file of another identity, and one that was cut short or changed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, is_dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from patchsae_lib import __version__

if TYPE_CHECKING:
    from torch import Tensor, nn

PACKAGE: Path = Path(__file__).resolve().parent
#: the repository, or, where the library is installed without it, the folder one stands in
ROOT: Path = PACKAGE.parent if (PACKAGE.parent / "notebooks").is_dir() else Path.cwd()
#: what ships: beside the library in the repository, and in it where it is installed from a wheel
DATA: Path = PACKAGE / "data" if (PACKAGE / "data").is_dir() else ROOT / "data"
VERDICTS = ("reproduced", "partly", "not", "not testable here")
CLAIM = "application/vnd.patchsae.claim+json"  # as which a notebook shows a claim
RULES = ("before", "after a look")  # at the data: when the rule of a verdict was fixed
UNWRITABLE = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS
HOST = platform.node()  # in the names of temporary folders
TRACE = "PATCHSAE_TRACE"  # a build's name for the file in which a notebook notes what it does

Reader = Callable[[Path], Any]


class Claim(dict[str, Any]):
    """A claim and its verdict. A notebook shows it as text, and the book as a card."""

    def __repr__(self) -> str:
        interval = " ({:.3g} to {:.3g})".format(*self["interval"]) if self["interval"] else ""
        lines = "{claim} ({where})", "Paper: {paper}", "Here: {measured}{0}: {verdict}", "{note}"
        return "\n".join(lines).format(interval, **self)

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        return {CLAIM: dict(self), "text/plain": repr(self)}


class ArtefactError(ValueError):
    """An artefact is missing, broken, or of another identity; the message says what to run."""


class AnotherRun(ValueError):
    """A checkpoint that is whole, but belongs to another run."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a path in a temporary folder; it replaces `path` when the block ends well.

    Raises `OSError` with the path if the disk is full or may not be written to.
    """
    path = Path(path)
    folder = path.with_name(f".{path.name}.{HOST}-{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(path.parent)
        folder.mkdir(exist_ok=True)
        yield folder / path.name
        os.replace(folder / path.name, path)
    except Exception as error:  # safetensors has its own for a full disk
        reasons = [x for x in map(os.strerror, UNWRITABLE) if x in str(error)]
        if not reasons:
            raise
        raise OSError(f"{path} cannot be written: {reasons[0]}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@cache  # what is killed later, the next process removes
def _remove_left(folder: Path) -> None:
    """Delete the temporary folders here of this machine's processes that are no more."""
    for path in folder.glob(f".*.{HOST}-*.tmp") if os.name == "posix" else ():
        with suppress(ValueError, OverflowError, PermissionError):
            try:
                os.kill(int(path.stem.rpartition("-")[2]), 0)  # only asks whether it is alive
            except ProcessLookupError:
                shutil.rmtree(path, ignore_errors=True)


def run_dir(profile_name: str) -> Path:
    """Return the folder of a profile's artefacts: `runs/<profile>/` in the repository (without
    it, where one stands), or below the folder that the variable PATCHSAE_RUNS names."""
    return Path(os.environ.get("PATCHSAE_RUNS") or ROOT / "runs") / profile_name


def short(path: Path) -> str:
    """Return a path as seen from the root of the repository."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def write_json(path: str | Path, obj: object) -> None:
    """Write `obj` as readable JSON, whole or not at all."""
    # default=float: numbers of numpy and torch
    text = json.dumps(obj, indent=1, ensure_ascii=False, allow_nan=False, default=float)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def config_hash(config: object) -> str:
    """Return the first 16 hex digits of the SHA-256 of a config, a dataclass or a mapping.

    >>> config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(plain(config), sort_keys=True).encode()).hexdigest()[:16]


def weights_hash(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """Return the first 16 hex digits of the SHA-256 of the names and values of weights."""
    import torch

    digest = hashlib.sha256()
    named: Mapping[str, Any] = weights if isinstance(weights, Mapping) else weights.state_dict()
    for name, tensor in named.items():
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def plain(config: object) -> dict[str, Any]:
    """Return a config as JSON holds it: tuples become lists, paths become strings."""
    if is_dataclass(config) and not isinstance(config, type):
        config = asdict(config)
    if not isinstance(config, Mapping):
        raise TypeError(f"a config is a dataclass or a mapping, not {type(config).__name__}")
    return json.loads(json.dumps(dict(config), default=str))


def difference(stored: Any, given: Any, name: str = "") -> str:
    """Say in which fields a stored config, "there", and a given one, "here", differ."""
    if isinstance(stored, dict) and isinstance(given, dict):
        keys = [key for key in sorted({*stored, *given}) if stored.get(key) != given.get(key)]
        pairs = ((stored.get(key), given.get(key), f"{name}.{key}") for key in keys)
        return "; ".join(difference(*pair) for pair in pairs)
    return f"{name.lstrip('.')}: {stored!r} there, {given!r} here"


def save(path: str | Path, obj: Any, identity: object) -> None:
    """Write an artefact and its sidecar.

    `obj` is a dict of tensors (`.safetensors`), a DataFrame (`.parquet`), what JSON can hold
    (`.json`), or anything with a method `save(path)`. `identity` is a dataclass or mapping with
    all that decides the content.
    """
    path = Path(path)
    with atomic_path(path) as temporary:
        _write(temporary, obj, path.suffix)
        digest = sha256(temporary)
    meta = {"config": plain(identity), "config_hash": config_hash(identity), "sha256": digest}
    write_json(_sidecar(path), meta | {"versions": _versions(), "git_commit": _git_commit()})


def load(path: str | Path, identity: object, *, made_by: str, read: Reader | None = None) -> Any:
    """Read an artefact as `save` was given it (tensors on the CPU), or with `read`.

    `made_by` is the notebook that writes it. Raises `ArtefactError`, which says what to run, if
    the file is missing, broken, or of another identity.
    """
    path = Path(path)
    name, again = short(path), f"run {made_by} again"
    if not path.is_file():
        raise ArtefactError(f"{name} is not there: run {made_by} first")
    try:
        meta = json.loads(_sidecar(path).read_text(encoding="utf-8"))
        digest, made_with = meta["sha256"], meta["config_hash"]
    except (OSError, ValueError, KeyError):
        raise ArtefactError(f"{name} has no readable sidecar: {again}") from None
    if sha256(path) != digest:
        raise ArtefactError(f"{name} is not the file its sidecar describes: {again}")
    if made_with != config_hash(identity):
        differ = difference(meta["config"], plain(identity))
        hashes = f"config {made_with}, this is {config_hash(identity)}"
        raise ArtefactError(f"{name} was made by {hashes} ({differ}): {again}")
    return (read or _read)(path)


def made_once(
    path: Path, identity: object, make: Callable[[], Any], read: Reader | None = None
) -> Any:
    """Read an artefact that any notebook may make, or make and write it."""
    with exclusive(path):
        try:
            return load(path, identity, made_by="this notebook", read=read)
        except ArtefactError:
            save(path, made := make(), identity)
            return made


def note(event: str, *about: Any) -> None:
    """Add an event to the trace of the build that runs this notebook, if one does."""
    if trace := os.environ.get(TRACE):
        with open(trace, "a", encoding="utf-8") as file:
            file.write(json.dumps([event, *about], default=float) + "\n")


def note_reading(path: Path, made_by: str) -> None:
    """Wait while a build has the notebook `made_by` still to run; note what is read, a path or a
    pattern."""
    if trace := os.environ.get(TRACE):
        if (pending := Path(trace).with_name(f"{made_by}.pending")).exists():
            note("waits", made_by)
        while pending.exists():
            time.sleep(0.1)
        note("reads", made_by, str(path))


def exclusive(path: Path) -> AbstractContextManager[Any]:
    """Let one notebook of a build at a time make an artefact: the next waits, and finds it."""
    if trace := os.environ.get(TRACE):
        return FileLock(Path(trace).with_name(f"{config_hash({'path': str(path)})}.lock"))
    return nullcontext()


def _write(path: Path, obj: Any, suffix: str) -> None:
    if suffix not in (".safetensors", ".parquet", ".json"):
        raise ValueError(f"an artefact is .safetensors, .parquet or .json, not {suffix!r}")
    if hasattr(obj, "save"):
        obj.save(path)
    elif suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({k: v.detach().cpu().contiguous() for k, v in obj.items()}, path)
    elif suffix == ".parquet":
        obj.to_parquet(path)
    else:
        write_json(path, obj)


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


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "open_clip_torch", "numpy")}
    return {"python": platform.python_version(), "patchsae_lib": __version__, **packages}


def _git_commit() -> str:
    """Return the commit of the code, "-dirty" if it was changed since, "" without a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def save_checkpoint(
    path: str | Path, run: Mapping[str, Any], tensors: Mapping[str, Tensor], **state: Any
) -> None:
    """Write all that a training needs to go on, as one safetensors file, whole or not at all.

    `run` is all that the result depends on, as JSON-able as `state`.
    """
    from safetensors.torch import save_file

    about = {key: json.dumps(value) for key, value in {"run": run, **state}.items()}
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(stored, temporary, about)


def read_checkpoint(
    path: str | Path, run: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors (on the CPU) and the state that `save_checkpoint` wrote for `run`.

    Raises `AnotherRun` for another run's checkpoint, and `ValueError` for one that is not whole.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        written_by = state.pop("run")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is not a whole checkpoint ({error!r}): delete it to start again"
        ) from error
    if written_by != plain(run):
        why = difference(written_by, plain(run))
        raise AnotherRun(f"{path} is another run's checkpoint ({why})")
    return tensors, state


def set_aside(path: str | Path, why: object) -> None:
    """Rename a checkpoint to `<name>.old`, and warn."""
    old = Path(path).replace(Path(path).with_name(f"{Path(path).name}.old"))
    warnings.warn(f"{why}: kept as {old.name}, starting again", stacklevel=3)


def resume(
    path: Path | None, run: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """`read_checkpoint`, or None where there is no file or another run's, which is set aside."""
    if path is None or not path.exists():
        return None
    try:
        return read_checkpoint(path, run)
    except AnotherRun as error:
        set_aside(path, error)
        return None


def record_claim(
    folder: str | Path,
    id: str,
    measured: str,
    holds: bool | None,
    partly: bool = False,
    interval: Sequence[float] | None = None,
    p: float | None = None,
    detectable: str = "",
    **values: Any,
) -> Claim:
    """Put a claim of `data/paper/claims.toml` and our verdict into `<folder>/claims.json`.

    `holds` and `partly` say whether the claim's rule, or a weaker one, is met (None: not testable
    here). `interval` is an `Interval`, whose unit is kept with it, or (low, high); both NaN: none.
    `p` is the p-value of the rule's test, NaN: none; `detectable` says the smallest effect that
    the data could show, with its unit. `values` fill in the claim's note. Returns the claim.
    """
    claims = tomllib.loads((DATA / "paper" / "claims.toml").read_text(encoding="utf-8"))
    if id not in claims:
        raise ValueError(f"no claim {id!r} in data/paper/claims.toml, but {', '.join(claims)}")
    if (rule := claims[id].get("rule", RULES[0])) not in RULES:
        raise ValueError(f"claim {id}: a rule is fixed {' or '.join(RULES)}, not {rule!r}")
    p = None if p is None or math.isnan(p) else p
    if p is not None and not 0 <= p <= 1:
        raise ValueError(f"claim {id}: p = {p} is not a p-value")
    claim = Claim(
        {"id": id, **claims[id], "measured": measured, "interval": _bounds(id, interval)}
    )
    claim |= {"over": getattr(interval, "over", ""), "p": p, "detectable": detectable}
    claim["note"] = claim["note"].format(**values)
    claim["verdict"] = VERDICTS[3 if holds is None else 0 if holds else 1 if partly else 2]
    path = Path(folder) / "claims.json"
    with exclusive(path):
        recorded = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        kept = [c for c in recorded if c["id"] != id]
        write_json(path, sorted([*kept, claim], key=lambda c: c["id"]))
    note("claims", claim)
    return claim


def _bounds(id: str, interval: Sequence[float] | None) -> list[float] | None:
    """Return [low, high] of an `Interval` or of a pair; None for none, and for NaN."""
    low, high = (math.nan, math.nan) if interval is None else map(float, interval[-2:])
    if math.isnan(low) and math.isnan(high):
        return None
    if not low <= high:
        raise ValueError(f"claim {id}: interval {interval} is not (low, high)")
    return [low, high]
