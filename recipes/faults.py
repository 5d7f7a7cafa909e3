"""Would the book notice? Faults that users have, put in one at a time: python -m recipes.faults.

Notebooks 1 to 5b run in a small world without a fault, with other pictures (the null), and with
each of `FAULTS`; then `python -m patchsae_lib check`, and tests of the modules that a fault
touches. A claim notices a fault if its verdict is none that it has without one, or its interval
overlaps none of those. Runs stay in `runs/faults/`, the table goes to `data/faults.md`. It takes
two hours of one core; `--steps check` alone ten minutes.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import MagicMock, patch

import pytest
import torch
from torch import Tensor

import patchsae_lib
from patchsae_lib import ablation, check, evaluation, remapping, study
from patchsae_lib.artefacts import DATA, ROOT, run_dir, write_json
from patchsae_lib.clip import SplitCLIP
from patchsae_lib.interop.openclip import NORMS, with_other_gelu
from patchsae_lib.profiles import Profile, load_profile
from patchsae_lib.sae import SAE
from patchsae_lib.world import World, pairs

PAGES = (
    "1_training", "2_statistics", "2b_units", "3_covariate_shift", "3b_counterfactuals",
    "4_ablation", "5_maple", "5b_gain",
)  # fmt: skip
MUTATORS = {"append", "pop", "update", "setdefault", "insert", "add", "index_add_"}
# what records a claim with a verdict, or an artefact that a later notebook reads
NEEDED = re.compile(
    r"study\.(claim\('(?!4-oracle|5-own-sae)|keep_autoencoders|keep\(.(concepts|pairs|levels|gains|class_latents))"
)
NULLS = "none", "null-1", "null-2"  # runs without a fault, two of them on other pictures
SHIPPED = str(DATA / "sae.safetensors")  # a file, as a user gives it
Patch = AbstractContextManager[Any]


def small() -> Profile:
    """The world, with a seventh of its pictures, three tasks and short trainings."""
    world = load_profile("world")
    return replace(
        world, name="faults", seeds=2, sweep_steps=20, sweep_batch=1024, min_patches=10,
        tasks=("world:flowers", "world:land", "world:textures"),
        pictures=replace(world.pictures, n_train=350, n_test=105),
        train=replace(world.train, steps=40, batch_tokens=2048, warmup=10),
    )  # fmt: skip


# --- the faults ----------------------------------------------------------------------------------


def around(owner: Any, name: str, change: Callable[..., Any]) -> Patch:
    """A patch: `change` gets the original function before its arguments."""
    original = getattr(owner, name)
    return patch.object(owner, name, lambda *args, **more: change(original, *args, **more))


def after(owner: Any, name: str, change: Callable[[Any], Any]) -> Patch:
    """A patch that changes what a function returns."""
    return around(owner, name, lambda original, *args, **more: change(original(*args, **more)))


def clip_with(mean: Sequence[float], std: Sequence[float]) -> Patch:
    """Another mean and std of preprocessing."""

    def change(clip: SplitCLIP) -> SplitCLIP:
        for values, given in ((clip.mean, mean), (clip.std, std)):
            values.copy_(torch.tensor(given).view(-1, 1, 1))
        return clip

    return after(study, "load_clip", change)


def block_moved(by: int) -> Patch:
    """The autoencoder stays as it is."""
    return after(study, "load_clip", lambda clip: clip.at_block(clip.block + by))


def tokens_in_order(order: Callable[[SplitCLIP], Tensor]) -> Iterator[Patch]:
    """The second half of CLIP gets them as it needs them: only measurements are wrong."""

    def read(original: Any, clip: SplitCLIP, images: Tensor) -> Tensor:
        z = original(clip, images)
        return torch.cat([z[:, order(clip)], z[:, clip.n_tokens :]], 1)

    def write(original: Any, clip: SplitCLIP, z: Tensor) -> Tensor:
        back = order(clip).argsort()
        return original(clip, torch.cat([z[:, back], z[:, clip.n_tokens :]], 1))

    yield around(SplitCLIP, "tokens", read)
    yield around(SplitCLIP, "features", write)


def cls_as_patch(clip: SplitCLIP) -> Tensor:
    """CLS second, after the last patch."""
    return torch.arange(clip.n_tokens).roll(1)


def columns_first(clip: SplitCLIP) -> Tensor:
    """Patches column by column."""
    patches = torch.arange(1, clip.n_tokens).view(clip.grid).T.flatten()
    return torch.cat([torch.tensor([0]), patches])


def cls_dropped() -> Iterator[Patch]:
    """The autoencoder never sees CLS, and its mask leaves it as it is."""

    def encode(original: Any, sae: SAE, z: Tensor) -> Tensor:
        f = original(sae, z)
        if z.ndim == 3 and z.shape[1] > 196:  # with CLS
            f[:, 0] = 0
        return f

    def of(original: Any, sae: SAE, z: Tensor, *args: Any) -> Any:
        split = original(sae, z, *args)
        split.base[:, 0] = z[:, 0]
        return split

    def sums(original: Any, sae: SAE, z: Tensor) -> Any:
        z_hat, more = original(sae, z)
        if z.shape[1] > 196:
            z_hat[:, 0] = z[:, 0]
        return z_hat, more

    yield around(SAE, "encode", encode)
    yield around(ablation.Decomposition, "of", of)
    yield around(evaluation, "_token_sums", sums)


def names_shifted() -> Patch:
    """Each class of the study's own pictures gets the name of the next."""

    def change(original: Any, world: World, *args: Any, **more: Any) -> None:
        original(world, *args, **more)
        if world.task.name in ("world", "styles"):
            world.class_names = (*world.class_names[1:], world.class_names[0])

    return around(World, "__init__", change)


