"""Official checkpoints of MaPLe and CoOp, `model.pth.tar-N`, as prompts.

MaPLe learns the prompts of the texts, and linear maps from them to those of the pictures. The
maps do not depend on a picture, so that only their results are kept. CoOp learns prompts of the
texts alone, before the first block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchsae_lib.interop.descriptions import as_floats
from patchsae_lib.interop.files import unwrapped
from patchsae_lib.interop.pickles import OnlyTensors, unpickle
from patchsae_lib.maple import Prompts

LEARNER = "prompt_learner."
OF_CLASSES = ("token_prefix", "token_suffix")


def read_official(path: Path) -> Prompts:
    """Read the prompts of an official checkpoint, with its depth and number of context tokens.

    Of CoOp's, the context must be of all classes, and the name at its end, as its defaults are.

    `token_prefix` and `token_suffix`, which depend on a class list, are not read: prompts fit any
    classes. Nor are the frozen weights of CLIP.

    Raises `ValueError` if a part of the learner is missing, unknown, or of another shape.
    """
    checkpoint = unpickle(path, OnlyTensors, "MaPLe")
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else {}
    if isinstance(state, dict) and {"ctx", *OF_CLASSES} == state.keys():
        return _of_coop(path, state)
    learner = {
        key.removeprefix(LEARNER): value
        for key, value in unwrapped(path, state if isinstance(state, dict) else {}).items()
        if key.startswith(LEARNER) and not key.endswith(OF_CLASSES)
    }
    n_deep = sum(re.fullmatch(r"compound_prompts_text\.\d+", key) is not None for key in learner)
    texts = ["ctx", *(f"compound_prompts_text.{i}" for i in range(n_deep))]
    maps = ["proj", *(f"compound_prompt_projections.{i}" for i in range(n_deep))]
    return _fold(texts, maps, _checked(path, learner, texts, maps))


def _of_coop(path: Path, state: Mapping[str, Any]) -> Prompts:
    """Return CoOp's context as prompts of depth 1, in a template with as many words."""
    context = as_floats(path, {"ctx": state["ctx"]})["ctx"]
    if context.ndim != 2:
        shape = tuple(context.shape)
        raise ValueError(f"{path}: ctx is {shape}: a context for each class is not read")
    template = " ".join(["X"] * len(context)) + " {}."
    return Prompts(context[None], context.new_zeros(0, len(context), 0), template)


def _fold(texts: list[str], maps: list[str], learner: Mapping[str, Tensor]) -> Prompts:
    """Apply the linear maps: visual = text Wᵀ + b."""
    visual = [
        learner[text] @ learner[f"{name}.weight"].T + learner[f"{name}.bias"]
        for text, name in zip(texts, maps, strict=True)
    ]
    return Prompts(torch.stack([learner[text] for text in texts]), torch.stack(visual))


def _checked(
    path: Path, learner: Mapping[str, Any], texts: list[str], maps: list[str]
) -> dict[str, Tensor]:
    """Return the parameters as float32, if they are complete and fit together."""
    expected = {*texts, *(f"{name}.{part}" for name in maps for part in ("weight", "bias"))}
    present = {key for key, value in learner.items() if isinstance(value, Tensor)}
    if missing := sorted(expected - present):
        raise ValueError(
            f"{path} is no whole checkpoint of MaPLe: prompt_learner has no {', '.join(missing)}"
        )
    if unknown := sorted(learner.keys() - expected):
        raise ValueError(f"{path}: unknown parts of prompt_learner: {', '.join(unknown)}")
    parameters = as_floats(path, learner)
    _require_shapes(path, parameters, texts)
    return parameters


def _require_shapes(path: Path, parameters: Mapping[str, Tensor], texts: list[str]) -> None:
    context, bias = tuple(parameters["ctx"].shape), tuple(parameters["proj.bias"].shape)
    if len(context) != 2 or len(bias) != 1:
        raise ValueError(
            f"{path}: ctx is {context} and proj.bias {bias}, expected (n_ctx, d_text) and (d_vit,)"
        )
    for key, tensor in parameters.items():
        weight_or_bias = (*bias, context[1]) if key.endswith("weight") else bias
        expected = context if key in texts else weight_or_bias
        if tuple(tensor.shape) != expected:
            raise ValueError(
                f"{path}: {key} is {tuple(tensor.shape)}, ctx and proj.bias ask for {expected}"
            )
