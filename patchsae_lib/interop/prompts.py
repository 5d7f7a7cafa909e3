"""Prompts in files: our own format, and MaPLe's checkpoints (section 4.2).

Ours is one `.safetensors` with `text` and `visual`, float32, of the shapes that `maple.Prompts`
documents; its metadata are `format`, `template` and `config` (how they were made, as JSON).
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from patchsae_lib.artefacts import atomic_path
from patchsae_lib.interop.files import read_by_content, read_tensors
from patchsae_lib.interop.hub import local_path
from patchsae_lib.interop.maple import read_official
from patchsae_lib.maple import Prompts
from patchsae_lib.sae import require_finite

FORMAT = "patchsae-prompts-1"


def save_prompts(path: str | Path, prompts: Prompts) -> None:
    """Write prompts; `ValueError` if they are NaN or infinite."""
    tensors = {"text": prompts.text, "visual": prompts.visual}
    tensors = {name: t.detach().float().contiguous() for name, t in tensors.items()}
    for name, tensor in tensors.items():
        require_finite(tensor, f"{name} prompts")
    metadata = {"format": FORMAT, "template": prompts.template}
    metadata["config"] = json.dumps(prompts.config or {})
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_prompts(path: str | Path) -> Prompts:
    """Load the prompts in a file of ours or in an official MaPLe checkpoint, `model.pth.tar-N`.

    `path` may also be on the Hugging Face Hub, `hf://owner/repo/file[@revision]`.

    Raises `FileNotFoundError`, or `ValueError` for a file that is cut short or something else.
    """
    file = local_path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"no prompts at {file}: train them (notebook 5_maple) or give another path"
        )
    readers = {"torch": read_official, "safetensors": _read_ours}
    expected = "what save_prompts wrote or an official MaPLe checkpoint"
    prompts = read_by_content(file, readers, expected)
    _require_shape(f"{file}: text prompts", prompts.text)
    _require_shape(f"{file}: visual prompts", prompts.visual)
    return prompts


def _require_shape(name: str, tensor: Tensor) -> None:
    if tensor.ndim != 3:
        raise ValueError(f"{name} must be (depth, n_ctx, width), got {tuple(tensor.shape)}")
    require_finite(tensor, name)


def _read_ours(path: Path) -> Prompts:
    metadata, tensors = read_tensors(path, FORMAT, "prompts")
    config = json.loads(metadata["config"])
    return Prompts(tensors["text"], tensors["visual"], metadata["template"], config)
