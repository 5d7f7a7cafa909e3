"""What runs again, why, in which order, and side by side: notebooks of a few lines, which a plain
Python process runs in place of a kernel."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

import execution
import records
import schedule
from execution import parameters_of
from folders import NotebookError, mark
from patchsae_lib.artefacts import DATA, ROOT
from patchsae_lib.profiles import load_profile
from schedule import run_notebooks

# Runs the cells of a notebook, with functions in place of a `Study`.
RUNNER = """\
import json, os, sys, threading, time
from pathlib import Path
from patchsae_lib.artefacts import made_once, note, note_reading, record_claim, run_dir, write_json

source, target, parameters = sys.argv[1:]
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
folder = run_dir("smoke")
folder.mkdir(parents=True, exist_ok=True)

def keep(name, text):
    (folder / name).write_text(str(text))
    note("writes", str(folder / name))

def kept(name, made_by):
    note_reading(folder / name, made_by)
    return (folder / name).read_text()

def claim(id, measured="0.5"):
    record_claim(folder, id, measured, True)

def until(name):
    while not (folder / name).exists(): time.sleep(0.01)

notebook, scope = json.loads(Path(source).read_text()), dict(globals())
try:
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), scope)
            if cell["metadata"]: scope |= json.loads(parameters)
except Exception as error:
    sys.exit(print(error) or 1)
write_json(target, notebook)
"""


class Checkout:
    """A folder in place of the repository: two notebooks, one of which reads what the other
    keeps, and one that imports a module of the library."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.run, self.patch = folder, folder / "runs/smoke", patch

    def set_up(self) -> "Checkout":
        for name in ("notebooks", "patchsae_lib", "data/paper"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "runner.py").write_text(RUNNER)
        (self.folder / "patchsae_lib/sae.py").write_text("import patchsae_lib.sparse\n")
        (self.folder / "patchsae_lib/sparse.py").write_text("k = 1\n")
        (self.folder / "patchsae_lib/figures.py").write_text("width = 1\n")
        (self.folder / "data/sae.safetensors").write_text("weights")
        (self.folder / "data/sae.md").write_text("a card")
        self.claim_texts(note="")
        self.write("1_a", "keep('a.json', n)", "claim('1-lambda')")
        self.write("2_b", "keep('b.json', kept('a.json', '1_a') + '!')", "claim('2-depth')")
        self.write("3_c", "if not n: import patchsae_lib.sae")
        return self

    def claim_texts(self, note: str) -> None:
        texts = {"1-lambda": "1_a", "2-depth": "2_b"}
        lines = (f'[{id}]\nnotebook = "{name}"\nnote = "{note}"' for id, name in texts.items())
        (self.folder / "data/paper/claims.toml").write_text("\n".join(lines))

    def write(self, name: str, *codes: str, text: str = "# Title") -> None:
        about = {"metadata": {}, "execution_count": None, "outputs": []}
        codes = ('profile = "smoke"\nn = 1', *codes)
        cells = [
            {"cell_type": "code", "id": f"c{i}", "source": code} | about
            for i, code in enumerate(codes)
        ]
        cells[0]["metadata"] = {"tags": ["parameters"]}
        cells.insert(0, {"cell_type": "markdown", "id": "t", "source": text, "metadata": {}})
        notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        (self.folder / f"notebooks/{name}.ipynb").write_text(json.dumps(notebook))

    def only(self, **codes: str | tuple[str, ...]) -> None:
        """Write these notebooks in place of all others."""
        for path in self.folder.glob("notebooks/*"):
            path.unlink()
        for name, code in codes.items():
            self.write(f"{name[1:]}_{name[0]}", *([code] if isinstance(code, str) else code))

    def build(self, profile=None, given=None, **how) -> Path:
        sources = sorted(self.folder.glob("notebooks/*.ipynb"))
        runs = parameters_of(sources, {"profile": "smoke", **(given or {})})
        folder = self.folder / "_build/smoke"
        return run_notebooks(runs, folder, profile or load_profile("smoke"), **how)

    def claims(self) -> list[str]:
        """The claims of the run, which are those for the pages, too, there with receipts."""
        places = self.run, self.folder / "_build/smoke"
        own, shown = (json.loads((x / "claims.json").read_text()) for x in places)
        receipts = [claim.pop("receipt") for claim in shown]
        assert own == shown
        assert all(len(receipt["notebook"]) == 12 for receipt in receipts)
        return [claim["id"] for claim in own]

    def bytes(self) -> dict[str, bytes]:
        """All that a build has left behind but its records."""
        files = [*self.run.rglob("*"), *(self.folder / "_build").rglob("*")]
        files = [x for x in files if x.is_file() and schedule.RECORDS not in x.parts]
        return {str(x.relative_to(self.folder)): x.read_bytes() for x in files}


