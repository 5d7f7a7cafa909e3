"""Autoencoders and prompts in files: ours and others', told apart by content (sections 3.1, 4.2).

What is read, all of it also from `hf://`, and what is written:

- ours: one `.safetensors`; written by `save_sae` and `save_prompts`
- the authors' autoencoder: `.pt` with `cfg` (or `config`) and `state_dict`
- Prisma's: the same, or `weights.pt` with `config.json`; ReLU or TopK
- SAELens': `sae_weights.safetensors` with `cfg.json`; `standard`, `topk` or `jumprelu`; written by
  `formats.write_saelens`
- sparsify's: `sae.safetensors` with `cfg.json`; TopK
- MaPLe's prompts: `model.pth.tar-N`

Ours is safetensors: `W_enc` (d_vit, d_sae), `b_enc` (d_sae,), `W_dec` (d_sae, d_vit), `b_dec`
(d_vit,), float32 or float16, and `threshold` (), of `jumprelu` (d_sae,), float32. Its metadata
hold `format`, `activation`, `k` and `config` (whatever the caller says about its making) as JSON.
Prompts: `text` and `visual`, float32, of the shapes that `maple.Prompts` says, and `template` and
`config`. Reading a file never runs code from it.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from patchsae_lib.artefacts import atomic_path
from patchsae_lib.formats import (
    PARAMETERS,
    Found,
    read_safetensors,
    read_torch,
    weights_file,
)
from patchsae_lib.hub import fetch
from patchsae_lib.maple import Prompts
from patchsae_lib.pickles import OnlyTensors, unpickle
from patchsae_lib.sae import SAE, require_finite

FORMAT = "patchsae-sae-1"
PROMPTS_FORMAT = "patchsae-prompts-1"
T = TypeVar("T")
MADE_BY = {"autoencoder": "1_training", "prompts": "5_maple"}


def save_sae(
    path: str | Path, sae: SAE, config: Mapping[str, Any] | None = None, half: bool = False
) -> None:
    """Write an SAE, and what made it as JSON-able `config`; `half` stores float16.

    Raises `ValueError` for weights that are NaN or infinite, also if only so in float16.
    """
    dtype = torch.float16 if half else torch.float32
    tensors = {name: getattr(sae, name).detach().to(dtype) for name in PARAMETERS}
    for name, tensor in tensors.items():
        require_finite(tensor, f"{name} as {dtype}")
    metadata = {
        "format": FORMAT,
        "activation": sae.activation,
        "k": json.dumps(sae.k),
        "config": json.dumps(dict(config or {})),
    }
    with atomic_path(path) as temporary:
        save_file({**tensors, "threshold": sae.threshold}, temporary, metadata)


def load_sae(path: str | Path) -> SAE:
    """The SAE in a file, float32, frozen, in eval mode.

    `path` is a file, the folder that it is in, or on the Hugging Face Hub
    `hf://owner/repo[/folder or file][@revision]`, downloaded unless the cache has it.

    Raises `FileNotFoundError`, or `ValueError` for a file that is cut short, something else, or an
    SAE that ours cannot be, naming why.
    """
    return _read(path)[0]


def read_config(path: str | Path) -> dict[str, Any]:
    """What a checkpoint says of its making: our `config`, or another library's description."""
    return _read(path)[1]


def save_prompts(path: str | Path, prompts: Prompts) -> None:
    """Write prompts; `ValueError` if they are NaN or infinite."""
    tensors = {"text": prompts.text, "visual": prompts.visual}
    tensors = {name: t.detach().float().contiguous() for name, t in tensors.items()}
    for name, tensor in tensors.items():
        require_finite(tensor, f"{name} prompts")
    about = {"format": PROMPTS_FORMAT, "template": prompts.template}
    about["config"] = json.dumps(prompts.config or {})
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, about)


def load_prompts(path: str | Path) -> Prompts:
    """The prompts in a file of ours or in an official MaPLe checkpoint (`model.pth.tar-N`).

    Of the latter depth and number of context tokens are those that it has, and every part of the
    learner must be there once. What depends on a class list (`token_prefix`, `token_suffix`) is
    not read: prompts fit any classes. Frozen weights of CLIP in it are not read either.

    Raises `FileNotFoundError`, or `ValueError` for a file that is cut short or something else.
    """
    return _sniff(
        _local(path),
        {"torch": _read_official, "safetensors": _read_prompts},
        "prompts",
        "what save_prompts wrote or an official MaPLe checkpoint",
    )


def _read(path: str | Path) -> tuple[SAE, dict[str, Any]]:
    path = weights_file(_local(path))
    found = _sniff(
        path,
        {"torch": read_torch, "safetensors": _read_safetensors},
        "autoencoder",
        "an SAE of ours, the authors', Prisma, SAELens or sparsify",
    )
    return _build(path, found), found.config


def _local(path: str | Path) -> Path:
    return fetch(path) if isinstance(path, str) and path.startswith("hf://") else Path(path)


