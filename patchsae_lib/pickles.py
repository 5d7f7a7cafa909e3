"""Torch checkpoints read by an unpickler that has nothing to run."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch


class _Inert(dict[Any, Any]):
    """Stands in for whatever a checkpoint refers to: takes anything, does nothing.

    Of an object that is only its fields, such as a dataclass, it becomes the dict of them.
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
    """Builds tensors and plain values; every other name in a pickle is a class that does nothing.

    torch's own `weights_only` refuses a file with objects such as MaPLe's live scheduler.
    """

    ALLOWED: ClassVar = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch", "device"): torch.device,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    }

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for here."""
        dtype = getattr(torch, name, None) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        return self.ALLOWED.get((module, name)) or self.unknown(module, name)

    def unknown(self, module: str, name: str) -> Any:
        """What any other name stands for."""
        return _Inert


class OnlyConfigs(OnlyTensors):
    """Takes no unknown name but one of a configuration, as in the checkpoints of autoencoders."""

    def unknown(self, module: str, name: str) -> Any:
        """The stand-in for a class such as `ViTSAERunnerConfig`; an error for all else."""
        if name.endswith("Config"):
            return _Inert
        raise pickle.UnpicklingError(f"it wants to run {module}.{name}")


def unpickle(path: Path, unpickler: type[OnlyTensors], what: str) -> Any:
    """What a torch checkpoint holds, on the CPU, with nothing of it run.

    Raises `ValueError` for one that is no checkpoint of `what`, or is TorchScript.
    """
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("constants.pkl") for name in archive.namelist()):
            raise ValueError(f"{path} is TorchScript, which runs when it is loaded: not read")
    try:
        with path.open("rb") as file:  # torch would judge a path by its extension
            return torch.load(
                file,
                map_location="cpu",
                weights_only=False,  # but by an unpickler that has nothing to run
                pickle_module=SimpleNamespace(__name__="tensors", Unpickler=unpickler),
            )
    except (
        pickle.UnpicklingError, TypeError, AttributeError, LookupError, ValueError,
        AssertionError, OverflowError,
    ) as error:  # fmt: skip
        raise ValueError(f"{path} is no checkpoint of {what} ({error!r})") from error
