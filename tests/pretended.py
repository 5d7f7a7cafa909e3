"""A pretended GPU: tensors that compute on the CPU, report the device `cuda:0`, and raise where
CUDA would.

Inside `with pretended() as gpu:` what is moved to "cuda" holds CPU numbers. Tensors there do not
mix with tensors of the CPU, but for numbers (0 dimensions) and indices into tensors of the device;
they have no `numpy`; tensors made without a device are on the CPU. `gpu` counts how often a
program would wait for the device (`waits`: a value is read, a size depends on values, or a tensor
is copied to the CPU), and the bytes that are copied. Gradients work, and so do optimisers.

torch itself sees tensors on its device "meta", whose gradients need no GPU. So what asks torch
below Python which device it has cannot be pretended: autocast, kernels that exist for CUDA alone
(their dtypes, their rounding, their speed), nccl, streams, and running out of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
FREE = 2**33  # bytes that the device says it has left

INDEX = {aten.index.Tensor}
INDEX_PUT = {aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
COPIES = {aten._to_copy.default, aten.clone.default}
#: what is asked for a tensor's shape, which operators may change in place
SHAPE: dict[Any, Callable[..., Any]] = {
    aten.sym_size.default: lambda x: tuple(x.size()),
    aten.sym_stride.default: lambda x: tuple(x.stride()),
    aten.sym_storage_offset.default: Tensor.storage_offset,
    aten.sym_numel.default: Tensor.numel,
    aten.dim.default: Tensor.dim,
    aten.is_contiguous.default: Tensor.is_contiguous,
    aten.is_contiguous.memory_format: lambda x, form: x.is_contiguous(memory_format=form),
    aten.is_non_overlapping_and_dense.default: Tensor.is_contiguous,
}
#: operators whose result has a size, or whose argument a check, that the CPU waits for
WAITS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default,
    aten._unique.default, aten._unique2.default, aten.unique_dim.default,
    aten.unique_consecutive.default, aten.bincount.default, aten.equal.default,
    aten.repeat_interleave.Tensor,
}  # fmt: skip


class Gpu:
    """What the pretended device has been asked for since it was last `reset`."""

    device = CUDA

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.waits = self.to_cpu = self.to_device = 0
        self.places: list[str] = []

    def wait(self, place: object) -> None:
        self.waits += 1
        self.places.append(str(place))


class Held(Tensor):
    """A tensor of the pretended device; `inner` holds its values, on the CPU."""

    inner: Tensor
    gpu: Gpu
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, gpu: Gpu) -> Held:
        layout = dict(strides=inner.stride(), storage_offset=inner.storage_offset())
        held = Tensor._make_wrapper_subclass(
            cls, inner.size(), dtype=inner.dtype, device="meta", **layout,
            dispatch_sizes_strides_policy="sizes",
        )  # fmt: skip
        held.inner, held.gpu = inner, gpu
        return held

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    def __repr__(self) -> str:
        return f"Held({self.inner})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy = Held(self.inner.clone(), self.gpu).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy.detach(), self.requires_grad)
        return memo.setdefault(id(self), copy)

    def __getitem__(self, index: Any) -> Any:
        # torch would put a list's numbers onto its own device "meta", and lose them
        listed = (torch.as_tensor(x) if isinstance(x, (list, np.ndarray)) else x
                  for x in (index if isinstance(index, tuple) else (index,)))  # fmt: skip
        return super().__getitem__(tuple(listed))

    def tolist(self) -> Any:
        self.gpu.wait("tolist")
        self.gpu.to_cpu += self.nbytes
        return self.inner.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        held = next(x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Held))
        return run(held.gpu, func, args, kwargs or {})


def run(gpu: Gpu, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator on the CPU, and hold its results where a GPU would."""
    if func in SHAPE:
        return SHAPE[func](*tree_map(inner_of, args))
    if func is aten.copy_.default:
        return copied_into(gpu, *args[:2])
    values = tree_flatten((args, kwargs))[0]
    tensors = [x for x in values if isinstance(x, Tensor)]
    if any(x.device.type == "meta" for x in tensors):
        raise NotImplementedError(f"{func}: torch has made a tensor whose values are lost")
    has_held = any(isinstance(x, Held) for x in tensors)
    given = kwargs.get("device")
    is_held = has_held if given is None else torch.device(given).type != "cpu"
    if func not in COPIES and has_held:
        require_same(func, args, tensors)
    if has_held and waits(func, args):
        gpu.wait(func)
    if is_held and any(isinstance(x, torch.Generator) for x in values):
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    plain = tree_map(inner_of, kwargs) | ({"device": CPU} if given is not None else {})
    result = func(*tree_map(inner_of, args), **plain)
    if func is aten._to_copy.default and has_held != is_held:
        count(gpu, func, result, is_held)
    if not is_held:
        return result
    written = written_by(func, args, kwargs)
    return tree_map(
        lambda x: written.get(id(x), Held(x, gpu)) if isinstance(x, Tensor) else x, result
    )