def _sniff(path: Path, readers: Mapping[str, Callable[[Path], T]], what: str, expected: str) -> T:
    """Read a file with the reader for its content, whatever its name is."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no {what} at {path}: train one (notebook {MADE_BY[what]}) or give another path"
        )
    with path.open("rb") as file:
        start = file.read(9)
    kind = "torch" if start[:2] == b"PK" else "safetensors" if start[8:] == b"{" else ""
    if not kind:
        raise ValueError(
            f"{path} holds neither safetensors nor a torch checkpoint: expected {expected}"
        )
    try:
        return readers[kind](path)
    except (SafetensorError, zipfile.BadZipFile, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is damaged or cut short ({error}): copy or train it again"
        ) from error


def _read_safetensors(path: Path) -> Found:
    with safe_open(path, framework="pt") as file:
        ours = (file.metadata() or {}).get("format") == FORMAT
    if not ours and path.with_name("cfg.json").is_file():
        return read_safetensors(path)
    hint = "; SAELens' and sparsify's need cfg.json beside them"
    about, tensors = _contents(path, FORMAT, "an autoencoder", hint)
    return Found(tensors, about["activation"], json.loads(about["k"]), json.loads(about["config"]))


def _read_prompts(path: Path) -> Prompts:
    about, tensors = _contents(path, PROMPTS_FORMAT, "prompts")
    config = json.loads(about["config"])
    return _prompts(path, tensors["text"], tensors["visual"], about["template"], config)


def _contents(
    path: Path, expected: str, what: str, hint: str = ""
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file that we have written in the format `expected`."""
    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        if about.get("format") != expected:
            raise ValueError(
                f"{path} is a safetensors file but not {what} of ours: its format is "
                f"{about.get('format')!r}, expected {expected!r}, with {', '.join(file.keys())}"
                f"{hint}"
            )
        return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _prompts(path: Path, text: Tensor, visual: Tensor, *about: Any) -> Prompts:
    for name, tensor in (("text", text), ("visual", visual)):
        if tensor.ndim != 3:
            raise ValueError(
                f"{path}: {name} prompts must be (depth, n_ctx, width), got {tuple(tensor.shape)}"
            )
        require_finite(tensor, f"{path}: {name} prompts")
    return Prompts(text, visual, *about)


LEARNER = "prompt_learner."
OF_CLASSES = ("token_prefix", "token_suffix")


def _read_official(path: Path) -> Prompts:
    found = unpickle(path, OnlyTensors, "MaPLe")
    state = found.get("state_dict", found) if isinstance(found, dict) else {}
    mine = {
        key.removeprefix(LEARNER): value
        for key, value in state.items()
        if key.startswith(LEARNER) and not key.endswith(OF_CLASSES)
    }
    return _fold(path, mine)


def _fold(path: Path, mine: dict[str, Any]) -> Prompts:
    """The prompts that the parameters of MaPLe's learner make: visual = text Wᵀ + b."""
    deep = sum(re.fullmatch(r"compound_prompts_text\.\d+", key) is not None for key in mine)
    texts = ["ctx", *(f"compound_prompts_text.{i}" for i in range(deep))]
    maps = ["proj", *(f"compound_prompt_projections.{i}" for i in range(deep))]
    wanted = {*texts, *(f"{name}.{part}" for name in maps for part in ("weight", "bias"))}
    if missing := sorted(wanted - {k for k, v in mine.items() if isinstance(v, Tensor)}):
        raise ValueError(
            f"{path} is no whole checkpoint of MaPLe: prompt_learner has no {', '.join(missing)}"
        )
    if unknown := sorted(mine.keys() - wanted):
        raise ValueError(f"{path}: unknown parts of prompt_learner: {', '.join(unknown)}")
    mine = {key: value.float() for key, value in mine.items()}
    shape = mine["ctx"].shape
    d_vit = len(mine["proj.bias"])
    for key in wanted:
        expected = (
            tuple(shape) if key in texts else (d_vit, shape[-1]) if "weight" in key else (d_vit,)
        )
        if tuple(mine[key].shape) != expected or len(shape) != 2:
            raise ValueError(
                f"{path}: {key} is {tuple(mine[key].shape)}, ctx and proj.bias ask for {expected}"
            )
    visual = [
        mine[t] @ mine[f"{m}.weight"].T + mine[f"{m}.bias"]
        for t, m in zip(texts, maps, strict=True)
    ]
    return _prompts(path, torch.stack([mine[t] for t in texts]), torch.stack(visual))


def _build(path: Path, found: Found) -> SAE:
    tensors, W_enc = found.tensors, found.tensors.get("W_enc", torch.empty(0))
    if W_enc.ndim != 2:
        raise ValueError(f"{path}: W_enc must be (d_vit, d_sae), got {tuple(W_enc.shape)}")
    sae = SAE(W_enc.shape[0], W_enc.shape[1], found.activation, found.k)
    for name, expected in sae.state_dict().items():
        if name not in tensors and name != "threshold":
            raise ValueError(f"{path} has no {name}: expected {', '.join(PARAMETERS)}")
        tensor = tensors.get(name, expected)
        if tensor.shape != expected.shape:
            raise ValueError(
                f"{path}: {name} is {tuple(tensor.shape)}, W_enc asks for {tuple(expected.shape)}"
            )
        require_finite(tensor, f"{path}: {name}")
        expected.copy_(tensor)
    return sae.eval().requires_grad_(False)