def pixels(change: Callable[[Tensor], Tensor]) -> Patch:
    """Change pictures (b, 3, h, w) before anything reads them."""
    return after(World, "batch", change)


def half_bgr() -> Patch:
    """Red and blue exchanged in pictures of odd number."""

    def change(original: Any, world: World, indices: Sequence[int]) -> Tensor:
        x, is_odd = original(world, indices), torch.tensor([int(i) % 2 == 1 for i in indices])
        return torch.where(is_odd[:, None, None, None], x.flip(1), x)

    return around(World, "batch", change)


def rescaled(change: Callable[[SAE], SAE]) -> Patch:
    """Another autoencoder from the same file."""
    return after(study, "load_sae", change)


def unequal_rows(sae: SAE) -> SAE:
    """The same function with decoder rows of other lengths."""
    lengths = torch.randn(sae.d_sae, generator=torch.Generator().manual_seed(0)).exp()
    with torch.no_grad():
        sae.W_dec.mul_(lengths[:, None])
        sae.W_enc.div_(lengths)
        sae.b_enc.div_(lengths)
    return sae


def test_pictures_counted() -> Patch:
    """The first pictures to train on are those to test on."""

    def change(original: Any, given: Any, spec: str, split: str, n: int) -> Any:
        is_train = (spec, split) == ("world", "train")
        return original(given, *(("world:styles", "test") if is_train else (spec, split)), n)

    return around(study.Study, "_open_pictures", change)


def latents_shuffled() -> Patch:
    """As if the adapted model had an autoencoder of its own."""
    known = list[int]()

    def change(original: Any, sae: SAE, z: Tensor, labels: Tensor, *args: Any) -> Any:
        levels, is_clip = original(sae, z, labels, *args), id(labels) not in known
        known.append(id(labels))  # of a task, CLIP is the first
        order = torch.randperm(sae.d_sae, generator=torch.Generator().manual_seed(0))
        return levels if is_clip else {name: x[..., order] for name, x in levels.items()}

    return around(remapping, "levels_by_place", change)


def mask_of_next() -> Patch:
    """Each picture gets the mask of the next class."""

    def change(original: Any, *args: Any, classes: Tensor | None = None, **more: Any) -> Any:
        classes = args[3] if classes is None else classes
        return original(*args, classes=(classes + 1) % len(args[4]), **more)

    return around(study, "mask_latents", change)


