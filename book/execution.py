"""One notebook: its parameters, its execution in a kernel, and outputs that do not change from run
to run.

`python book/execution.py SOURCE TARGET PARAMETERS` runs one, for `schedule.py`.
"""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import warm
from folders import NotebookError
from patchsae_lib.artefacts import ROOT, atomic_path, short
from patchsae_lib.parameters import assignments, check_names

# What a kernel needs so that two runs leave the same bytes behind: figures as plain data instead
# of scripts with random ids, sets in one order.
KERNEL_ENVIRONMENT = {
    "PLOTLY_RENDERER": "plotly_mimetype",
    "PYTHONHASHSEED": "0",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "TQDM_DISABLE": "1",
}
INJECTED = "injected-parameters"  # papermill's tag, and the id of its cell
RANDOM = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"  # uuid4
    r"|(?<=T_)[0-9a-f]{5}(?=[_\"' {])"  # a table styled by pandas
)


# --- parameters ----------------------------------------------------------------------------------


def parameters_of(sources: Iterable[Path], given: Mapping[str, str]) -> dict[Path, dict[str, Any]]:
    """Return, for each notebook, those of the `given` parameters that it has and that differ from
    its defaults, converted to the type of the default.

    Raises `ValueError` for a parameter that no notebook has.
    """
    defaults = {source: read_parameters(source) for source in sources}
    if not defaults:
        raise NotebookError("there are no notebooks to run")
    check_names(given, {name for known in defaults.values() for name in known})
    runs = {}
    for source, known in defaults.items():
        values = {k: typed(v, known[k], k) for k, v in given.items() if k in known}
        runs[source] = {k: v for k, v in values.items() if v != known[k]}
    return runs


def typed(text: Any, default: Any, name: str) -> Any:
    """Convert a parameter from the command line to the type of its default.

    Raises `ValueError` for text that is not of that type.

    >>> typed("3", 1, "n"), typed("false", True, "draw"), typed("folder:x", "", "images")
    (3, False, 'folder:x')
    """
    if not isinstance(text, str) or isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text.capitalize() if isinstance(default, bool) else text)
        return type(default)(value) if isinstance(default, (int, float)) else value
    except (ValueError, SyntaxError, TypeError):
        kind = type(default).__name__
        raise ValueError(f"parameter {name}: {text!r} is not of type {kind}") from None


def read_parameters(source: Path) -> dict[str, Any]:
    """Return the names and defaults in the cell tagged `parameters`, the first code cell."""
    codes = [cell for cell in read_cells(source) if cell["cell_type"] == "code"]
    if not codes or "parameters" not in codes[0]["metadata"].get("tags", []):
        raise NotebookError(f"{short(source)}: its first code cell is not tagged 'parameters'")
    values = assignments("".join(codes[0]["source"]))
    return {name: ast.literal_eval(value) for name, value in values.items()}


# --- execution -----------------------------------------------------------------------------------


def execute(source: Path, parameters: Mapping[str, Any], target: Path) -> None:
    """Run one notebook from the root of the repository and write it, tidied, to `target`.

    What a cell writes to stderr (warnings) goes to the terminal and is not kept.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        with mock.patch.dict(os.environ, KERNEL_ENVIRONMENT):
            notebook = papermill.execute_notebook(
                source,
                None,
                parameters=dict(parameters),
                kernel_name="python3",
                language="python",
                cwd=ROOT,
                stderr_file=sys.stderr,
                shutdown_kernel="immediate",  # torch takes two seconds to leave
                kernel_manager_class=kernel_manager(),
                progress_bar=False,
            )
    except PapermillExecutionError as error:
        message = f"{error.ename}: {error.evalue}".replace(f"{ROOT}{os.sep}", "")
        cell = name_cell(source, error.source)
        raise NotebookError(f"{cell}: {' '.join(message.split())}") from None
    except DeadKernelError:
        raise NotebookError(f"{short(source)}: the kernel died, perhaps of memory") from None
    with atomic_path(target) as temporary:
        nbformat.write(tidy(notebook), temporary)


def kernel_manager() -> type:
    """Return a manager of kernels that are forked where the build has a process for it."""
    from jupyter_client.manager import AsyncKernelManager

    class Manager(AsyncKernelManager):
        def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
            _, _, _, *arguments = super().format_kernel_cmd(extra_arguments)
            return warm.command(arguments)

    return Manager


def renew_text(source: Path, target: Path) -> None:
    """Give an executed copy the text of its source, in which no code has changed."""
    import nbformat

    notebook, executed = (nbformat.read(path, as_version=4) for path in (source, target))
    codes = [cell for cell in executed.cells if cell.cell_type == "code"]
    by_id, cells = {cell.id: cell for cell in codes}, []
    for cell in notebook.cells:
        cell.metadata.setdefault("tags", [])  # as papermill does
        cells.append(by_id.get(cell.id, cell))
        if "parameters" in cell.metadata["tags"] and INJECTED in by_id:
            cells.append(by_id[INJECTED])
    executed.cells = cells
    with atomic_path(target) as temporary:
        nbformat.write(executed, temporary)


def read_cells(source: Path) -> list[dict[str, Any]]:
    """Return the cells of a notebook file."""
    try:
        return json.loads(source.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError):
        raise NotebookError(f"{short(source)} is not a notebook") from None


def name_cell(source: Path, code: str) -> str:
    """Name a cell of a notebook by its number among the code cells (the first is 1).

    The cell is found by its code, because papermill's index counts a cell it has added.
    """
    codes = ["".join(c["source"]) for c in read_cells(source) if c["cell_type"] == "code"]
    number = codes.index(code) + 1 if code in codes else "with the parameters"
    return f"{short(source)}, code cell {number}"


# --- outputs that do not change from run to run --------------------------------------------------


def tidy(notebook: Any) -> Any:
    """Remove what differs from run to run: times, widget state, stderr, random ids, absolute
    paths, memory addresses. Changes the notebook in place and returns it."""
    for name in ("papermill", "widgets"):
        notebook.metadata.pop(name, None)
    for cell in notebook.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        if INJECTED in cell.metadata.get("tags", []):
            cell["id"] = INJECTED
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    ids: dict[str, str] = {}
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if "text" in output:
            output["text"] = stable("".join(output["text"]), ids)
        for kind, content in output.get("data", {}).items():
            if kind.startswith("text/"):
                output["data"][kind] = stable("".join(content), ids)
    return notebook


def stable(text: str, ids: dict[str, str]) -> str:
    """Remove this machine's paths and addresses from a text, and number its random ids in order.

    >>> stable("<f at 0x7f10> T_0a1b2_row0 T_0a1b2_row1", {})
    '<f> T_00000_row0 T_00000_row1'
    """
    text = text.replace(f"{ROOT}{os.sep}", "").replace(str(ROOT), ".")
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    return RANDOM.sub(lambda found: ids.setdefault(found[0], f"{len(ids):05d}"), text)


# --- a process for each --------------------------------------------------------------------------


def main(source: str, target: str, parameters: str) -> int:
    """Run one notebook; print why if that fails, and return the exit status."""
    threading.Thread(target=end_with_the_build, daemon=True).start()
    try:
        execute(Path(source), json.loads(parameters), Path(target))
    except NotebookError as error:
        print(error)
        return 1
    return 0


def end_with_the_build() -> None:
    """Wait until the build closes the pipe, or is killed, and end the kernel with it."""
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)  # upon which nbclient kills the kernel


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
