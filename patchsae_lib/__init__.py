"""Companion to the PatchSAE paper: sparse autoencoders on the patches inside CLIP (ICLR 2025)."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# What a user calls, by module, in the order a reader meets it. A module is imported when one of
# its names is first used, because torch alone takes seconds.
EXPORTS = {
    "study": ("Study",),
    "profiles": ("load_profile", "Profile"),
    "interop": ("load_clip", "load_sae", "save_sae", "load_prompts"),
    "pictures": ("open_pictures",),
    "world": ("World",),
    "clip": ("SplitCLIP",),
    "tokens": ("Tokens", "collect"),
    "sae": ("SAE",),
    "training": ("train",),
    "evaluation": ("evaluate_sae",),
    "latents": ("LatentTable",),
    "ablation": ("mask_latents",),
    "maple": ("adapt", "train_prompts"),
    "figures": ("figures",),
    "explorer": ("Explorer",),
}
_MODULE_OF = {name: module for module, names in EXPORTS.items() for name in names}
__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Import an exported name when it is first used (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULE_OF[name]}")
    return module if name == _MODULE_OF[name] else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
