"""Files with weights: which one of a folder, of what kind, and whether it holds what it should."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from patchsae_lib import distributed

WEIGHTS = ("sae_weights.safetensors", "sae.safetensors", "weights.pt")  # SAELens, sparsify, Prisma
CONFIGS = ("cfg.json", "config.json", "activation_scaler.json")
WRAPPERS = re.compile(r"((module|_orig_mod|sae)\.)+")  # DataParallel, torch.compile, a trainer
T = TypeVar("T")

# What a file is that begins like this, and what to do with it.
FOREIGN = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the weights: run `git lfs pull`",
    b"<": "is a web page: download the file itself, on the Hub from .../resolve/main/...",
    b"\x80\x02\x8a\x0al\xfc\x9cF\xf9": "is in torch's format before 1.6: read it with "
    "torch.load(..., weights_only=True), and torch.save it again",
    b"\x80": "is a bare pickle: write its tensors with safetensors or torch.save",
    b"\x93NUMPY": "is an array of NumPy: write the tensors by name with safetensors",
    b"\x89HDF": "is HDF5: write its tensors with safetensors",
    b"\x1f\x8b": "is packed with gzip: unpack it first",
}


def weights_file(path: Path) -> Path:
    """Find the file with the weights, given the file, its folder, or the JSON beside it.

    Raises `ValueError` if it is not clear which file of the folder that is.
    """
    if not path.exists() or (path.is_file() and not _is_json(path)):
        return path
    folder = path if path.is_dir() else path.parent
    names = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".pt"))
    candidates = [name for name in names if name in WEIGHTS] or names
    if len(candidates) != 1:
        raise ValueError(
            f"{folder} has {listed(candidates) or 'no .safetensors or .pt file'}: "
            "give the path of one file with weights"
        )
    return folder / candidates[0]


def _is_json(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    return start[:1] == b"{" and b"\0" not in start  # a safetensors file begins with its length


def read_by_content(path: Path, readers: Mapping[str, Callable[[Path], T]], expected: str) -> T:
    """Read a file with `readers["torch"]` or `readers["safetensors"]`, whatever its name is.

    Raises `ValueError` if it is neither or damaged; `expected` says what it should be.
    """
    try:
        return readers[_kind(path, expected)](path)
    except (
        SafetensorError, zipfile.BadZipFile, RuntimeError, EOFError, OSError,
        KeyError, json.JSONDecodeError,  # of its metadata
    ) as error:  # fmt: skip
        raise ValueError(
            f"{path} is damaged or cut short ({one_line(error)}): copy or train it again"
        ) from error


def _kind(path: Path, expected: str) -> str:
    with path.open("rb") as file:
        start = file.read(64)
    if start[8:9] == b"{":
        return "safetensors"
    if start[:2] == b"PK":
        names = zipfile.ZipFile(path).namelist()
        if any(name.endswith((".pkl", "/version")) for name in names):
            return "torch"
        is_npz = any(name.endswith(".npy") for name in names)
        fault = "is NumPy's .npz" if is_npz else "is a zip archive, not torch's"
        raise ValueError(f"{path} {fault}: write its tensors with safetensors")
    for magic, fault in FOREIGN.items():
        if start.lstrip().startswith(magic):
            raise ValueError(f"{path} {fault}")
    fault = "holds neither safetensors nor a torch checkpoint" if start else "is empty"
    raise ValueError(f"{path} {fault}: expected {expected}")


def one_line(error: object) -> str:
    """Return what an error of another library says, in one line of at most 150 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 150 else f"{text[:149]}…"


def listed(names: Iterable[object]) -> str:
    """Return names in order, of many the first."""
    ordered = sorted(map(str, names))
    text = ", ".join(ordered[:6])
    fits = len(ordered) <= 6 and len(text) <= 120
    return text if fits else f"{text[:120]}… ({len(ordered)} in all)"


def read_format(path: Path) -> str | None:
    """Return the format that a safetensors file of ours names in its metadata, if it does."""
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("format")


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a safetensors file's tensors, by name, without what wrapped them."""
    with safe_open(path, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return unwrapped(path, shapes)


def read_tensors(
    path: Path, expected: str, expected_content: str, hint: str = ""
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read metadata and tensors of a safetensors file of ours, of the format `expected`.

    Raises `ValueError` for another file, saying that it is not `expected_content` of ours.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != expected:
            names = file.keys()
            content = "a whole model, e.g. of transformers" if _is_model(names) else listed(names)
            fault = f"not {expected_content} of ours: it holds {content}"
            raise ValueError(f"{path} is a safetensors file but {fault}{hint}")
        return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _is_model(names: Iterable[str]) -> bool:
    """Return whether tensors of these names are those of a transformer."""
    parts = re.compile(r"(model\.)?(vision|text|visual|transformer|layers)")
    return any(parts.match(name) for name in names)


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON file that describes the weights beside it.

    Raises `ValueError` if there is none, or if it holds anything but an object.
    """
    try:
        description = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        fault = "" if isinstance(error, FileNotFoundError) else f" ({one_line(error)})"
        raise ValueError(
            f"no readable {path}{fault}: it says what the weights beside it are; copy it too"
        ) from error
    if not isinstance(description, dict):
        raise ValueError(f"{path} holds {type(description).__name__}, expected a JSON object")
    return description


def unwrapped(path: Path, tensors: Mapping[str, T]) -> dict[str, T]:
    """Return tensors by their names without the prefixes of what wrapped their module.

    Raises `ValueError` if two then have the same name.
    """
    names = {name: WRAPPERS.sub("", str(name), count=1) for name in tensors}
    if len(set(names.values())) < len(names):
        raise ValueError(f"{path} has the weights of more than one module: {listed(names)}")
    return {names[name]: tensor for name, tensor in tensors.items()}


def require_memory(path: Path) -> None:
    """Refuse a file with weights too large for memory, instead of being killed halfway."""
    size = path.stat().st_size
    distributed.require_memory(2 * size, f"{path} is too large: two copies of {size / 1e9:.3g} GB")
