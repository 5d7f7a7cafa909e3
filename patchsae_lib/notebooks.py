"""Runs the notebooks in order and builds the book from what they leave behind.

The notebooks in `notebooks/` are kept without outputs. A run executes them with papermill into
`_build/notebooks/<profile>/`, and only when all of them and the pages have succeeded takes the
place of the last good book: the executed copies in `book/notebooks/` and the pages in
`_build/html/`.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import open_clip
import torch
from torch import Tensor

from patchsae_lib.artefacts import ROOT, run_dir, write_json
from patchsae_lib.interop import load_prompts, load_sae, save_prompts
from patchsae_lib.artefacts import DATA
from patchsae_lib.clip import SplitCLIP, fastest
from patchsae_lib.interop.openclip import WordTokenizer
from patchsae_lib.evaluation import BATCH
from patchsae_lib.pictures.images import (
    TEMPLATE,
    Pictures,
    Relabelled,
    labels_of,
    open_pictures,
    template_of,
)
from patchsae_lib.maple import Prompts, base_classes, few_shot, run_of, train_prompts
from patchsae_lib.profiles import Profile, load_profile, with_pictures
from patchsae_lib.sae import SAE
from patchsae_lib.world import CLASSES, TASKS

NOTEBOOKS = ROOT / "notebooks"
PAGES = ROOT / "book"
BUILD = ROOT / "_build"

# What a kernel needs so that two runs leave the same bytes behind: figures as plain data instead
# of scripts with random ids, sets in one order.
KERNEL_ENVIRONMENT = {
    "PLOTLY_RENDERER": "plotly_mimetype",
    "PYTHONHASHSEED": "0",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}


class NotebookError(Exception):
    """A notebook or the book cannot be made; the message is one line that says where and why."""


def begin(profile: str, images: str = "") -> tuple[Profile, Path]:
    """What a notebook starts with: its profile, and the folder of the run's artefacts.

    `images` replaces the profile's pictures (`folder:/my/photos`). Raises `ValueError` when
    papermill was given a parameter that the notebook does not have.
    """
    try:
        executed = get_ipython().user_ns.get("In", [])  # type: ignore[name-defined]
    except NameError:  # outside a notebook
        executed = []
    injected = [source for source in executed if source.startswith("# Parameters\n")]
    if injected:
        known = assignments(next(source for source in executed if source))
        check_names(assignments(injected[-1]), known)
    loaded = load_profile(profile)
    return (with_pictures(loaded, images) if images else loaded), run_dir(loaded.name)


def autoencoder(profile: Profile, out: Path, which: str) -> SAE:
    """The autoencoder that a later notebook looks into, by its parameter `sae`.

    `shipped`: the one in `data/`, where it fits the profile, else the `live` one, which notebook 1
    has trained; anything else is what `load_sae` reads, e.g. `hf://owner/repo/folder`.
    """
    if which not in ("shipped", "live"):
        return load_sae(which)
    shipped = DATA / "sae.safetensors"
    if which == "shipped" and profile.name == "world" and shipped.is_file():
        return load_sae(shipped)
    path = out / "sae.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"no {short(path)}: notebook 1 makes it, with the same profile")
    return load_sae(path)


def labelled(
    pictures: Pictures, clip: SplitCLIP, tokens: Tensor, among: Sequence[str] = ()
) -> Pictures:
    """The pictures; without classes of their own each has that which `clip` takes it for.

    Of ImageNet's 1,000 classes (the small CLIP: of the world's) those that occur, or of `among`,
    by a picture's residual tokens (images, 1 + n_patches, d_vit) and one prompt. "Accuracy" then
    is agreement with untouched CLIP.
    """
    if pictures.class_names:
        return pictures
    small = isinstance(clip.tokenizer, WordTokenizer)
    names = tuple(among) or (CLASSES if small else tuple(open_clip.IMAGENET_CLASSNAMES))
    text = clip.text_features(names, [TEMPLATE])
    with torch.no_grad(), fastest(clip) as device:
        z = (part.to(device, torch.float32) for part in tokens.split(BATCH))
        said = torch.cat([clip.classify(part, text.to(device)).argmax(1).cpu() for part in z])
    if not among:
        print(f"no classes: each picture has that which CLIP takes it for, of {len(names):,}")
        found, said = said.unique(return_inverse=True)
        names = tuple(names[i] for i in found.tolist())
    return Relabelled(pictures, said.tolist(), names)


def scored(profile: Profile, clip: SplitCLIP, sae: SAE, n_pictures: int) -> int:
    """How many pictures of the world latents are scored on: as many as the profile tests on, or
    as there are to look at, while all latents of all patches fit into 4 GB."""
    fit = 2**30 // (sae.d_sae * (clip.n_tokens - 1))
    return min(profile.pictures.n_test or 500, max(70, n_pictures), max(20, fit))


def tasks_of(profile: Profile) -> tuple[str, ...]:
    """The tasks that CLIP is adapted to: the profile's; or, given other pictures, these; or two of
    the world's if they have no classes."""
    if profile.tasks:
        return profile.tasks
    own = len(to_learn_from(profile, profile.pictures.spec).class_names) > 1
    return (profile.pictures.spec,) if own else ("world:flowers", "world:land")


