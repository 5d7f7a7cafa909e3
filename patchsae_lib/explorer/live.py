"""CLIP, the autoencoder and the prompts of tasks as files with which a page computes by itself.

A bundle (`patchsae_lib.explorer.bundle`) gets, in the same form as its other files,

- `live.js`: `engine`, the program (`engine.js`) as text; `wasm`, its kernel (`recipes.kernel`
  assembles it from `kernel.wat`) in base64; `about`: `version` 1; `numbers`, how many 16-bit
  numbers the weights are, and `perFile` how many of them are in a file; `tensors`: name
  (open_clip's, `sae.` or TASK`.`), shape, number of its first 16-bit number, and whether it is of
  32 bits; `vision`, `text`, `sae`, `block`, `quickGelu`, `logitScale`; `tasks`: `name`, `names` of
  classes as CLIP is asked for them, `template`, `adapted` (the template of the prompts, or none),
  and the (rows, tokens) of its `text` and `visual` prompts;
- `stamps.js`, for the embedded world, what `patchsae_lib.explorer.stamps` writes;
- `weights-N.js`: `codes`, perFile of those numbers: base64 of zlib of all low bytes, then all high
  ones, which makes them a sixth smaller.

Weights are rounded to 16 bits, prompts are not. `index.js` says in `live` how many `files` there
are, their `megabytes`, whether there are `stamps`, and by which `mark` a page knows that two
explorers have the same models; or `why` there are none.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from open_clip.transformer import QuickGELU
from torch import Tensor

from patchsae_lib.clip import SplitCLIP
from patchsae_lib.explorer.bundle import OF_LIVE, Task, delete, read_index
from patchsae_lib.explorer.files import write_shard
from patchsae_lib.explorer.lens import Lens
from patchsae_lib.explorer.stamps import write_stamps
from patchsae_lib.interop.openclip import WordTokenizer
from patchsae_lib.maple import AdaptedCLIP
from patchsae_lib.pictures import spoken, template_of, world_of
from patchsae_lib.sae import SAE

VERSION = 1
PER_FILE = 400_000  # numbers: files below a megabyte, so that reading one stops a page briefly
LARGEST = 40e6  # bytes of weights that a page is given
FOLDER = Path(__file__).parent
BLOCK = tuple(
    f"{layer}{kind}"
    for layer in ("ln_1.", "ln_2.", "attn.in_proj_", "attn.out_proj.", "mlp.c_fc.", "mlp.c_proj.")
    for kind in ("weight", "bias")
)


def write_live(
    folder: str | Path, sae: SAE, tasks: Sequence[Task], lenses: Mapping[str, Lens]
) -> str:
    """Put the models of `lenses` (by a task's name) into the bundle in `folder`.

    Returns why a page cannot compute with them, "" if it can. Raises `ValueError` if there is no
    bundle.
    """
    folder = Path(folder)
    index = read_index(folder)
    delete(folder, OF_LIVE)
    clip, _ = next(iter(next(iter(lenses.values())).models.values()))
    why = unfit(clip, sae)
    live: dict[str, Any] = {"why": why}
    if not why:
        about = [_task(task, lenses[task.name]) for task in tasks]
        live = _write(folder, clip, sae, about, _tensors(clip, sae, lenses))
        live["stamps"] = world_of(tasks[0].pictures) is not None
        if live["stamps"]:
            write_stamps(folder)
    write_shard(folder / "index.js", index | {"live": live})
    return why


def unfit(clip: SplitCLIP, sae: SAE) -> str:
    """Return why a page cannot compute with these models, "" if it can."""
    n_bytes = 2 * sum(p.numel() for model in (clip.model, sae) for p in model.parameters())
    if n_bytes > LARGEST:
        return f"the models have {n_bytes / 1e6:,.0f} MB, and a page takes {LARGEST / 1e6:.0f}"
    if not isinstance(clip.tokenizer, WordTokenizer):
        return "its tokenizer is not one of whole words"
    if sae.activation == "topk" or sae.threshold.ndim:
        return f"an autoencoder with the activation {sae.activation} is not computed in a page"
    visual, found = clip.visual, set(clip.model.state_dict())
    plain = visual.pool_type == "tok" and not visual.final_ln_after_pool
    if not plain or found != set(_shapes(clip)):
        return "its towers are not CLIP's plain ones"
    blocks = [tower.transformer.resblocks[0] for tower in (visual, clip.model)]
    widths = [(x.attn.head_dim, x.attn.embed_dim, x.mlp.c_fc.out_features) for x in blocks]
    rows, columns = clip.grid
    side = rows * visual.patch_size[0]
    is_square = rows == columns and tuple(visual.image_size) == (side, side)
    if not is_square or any(width % 8 for block in widths for width in block):
        return "its widths are no multiples of 8, or its pictures no squares of whole patches"
    return ""


def _shapes(clip: SplitCLIP) -> list[str]:
    """The names of all tensors of a plain CLIP with as many blocks."""
    names = [f"{norm}.{kind}" for norm in ("visual.ln_pre", "visual.ln_post", "ln_final")
             for kind in ("weight", "bias")]  # fmt: skip
    names += ["visual.conv1.weight", "visual.class_embedding", "visual.positional_embedding"]
    names += ["visual.proj", "token_embedding.weight", "positional_embedding", "text_projection"]
    for prefix, blocks in _towers(clip).items():
        names += [f"{prefix}{i}.{part}" for i in range(len(blocks)) for part in BLOCK]
    return [*names, "logit_scale"]


def _towers(clip: SplitCLIP) -> dict[str, Any]:
    towers = {"visual.": clip.visual, "": clip.model}
    return {
        f"{name}transformer.resblocks.": tower.transformer.resblocks
        for name, tower in towers.items()
    }


def _tensors(
    clip: SplitCLIP, sae: SAE, lenses: Mapping[str, Lens]
) -> dict[str, tuple[Tensor, bool]]:
    """Return tensors by name, and whether they stay in 32 bits."""
    out = {name: (x, False) for name, x in clip.model.state_dict().items()}
    out |= {f"sae.{name}": (x, False) for name, x in sae.named_parameters()}
    for task, lens in lenses.items():
        for model, _ in lens.models.values():
            if isinstance(model, AdaptedCLIP):
                out[f"{task}.text"] = (model.prompts.text, True)
                out[f"{task}.visual"] = (model.prompts.visual, True)
    return out


def _task(task: Task, lens: Lens) -> dict[str, Any]:
    about: dict[str, Any] = {"name": task.name, "names": spoken(task.class_names), "adapted": None}
    about |= {"template": template_of(task.pictures), "text": [0, 0], "visual": [0, 0]}
    for model, _ in lens.models.values():
        if isinstance(model, AdaptedCLIP):
            shapes = {n: list(getattr(model.prompts, n).shape[:2]) for n in ("text", "visual")}
            about |= {"adapted": model.prompts.template, **shapes}
    return about


def _write(
    folder: Path,
    clip: SplitCLIP,
    sae: SAE,
    tasks: list[dict[str, Any]],
    tensors: Mapping[str, tuple[Tensor, bool]],
) -> dict[str, Any]:
    """Write all files, and return what `index.js` says of them."""
    parts, entries, at = [], [], 0
    for name, (tensor, exact) in tensors.items():
        values = tensor.detach().cpu().numpy().astype("<f4" if exact else "<f2")
        parts.append(values.ravel().view("<u2"))
        entries.append([name, list(values.shape), at, exact])
        at += len(parts[-1])
    codes = np.concatenate(parts)
    starts = range(0, len(codes), PER_FILE)
    for n, start in enumerate(starts):
        planes = codes[start : start + PER_FILE].view(np.uint8).reshape(-1, 2).T.tobytes()
        packed = base64.b64encode(zlib.compress(planes)).decode()
        write_shard(folder / f"weights-{n}.js", {"codes": packed})
    visual, model, tokenizer = clip.visual, clip.model, clip.tokenizer
    assert isinstance(tokenizer, WordTokenizer)
    mlp = visual.transformer.resblocks[0].mlp
    about = {
        "version": VERSION, "numbers": len(codes), "perFile": PER_FILE, "tensors": entries,
        "vision": _tower(visual.transformer) | {
            "patch": visual.patch_size[0], "grid": list(clip.grid), "embed": clip.d_embed,
            "mlp": mlp.c_fc.out_features,
            "mean": clip.mean.flatten().tolist(), "std": clip.std.flatten().tolist(),
        },
        "text": _tower(model.transformer) | {
            "words": tokenizer.words, "context": tokenizer.context_length,
        },
        "sae": {"latents": sae.d_sae, "threshold": float(sae.threshold)},
        "block": clip.block, "quickGelu": isinstance(mlp.gelu, QuickGELU),
        "logitScale": clip.logit_scale, "tasks": tasks,
    }  # fmt: skip
    wasm = base64.b64encode((FOLDER / "kernel.wasm").read_bytes()).decode()
    engine = (FOLDER / "engine.js").read_text("utf-8")
    write_shard(folder / "live.js", {"about": about, "wasm": wasm, "engine": engine})
    n_bytes = sum(path.stat().st_size for path in folder.glob("weights-*.js"))
    mark = sha256(codes.tobytes() + json.dumps(about).encode()).hexdigest()[:16]
    return {"files": len(starts), "megabytes": round(n_bytes / 1e6, 1), "mark": mark}


def _tower(transformer: Any) -> dict[str, int]:
    block = transformer.resblocks[0]
    heads = {"layers": len(transformer.resblocks), "heads": block.attn.num_heads}
    return heads | {"width": block.attn.embed_dim}