def use(folder: Path, patch: pytest.MonkeyPatch) -> Checkout:
    checkout = Checkout(folder, patch)
    for name, value in {"ROOT": folder, "DATA": folder / "data"}.items():
        patch.setattr(records, name, value)
    patch.setattr(records, "CLAIMS", folder / "data/paper/claims.toml")
    patch.setattr(schedule, "RUNNER", str(folder / "runner.py"))
    patch.setattr(schedule, "POLL", 0.02)
    patch.setattr(schedule, "FORKED_FROM", 99)  # there are no kernels
    patch.setenv("PATCHSAE_RUNS", str(folder / "runs"))
    patch.setenv("PYTHONPATH", str(ROOT))
    return checkout


def drive(folder: str) -> None:
    """Build in a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        use(Path(folder), patch).build()


def driven(folder: Path, **how) -> subprocess.Popen:
    """Start a process that builds, and a group of its own for it, as a terminal does."""
    code = f"import test_schedule; test_schedule.drive({str(folder)!r})"
    path = ":".join(map(str, (ROOT, ROOT / "book", ROOT / "tests")))
    environment = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, env=environment, start_new_session=True, **how)


def wait_for(path: Path, build: subprocess.Popen) -> None:
    """Wait for a file that a notebook writes."""
    while not path.exists():
        assert build.poll() is None
        time.sleep(0.005)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    return use(tmp_path, monkeypatch).set_up()


@pytest.fixture
def lines(capfd):
    """What the build has said since the last call, in the order of notebooks."""
    return lambda: [
        re.sub(r"\d+ s.*", "ran", line) for line in sorted(capfd.readouterr().err.splitlines())
    ]


# --- what runs again, and why --------------------------------------------------------------------

KEPT = ["1_a: kept", "2_b: kept", "3_c: kept"]


def again(name: str, why: str, others: list[str] = KEPT) -> list[str]:
    """The lines of a build in which one notebook runs."""
    kept = [line for line in others if not line.startswith(name)]
    return sorted([*kept, f"{name}: ran", f"{name}: runs, {why}"])


def test_what_has_run_is_kept(checkout, lines):
    checkout.build()
    first = again("1_a", "for the first time", [])
    assert lines() == sorted(
        line.replace("1_a", name) for name in ("1_a", "2_b", "3_c") for line in first
    )
    before = checkout.bytes()
    checkout.build()
    assert lines() == KEPT
    assert checkout.bytes() == before
    checkout.build(fresh=True)
    assert [line for line in lines() if "asked to" in line] == [
        f"{name}: runs, asked to" for name in ("1_a", "2_b", "3_c")
    ]
    assert checkout.bytes() == before


CHANGES = {
    "nothing": (lambda c: None, KEPT),
    "its text": (
        lambda c: c.write("3_c", "if not n: import patchsae_lib.sae", text="# New"),
        ["1_a: kept", "2_b: kept", "3_c: kept, with its new text"],
    ),
    "its code": (lambda c: c.write("3_c", "n  # new"), again("3_c", "notebook changed")),
    "a module": (
        lambda c: (c.folder / "patchsae_lib/sparse.py").write_text("k = 2\n"),
        again("3_c", "code changed: patchsae_lib.sparse"),
    ),
    "a module that it does not reach": (
        lambda c: (c.folder / "patchsae_lib/figures.py").write_text("width = 2\n"),
        KEPT,
    ),
    "a comment in a module": (
        lambda c: (c.folder / "patchsae_lib/sparse.py").write_text("# why\nk = 1  # how\n"),
        KEPT,
    ),
    "its artefact is gone": (
        lambda c: (c.run / "b.json").unlink(),
        again("2_b", "b.json is gone"),
    ),
    "its artefact is another": (
        lambda c: (c.run / "b.json").write_text("by hand"),
        again("2_b", "b.json changed"),
    ),
    "an artefact that others read is gone": (
        lambda c: (c.run / "a.json").unlink(),
        again("1_a", "a.json is gone"),  # and is made again as it was
    ),
    "its executed copy is gone": (
        lambda c: (c.folder / "_build/smoke/3_c.ipynb").unlink(),
        again("3_c", "its executed copy was changed"),
    ),
    "its folder is another": (
        lambda c: c.patch.setenv("PATCHSAE_RUNS", str(c.folder / "elsewhere")),
        again("1_a", "a.json is gone", again("2_b", "b.json is gone")),
    ),
    "a card": (lambda c: (c.folder / "data/sae.md").write_text("a better card"), KEPT),
}


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES)
def test_a_notebook_runs_again_only_if_its_own_has_changed(checkout, lines, change, expected):
    checkout.build()
    lines()
    change(checkout)
    checkout.build()
    assert lines() == expected
    checkout.build()
    assert lines() == KEPT


def test_what_reads_an_artefact_runs_again_only_if_that_has_changed(checkout, lines):
    checkout.build()
    lines()
    checkout.write("1_a", "keep('a.json', n + 1)", "claim('1-lambda')")
    checkout.build()
    expected = again("2_b", "a.json changed", again("1_a", "notebook changed"))
    assert lines() == expected
    assert (checkout.run / "b.json").read_text() == "2!"
    checkout.write("1_a", "keep('a.json', 2)", "claim('1-lambda')")
    checkout.build()
    assert lines() == again("1_a", "notebook changed")


def test_other_parameters_profile_or_data_run_all(checkout, lines):
    for how, why in (
        (dict(given={"n": "3"}), "parameters changed: n"),
        (dict(profile=replace(load_profile("smoke"), seeds=7)), "profile changed: seeds"),
        (dict(), "data changed: sae.safetensors"),
    ):
        checkout.build()
        lines()
        if not how:
            (checkout.folder / "data/sae.safetensors").write_text("other weights")
        checkout.build(**how)
        assert [x.partition(", ")[2] for x in lines() if "runs" in x] == [why] * 3
    assert (checkout.run / "b.json").read_text() == "1!"


def test_a_file_that_a_parameter_names_is_looked_at(tmp_path):
    assert records.named_files("world:flowers") == ""
    assert records.named_files("smoke") == ""
    (tmp_path / "photos/owl").mkdir(parents=True)
    (tmp_path / "photos/owl/1.png").write_text("owl")
    (tmp_path / "sae.safetensors").write_text("weights")
    names = f"folder:{tmp_path}/photos", f"{tmp_path}/sae.safetensors", f"wds:{tmp_path}/{{0..1}}"
    before = [records.named_files(name) for name in names]
    assert all(before)
    records.listing_hash.cache_clear()
    (tmp_path / "photos/owl/2.png").write_text("owl")
    (tmp_path / "sae.safetensors").write_text("others")
    after = [records.named_files(name) for name in names]
    assert [a != b for a, b in zip(after, before, strict=True)] == [True, True, True]


def test_all_that_a_notebook_loads_is_among_what_it_can_reach():
    """The imports are read from the code; here Python says what was imported."""
    source = ROOT / "notebooks/6_explorer.ipynb"
    cells = [c for c in execution.read_cells(source) if c["cell_type"] == "code"]
    first = next(code for c in cells if "import" in (code := "".join(c["source"])))
    imports = first.partition("\nstudy = ")[0]
    code = (
        f"{imports}\nimport sys\nprint(*(m for m in sys.modules if m.startswith('patchsae_lib')))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert "patchsae_lib.study" in loaded
    assert loaded <= set(records.reachable([imports]))


# --- texts ---------------------------------------------------------------------------------------


def test_a_copy_with_a_new_text_is_the_copy_of_a_new_run(tmp_path, monkeypatch):
    checkout = Checkout(tmp_path, monkeypatch)
    (tmp_path / "notebooks").mkdir()
    copies = [tmp_path / f"{name}.ipynb" for name in ("renewed", "new")]
    for text, target in zip(("# Old", "# New\n\ntext"), copies, strict=True):
        checkout.write("1_a", "n", "print(n)", text=text)
        execution.execute(tmp_path / "notebooks/1_a.ipynb", {"n": 2}, target)
    execution.renew_text(tmp_path / "notebooks/1_a.ipynb", copies[0])
    assert copies[0].read_bytes() == copies[1].read_bytes()
    assert "# New" in copies[0].read_text()


# --- side by side --------------------------------------------------------------------------------


def test_two_run_at_once_and_one_goes_on_when_its_artefact_is_there(checkout, lines):
    checkout.only(
        a1=("until('b')", "keep('a.json', 1)"),
        b2=("keep('b', 1)", "keep('b.json', kept('a.json', '1_a'))"),
    )
    checkout.build(n_jobs=2)
    assert (checkout.run / "b.json").read_text() == "1"


def test_what_waits_leaves_its_place_to_another(checkout, lines):
    checkout.only(
        a1="kept('b.json', '2_b')", b2="until('c'); keep('b.json', 1)", c3="keep('c', 1)"
    )
    checkout.build(n_jobs=2)
    started = [x[:3] for x in lines() if "runs" in x]
    assert started == ["1_a", "2_b", "3_c"]
    shutil.rmtree(checkout.run)
    (checkout.folder / "notebooks/3_c.ipynb").unlink()
    checkout.only(a1="kept('b.json', '2_b')", b2="keep('b.json', 1)")
    checkout.build(n_jobs=1)


def test_no_more_run_at_once_than_there_are_jobs(checkout):
    log = "import time; open(folder / 'log', 'a').write({!r}); time.sleep(0.1)"
    code = f"{log.format('(')}; {log.format(')')}"
    checkout.only(a1=code, b2=code, c3=code, d4=code)
    checkout.build(n_jobs=1)
    assert (checkout.run / "log").read_text() == "()" * 4
    (checkout.run / "log").unlink()
    checkout.build(n_jobs=4, fresh=True)
    assert (checkout.run / "log").read_text() != "()" * 4


def test_the_longest_path_goes_first(checkout, capfd):
    checkout.only(a1="1", b2="time.sleep(0.5); keep('b', 1)", c3="kept('b', '2_b')")
    checkout.build()
    capfd.readouterr()
    checkout.build(n_jobs=1, fresh=True)
    started = [x for x in capfd.readouterr().err.splitlines() if "runs" in x]
    assert started[0].startswith("2_b")


def test_an_artefact_that_two_need_is_made_once(checkout):
    code = """
    def make():
        open(folder / 'made', 'a').write('x')
        time.sleep(0.5)
        return [1]
    assert made_once(folder / 'table.json', {'x': 1}, make) == [1]
    """.replace("\n    ", "\n")
    checkout.only(a1=code, b2=code)
    checkout.build(n_jobs=2)
    assert (checkout.run / "made").read_text() == "x"


BEAT = "while True: (folder / 'beat').write_text(str(time.time())); time.sleep(0.02)"


def beats(checkout) -> bool:
    """Whether a notebook that runs `BEAT` is alive."""
    before = (checkout.run / "beat").read_text()
    time.sleep(0.3)
    return (checkout.run / "beat").read_text() != before


def test_the_first_failure_ends_the_others(checkout):
    checkout.only(
        a1=BEAT, b2="until('beat'); raise ValueError('why it failed')", c3="keep('c', 1)"
    )
    with pytest.raises(NotebookError, match=r"^why it failed$"):
        checkout.build(n_jobs=2)
    assert not beats(checkout)
    assert not (checkout.run / "c").exists()
    checkout.only(a1="1", b2="2", c3="keep('c', 1)")
    checkout.build()
    assert (checkout.run / "c").exists()


def test_what_failed_runs_again_even_if_it_is_changed_back(checkout, lines):
    checkout.build()
    before = (checkout.folder / "notebooks/3_c.ipynb").read_text()
    checkout.write("3_c", "raise ValueError('why it failed')")
    with pytest.raises(NotebookError):
        checkout.build()
    (checkout.folder / "notebooks/3_c.ipynb").write_text(before)
    lines()
    checkout.build()
    assert lines() == again("3_c", "its last run did not end")


def test_ctrl_c_is_for_the_build_which_ends_all(checkout):
    checkout.only(a1=BEAT)
    with driven(checkout.folder, stderr=subprocess.PIPE, text=True) as build:
        wait_for(checkout.run / "beat", build)
        os.killpg(build.pid, signal.SIGINT)
        _, errors = build.communicate(timeout=20)
    assert not beats(checkout)
    assert errors.count("Traceback") == 1  # of this test's driver
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_notebooks_that_wait_for_each_other_are_an_error(checkout):
    checkout.only(a1="kept('b', '2_b'); keep('a', 1)", b2="kept('a', '1_a'); keep('b', 1)")
    with pytest.raises(NotebookError, match="wait for each other: 1_a for 2_b; 2_b for 1_a"):
        checkout.build()


def test_an_artefact_belongs_to_the_notebook_that_is_named(checkout):
    checkout.only(a1="keep('a', 1)", b2="keep('b', 1)", c3="kept('a', '1_a'); kept('a', '2_b')")
    with pytest.raises(NotebookError, match=r"3_c reads a, which 2_b does not write"):
        checkout.build()
    checkout.only(a1="keep('a', 1)", b2="keep('a', 2)")
    with pytest.raises(NotebookError, match=r"(1_a and 2_b|2_b and 1_a) both write a"):
        checkout.build()


# --- claims --------------------------------------------------------------------------------------


def test_claims_of_notebooks_that_are_kept_stay(checkout, lines):
    checkout.build()
    assert checkout.claims() == ["1-lambda", "2-depth"]
    checkout.write("1_a", "keep('a.json', n)", "claim('1-contrastive')")
    checkout.build()
    assert checkout.claims() == ["1-contrastive", "2-depth"]  # and not 1-lambda any more
    (checkout.folder / "notebooks/1_a.ipynb").unlink()
    checkout.write("2_b", "claim('2-depth')")
    checkout.build()
    assert checkout.claims() == ["2-depth"]
    lines()
    checkout.claim_texts(note="in other words")
    checkout.build()
    assert lines() == again("2_b", "claims.toml changed: 2-depth", ["3_c: kept"])


def test_two_notebooks_record_claims_at_once(checkout):
    texts = tomllib.loads((DATA / "paper/claims.toml").read_text("utf-8"))
    ids = sorted(id for id, claim in texts.items() if "{" not in claim["note"])
    many = "for id in {!r}: claim(id)"
    read = "json.loads((folder / 'claims.json').read_text())"
    checkout.only(
        a1=(many.format(ids[::2] * 5), "keep('a', 1)"),
        b2=(many.format(ids[1::2] * 5), "keep('b', 1)"),
        c3=("kept('a', '1_a'); kept('b', '2_b')", f"assert len({read}) == {len(ids)}, 'lost'"),
    )
    checkout.build(n_jobs=2)
    assert checkout.claims() == ids


# --- killed builds -------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["a.json", "b", "c"])
def test_a_killed_build_does_not_spoil_the_next(tmp_path, monkeypatch, moment):
    slow = "time.sleep(0.2)"
    codes = dict(
        a1=("keep('a.json', 1)", "until('go')", "claim('1-lambda')"),
        b2=("keep('b', kept('a.json', '1_a'))", slow, "until('go')", "claim('2-depth')"),
        c3=("keep('c', kept('b', '2_b'))", "until('go')"),
    )
    left = []
    for name in ("killed", "whole"):
        checkout = use(tmp_path / name, monkeypatch).set_up()
        checkout.only(**codes)
        checkout.run.mkdir(parents=True)
        if name == "killed":
            if moment != "a.json":
                (checkout.run / "go").touch()
            build = driven(checkout.folder)
            wait_for(checkout.run / moment, build)
            build.send_signal(signal.SIGKILL)
            build.wait()
            time.sleep(0.3)  # the notebooks notice
        (checkout.run / "go").touch()
        checkout.build()
        left.append({k: v for k, v in checkout.bytes().items() if "lock" not in k})
    assert left[0] == left[1]
    mark(checkout.folder / "_build/.running")  # of a build that was killed
    (checkout.folder / "_build/.running/1_a.pending").touch()
    checkout.build()
    assert not (checkout.folder / "_build/.running").exists()


def test_results_that_are_written_from_a_run_do_not_make_it_run_again():
    assert (DATA / "results.json").is_file()
    assert {"results.json", "paper/claims.toml"}.isdisjoint(records.shipped_files())
