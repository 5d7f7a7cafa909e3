"""Would the tests notice? `make mutants` changes one thing in the code of a measurement, runs the
tests of its module, and lists the changes that none noticed.

    python tests/mutants.py [module ...] [-n 40] [--seed 0]

A change is one operator, number, truth value or reduction. Each runs in a fork, in which the
module is changed before anything imports it, so that no file on disk is touched.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib
import importlib.util
import os
import random
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = "evaluation", "intervals", "remapping", "truth", "ablation", "latents"
PATIENCE = 300  # seconds
SWAPPED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.And: ast.Or, ast.Or: ast.And, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
REDUCTIONS = (
    ("mean", "sum"),
    ("max", "min"),
    ("amax", "amin"),
    ("any", "all"),
    ("argmax", "argmin"),
)
RENAMED = {a: b for pair in REDUCTIONS for a, b in (pair, pair[::-1])}


def places(tree: ast.Module) -> list[ast.AST]:
    """Return what can be changed in the bodies of functions and in constants of the module."""
    skipped = {id(x) for f in ast.walk(tree) for x in _silent(f) for x in ast.walk(x)}
    return [x for x in ast.walk(tree) if id(x) not in skipped and changed(copy.deepcopy(x))]


def _silent(node: ast.AST) -> list[ast.AST]:
    """Parts that decide no number: annotations, decorators, errors, numbers in texts, and what a
    call says of order and safety alone."""
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return [node]
    if isinstance(node, ast.keyword) and node.arg in ("strict", "stable", "disable", "repr"):
        return [node]
    parts = [getattr(node, name, None) for name in ("annotation", "returns")]
    return [*filter(None, parts), *getattr(node, "decorator_list", [])]


def changed(node: ast.AST) -> str:
    """Change a node in place, and say how; "" if there is nothing to change."""
    for field in ("op", "ops"):
        old = getattr(node, field, None)
        first = old[0] if isinstance(old, list) and old else old
        if type(first) in SWAPPED:
            new = SWAPPED[type(first)]()
            setattr(node, field, [new, *old[1:]] if isinstance(old, list) else new)
            return f"{type(first).__name__} → {type(new).__name__}"
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        old = node.value
        node.value = (not old) if isinstance(old, bool) else old + 1 if old in (0, 1) else 2 * old
        return f"{old} → {node.value}"
    if isinstance(node, ast.Attribute) and node.attr in RENAMED:
        old, node.attr = node.attr, RENAMED[node.attr]
        return f"{old} → {node.attr}"
    return ""


def survives(module: str, code: str) -> bool:
    """Run the tests of a module with this code in its place, in a fork."""
    pid = os.fork()
    if not pid:
        signal.alarm(PATIENCE)
        with open(os.devnull, "w") as nowhere:
            for file in (1, 2):
                os.dup2(nowhere.fileno(), file)
        name = f"patchsae_lib.{module}"
        for loaded in [x for x in sys.modules if x.startswith("patchsae_lib")]:
            del sys.modules[loaded]
        package = importlib.import_module("patchsae_lib")
        spec = importlib.util.find_spec(name)
        sys.modules[name] = setattr(
            package, module, importlib.util.module_from_spec(spec)
        ) or getattr(package, module)
        exec(compile(code, spec.origin, "exec"), sys.modules[name].__dict__)
        import pytest

        options = ["-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
        os._exit(int(pytest.main([*options, str(ROOT / f"tests/test_{module}.py")])))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def main() -> int:
    """Print the changes that no test noticed, and return how many there were."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("modules", nargs="*", default=MODULES)
    parser.add_argument("-n", type=int, default=40, help="changes of each module, at most")
    parser.add_argument("--seed", type=int, default=0)
    given, n_survived = parser.parse_args(), 0
    importlib.import_module("patchsae_lib.study")  # what it imports is then there for all forks
    for module in given.modules:
        path = ROOT / f"patchsae_lib/{module}.py"
        tree = ast.parse(path.read_text("utf-8"))
        if not survives(module, ast.unparse(tree)):
            sys.exit(f"the tests of {module} fail without any change")
        numbers = list(range(len(places(tree))))
        random.Random(given.seed).shuffle(numbers)
        for number in sorted(numbers[: given.n]):
            mutant = copy.deepcopy(tree)
            node = places(mutant)[number]
            how = changed(node)
            if survives(module, ast.unparse(mutant)):
                n_survived += 1
                line = path.read_text("utf-8").splitlines()[node.lineno - 1].strip()
                print(f"{module}.py:{node.lineno}: {how}: {line}", flush=True)
        print(
            f"{module}: {min(given.n, len(numbers))} of {len(numbers)} changes tried", flush=True
        )
    return n_survived


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(min(main(), 1))
