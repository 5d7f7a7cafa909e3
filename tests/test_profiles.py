from dataclasses import asdict
from pathlib import Path

import pytest

from patchsae_lib.profiles import fit_to, load_profile, profile_names, with_pictures


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_loads(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.seeds >= 2  # an interval needs two


def test_the_paper_profile_has_the_papers_values() -> None:
    p = load_profile("paper")
    assert (p.model.name, p.model.block) == ("ViT-B-16-quickgelu", -2)
    assert (p.sae.expansion, p.sae.l1, p.sae.b_dec_init) == (64, 8e-5, "geometric_median")
    assert p.sae.ghost_gradients
    assert not p.sae.scale_inputs
    assert (p.train.lr, p.train.warmup, p.train.dead_after) == (4e-4, 500, 64)
    # 2,621,440 images of 197 tokens
    assert p.train.batch_tokens * p.train.steps == 2_621_440 * 197


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_of_the_users(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.toml", "seeds = 5\n[sae]\nexpansion = 8\n")
    p = load_profile(path)
    assert (p.name, p.seeds, p.sae.expansion, p.sae.l1) == ("mine", 5, 8, 8e-5)


def test_an_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"no profile 'wrold'.*authors, clip, evening, paper, smoke, trial, world"
    ):
        load_profile("wrold")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sae]\nexpanssion = 8\n", r"mine.toml: unknown key 'sae.expanssion'; known are"),
        ("sead = 1\n", r"mine.toml: unknown key 'sead'"),
        ("[sae]\nactivation = 'gelu'\n", r"must be 'relu' or 'topk' or 'batchtopk', got 'gelu'"),
        ("[train]\ntokens = 'patches'\n", r"train.tokens must be 'all' or 'cls', got 'patches'"),
        ("[train]\nsteps = 0\n", r"steps.*must be 1 or more"),
        ("[train]\npasses = nan\n", r"train.passes must be 0 or more, got nan"),
        ("[train]\nsteps = '10'\n", r"mine.toml: train.steps must be int, got '10'"),
        ("[train]\nlr = true\n", r"lr must be float, got True"),
        ("base = 'clips'\n", r"mine.toml: base 'clips' is not one of .*clip, "),
        ("base = 'clip'\n[sae]\nfoo = 1\n", r"mine.toml: unknown key 'sae.foo'"),
        ("sae = 1\n", r"mine.toml: sae must be a table, got 1"),
        ("[statistics]\ntau = -0.1\n", r"statistics.tau must be 0 or more, got -0.1"),
        ("[statistics]\nk = 0\n", r"statistics.k must be 1 or more, got 0"),
        ("[statistics]\nbound = 49\n", r"statistics.bound must be 50 or more, got 49"),
        ("[statistics]\nks = 5\n", r"mine.toml: statistics.ks must be a list, got 5"),
        ("[statistics]\nks = [1.5]\n", r"statistics.ks must be int, got 1.5"),
        *(
            (f"[statistics]\nks = {ks}\n", r"statistics.ks must be growing numbers from 1")
            for ks in ("[]", "[0, 1]", "[2, 1]", "[1, 1]")
        ),
        ("tasks = [3]\n", r"mine.toml: tasks must be str, got 3"),
        ("base = 'clip'\n[model\n", r"mine.toml: Expected ']' .*line 2"),
        ("[pictures]\nspec = 'folder:a'\nspec = 'b'\n", r"mine.toml: Cannot overwrite a value"),
        ('[pictures]\nspec = "folder:C:\\photos"\n', r"mine.toml: Unescaped '\\'"),
        (b"\xff\xfeb\0", r"mine.toml: 'utf-8' codec can't decode"),
        ("a = " + "[" * 2000, "mine.toml: .*recursion"),
        *(
            (f"name = {name!r}\n", "name is letters, digits, - and _: not")
            for name in ("../world", "my run", "", "größe", "a.b", "line\\n")
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as raised:
        load_profile(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert str(raised.value).count("\n") == 0


NUMBERS = [
    (section, name, kind)
    for section, config in asdict(load_profile("paper")).items()
    for name, kind in (config if isinstance(config, dict) else {section: config}).items()
    if type(kind) in (int, float)
]


@pytest.mark.parametrize(("section", "name", "default"), NUMBERS)
def test_no_number_is_out_of_range(
    section: str, name: str, default: float, tmp_path: Path
) -> None:
    """Infinite, no number, too large for a seed; and below 0 where that means nothing."""
    table = "" if section == name else f"[{section}]\n"
    wrong = ["nan", "inf", "-inf"] if isinstance(default, float) else [str(2**70), str(-(2**70))]
    wrong += [] if name in ("block", "b_enc_init", "cls_share") else ["-1"]
    for value in wrong:
        with pytest.raises(ValueError, match=rf"mine.toml: \w+\.{name} must be .*, got"):
            load_profile(write(tmp_path / "mine.toml", f"{table}{name} = {value}\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds = 0", "seeds must be 2 or more"),
        ("min_patches = 0", "min_patches must be 1 or more"),
        ("[train]\ncls_share = 1.5", "cls_share must be 1 or less"),
        ("[train]\nlr = 0.0", "lr must be above 0"),
        ("[prompts]\nmomentum = 2.0", "momentum must be 1 or less"),
        ("[train]\ndead_after = 0", "dead_after must be 1 or more"),
    ],
)
def test_numbers_that_no_run_could_use(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_profile(write(tmp_path / "mine.toml", text))


def test_paths_in_a_file_begin_at_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = """
        base = "clip"
        tasks = ["folder:birds", "world:land", "hf:me/cats"]
        [model]
        pretrained = "weights/b16.safetensors"
        [pictures]
        spec = "folder:photos"
        test = "wds:/data/{split}-{000..099}.tar"
    """
    path = write(tmp_path / "mine.toml", "\n".join(line.strip() for line in lines.split("\n")))
    monkeypatch.chdir("/")
    p = load_profile(path)
    assert p.tasks == (f"folder:{tmp_path}/birds", "world:land", "hf:me/cats")
    assert p.model.pretrained == f"{tmp_path}/weights/b16.safetensors"
    assert p.pictures.spec == f"folder:{tmp_path}/photos"
    assert p.pictures.test == "wds:/data/{split}-{000..099}.tar"
    monkeypatch.chdir(tmp_path)
    assert load_profile("mine.toml") == p
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_profile("~/mine.toml") == p


@pytest.mark.parametrize("name", [5, None, "", ".", "world ", "World", "smoke.toml"])
def test_what_names_no_profile(name: object, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"no profile '{name}': give one of .*clip, "):
        load_profile(name)  # type: ignore[arg-type]


def test_a_file_may_begin_with_a_mark_of_its_order_and_have_its_ending_in_capitals(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.TOML").write_bytes(b"\xef\xbb\xbfseeds = 4\n")
    assert load_profile(tmp_path / "mine.TOML").seeds == 4


def test_other_pictures_leave_the_rest_alone() -> None:
    p = with_pictures(load_profile("clip"), "folder:/my/photos")
    assert p.pictures.spec == "folder:/my/photos"
    assert p.pictures.test == ""
    assert p.sae == load_profile("clip").sae


@pytest.mark.parametrize("name", ["my run.toml", "..toml", "größe.toml"])
def test_a_file_whose_name_cannot_be_a_profiles_needs_one_in_it(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "seeds = 4\n")
    with pytest.raises(ValueError, match="name is letters, digits, - and _: not"):
        load_profile(path)
    assert load_profile(write(path, 'name = "my-run_2"\n')).name == "my-run_2"


def test_the_constants_of_the_statistics_are_the_papers_unless_given(tmp_path: Path) -> None:
    s = load_profile("paper").statistics
    assert (s.tau, s.k, s.top, s.bound) == (0.2, 10, 50, 100)
    assert s.ks == (1, 2, 5, 10, 50, 100, 500, 1000, 2000)
    path = write(tmp_path / "mine.toml", "[statistics]\ntau = 0\nks = [1, 8]\n")
    assert (load_profile(path).statistics.tau, load_profile(path).statistics.ks) == (0, (1, 8))


def test_tasks_are_a_list(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('tasks = ["world:land"]')
    assert load_profile(path).tasks == ("world:land",)
    path.write_text('tasks = "world:land"')
    with pytest.raises(ValueError, match=r"mine.toml: tasks must be a list, got 'world:land'"):
        load_profile(path)


def test_a_base_is_what_a_file_does_not_say_itself(tmp_path: Path) -> None:
    text = 'base = "clip"\nseeds = 4\n[sae]\nl1 = 1e-3\n'
    mine, clip = load_profile(write(tmp_path / "mine.toml", text)), load_profile("clip")
    assert (mine.name, mine.seeds, mine.sae.l1) == ("mine", 4, 1e-3)
    assert (mine.sae.expansion, mine.train) == (clip.sae.expansion, clip.train)


def test_few_tokens_shorten_a_training_in_proportion() -> None:
    p = load_profile("clip")
    assert (p.train.steps, p.train.passes, p.sweep_steps, p.train.warmup) == (
        10_000,
        10,
        1_000,
        500,
    )
    n = 1_000 * p.train.batch_tokens // 10  # a tenth of the steps are ten passes
    short = fit_to(p, n)
    assert (short.train.steps, short.sweep_steps, short.train.warmup) == (1_000, 100, 50)
    assert short.train.steps * short.train.batch_tokens == 10 * n
    assert fit_to(p, 100 * n) == p
    assert fit_to(load_profile("paper"), 1) == load_profile("paper")  # which says no passes
    assert min(fit_to(p, 1).train.steps, fit_to(p, 1).sweep_steps) == 1