def other_pictures(seed: int) -> Iterator[Patch]:
    """No fault: what a claim owes to the choice of pictures."""

    def make(original: Any, world: World, *args: Any, **more: Any) -> None:
        original(world, *args, **{"seed": seed, **more})

    def shifted(original: Any, numbers: Sequence[int]) -> Any:
        return original([n + 5000 * seed for n in numbers])

    yield around(World, "__init__", make)
    yield around(pairs, "pairs_of_each_kind", shifted)
    yield around(pairs, "counterfactuals", shifted)


class Fault(NamedTuple):
    """What a user has done, the patches that do it, and the files of tests that may notice."""

    words: str
    put: Callable[[], Patch | Iterator[Patch]]
    tests: str = ""
    pages: tuple[str, ...] = PAGES  # that it can reach; the others are as without it


FAULTS = {
    "gelu": Fault(
        "the other GELU: QuickGELU where it should be off",
        lambda: after(study, "load_clip", with_other_gelu), "clip check",
    ),
    "norm-none": Fault(
        "pictures not normalised", lambda: clip_with([0.0] * 3, [1.0] * 3), "check study",
    ),
    "norm-imagenet": Fault(
        "mean and std of ImageNet",
        lambda: clip_with(*NORMS["ImageNet's"]), "check study",
    ),
    "bgr": Fault("all pictures in BGR", lambda: pixels(lambda x: x.flip(1)), "world check"),
    "bgr-half": Fault("half of the pictures in BGR", half_bgr, "world check"),
    "thumbnails": Fault(
        "pictures made half as large without antialiasing, and enlarged again",
        lambda: pixels(
            lambda x: x[..., ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3)
        ), "world check",
    ),
    "floats": Fault("pictures of 0 to 1", lambda: pixels(lambda x: x / 255), "world tokens"),
    "names": Fault(
        "class names shifted by one", names_shifted, "world study",
        ("1_training", "2_statistics", "4_ablation"),
    ),
    "bare-names": Fault(
        "prompts that are the name alone",
        lambda: patch.object(study.Study, "templates", lambda *_: ["{}"]), "study check",
        ("1_training", "4_ablation"),
    ),
    "block-early": Fault("a block too early", lambda: block_moved(-1), "study check"),
    "block-late": Fault("a block too late", lambda: block_moved(1), "study check"),
    "cls-dropped": Fault("CLS dropped", cls_dropped, "sae ablation evaluation"),
    "cls-patch": Fault(
        "CLS taken for the first patch", lambda: tokens_in_order(cls_as_patch), "clip tokens"
    ),
    "transposed": Fault(
        "patches read column by column", lambda: tokens_in_order(columns_first), "clip tokens"
    ),
    "unscaled": Fault(
        "tokens of another scale than the autoencoder's",
        lambda: rescaled(lambda sae: sae.fold(1 / 48)), "study check", PAGES[1:],
    ),
    "decoder": Fault(
        "the decoder not normalised: rows of unequal length",
        lambda: rescaled(unequal_rows), "study check", PAGES[1:],
    ),
    "decoder-free": Fault(
        "the decoder not normalised in training",
        lambda: patch.multiple(
            SAE, normalise_decoder=lambda _: None, remove_parallel_gradient=lambda _: None
        ), "sae training", ("1_training", "2b_units"),
    ),
    "test-counted": Fault("test pictures in the training split", test_pictures_counted, "study"),
    "shuffled": Fault(
        "latents in another order in the adapted model", latents_shuffled, "remapping", PAGES[6:]
    ),
    "mask": Fault(
        "the mask of another class", mask_of_next, "ablation study", ("4_ablation", "5_maple")
    ),
}  # fmt: skip


ALL_TESTS = " ".join(sorted({file for fault in FAULTS.values() for file in fault.tests.split()}))


@contextlib.contextmanager
def put_in(name: str) -> Iterator[None]:
    """Put in a fault, or other pictures (`null-1`), or nothing (`none`), while the block lasts."""
    with ExitStack() as stack:
        if name.startswith("null-"):
            patches: Any = other_pictures(int(name.removeprefix("null-")))
        else:
            patches = FAULTS[name].put() if name in FAULTS else ()
        for item in [patches] if hasattr(patches, "__exit__") else patches:
            stack.enter_context(item)
        yield


