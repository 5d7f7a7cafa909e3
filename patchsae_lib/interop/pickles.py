"""Torch checkpoints, read by an unpickler that runs nothing."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch


class _Inert(dict[Any, Any]):
    """Stand-in for any class that a checkpoint refers to: accepts everything, does nothing.

    In place of an object that is only its fields, such as a dataclass, it is the dict of them.
    """

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        super().__init__()

    def _ignore(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    __setitem__ = append = extend = add = _ignore

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state)


class OnlyTensors(pickle.Unpickler):
    """Unpickler of tensors and plain values; any other class is replaced by an inert one.

    torch's own `weights_only` refuses a file with objects such as MaPLe's live scheduler.
    """

    ALLOWED: ClassVar = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch", "device"): torch.device,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return the class or function for a name in the pickle."""
        dtype = getattr(torch, name, None) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        return self.ALLOWED.get((module, name)) or self.unknown(module, name)

    def unknown(self, module: str, name: str) -> Any:
        """Return the class for a name that is not allowed."""
        return _Inert


class OnlyConfigs(OnlyTensors):
    """Unpickler that also refuses classes, except configurations as in autoencoders' files."""

    def unknown(self, module: str, name: str) -> Any:
        """Return the stand-in for a class such as `ViTSAERunnerConfig`; refuse all else."""
        if name.endswith("Config"):
            return _Inert
        raise pickle.UnpicklingError(f"it wants to run {module}.{name}")


def unpickle(path: Path, unpickler: type[OnlyTensors], owner: str) -> Any:
    """Read a torch checkpoint onto the CPU without running anything in it.

    Raises `ValueError` for TorchScript, and for a file that is no checkpoint of `owner`'s.
    """
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("constants.pkl") for name in archive.namelist()):
            raise ValueError(f"{path} is TorchScript, which runs when it is loaded: not read")
    try:
        with path.open("rb") as file:  # torch would judge a path by its extension
            return torch.load(
                file,
                map_location="cpu",
                weights_only=False,  # but by an unpickler that runs nothing
                pickle_module=SimpleNamespace(__name__="tensors", Unpickler=unpickler),
            )
    except (
        pickle.UnpicklingError, TypeError, AttributeError, LookupError, ValueError,
        AssertionError, OverflowError,
    ) as error:  # fmt: skip
        raise ValueError(f"{path} is no checkpoint of {owner} ({error!r})") from error
