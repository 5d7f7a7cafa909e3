"""Kills and bad inputs by the hundred: `make campaign`, which writes `data/campaign.md`.

Each job runs in a fork, so that a kill costs no import. It is killed at a random moment, once more
as it goes on, and then left to end: its files must hold what an undisturbed run leaves, and none
of them may be cut short at any time. Bad inputs are sound files with random damage: a reader must
say in at most two lines which file it is, or read it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "book")]

import test_explorer  # noqa: E402
import test_schedule  # noqa: E402
import test_study  # noqa: E402

from patchsae_lib import artefacts, jobs, tokens, training  # noqa: E402
from patchsae_lib import study as study_module  # noqa: E402
from patchsae_lib.explorer.bundle import write_bundle  # noqa: E402
from patchsae_lib.explorer.files import read_shard  # noqa: E402
from patchsae_lib.interop import load_prompts, load_sae, save_sae  # noqa: E402
from patchsae_lib.interop.saelens import write_saelens  # noqa: E402
from patchsae_lib.pictures import open_pictures  # noqa: E402
from patchsae_lib.pictures.decoding import read_image  # noqa: E402
from patchsae_lib.profiles import load_profile  # noqa: E402
from patchsae_lib.study import Study  # noqa: E402
from patchsae_lib.tokens import open_shards  # noqa: E402

Job = Callable[[Path], object]
Row = tuple[str, int, str, list[str]]  # what, tries, outcome, and what was wrong
PATIENCE, MEMORY = 10, 4 * 2**30  # seconds and bytes for a bad input
LONGEST = 400  # characters of a message, paths apart
FULL = 28  # what a job ends with that says that its file cannot be written
TABLE = ROOT / "data/campaign.md"


# --- kills ---------------------------------------------------------------------------------------


def study_in(folder: Path, **changes: object) -> Study:
    """A study of a tiny CLIP whose artefacts are in a folder."""
    os.environ["PATCHSAE_RUNS"] = str(folder)
    study_module.DATA = folder / "data"
    study_module.load_clip = lambda config, _: test_study.tiny_clip(config.block)
    tokens.SHARD, jobs.KEPT_EVERY = 4, 3
    pictures = replace(test_study.TINY.pictures, n_train=40)
    study = Study(replace(test_study.TINY, pictures=pictures, **changes))
    study.sae = test_study.random_sae(0)
    return study


def trains(folder: Path) -> None:
    study = study_in(folder)
    config = replace(study.profile.train, steps=150, checkpoint_every=5)
    given = study.train.tokens, study.profile.sae, config, folder / "training.safetensors"
    sae, _ = training.train(*given, progress=False)
    save_sae(folder / "sae.safetensors", sae)


def learns_prompts(folder: Path) -> None:
    study_in(folder, prompts=replace(test_study.TINY.prompts, epochs=5)).prompts("world:land")


def collects_tokens(folder: Path) -> None:
    assert len(study_in(folder).train.tokens) == 40


def counts(folder: Path) -> None:
    assert study_in(folder).table.images == 40


def scans(folder: Path) -> None:
    study = study_in(folder)
    pictures, kept = study.training_pictures("world:land"), study.folder / ".latents-key-0"
    study.folder.mkdir(parents=True, exist_ok=True)
    table = jobs._scan_pictures(study, pictures, kept)
    jobs._keep(study, table, "key")


def bundles(folder: Path) -> None:
    d = 300
    images = torch.stack([torch.arange(d) % 200, (torch.arange(d) + 7) % 200], 1)
    masks = torch.rand(d, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    shown = test_explorer.latents_of(images, masks)
    write_bundle(folder / "explorer", test_explorer.Plain(200), shown, test_explorer.table(d))


def keeps(folder: Path) -> None:
    study = study_in(folder)
    for i in range(20):
        study.keep(f"{i}.parquet", pd.DataFrame({"x": range(500)}), number=i)
        study.keep(f"{i}.safetensors", {"x": torch.arange(500)}, number=i)
        artefacts.write_json(study.folder / f"{i}.json", {"x": list(range(500))})


def builds(folder: Path) -> None:
    """Three notebooks, the schedule, the records, in a process that plays the kernel."""
    with pytest.MonkeyPatch.context() as patch:
        checkout = test_schedule.use(folder, patch)
        if not (folder / "notebooks").exists():
            checkout.set_up()
        codes = dict(a1=("keep('a.json', 1)", "claim('1-lambda')"))
        codes |= dict(b2=("keep('b', kept('a.json', '1_a'))", "claim('2-depth')"))
        checkout.only(**codes, c3=("keep('c', kept('b', '2_b'))",))
        checkout.build()


JOBS: dict[str, Job] = {
    "training of an autoencoder": trains,
    "training of prompts": learns_prompts,
    "tokens in shards": collects_tokens,
    "table of latents": counts,
    "scan of pictures": scans,
    "explorer's bundle": bundles,
    "artefacts and JSON": keeps,
    "book of three notebooks": builds,
}


def start(job: Job, folder: Path, limit: int = resource.RLIM_INFINITY) -> int:
    """Run a job in a fork, in a group of its own; return its process. No file gets longer than
    `limit` bytes, as if the disk were full."""
    if pid := os.fork():
        return pid
    os.setsid()
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing fails
    with open(folder.with_suffix(".out"), "w") as out:
        for file in (1, 2):
            os.dup2(out.fileno(), file)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        job(folder)
    except OSError as error:
        os._exit(FULL if "cannot be written" in str(error) else 1)
    os._exit(0)


def status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def contents(folder: Path) -> dict[str, object]:
    """What all files hold, but the times in a build's records. (Of safetensors the metadata and
    tensors: the library writes the metadata in an order that differs from process to process.)"""
    files = [x for x in folder.rglob("*") if x.is_file() and ".runs" not in x.parts]
    return {str(x.relative_to(folder)): content(x) for x in files if x.suffix != ".lock"}


def content(path: Path) -> object:
    if path.suffix != ".safetensors" or path.parent.name == "data":
        return path.read_bytes()
    with safe_open(path, "np") as file:
        metadata = sorted((file.metadata() or {}).items())
    return metadata, path.read_bytes()[-sum(sizes_of(path)) :]


def cut_short(folder: Path) -> list[str]:
    """Files that are there under their own name and cannot be read whole."""
    bad, readers = [], {".safetensors": sizes_of, ".json": read_json}
    readers |= {".parquet": pd.read_parquet, ".js": read_shard}
    for path in folder.rglob("*"):
        is_temporary = path.parent.suffix == ".tmp" or path.parent.name == "data"
        if path.suffix in readers and path.is_file() and not is_temporary:
            try:
                readers[path.suffix](path)
            except Exception as error:
                bad.append(f"{path.name}: {error!r}")
    return bad


def sizes_of(path: Path) -> list[int]:
    """Read the tensors of a file; return how many bytes each has."""
    with safe_open(path, "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    return [x.nbytes for x in tensors]


def read_json(path: Path) -> object:
    return json.loads(path.read_text("utf-8"))


def kill(job: Job, folder: Path, seconds: float, rng: random.Random) -> bool:
    """Start a job, kill it at a random moment; return whether it was still running."""
    pid = start(job, folder)
    time.sleep(rng.uniform(0, seconds))
    number = rng.choice([signal.SIGKILL, signal.SIGTERM])
    ended, _ = os.waitpid(pid, os.WNOHANG)
    if ended:
        return False
    os.kill(pid, number)
    os.waitpid(pid, 0)
    time.sleep(2 if job is builds else 0)  # its notebooks notice
    return True


def kills(place: Path, n: int, rng: random.Random) -> Iterator[tuple[str, int, list[str]]]:
    """Yield, of each job, its name, the number of kills, and what was wrong after them."""
    for name, job in JOBS.items():
        folder, wrong, n_killed = place / "whole", list[str](), 0
        began = time.monotonic()
        if code := status(start(job, prepared(folder))):
            yield name, 0, [f"undisturbed it ends with {code}: {tail(folder)}"]
            continue
        seconds, expected = time.monotonic() - began, contents(folder)
        while n_killed < n and len(wrong) < 3:
            folder = prepared(place / "killed")
            for share in (1.0, 0.7):
                n_killed += kill(job, folder, share * seconds, rng)
                wrong += cut_short(folder)
            if status(start(job, folder)):
                wrong.append(f"started again it fails: {tail(folder)}")
            wrong += differences(contents(folder), expected)
        yield name, n_killed, wrong


def full_disks(place: Path, n: int, rng: random.Random) -> Iterator[tuple[str, int, list[str]]]:
    """Yield, of each job, its name, how often the disk was full, and what was wrong then."""
    for name, job in JOBS.items():
        if job is builds:  # whose notebooks are no notebooks of ours
            continue
        status(start(job, prepared(place / "whole")))
        expected, wrong = contents(place / "whole"), list[str]()
        files = [path for path in (place / "whole").rglob("*") if path.is_file()]
        longest = max(path.stat().st_size for path in files)
        for _ in range(n):
            folder = prepared(place / "full")
            code = status(start(job, folder, rng.randrange(longest)))
            wrong += [] if code == FULL else [f"ends with {code}: {tail(folder)}"]
            wrong += cut_short(folder) + [x.name for x in folder.rglob("*.tmp")]
            status(start(job, folder))
            wrong += differences(contents(folder), expected)
        yield name, n, wrong


def second_processes(place: Path, n: int) -> Iterator[tuple[str, int, list[str]]]:
    """Yield, of each job, its name, how often two ran in one folder, and what was wrong then."""
    for name, job in JOBS.items():
        if job is builds:  # which wait for each other: `test_a_second_build_says_so_and_waits`
            continue
        status(start(job, prepared(place / "whole")))
        expected, wrong = contents(place / "whole"), list[str]()
        for _ in range(n):
            folder = prepared(place / "two")
            pids = [start(job, folder) for _ in range(2)]
            codes = [status(pid) for pid in pids]
            wrong += [f"they end with {codes}: {tail(folder)}"] if any(codes) else []
            wrong += cut_short(folder) + differences(contents(folder), expected)
        yield name, n, wrong


def prepared(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def tail(folder: Path) -> str:
    return " ".join(folder.with_suffix(".out").read_text().split()[-40:])


def differences(found: dict[str, object], expected: dict[str, object]) -> list[str]:
    names = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    return [f"{n}: {'left' if n not in expected else 'other bytes or missing'}" for n in names]


# --- bad inputs ----------------------------------------------------------------------------------


def sound(folder: Path) -> dict[str, tuple[list[Path], Job]]:
    """Sound files of each kind, and how they are read."""
    folder.mkdir()
    sae, kinds = test_study.random_sae(0), dict[str, tuple[list[Path], Job]]()
    save_sae(folder / "sae.safetensors", sae)
    state = {k: v for k, v in sae.state_dict().items() if k != "threshold"}
    torch.save({"cfg": {"d_in": 24}, "state_dict": state}, folder / "sae.pt")
    write_saelens(folder / "saelens", sae)
    kinds["autoencoders"] = [folder / "sae.safetensors", folder / "sae.pt"], load_sae
    weights = folder / "saelens/sae_weights.safetensors"
    kinds["SAELens' folders"] = (
        [weights, folder / "saelens/cfg.json"],
        lambda x: load_sae(x.parent),
    )
    study = study_in(folder / "runs")
    study.prompts("world:land")
    kinds["prompts"] = [*(folder / "runs").rglob("prompts/*.safetensors")], load_prompts
    shards = study.train.tokens and next((folder / "runs").rglob("cache.json")).parent
    kinds["shards of tokens"] = [*shards.iterdir()], lambda x: open_shards(x.parent)[:]
    study.keep("t.parquet", pd.DataFrame({"x": range(99)}))
    study.keep("t.safetensors", {"x": torch.arange(99)})
    kept = [*study.folder.glob("t.*")]
    kinds["artefacts"] = kept, partial(read_artefact, study)
    profile = folder / "mine.toml"
    profile.write_text('base = "smoke"\nseeds = 3\n[train]\nlr = 0.001\n[sae]\nl1 = 4e-4\n')
    kinds["profiles"] = [profile], load_profile
    kinds["pictures"] = pictures(folder / "photos"), read_picture
    kinds["webdataset's shards"] = [tar_shard(folder / "0.tar")], read_tar
    bundles(folder)
    kinds["explorer's bundles"] = [*(folder / "explorer").glob("*.js")], read_shard
    return kinds


def read_artefact(study: Study, path: Path) -> None:
    name = path.name.removesuffix(".meta.json")
    artefacts.load(path.with_name(name), study.identity(), made_by="this")


def pictures(folder: Path) -> list[Path]:
    folder.mkdir()
    image, exif = Image.effect_noise((40, 30), 90).convert("RGB"), Image.Exif()
    exif[274] = 6  # turned
    paths = [folder / f"a.{x}" for x in ("jpg", "png", "webp", "gif", "bmp", "tif", "ppm", "avif")]
    for path in paths:
        with contextlib.suppress(OSError, ValueError, KeyError):  # not every Pillow has AVIF
            exif = Image.Exif()
            exif[274] = 6
            image.save(
                path, **({"exif": exif} if path.suffix in (".jpg", ".png", ".webp") else {})
            )
    return [path for path in paths if path.is_file() and path.stat().st_size]


def read_picture(path: Path) -> None:
    """Read a picture as one among five sound ones; what is left out of them is an error here."""
    for i in range(5):
        Image.new("RGB", (9, 9), (50 * i, 0, 0)).save(path.with_name(f"sound-{i}.png"))
    opened = open_pictures(f"folder:{path.parent.parent}", size=8)
    opened.batch(range(len(opened)))
    read_image(path)


def tar_shard(path: Path) -> Path:
    content = io.BytesIO()
    Image.effect_noise((20, 20), 90).convert("RGB").save(content, "PNG")
    with tarfile.open(path, "w") as tar:
        for i in range(8):
            for name, data in ((f"{i}.png", content.getvalue()), (f"{i}.cls", b"%d" % (i % 2))):
                about = tarfile.TarInfo(name)
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))
    return path


def read_tar(path: Path) -> None:
    opened = open_pictures(f"wds:{path}", size=8, check=False)
    opened.batch(range(len(opened)))


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Cut, overwrite, insert, or exchange random bytes, mostly near the beginning."""
    data, how = bytearray(content), rng.randrange(6)
    at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(200, len(data)))
    junk = rng.randbytes(rng.choice([1, 2, 8, 64]))
    if how == 0:
        return bytes(data[:at])
    if how == 1:
        data[at : at + len(junk)] = junk
    elif how == 2:
        data[at:at] = junk
    elif how == 3:
        data[at : at + 64] = bytes(64)
    elif how == 4:
        return rng.randbytes(rng.choice([0, 1, 100, 5000]))
    else:
        del data[at : at + rng.choice([1, 7, 500])]
    return bytes(data)