def inner_of(x: Any) -> Any:
    return x.inner if isinstance(x, Held) else x


def written_by(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int, Held]:
    """Arguments that an operator changes in place, by the identity of what they hold."""
    named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    changed = [a.name for a in func._schema.arguments if a.alias_info and a.alias_info.is_write]
    values = tree_flatten([named.get(name) for name in changed])[0]
    return {id(x.inner): x for x in values if isinstance(x, Held)}


def copied_into(gpu: Gpu, target: Tensor, source: Tensor) -> Tensor:
    inner_of(target).copy_(inner_of(source))
    if isinstance(target, Held) != isinstance(source, Held):
        count(gpu, aten.copy_.default, source, isinstance(target, Held))
    return target


def count(gpu: Gpu, func: Any, x: Tensor, to_device: bool) -> None:
    if to_device:
        gpu.to_device += x.nbytes
    else:
        gpu.to_cpu += x.nbytes
        gpu.wait(func)


def waits(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether the CPU has to wait for an operator of the device."""
    if func in INDEX | INDEX_PUT:  # a mask becomes as many indices as it has true values
        is_mask = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        return is_mask and not (func in INDEX_PUT and args[2].numel() == 1)
    return func in WAITS


def require_same(func: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    """Raise as CUDA does for tensors of two devices."""
    strangers = [x for x in tensors if not isinstance(x, Held) and x.ndim]
    if func in INDEX | INDEX_PUT and isinstance(args[0], Held):
        strangers = [x for x in args[2:3] if isinstance(x, Tensor) and not isinstance(x, Held)]
        strangers = [x for x in strangers if x.ndim]
    is_written = func._schema.is_mutable and not isinstance(args[0], (Held, list, tuple))
    if strangers or is_written:
        shapes = [tuple(x.shape) for x in strangers] or "of a result"
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and cpu: {func}, {shapes}"
        )


class Pretence(TorchDispatchMode):
    """Runs what is not called on a `Held` tensor, too: copies to the device, and new tensors."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return run(self.gpu, func, args, kwargs or {})


@contextmanager
def pretended() -> Iterator[Gpu]:
    """Pretend that there is a GPU, "cuda", inside the block."""
    gpu, future = Gpu(), torch.__future__
    before = future.get_overwrite_module_params_on_conversion()
    future.set_overwrite_module_params_on_conversion(True)
    torch._C._ensureCUDADeviceGuardSet()  # asking which GPU is meant needs no driver
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device="cuda") copies from the CPU
    make: Callable[..., Tensor] = torch.tensor
    patches = {
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.mem_get_info": lambda _device=None: (FREE, 2 * FREE),
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch.tensor": lambda data, *, device=CPU, **options: make(data, **options).to(device),
    }
    try:
        with ExitStack() as stack:
            for name, value in patches.items():
                stack.enter_context(mock.patch(name, value))
            stack.enter_context(Pretence(gpu))
            yield gpu
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        future.set_overwrite_module_params_on_conversion(before)
