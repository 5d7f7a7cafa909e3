"""Kernels that need not import: forks of one process that has imported what notebooks import.

Torch, open_clip and seaborn take a kernel twelve seconds of a core, which a book of nine notebooks
pays once. Each fork starts clean: nothing but imports has happened before it. On Linux only;
elsewhere a library may not survive a fork, and Jupyter starts the kernels.

- `kernels()`: in the build, a context with the process that forks; jobs get its environment.
- `python warm.py --serve FD`: that process, which ends with the build.
- `python warm.py SOCKET ARGUMENTS`: what Jupyter starts and takes for the kernel. It asks for a
  fork with these arguments of a kernel, and ends when that ends; the fork ends when it ends.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOCKET = "PATCHSAE_KERNELS"  # the variable that says where kernels are asked for
LONGEST = 2**17  # bytes of a request: arguments and environment


@contextmanager
def kernels(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """Start the process that forks, with this environment; yield what jobs need to find it."""
    if sys.platform != "linux":
        yield {}
        return
    with (
        tempfile.TemporaryDirectory() as folder,  # which nobody else can enter
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening,
    ):
        path, fd = str(Path(folder, "kernels")), listening.fileno()
        listening.bind(path)
        listening.listen()
        command = [sys.executable, __file__, "--serve", str(fd)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, env=environment, pass_fds=[fd], start_new_session=True
        ) as server:
            try:
                yield {SOCKET: path}
            finally:
                server.kill()


def command(arguments: list[str]) -> list[str]:
    """Return the command of a kernel with these arguments, forked if there is a place to ask."""
    path = os.environ.get(SOCKET)
    plain = [sys.executable, "-m", "ipykernel_launcher"]
    return [*([sys.executable, "-IS", __file__, path] if path else plain), *arguments]


# --- the process that forks ----------------------------------------------------------------------


def serve(fd: int) -> None:
    """Fork a kernel for each request, until the build closes the pipe or is killed."""
    from patchsae_lib import EXPORTS

    for name in ("ipykernel.kernelapp", *(f"patchsae_lib.{module}" for module in EXPORTS)):
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(fileno=fd) as listening:
        while sys.stdin not in select.select([sys.stdin, listening], [], [])[0]:
            asked, _ = listening.accept()
            request, outputs, *_ = socket.recv_fds(asked, LONGEST, 2)
            if os.fork() == 0:
                listening.close()
                become_kernel(asked, json.loads(request), outputs)
            for file in (asked.detach(), *outputs):
                os.close(file)
        path = Path(listening.getsockname())
    path.unlink(missing_ok=True)  # a build that was killed cannot
    path.parent.rmdir()


def become_kernel(asked: socket.socket, request: dict, outputs: list[int]) -> None:
    """Run a kernel in this fork, with the outputs, folder and environment of who asked for it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for file, standard in zip(outputs, (1, 2), strict=True):
        os.dup2(file, standard)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    threading.Thread(target=lambda: (asked.recv(1), os._exit(1)), daemon=True).start()
    from ipykernel.kernelapp import launch_new_instance

    sys.path.remove(str(Path(__file__).parent))
    parent = f"--IPKernelApp.parent_handle={os.getppid()}"  # with which it ends, too
    launch_new_instance([*request["arguments"], parent])
    os._exit(0)


# --- what Jupyter takes for the kernel -----------------------------------------------------------


def ask(path: str, arguments: list[str]) -> None:
    """Have a kernel forked, and wait until it ends, or who has started this process."""
    request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # by which Jupyter ends it
    parent = os.getppid()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as kernel:
        kernel.connect(path)
        socket.send_fds(kernel, [json.dumps(request).encode()], [1, 2])
        while os.getppid() == parent and not select.select([kernel], [], [], 1)[0]:
            pass


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(int(sys.argv[2]))
    else:
        ask(sys.argv[1], sys.argv[2:])
