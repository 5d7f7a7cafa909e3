"""Devices and what fits them; and the processes that `torchrun` has started, joined into one.

Every process computes on its own part of each batch (`my_part`), and what all must know is added
up or gathered. With a single process each function here gives back what it was given.
"""

from __future__ import annotations

import atexit
import math
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(hours=3)  # for the slowest process; one that ends is noticed at once
CACHE = 12 * 2**20  # bytes: a CPU encodes 1,024 tokens of 3,072 latents 1.8 × as fast as 4,096
SHARE = 16  # of a GPU's free memory one array gets this part: a step has several, and so has CLIP

MEMORY = {  # where Linux says how much is free, and a container how much it may have
    "/proc/meminfo": (r"MemAvailable: +(\d+)", 1024),
    "/sys/fs/cgroup/memory.max": (r"(\d+)", 1),
}


def best_device() -> torch.device:
    """The GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def batch_size(device: torch.device, n_values: int, least: int = 1) -> int:
    """Return how many things of `n_values` float32 values a device computes at a time: a power of
    2, or `least`. They fill a CPU's cache, or a part of what a GPU has free."""
    room = CACHE if device.type == "cpu" else torch.cuda.mem_get_info(device)[0] // SHARE
    fitting = max(1, room // (4 * n_values))
    return max(least, 1 << (fitting.bit_length() - 1))


def free_memory() -> float:
    """Return the bytes of memory that are free: infinity where the system does not say."""
    limits = [math.inf]
    for place, (pattern, unit) in MEMORY.items():
        with suppress(OSError):
            limits += [unit * int(x) for x in re.findall(pattern, Path(place).read_text("utf-8"))]
    return min(limits)


def require_memory(n_bytes: float, need: str) -> None:
    """Raise `ValueError`, instead of being killed halfway, if so much does not fit in memory."""
    if n_bytes > (free := free_memory()):
        raise ValueError(f"{need} do not fit the {free / 1e9:.3g} GB of memory that are free")


def resolve_precision(wanted: str, device: torch.device) -> str:
    """`float32` or `bfloat16`: what `auto` means on a device."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16" if fast else "float32"


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def my_part(n: int) -> slice:
    """This process's of n rows: the parts of all, in order of rank, are 0 … n−1."""
    return slice(n * rank() // world_size(), n * (rank() + 1) // world_size())


def sum_of_all(x: Tensor) -> Tensor:
    """The sum of the x of all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def any_of_all(x: Tensor) -> Tensor:
    """Where x (bool) is true in any process."""
    return sum_of_all(x.int()) > 0 if world_size() > 1 else x


def rows_of_all(x: Tensor) -> Tensor:
    """The rows of x (n, …) of all processes, in order of rank; n may differ between them."""
    if world_size() == 1:
        return x
    counts = torch.zeros(world_size(), dtype=torch.long)
    counts[rank()] = len(x)
    sizes = sum_of_all(counts).tolist()
    padded = x.new_zeros(max(sizes), *x.shape[1:])
    padded[: len(x)] = x
    found = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(found, padded)
    return torch.cat([rows[:n] for rows, n in zip(found, sizes, strict=True)])


def from_first(x: Tensor) -> Tensor:
    """The x of process 0, in place."""
    if world_size() > 1:
        dist.broadcast(x, 0)
    return x


def wait_for_all() -> None:
    """Return when every process has come here."""
    sum_of_all(torch.zeros(()))


@contextmanager
def first_alone() -> Iterator[None]:
    """What is inside, process 0 does before the others: what it downloads they find there."""
    if rank() > 0:
        wait_for_all()
    yield
    if rank() == 0:
        wait_for_all()


@contextmanager
def processes() -> Iterator[torch.device]:
    """Join the processes that `torchrun` has started, if it has; gives the device of this one.

    Raises `ValueError` for more processes than GPUs on a machine, and `ConnectionError` when
    another process ends before its time, or this one is told to (SIGTERM).
    """
    local, on_gpu = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.is_available()
    if on_gpu and local >= torch.cuda.device_count():
        raise ValueError(
            f"process {local} of this machine has no GPU, of which there are "
            f"{torch.cuda.device_count()}: start as many processes with --nproc-per-node=gpu"
        )
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    if not dist.is_initialized():  # they stay joined: torch cannot join the same ones twice
        # Counts and flags lie on the CPU, where asking for them stops no GPU.
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)
    before = signal.signal(signal.SIGTERM, _told_to_end)
    try:
        yield device
        wait_for_all()  # to have written what they write
    except (RuntimeError, _ToldToEnd) as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends already
        atexit.unregister(dist.destroy_process_group)  # which might wait for the others
        if isinstance(error, (_ToldToEnd, dist.DistError)) or "gloo" in str(error):
            raise ConnectionError(
                f"process {rank()} of {world_size()} stops: another one has ended before its time "
                "(see above or below why), or the job was told to end. Start the same command "
                "again: it goes on from what is written"
            ) from None
        raise
    signal.signal(signal.SIGTERM, before)


class _ToldToEnd(BaseException):  # which nothing else should catch
    pass


def _told_to_end(*_: Any) -> None:
    raise _ToldToEnd