def outcome(read: Job, path: Path) -> str:
    """Read a file in a fork: "read", "refused", or what is wrong with how it was refused."""
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        os.close(reading)
        signal.alarm(PATIENCE)
        torch.set_num_threads(1)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        os.write(writing, said(read, path).encode()[:4000])
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8", errors="replace") as pipe:
        text = pipe.read()
    code = status(pid)
    return text if not code else f"ends with {code}"


def said(read: Job, path: Path) -> str:
    try:
        read(path)
        return "read"
    except (ValueError, OSError) as error:
        message, names = str(error), (path.name, path.parent.name, path.parent.parent.name)
        short = message.replace(str(path.parent), "")
        if not any(name in message for name in names):
            return f"names no file: {type(error).__name__}: {message}"
        if "\n" in message or len(short) > LONGEST:
            return f"too long: {message}"
        return "refused"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


def bad_inputs(
    place: Path, n: int, rng: random.Random
) -> Iterator[tuple[str, Counter, list[str]]]:
    """Yield, of each kind of file, the outcomes of `n` damaged ones, and what was wrong."""
    for kind, (paths, read) in sound(place / "sound").items():
        outcomes, wrong = Counter[str](), list[str]()
        for _ in range(n):
            path = rng.choice(paths)
            folder = prepared(place / "bad") / "folder"
            if kind == "pictures":
                (folder / "class").mkdir(parents=True)
                bad = folder / "class" / path.name
            else:
                shutil.copytree(path.parent, folder, symlinks=True)
                bad = folder / path.name
            if kind == "artefacts":
                folder.rename(place / "bad" / path.parent.name)
                bad = place / "bad" / path.parent.name / path.name
            bad.write_bytes(damaged(path.read_bytes(), rng))
            result = outcome(read, bad)
            outcomes[result if result in ("read", "refused") else "wrong"] += 1
            if result not in ("read", "refused"):
                wrong.append(f"{path.name}: {result}")
        yield kind, outcomes, wrong