def to_learn_from(profile: Profile, spec: str, size: int = 224) -> Pictures:
    """The training pictures of a task: all, but of the profile's own as many as that says."""
    n = profile.pictures.n_train if spec == profile.pictures.spec else 0
    return open_pictures(spec, "train", n, size)


def title_of(spec: str) -> str:
    """What a reader calls the pictures of a spec.

    >>> title_of("world:land"), title_of("folder:/my/photos")
    ('Land cover from above', 'photos')
    """
    kind, _, name = spec.partition(":")
    return TASKS[name].title if kind == "world" and name else Path(name or spec).name


def learnt_prompts(
    profile: Profile,
    folders: Sequence[Path],
    clip: SplitCLIP,
    spec: str,
    seed: int = 0,
    control: str = "",
    train: bool = False,
) -> Prompts:
    """Prompts for the base classes of the task `spec`, of the few-shot `seed`.

    Taken from the first of `folders` that has those this would train, unless `train`; else trained
    and written to the first folder. As a `control`, "swapped" gives every class the name of the
    next, and "picture" lets only the picture's encoder have prompts.
    """
    if control not in ("", "swapped", "picture"):
        raise ValueError(f"control {control!r} is not swapped or picture")
    pictures = to_learn_from(profile, spec, clip.visual.image_size[0])
    names = pictures.class_names[: base_classes(len(pictures.class_names))]
    config = replace(profile.prompts, seed=seed)
    chosen = few_shot(labels_of(pictures), len(names), config.shots, seed)
    if control == "swapped":
        names = (*names[1:], names[0])
    elif control == "picture":
        config = replace(config, encoders="picture")
    template = template_of(pictures)
    run = run_of(clip, names, config, template, chosen)
    task = Path(spec.partition(":")[2] or spec).name
    name = f"{'-'.join(filter(None, (task, control)))}-{seed}.safetensors"
    for path in (folder / name for folder in folders):
        if not train and path.is_file() and (found := load_prompts(path)).config == run:
            return found
    begun = folders[0] / f".{name}"  # a training that is killed goes on from here
    prompts, _ = train_prompts(clip, pictures, names, config, template, begun)
    save_prompts(folders[0] / name, prompts)
    begun.unlink()
    return prompts


