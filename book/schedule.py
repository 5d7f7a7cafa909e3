"""Runs the notebooks that have to run again, side by side, and keeps the others.

Every notebook that may have to run is *pending*. A kernel that asks for an artefact of a pending
notebook waits for that one (`artefacts.note_reading`), and another may start meanwhile. So nothing
has to say in advance what depends on what, and a notebook that needs another's artefact in its
last cell runs beside it until there. What a kernel has read and written is in its trace.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import execution
import warm
from folders import NotebookError, mark, remove_folder
from patchsae_lib.artefacts import ROOT, TRACE, run_dir, sha256, short, write_json
from patchsae_lib.profiles import Profile
from records import (
    Record,
    changed_files,
    changed_parts,
    fingerprint,
    listing_hash,
    made_of,
    read_record,
    read_trace,
)

CORES = os.cpu_count() or 1
JOBS = min(2, CORES)
FORKED_FROM = 3  # notebooks that run: kernels of so many are forked from one process
SPARE = 2  # kernels beyond these that may be alive, waiting: each holds memory
POLL = 0.1  # seconds
RUNNER = execution.__file__  # runs one notebook
RECORDS = ".runs"  # the folder of the records, beside the executed copies

# Kernels share out the cores. A thread that waits for another must sleep, or it would slow the
# rest down many times over.
THREADS = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}


@dataclass(eq=False)
class Job:
    """A notebook of this build: pending until it is kept or has run.

    `target`: the executed copy; `traces`: the folder in which kernels note what they do; `why`:
    why it runs.
    """

    source: Path
    parameters: Mapping[str, Any]
    profile: Profile
    target: Path
    traces: Path
    why: str = ""
    process: subprocess.Popen[bytes] | None = None
    started: float = 0
    waited: float = 0

    def __post_init__(self) -> None:
        self.name = self.source.stem
        self.record = self.target.parent / RECORDS / f"{self.name}.json"
        self.trace, self.pending, self.printed = (
            self.traces / f"{self.name}.{kind}" for kind in ("trace", "pending", "out")
        )
        self.run = run_dir(self.profile.name)
        self.last = read_record(self.record)
        self.pending.touch()

    @cached_property
    def made_of(self) -> dict[str, dict[str, Any]]:
        """All that decides the outputs, but for artefacts of other notebooks."""
        return made_of(self.source, self.parameters, self.profile)

    @property
    def makers(self) -> set[str]:
        """The notebooks whose artefacts it read when it last ran."""
        return {maker for maker, _ in self.last.reads.values()} if self.last else set()

    @cached_property
    def outdated(self) -> str:
        """Say why it runs again, whatever other notebooks do; "" if for no such reason."""
        if self.last is None:
            return "its last run did not end" if self.target.exists() else "for the first time"
        if not self.target.is_file() or sha256(self.target) != self.last.executed:
            return "its executed copy was changed"
        return changed_parts(self.last.made_of, self.made_of)

    def waits_for(self) -> str:
        """Return the pending notebook that its kernel waits for, or ""."""
        event, *about = (read_trace(self.trace) or [[""]])[-1]
        waits = event == "waits" and self.trace.with_name(f"{about[0]}.pending").exists()
        return about[0] if waits else ""

    def start(self, environment: dict[str, str]) -> None:
        """Start the kernel in a process that ends with this one; add to its `environment`."""
        self.record.unlink(missing_ok=True)  # of a run that is killed nothing is kept
        self.started = time.monotonic()
        arguments = [str(self.source), str(self.target), json.dumps(dict(self.parameters))]
        with open(self.printed, "wb") as printed:
            self.process = subprocess.Popen(
                [sys.executable, RUNNER, *arguments],
                stdin=subprocess.PIPE,
                stdout=printed,
                cwd=ROOT,
                env=environment | os.environ | {TRACE: str(self.trace)},
                start_new_session=True,  # ctrl-c is for the build, which then ends all
            )

    def end(self) -> None:
        """End the kernel, if it runs."""
        if self.process is None or self.process.stdin is None:
            return
        with suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def finish(self) -> Record:
        """Record a run that has ended. Raises `NotebookError` if it failed."""
        assert self.process is not None
        seconds = time.monotonic() - self.started - self.waited
        self.end()
        if self.process.returncode:
            lines = self.printed.read_text("utf-8").splitlines()
            raise NotebookError(lines[-1] if lines else f"{short(self.source)}: its process died")
        record = Record(self.made_of, sha256(self.source), sha256(self.target), seconds)
        claims = {}
        for event, *about in read_trace(self.trace):
            if event == "claims":
                claims[about[0]["id"]] = about[0]
            if event in ("reads", "writes"):
                path, hash = os.path.relpath(about[-1], self.run), fingerprint(Path(about[-1]))
                if event == "reads":
                    record.reads[path] = [about[0], hash]
                else:
                    record.writes[path] = hash
        record.claims = list(claims.values())
        return record


class Schedule:
    """Notebooks of a build: each is undecided, queued, running, or done.

    At most `n_jobs` kernels compute at a time; those that wait for another notebook do not count.
    """

    def __init__(self, jobs: Iterable[Job], n_jobs: int, fresh: bool) -> None:
        self.jobs, self.n_jobs, self.fresh = list(jobs), n_jobs, fresh
        self.undecided, self.queued = list(self.jobs), list[Job]()
        self.running, self.records = list[Job](), dict[str, Record]()
        self.threads = THREADS | {"OMP_NUM_THREADS": str(max(1, CORES // n_jobs))}
        self.kernels: dict[str, str] | None = None

    def run(self) -> dict[str, Record]:
        """Keep or run every notebook and return their records. Raises `NotebookError` at the
        first failure, and ends what else runs."""
        with ExitStack() as stack:
            try:
                while len(self.records) < len(self.jobs):
                    while self._decide():  # until nothing follows from what was kept
                        pass
                    if self.kernels is None and len(self.queued) >= FORKED_FROM:
                        environment = self.threads | os.environ | execution.KERNEL_ENVIRONMENT
                        self.kernels = stack.enter_context(warm.kernels(environment))
                    self._start()
                    self._collect()
            finally:
                for job in self.running:
                    job.end()
        return self.records

    def _decide(self) -> int:
        """Queue or keep each notebook of which it is known; return of how many it was."""
        pending, before = {job.name for job in self.jobs} - set(self.records), len(self.undecided)
        for job in list(self.undecided):
            job.why = "asked to" if self.fresh else job.outdated
            if not job.why and job.makers & pending:
                continue
            job.why = job.why or (changed_files(job.last, job.run) if job.last else "")
            self.undecided.remove(job)
            if job.why:
                self.queued.append(job)
            else:
                self._keep(job)
        return before - len(self.undecided)

    def _keep(self, job: Job) -> None:
        record, about = job.last, ""
        assert record is not None
        if record.text != sha256(job.source):
            execution.renew_text(job.source, job.target)
            record.text, record.executed = sha256(job.source), sha256(job.target)
            about = ", with its new text"
        self._done(job, record, f"kept{about}")

    def _done(self, job: Job, record: Record, how: str) -> None:
        record.save(job.record)
        self.records[job.name] = record
        job.pending.unlink()
        say(f"{job.name}: {how}")

    def _start(self) -> None:
        """Start what is needed most, while there are fewer kernels that compute than may be.

        Raises `NotebookError` if notebooks wait for each other.
        """
        waits = {job.name: maker for job in self.running if (maker := job.waits_for())}
        needed = set(waits.values())
        needed |= {m for job in self.undecided if job.name in needed for m in job.makers}
        self.queued.sort(key=lambda job: (job.name not in needed, -self._path(job), job.name))
        for job in list(self.queued):
            if len(self.running) - len(waits) >= self.n_jobs:
                break
            if job.name in needed or len(self.running) < self.n_jobs + SPARE:
                say(f"{job.name}: runs, {job.why}")
                self.queued.remove(job)
                self.running.append(job)
                job.start(self.threads | (self.kernels or {}))
        if len(waits) == len(self.running) and len(self.records) < len(self.jobs):
            pairs = waits | {job.name: ", ".join(job.makers) for job in self.undecided}
            listed = "; ".join(f"{name} for {maker}" for name, maker in pairs.items())
            raise NotebookError(f"notebooks wait for each other: {listed}")

    def _path(self, job: Job, passed: frozenset[str] = frozenset()) -> float:
        """Return the seconds, in the last build, from its start to the end of what needs it."""
        passed |= {job.name}
        users = [x for x in self.jobs if job.name in x.makers and x.name not in passed]
        own = job.last.seconds if job.last else 0
        return own + max((self._path(user, passed) for user in users), default=0)

    def _collect(self) -> None:
        start = time.monotonic()
        time.sleep(POLL)
        for job in list(self.running):
            assert job.process is not None
            if job.process.poll() is None:
                job.waited += time.monotonic() - start if job.waits_for() else 0
                continue
            record = job.finish()
            self._check(job, record)
            self.running.remove(job)
            waited = f", and {job.waited:.0f} s of waiting" if job.waited >= 1 else ""
            self._done(job, record, f"{record.seconds:.0f} s{waited}")

    def _check(self, job: Job, record: Record) -> None:
        """Raise `NotebookError` if two notebooks write an artefact, or if one reads it as that of
        a notebook that does not write it."""
        for path, (maker, _) in record.reads.items():
            written = self.records[maker].writes if maker in self.records else {}
            files = {os.path.relpath(file, job.run) for file in job.run.glob(path)}
            if not files <= set(written):
                raise NotebookError(f"{job.name} reads {path}, which {maker} does not write")
        for name, known in self.records.items():
            if common := sorted(set(record.writes) & set(known.writes)):
                raise NotebookError(f"{name} and {job.name} both write {common[0]}")


def run_notebooks(
    runs: Mapping[Path, Mapping[str, Any]],
    folder: Path,
    profile: Profile,
    fresh: bool = False,
    n_jobs: int = JOBS,
) -> Path:
    """Bring the executed copies of notebooks, with their parameters, in `folder` up to date.

    The claims, the explorer's files and the profile of the run are put beside them. Raises
    `NotebookError` at the first failure.
    """
    mark(folder)
    listing_hash.cache_clear()
    traces = folder.with_name(".running")
    remove_folder(traces)
    mark(traces)
    for path in (*folder.glob("*.ipynb"), *folder.glob(f"{RECORDS}/*.json")):
        if path.stem not in {source.stem for source in runs}:
            path.unlink()
    jobs = [Job(*run, profile, folder / run[0].name, traces) for run in runs.items()]
    records = Schedule(jobs, n_jobs, fresh).run()
    remove_folder(traces)
    gather(records.values(), folder, profile)
    return folder


def gather(records: Iterable[Record], folder: Path, profile: Profile) -> None:
    """Put what the pages need beside the executed copies: claims, profile, the explorer's files.

    The run's own `claims.json` is made anew, too, of the claims of every notebook; here each has
    the receipt of its run.
    """
    pairs = [(claim, record.receipt()) for record in records for claim in record.claims]
    pairs.sort(key=lambda pair: pair[0]["id"])
    write_json(run_dir(profile.name) / "claims.json", [claim for claim, _ in pairs])
    receipts = [{**claim, "receipt": receipt} for claim, receipt in pairs]
    write_json(folder / "claims.json", receipts)
    write_json(folder / "profile.json", asdict(profile))
    explorer = run_dir(profile.name) / "explorer"
    shutil.rmtree(folder / "explorer", ignore_errors=True)
    if explorer.is_dir():
        shutil.copytree(explorer, folder / "explorer")


def say(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)