# --- the table -----------------------------------------------------------------------------------


def main() -> int:
    """Run the campaign, print what was wrong, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=25, help="of each job")
    parser.add_argument("--inputs", type=int, default=56, help="of each kind")
    parser.add_argument("--others", type=int, default=5, help="full disks, and pairs, of each job")
    parser.add_argument("--seed", type=int, default=0)
    given, rows = parser.parse_args(), list[Row]()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name, n, wrong in kills(place, given.kills, rng):
            rows.append(
                (
                    f"killed: {name}",
                    n,
                    "all ended as undisturbed" if not wrong else "not all ended as undisturbed",
                    wrong,
                )
            )
            report(rows[-1])
        for name, n, wrong in full_disks(place, given.others, rng):
            how = "refused by name, then as undisturbed" if not wrong else "not all so"
            rows.append((f"disk full: {name}", n, how, wrong))
            report(rows[-1])
        for name, n, wrong in second_processes(place, given.others):
            how = "both ended, as one alone" if not wrong else "not all so"
            rows.append((f"two at once: {name}", n, how, wrong))
            report(rows[-1])
        for name, outcomes, wrong in bad_inputs(place, given.inputs, rng):
            how = f"{outcomes['refused']} refused by name, {outcomes['read']} readable"
            rows.append((f"damaged: {name}", outcomes.total(), how, wrong))
            report(rows[-1])
    write(rows, given.seed)
    return sum(len(row[-1]) for row in rows)


def report(row: Row) -> None:
    name, n, _, wrong = row
    print(f"{name}: {n}{'' if wrong else ', as it should be'}", *wrong[:5], sep="\n  ", flush=True)


def write(rows: list[Row], seed: int) -> None:
    """Write the table with the date and the commit."""
    ask = ["git", "-C", str(ROOT), "log", "-1", "--format=%h"]
    commit = subprocess.run(ask, capture_output=True, text=True).stdout.strip()
    date = time.strftime("%Y-%m-%d")
    lines = [f"Made by `make campaign` on {date}, commit {commit}, seed {seed}.", ""]
    lines += ["| what | tries | outcome | wrong |", "|---|--:|---|--:|"]
    lines += [f"| {name} | {n} | {how} | {len(wrong)} |" for name, n, how, wrong in rows]
    TABLE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(min(main(), 1))
