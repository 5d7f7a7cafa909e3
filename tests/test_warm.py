"""Kernels that are forked: each starts clean, and none outlives the build."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

import execution
import warm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")

Run = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Runs cells in a kernel that is forked from a process with a library of one module."""
    library = tmp_path / "library/patchsae_lib"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text("EXPORTS = ['heavy']")
    (library / "heavy.py").write_text("pictures = []")
    started = []
    with warm.kernels(os.environ | {"PYTHONPATH": str(library.parent)}) as place:

        def start(name: str, *cells: str) -> subprocess.Popen[str]:
            kernel = {"name": "python3", "language": "python", "display_name": "Python"}
            notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
            notebook.metadata["kernelspec"] = kernel
            nbformat.write(notebook, tmp_path / name)
            command = [sys.executable, execution.__file__, str(tmp_path / name)]
            command += [str(tmp_path / f"ran-{name}"), "{}"]
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            environment = os.environ | place | {"NAME": name}
            started.append(subprocess.Popen(command, env=environment, **pipes))
            return started[-1]

        yield start
    for process in started:
        process.kill()
        process.communicate()


def printed(path: Path) -> list[str]:
    cells = nbformat.read(path, as_version=4).cells
    return ["".join(out.text for out in cell.outputs) for cell in cells]


def until(is_so: Callable[[], bool]) -> None:
    for _ in range(300):
        if is_so():
            return
        time.sleep(0.1)
    raise AssertionError("it does not happen")


def is_alive(pid: int) -> bool:
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


def test_each_has_what_is_imported_and_nothing_of_another(run: Run, tmp_path: Path) -> None:
    look = (
        "import os, sys\nheavy = sys.modules['patchsae_lib.heavy']\n"
        "heavy.pictures += [os.environ['NAME']]\nprint(heavy.pictures, os.getcwd(), __name__)"
    )
    for process in [run("a.ipynb", look), run("b.ipynb", look)]:
        assert process.wait(60) == 0
    for name in ("a.ipynb", "b.ipynb"):
        assert printed(tmp_path / f"ran-{name}") == [f"['{name}'] . __main__\n"]


def test_a_kernel_that_dies_is_one_clear_line(run: Run) -> None:
    process = run("a.ipynb", "import os\nos.kill(os.getpid(), 9)")
    assert process.wait(60) == 1
    assert process.stdout.read().endswith("a.ipynb: the kernel died, perhaps of memory\n")


@pytest.mark.parametrize("who", ["runner", "server"])
def test_it_ends_with_who_asked_for_it_and_with_the_build(
    run: Run, tmp_path: Path, who: str
) -> None:
    note = tmp_path / "pids"
    write = (
        f"import os, time\nopen({str(note)!r}, 'w').write(f'[{{os.getpid()}}, {{os.getppid()}}]')"
    )
    process = run("a.ipynb", write, "time.sleep(600)")
    until(lambda: note.exists() and bool(note.read_text()))
    kernel, server = json.loads(note.read_text())
    assert is_alive(kernel)
    os.kill(process.pid if who == "runner" else server, signal.SIGKILL)
    until(lambda: not is_alive(kernel))


def test_a_build_that_is_killed_leaves_no_folder(tmp_path: Path) -> None:
    code = """if True:
        import os, sys, time, warm
        with warm.kernels(dict(os.environ)) as found:
            print(found[warm.SOCKET], flush=True)
            time.sleep(600)
    """
    environment = os.environ | {"PYTHONPATH": f"{Path(warm.__file__).parent}:{tmp_path}"}
    stub = tmp_path / "patchsae_lib"
    stub.mkdir()
    (stub / "__init__.py").write_text("EXPORTS = []\n")
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as build:
        folder = Path(build.stdout.readline().strip()).parent
        assert folder.is_dir()
        build.kill()
    until(lambda: not folder.exists())