# --- the notebooks -------------------------------------------------------------------------------


def statements(page: str) -> list[ast.stmt]:
    """Return the statements of a notebook that a claim, or a later notebook, rests on: backwards,
    with the names that are alive."""
    cells = json.loads((ROOT / f"notebooks/{page}.ipynb").read_text("utf-8"))["cells"]
    codes = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    alive, chosen = set[str](), []
    for statement in reversed(ast.parse("\n".join(codes)).body):
        nodes = list(ast.walk(statement))
        loops = {x for n in nodes if isinstance(n, ast.comprehension) for x in names_in(n.target)}
        bound = names_in(statement, ast.Store) | imported(statement)
        changed = {n.value.id for n in nodes if isinstance(n, ast.Subscript | ast.Attribute)
                   and isinstance(n.value, ast.Name) and (isinstance(n.ctx, ast.Store)
                   or getattr(n, "attr", "") in MUTATORS)}  # fmt: skip
        if ((bound - loops) | changed) & alive or NEEDED.search(ast.unparse(statement)):
            is_sure = isinstance(statement, ast.Assign | ast.Import | ast.ImportFrom)
            local = loops | (bound if isinstance(statement, ast.For) else set())
            alive = (alive - bound if is_sure else alive) | (names_in(statement, ast.Load) - local)
            chosen.append(statement)
    return chosen[::-1]


def names_in(tree: ast.AST, how: type = ast.Name) -> set[str]:
    """Return the names in code, or those that it stores or loads."""
    nodes = [x for x in ast.walk(tree) if isinstance(x, ast.Name)]
    return {x.id for x in nodes if how is ast.Name or isinstance(x.ctx, how)}


def imported(tree: ast.AST) -> set[str]:
    """Return the names that imports and functions bind."""
    nodes = [x for x in ast.walk(tree) if isinstance(x, ast.Import | ast.ImportFrom)]
    names = {a.asname or a.name for x in nodes for a in x.names}
    return names | {x.name for x in ast.walk(tree) if isinstance(x, ast.FunctionDef)}


def run_page(page: str, profile: Profile) -> None:
    """Run what decides the claims of a notebook, without drawing."""
    names: dict[str, Any] = {"display": lambda *_: None}
    for statement in statements(page):
        exec(compile(ast.Module([statement], []), page, "exec"), names)
        if "profile" in names and "study" not in names:
            names |= {"profile": profile, "sae": SHIPPED}


def claims_of(name: str, folder: Path) -> dict[str, Any]:
    """Run the notebooks with a fault, and return their claims and what was raised."""
    for module in ("figures", "explorer"):  # nothing is drawn
        setattr(patchsae_lib, module, MagicMock())
    for module in ("figures", "explorer", "explorer.studies"):
        sys.modules[f"patchsae_lib.{module}"] = MagicMock()
    pages, start, raised = FAULTS[name].pages if name in FAULTS else PAGES, time.time(), {}
    shutil.rmtree(folder, ignore_errors=True)
    if pages != PAGES:
        shutil.copytree(folder.with_name("none"), folder)
    with put_in(name):
        for page in pages:
            try:
                run_page(page, small())
            except Exception as error:
                raised[page] = f"{type(error).__name__}: {error}"
    path = folder / "faults/claims.json"
    claims = json.loads(path.read_text("utf-8")) if path.is_file() else []
    kept = {c["id"]: {k: c[k] for k in ("verdict", "interval", "measured")} for c in claims}
    return {"claims": kept, "raised": raised, "seconds": round(time.time() - start)}


def check_of(name: str, folder: Path) -> dict[str, Any]:
    """Return what the check says LOOK to, of the profile world with a fault."""
    with put_in(name):
        try:
            findings = check.check(study.Study("world", sae=SHIPPED))
            return {"check": [x.words for x in findings if not x.ok]}
        except Exception as error:
            return {"check": [f"{type(error).__name__}: {error}"]}