def make_book(profile_name: str, given: Mapping[str, str], build: Path | None = None) -> Path:
    """Run every notebook, build the pages and put them in place; the path of their index.

    With a `build` folder of the caller's the repository is left as it is.
    """
    ours = build is None
    build = build or BUILD
    profile = load_profile(profile_name)
    sources = sorted(NOTEBOOKS.glob("*.ipynb"))
    executed = run_notebooks(sources, {"profile": profile_name, **given}, build / "notebooks")
    claims = run_dir(profile.name) / "claims.json"
    if not claims.is_file():
        write_json(claims, [])
    shutil.copy(claims, executed / "claims.json")
    if (explorer := run_dir(profile.name) / "explorer").is_dir():
        shutil.copytree(explorer, executed / "explorer")
    write_json(executed / "profile.json", asdict(profile))
    print("pages ...", file=sys.stderr, flush=True)
    html = build_pages(executed, build / "staging")
    if ours:
        copy = shutil.copytree(executed, build / "staging" / "executed")
        replace_folder(copy, PAGES / "notebooks")
    replace_folder(html, build / "html")
    shutil.rmtree(build / "staging")
    return build / "html" / "index.html"


def run_notebooks(sources: Iterable[Path], given: Mapping[str, str], out: Path) -> Path:
    """Execute notebooks one after the other into `out/<profile>/`, and return that folder.

    `given` are parameters by name, among them `profile`; each notebook gets those it knows, and a
    name that none of them knows is an error before anything runs. Raises `NotebookError` at the
    first failure.
    """
    sources = list(sources)
    if not sources:
        raise NotebookError("there are no notebooks to run")
    parameters = {source: read_parameters(source) for source in sources}
    check_names(given, {name for known in parameters.values() for name in known})
    name = load_profile(given["profile"]).name
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (run_dir(name) / "claims.json").unlink(missing_ok=True)  # every claim is measured again
    for source in sources:
        defaults = parameters[source]
        mine = {k: typed(v, defaults[k], k) for k, v in given.items() if k in defaults}
        changed = {k: v for k, v in mine.items() if v != defaults[k]}
        start = time.monotonic()
        print(f"{source.stem} ...", file=sys.stderr, flush=True)
        execute(source, changed, folder / source.name)
        print(f"{source.stem}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return folder


def execute(source: Path, parameters: Mapping[str, Any], target: Path) -> None:
    """Run one notebook from the root of the repository and write it, tidied, to `target`.

    What a cell writes to stderr (progress bars, warnings) goes to the terminal and is not kept.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    interactive = sys.stderr.isatty()
    environment = KERNEL_ENVIRONMENT | ({} if interactive else {"TQDM_DISABLE": "1"})
    try:
        with mock.patch.dict(os.environ, environment):
            notebook = papermill.execute_notebook(
                source,
                target,
                parameters=dict(parameters),
                kernel_name="python3",
                language="python",
                cwd=ROOT,
                stderr_file=sys.stderr,
                shutdown_kernel="immediate",  # torch takes two seconds to leave, six times
                progress_bar={"desc": source.stem, "leave": False} if interactive else False,
            )
    except PapermillExecutionError as error:
        message = f"{error.ename}: {error.evalue}".replace(f"{ROOT}{os.sep}", "")
        cell = where(source, error.source)
        raise NotebookError(f"{cell}: {' '.join(message.split())}") from None
    except DeadKernelError:
        raise NotebookError(f"{short(source)}: the kernel died, perhaps of memory") from None
    nbformat.write(tidy(notebook), target)


def build_pages(executed: Path, staging: Path) -> Path:
    """Build the HTML of `book/` with these executed notebooks, in `staging`; its folder.

    Every warning is an error: a `NotebookError` with the warnings as text.
    """
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(PAGES, staging / "book", ignore=shutil.ignore_patterns("notebooks", "_ext"))
    shutil.copytree(executed, staging / "book" / "notebooks")
    (staging / "data").symlink_to(ROOT / "data")  # pages include ../data/...
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(staging / "book")]
    command += ["--config", str(ROOT / "_config.yml"), "--path-output", str(staging)]
    command += ["--all", "-W", "-n", "--keep-going", "-q"]
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    html = staging / "_build" / "html"
    if ran.returncode or not (html / "index.html").is_file():
        said = re.sub(r"\x1b\[[\d;]*m", "", ran.stdout + ran.stderr)  # colours
        said = said.replace(str(staging / "book"), PAGES.name)
        found = re.findall("^.*(?:WARNING|ERROR|CRITICAL|rror:).*$", said, flags=re.MULTILINE)
        lines = dict.fromkeys(found)  # each once
        raise NotebookError("the pages do not build:\n" + ("\n".join(lines) or said))
    return html


def replace_folder(new: Path, place: Path) -> None:
    """Put `new` where `place` is, keeping the old one until the last moment."""
    old = place.with_name(f"{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def read_parameters(source: Path) -> dict[str, Any]:
    """The names and defaults in the cell tagged `parameters`, which is the first code cell."""
    codes = [cell for cell in read_cells(source) if cell["cell_type"] == "code"]
    if not codes or "parameters" not in codes[0]["metadata"].get("tags", []):
        raise NotebookError(f"{short(source)}: its first code cell is not tagged 'parameters'")
    values = assignments("".join(codes[0]["source"]))
    return {name: ast.literal_eval(value) for name, value in values.items()}


def read_cells(source: Path) -> list[dict[str, Any]]:
    """The cells of a notebook file."""
    try:
        return json.loads(source.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError):
        raise NotebookError(f"{short(source)} is not a notebook") from None


def assignments(code: str) -> dict[str, ast.expr]:
    """What the top-level assignments of a cell set.

    >>> sorted(assignments("a = 1\\nb: str = ''"))
    ['a', 'b']
    """
    values: dict[str, ast.expr] = {}
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            values[statement.targets[0].id] = statement.value
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            values[statement.target.id] = statement.value or ast.Constant(None)
    return values


def check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise `ValueError` for the parameters that are not known."""
    unknown, known = sorted(set(given) - set(known)), sorted(known)
    if unknown:
        names = ", ".join(map(repr, unknown))
        raise ValueError(f"unknown parameter {names}; known are {', '.join(known)}")


def typed(text: Any, default: Any, name: str) -> Any:
    """A parameter from the command line as the type of its default.

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


def tidy(notebook: Any) -> Any:
    """Take out of an executed notebook what differs from run to run: times, widget state, stderr,
    random ids, absolute paths, memory addresses. Changes it in place and returns it."""
    for name in ("papermill", "widgets"):
        notebook.metadata.pop(name, None)
    for cell in notebook.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = "injected-parameters"
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    ids: dict[str, str] = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "text" in output:
                output["text"] = settled("".join(output["text"]), ids)
            for kind, content in output.get("data", {}).items():
                if kind.startswith("text/"):
                    output["data"][kind] = settled("".join(content), ids)
    return notebook


RANDOM = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"  # uuid4
    r"|(?<=T_)[0-9a-f]{5}(?=[_\"' {])"  # a table styled by pandas
)


def settled(text: str, ids: dict[str, str]) -> str:
    """The text without paths and addresses of this machine, its random ids numbered in order.

    >>> settled("<f at 0x7f10> T_0a1b2_row0 T_0a1b2_row1", {})
    '<f> T_00000_row0 T_00000_row1'
    """
    text = text.replace(f"{ROOT}{os.sep}", "").replace(str(ROOT), ".")
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    return RANDOM.sub(lambda found: ids.setdefault(found[0], f"{len(ids):05d}"), text)


def where(source: Path, code: str) -> str:
    """A cell of a notebook as a person finds it: which of its code cells (1 is the first).

    The cell is found by its text, because papermill's index counts a cell it has added.
    """
    codes = ["".join(c["source"]) for c in read_cells(source) if c["cell_type"] == "code"]
    number = codes.index(code) + 1 if code in codes else "with the parameters"
    return f"{short(source)}, code cell {number}"


def short(path: Path) -> str:
    """The path as seen from the root of the repository."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
