"""Torch checkpoints, read by an unpickler that runs nothing of theirs.

Every name in a pickle is looked up in the tables here, and nowhere else: no module is imported and
no attribute fetched because a file says so.
"""

from __future__ import annotations

import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch

from patchsae_lib.interop.files import one_line


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


class _Value(_Inert):
    """Stand-in for a class in a configuration: the plain value that it holds, as an Enum does, or
    the dict of its fields."""

    def __new__(cls, *args: Any) -> Any:
        """Return the only argument, if it is a plain value."""
        is_plain = len(args) == 1 and isinstance(args[0], (str, int, float))
        return args[0] if is_plain else super().__new__(cls)

    __setitem__ = dict.__setitem__


class _DType(_Inert):
    """Stand-in for NumPy's dtype of a number or a text, as its code: `f8`."""

    def __init__(self, code: Any = "", *_args: Any) -> None:
        super().__init__()
        self.code = code if re.fullmatch(r"[biufU]\d+", str(code)) else "none that is read"

    def __setstate__(self, state: Any) -> None:
        self.code = f"{'>' if state[1] == '>' else '<'}{self.code}"


def _scalar(dtype: _DType, raw: bytes) -> Any:
    """Return NumPy's number, of which a pickle has the bytes, as one of Python."""
    return np.frombuffer(raw, dtype.code)[0].item()


class OnlyTensors(pickle.Unpickler):
    """Unpickler of tensors and plain values; any other class is replaced by an inert one.

    torch's own `weights_only` refuses a file with objects such as MaPLe's live scheduler.
    """

    ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch", "device"): torch.device,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return the class or function for a name in the pickle."""
        dtype = vars(torch).get(name) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        module = "builtins" if module == "__builtin__" else module  # Python 2's name, for pickles
        return self.ALLOWED.get((module, name)) or self.unknown(module, name)

    def unknown(self, module: str, name: str) -> Any:
        """Return the class for a name that is not allowed."""
        return _Inert


class OnlyConfigs(OnlyTensors):
    """Unpickler that reads what configurations hold as plain values, and strangers' classes as the
    dicts of their fields. It refuses the rest of Python's own library, where code runners live."""

    ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        **OnlyTensors.ALLOWED,
        ("builtins", "getattr"): lambda _owner, name: name,  # a member of an Enum, or a function
        ("builtins", "set"): list,
        ("builtins", "frozenset"): list,
        ("collections", "defaultdict"): lambda *_: {},
        ("collections", "Counter"): lambda *_: {},
        ("_codecs", "encode"): lambda text, _encoding: text.encode("latin1"),  # bytes
        ("numpy", "dtype"): _DType,
    }
    PATHS: ClassVar = {
        **dict.fromkeys(("PosixPath", "PurePosixPath"), PurePosixPath),
        **dict.fromkeys(("WindowsPath", "PureWindowsPath"), PureWindowsPath),
    }
    TYPES: ClassVar = {"bool", "bytes", "dict", "float", "int", "list", "object", "str", "tuple"}
    HARMLESS: ClassVar = {"argparse", "datetime", "decimal", "enum", "types", "typing", "uuid"}

    def unknown(self, module: str, name: str) -> Any:
        """Return what a name stands for: its value or fields. Refuse what may run code."""
        package = module.partition(".")[0]
        if package == "pathlib" and name in self.PATHS:
            return lambda *parts: str(self.PATHS[name](*parts))
        if package == "numpy" and name == "scalar":
            return _scalar
        is_type = module == "builtins" and name in self.TYPES
        if is_type or package in self.HARMLESS or package not in sys.stdlib_module_names:
            return _Value
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
        AssertionError, OverflowError, RecursionError, MemoryError,
    ) as error:  # fmt: skip
        raise ValueError(f"{path} is no checkpoint of {owner} ({one_line(error)})") from error