class Failed:
    """A plugin of pytest that keeps the names of the tests that fail."""

    def __init__(self) -> None:
        self.names = list[str]()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called by pytest after each phase of a test."""
        if report.failed:
            self.names.append(report.nodeid.split("::", 1)[-1])


def tests_of(name: str, folder: Path) -> dict[str, Any]:
    """Return the first test of each file that fails with a fault."""
    failed, options = Failed(), ["-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    with put_in(name), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        for file in (FAULTS[name].tests if name in FAULTS else ALL_TESTS).split():
            pytest.main([*options, str(ROOT / f"tests/test_{file}.py")], [failed])
    return {"tests": failed.names}


STEPS = {"claims": claims_of, "check": check_of, "tests": tests_of}


def take(step: str, name: str, folder: Path) -> None:
    """Take a step in a fork, so that nothing of a fault is left, and keep what came of it."""
    if not (pid := os.fork()):
        os.environ["PATCHSAE_RUNS"] = str(folder / name)
        path = folder / f"{name}.json"
        known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        write_json(path, known | STEPS[step](name, folder / name))
        os._exit(0)
    os.waitpid(pid, 0)


# --- the table -----------------------------------------------------------------------------------


def noticed(result: Mapping[str, Any], nulls: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which claims differ from all of these runs without a fault, and how.

    >>> claim = lambda verdict, *interval: {"1-a": {"verdict": verdict, "interval": interval}}
    >>> noticed({"claims": claim("not", 1, 2)}, [{"claims": claim("partly", 0, 1.5)}])
    ['`1-a` partly → not']
    >>> noticed({"claims": claim("partly", 2, 3)}, [{"claims": claim("partly", 0, 1.5)}])
    ['`1-a` 0…1.5 → 2…3']
    """
    words = []
    for id, claim in result["claims"].items():
        usual = [null["claims"][id] for null in nulls]
        if claim["verdict"] not in {x["verdict"] for x in usual}:
            words.append(f"`{id}` {usual[0]['verdict']} → {claim['verdict']}")
        elif (now := claim["interval"]) and all(x["interval"] for x in usual):
            then = [x["interval"] for x in usual]
            if all(now[1] < low or now[0] > high for low, high in then):
                ends = [f"{low:.2g}…{high:.2g}".replace("-", "−") for low, high in (then[0], now)]
                words.append(f"`{id}` {' → '.join(ends)}")
    return words


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what has noticed each fault, as a table in markdown."""
    nulls, rows = [results[name] for name in NULLS], []
    for name, fault in FAULTS.items():
        if not {"claims", "check", "tests"} <= (result := results.get(name, {})).keys():
            continue
        claims = "; ".join(noticed(result, nulls))
        if raised := list(result["raised"].values()):
            claims = f"none is measured: *{raised[0]}*"
        looks = "<br>".join(x.partition(", which is")[0] for x in result["check"]) or "–"
        tests = ", ".join(result["tests"]).replace("_", "_<wbr>")  # else a column of its own width
        rows.append((fault.words, claims or "–", looks, tests or "–"))
    head = "| fault | claims that change | the check says LOOK | tests that fail |\n"
    return f"{head}|---|---|---|---|\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.faults", description=__doc__)
    parser.add_argument("faults", nargs="*", default=[*NULLS, *FAULTS])
    parser.add_argument("--steps", nargs="*", choices=STEPS, default=list(STEPS))
    given, folder = parser.parse_args(argv), run_dir("faults")
    for name in given.faults:
        for step in given.steps:
            take(step, name, folder)
    results = {x.stem: json.loads(x.read_text("utf-8")) for x in folder.glob("*.json")}
    nulls = [results[name] for name in NULLS]
    if failed := results["none"]["tests"]:
        raise SystemExit(f"these tests fail without a fault, and tell nothing: {failed}")
    alarms = sum(len(noticed(x, [y for y in nulls if y is not x])) for x in nulls)
    words = f"{date.today():%d %B %Y}, by\n\n    make faults\n\n"
    words += f"{alarms} of {sum(len(x['claims']) for x in nulls)} claims without a fault "
    words += "differ from those of the other runs without one.\n\n"
    (DATA / "faults.md").write_text(f"Measured on {words}{table(results)}", encoding="utf-8")


if __name__ == "__main__":
    main()
