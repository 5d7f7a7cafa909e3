"""Residual tokens of many pictures, in memory and in shards, and the batches made of them."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from patchsae_lib import tokens as tokens_module
from patchsae_lib.artefacts import config_hash
from patchsae_lib.profiles import TrainConfig
from patchsae_lib.sae import require_tokens
from patchsae_lib.tokens import Tokens, collect, collect_shards, open_shards, token_rows

N_IMAGES, N_TOKENS = 11, 5  # CLS and 4 patches
MADE_BY = {"model": {"name": "fake", "weights": "ab12"}, "pictures": {"spec": "grey", "n": 11}}


class Grey:
    """Picture i is uniformly grey, of value i + 1, and of class i modulo 3, but for picture 4;
    `bad` ones are not readable."""

    class_names = ("dark", "grey", "light")

    def __init__(self, n: int = N_IMAGES, bad: tuple[int, ...] = ()) -> None:
        self.n, self.bad, self.asked = n, bad, list[int]()

    def __len__(self) -> int:
        return self.n

    def label(self, index: int) -> int:
        return index % 3 if index != 4 else -1

    def batch(self, indices: list[int]) -> Tensor:
        if set(self.bad) & set(indices):
            raise OSError("cannot be read")
        self.asked += indices
        greys = torch.tensor(indices, dtype=torch.uint8) + 1
        return greys.view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


class FakeClip:
    """Token t of a picture is (its grey, t + 1, weight): each is recognised by its values."""

    at_once = 3

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def preprocess(self, pictures: Tensor) -> Tensor:
        return pictures.float()

    def tokens(self, images: Tensor) -> Tensor:
        z = torch.full((len(images), N_TOKENS, 3), self.weight)
        z[..., 0] = images.mean(dim=(1, 2, 3))[:, None]
        z[..., 1] = torch.arange(N_TOKENS) + 1
        return z


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "SHARD", 4)


def in_shards(folder: Path, pictures: Grey | None = None, made_by: Any = MADE_BY) -> Tokens:
    return collect_shards(FakeClip(), Grey() if pictures is None else pictures, folder, made_by)


def held() -> Tokens:
    return collect(FakeClip(), Grey())


def names(z: Tensor) -> list[tuple[int, int]]:
    """(picture, token) of each token of a batch."""
    return [(int(grey) - 1, int(token) - 1) for grey, token, _ in z.tolist()]


# --- one interface


@pytest.mark.parametrize("where", ["memory", "shards"])
def test_tokens_are_read_like_those_of_a_tensor(tmp_path: Path, where: str) -> None:
    tokens, z = held() if where == "memory" else in_shards(tmp_path), held().read(0)
    assert tokens.shape == tuple(z.shape) == (N_IMAGES, N_TOKENS, 3)
    assert len(tokens) == N_IMAGES
    for rows in (slice(2, 9), slice(None), slice(-3, None), [10, 0, 4, 4, 3], range(3, 6), [-1]):
        expected = z[list(rows) if isinstance(rows, range) else rows]
        assert torch.equal(tokens[rows], expected)
        assert torch.equal(tokens.select(rows)[:], expected)
    rows = torch.tensor([8, 3, 3, 10, 0, 7])
    assert torch.equal(tokens[rows], z[rows])
    assert tokens[rows].dtype == torch.bfloat16
    mask = torch.arange(N_IMAGES) % 3 == 0
    assert torch.equal(tokens[mask], z[mask])
    assert torch.equal(tokens.select(mask)[1:], z[mask][1:])
    parts = list(tokens.split(4))
    assert [len(part) for part in parts] == [4, 4, 3]
    assert torch.equal(torch.cat(parts), z)


ROWS = st.lists(st.integers(0, N_IMAGES - 1), min_size=1, max_size=15)


@given(first=ROWS, data=st.data())
@settings(deadline=None, max_examples=40)
def test_a_selection_of_a_selection_is_a_selection(first: list[int], data: st.DataObject) -> None:
    z = torch.arange(N_IMAGES * 2.0).view(N_IMAGES, 2, 1) + 1
    sizes = (4, 1, 6)
    tokens = Tokens(lambda i: z.split(sizes)[i], sizes, 2, 1, torch.arange(N_IMAGES) + 100)
    second = data.draw(st.lists(st.integers(0, len(first) - 1), min_size=1, max_size=15))
    chosen = tokens.select(torch.tensor(first))
    assert torch.equal(chosen[:], z[first])
    assert torch.equal(chosen[second], z[first][second])
    again = chosen.select(second)
    assert torch.equal(again[:], z[first][second])
    assert torch.equal(again.indices, tokens.indices[first][second])
    assert again.shape == (len(second), 2, 1)


def test_a_selection_reads_nothing_before_it_is_asked_to(tmp_path: Path) -> None:
    read = []

    def shard(number: int) -> Tensor:
        read.append(number)
        return torch.ones(4, 2, 3)

    tokens = Tokens(shard, (4, 4, 4), 2, 3, torch.arange(12))
    chosen = tokens.select([9, 1, 10])
    assert read == []
    assert len(next(iter(chosen.split(2)))) == 2
    assert sorted(read) == [0, 2]
    next(tokens.mixed(TrainConfig(tokens="cls", batch_tokens=12), 0))
    assert set(read[2:]) == {0, 1, 2}


def test_of_many_shards_few_are_open_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "SHARD", 1)
    in_shards(tmp_path)
    opened, most, read_shard = WeakSet[Tensor](), 0, tokens_module._read_shard

    def watched(path: Path, name: str) -> Tensor:
        tensor = read_shard(path, name)
        if name == "tokens":
            opened.add(tensor)
        return tensor

    monkeypatch.setattr(tokens_module, "_read_shard", watched)
    tokens = open_shards(tmp_path)
    assert len(opened) == 0  # opening reads which pictures there are, and no tokens
    for _ in tokens.split(1):
        most = max(most, len(opened))
    assert 1 <= most <= 2 < len(tokens.sizes)


def test_a_row_is_found_by_its_picture() -> None:
    tokens = Tokens.hold(torch.ones(4, 2, 3), torch.tensor([7, 2, 9, 0]))
    assert tokens.row_of(torch.tensor([9, 9, 0, 7])).tolist() == [2, 2, 3, 0]
    chosen = tokens.select([3, 1])
    assert chosen.row_of(torch.tensor([2, 0])).tolist() == [1, 0]
    with pytest.raises(ValueError, match="no tokens here"):
        chosen.row_of(torch.tensor([7]))


def test_what_cannot_be_held_is_refused() -> None:
    for z in (torch.ones(5, 3), torch.ones(0, 5, 3)):
        with pytest.raises(ValueError, match=r"tokens are \(images, n_tokens, d_vit\), got"):
            Tokens.hold(z)
    with pytest.raises(ValueError, match=r"5 images, but indices \(4,\)"):
        Tokens.hold(torch.ones(5, 2, 3), torch.arange(4))
    z = torch.ones(5, 2, 1)
    z[3, 1] = 0
    with pytest.raises(ValueError, match=r"1 of 10 tokens .* image 3 token 1"):
        Tokens.hold(z)


@given(st.integers(0, 5), st.integers(0, 3), st.sampled_from([float("nan"), -float("inf"), 0.0]))
@settings(deadline=None, max_examples=30)
def test_a_bad_token_is_named(image: int, token: int, value: float) -> None:
    z = torch.ones(6, 4, 3)
    require_tokens(z, "the tokens")
    z[image, token] = value
    with pytest.raises(ValueError, match=f"1 of 24 .* the first at image {image} token {token}"):
        require_tokens(z, "the tokens")


# --- collecting


def test_tokens_in_memory_are_those_of_all_pictures_in_order() -> None:
    tokens = held()
    assert tokens.indices.tolist() == list(range(N_IMAGES))
    expected = [(i, t) for i in range(N_IMAGES) for t in range(N_TOKENS)]
    assert names(tokens[:].flatten(0, 1).float()) == expected
    with pytest.raises(ValueError, match="no pictures"):
        collect(FakeClip(), Grey(0))
    with pytest.raises(OSError, match="cannot be read"):
        collect(FakeClip(), Grey(bad=(3,)))


@pytest.mark.parametrize("where", ["memory", "shards"])
def test_tokens_that_are_no_numbers_stop_the_collection(tmp_path: Path, where: str) -> None:
    sick = FakeClip(float("nan")), Grey()
    with pytest.raises(ValueError, match=r"pictures 0 … 2: 15 of 15 .* the first at image 0"):
        collect(*sick) if where == "memory" else collect_shards(*sick, tmp_path, MADE_BY)
    assert list(tmp_path.iterdir()) == []


def test_shards_are_what_the_format_says(tmp_path: Path) -> None:
    """Read as other software would: without this library, the pictures or CLIP."""
    in_shards(tmp_path)
    about = json.loads((tmp_path / "cache.json").read_text())
    assert about["format"] == "patchsae-tokens-1"
    assert about["made_by"] == MADE_BY
    assert about["hash"] == config_hash(MADE_BY)
    assert (about["dtype"], about["tokens"], about["d_vit"]) == ("bfloat16", N_TOKENS, 3)
    assert about["class_names"] == ["dark", "grey", "light"]
    assert about["skipped"] == []
    assert [shard["images"] for shard in about["shards"]] == [4, 4, 3]
    shards = [load_file(tmp_path / shard["file"]) for shard in about["shards"]]
    stored = {key: torch.cat([shard[key] for shard in shards]) for key in shards[0]}
    assert torch.equal(stored["tokens"], held()[:])
    assert stored["tokens"].dtype == torch.bfloat16
    assert stored["indices"].tolist() == list(range(11))
    assert stored["labels"].tolist() == [0, 1, 2, 0, -1, 2, 0, 1, 2, 0, 1]
    with safe_open(tmp_path / "00001.safetensors", "pt") as file:
        assert file.metadata() == {"made_by": config_hash(MADE_BY), "pictures": "4-7"}
    written = {"cache.json", *(shard["file"] for shard in about["shards"])}
    assert {path.name for path in tmp_path.iterdir()} == written


def test_shards_hold_their_own_pictures_however_the_room_on_a_gpu_changes(tmp_path: Path) -> None:
    class Shrinking(FakeClip):
        rooms = iter((3, 1, 2, 1, 4, 1, 1))
        at_once = property(lambda self: next(self.rooms))  # type: ignore[assignment]

    shards = collect_shards(Shrinking(), Grey(), tmp_path, MADE_BY)
    assert shards.sizes == (4, 4, 3)
    assert torch.equal(shards[:], held()[:])


def test_complete_shards_are_not_collected_again(tmp_path: Path) -> None:
    in_shards(tmp_path)
    pictures = Grey()
    in_shards(tmp_path, pictures)
    assert pictures.asked == []


def test_a_collection_that_was_killed_goes_on(tmp_path: Path) -> None:
    class Unplugged(Grey):
        def batch(self, indices: list[int]) -> Tensor:
            if 9 in indices:
                raise KeyboardInterrupt
            return super().batch(indices)

    with pytest.raises(KeyboardInterrupt):
        in_shards(tmp_path, Unplugged())
    with pytest.raises(FileNotFoundError, match="not collected, or not to the end"):
        open_shards(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"00000.safetensors", "00001.safetensors"}
    pictures = Grey()
    resumed = in_shards(tmp_path, pictures)
    assert pictures.asked == [8, 9, 10]  # those of the last shard
    assert resumed.indices.tolist() == list(range(11))
    assert torch.equal(resumed[:], held()[:])


@pytest.mark.parametrize("spoil", ["cut", "another", "shorter"])
def test_shards_that_are_cut_or_of_something_else_are_collected_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    in_shards(tmp_path, made_by={"another": 1} if spoil == "another" else MADE_BY)
    (tmp_path / "cache.json").unlink()
    path = tmp_path / "00001.safetensors"
    if spoil == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    if spoil == "shorter":
        monkeypatch.setattr(tokens_module, "SHARD", 5)
    pictures = Grey()
    assert torch.equal(in_shards(tmp_path, pictures)[:], held()[:])
    again = {"cut": range(4, 8), "another": range(11), "shorter": range(11)}[spoil]
    assert pictures.asked == list(again)


def test_unreadable_pictures_are_skipped_and_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "SHARD", 50)
    tokens = in_shards(tmp_path, Grey(120, bad=(37,)))
    assert tokens.skipped == (37,)
    assert tokens.sizes == (49, 50, 20)
    assert tokens.indices.tolist() == [i for i in range(120) if i != 37]
    assert names(tokens[tokens.row_of(torch.tensor([38]))][0].float())[0] == (38, 0)
    message = r"2 of 120 pictures cannot be read, more than 1%; the first is number 37"
    for bad in ((37, 38), (37, 70)):  # in one shard, and in two
        folder = tmp_path / str(bad)
        with pytest.raises(ValueError, match=message):
            in_shards(folder, Grey(120, bad))
        assert not (folder / "cache.json").exists()
    with pytest.raises(ValueError, match=message):  # also when it goes on from what is there
        in_shards(folder, Grey(120, bad))
    monkeypatch.setattr(tokens_module, "SHARD", 4)
    with pytest.raises(ValueError, match="none of the pictures 4 … 7 can be read"):
        in_shards(tmp_path / "b", Grey(11, bad=(4, 5, 6, 7)))
    with pytest.raises(ValueError, match="no pictures"):
        in_shards(tmp_path / "c", Grey(0))


def test_shards_are_shared_out_to_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "world_size", lambda: 2)
    asked = []
    for number in (1, 0):  # the first one, which writes cache.json, last
        monkeypatch.setattr(tokens_module, "rank", lambda number=number: number)
        pictures = Grey()
        if number == 1:
            with pytest.raises(FileNotFoundError):
                in_shards(tmp_path, pictures)
        else:
            in_shards(tmp_path, pictures)
        asked.append(pictures.asked)
    assert asked == [[4, 5, 6, 7], [0, 1, 2, 3, 8, 9, 10]]


def test_progress_goes_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    in_shards(tmp_path)
    shown = capsys.readouterr()
    assert "tokens of 11 pictures" in shown.err
    assert shown.out == ""


# --- opening


def test_tokens_of_something_else_are_an_error_that_names_both(tmp_path: Path) -> None:
    in_shards(tmp_path)
    changed = {**MADE_BY, "pictures": {"spec": "grey", "n": 12}}
    message = f"made by {config_hash(MADE_BY)}, this is {config_hash(changed)} .*n: 11 there, 12"
    with pytest.raises(ValueError, match=message):
        in_shards(tmp_path, made_by=changed)
    with pytest.raises(ValueError, match=message):
        open_shards(tmp_path, changed)
    assert open_shards(tmp_path, MADE_BY).sizes == (4, 4, 3)


def test_what_is_no_collection_is_a_clear_error(tmp_path: Path) -> None:
    in_shards(tmp_path)
    path = tmp_path / "00002.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"00002.safetensors is not a whole shard .*: delete it"):
        open_shards(tmp_path)
    save_file({"tokens": torch.ones(1, 5, 3), "indices": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"holds tokens \(1, 5, 3\), cache.json says \(3, 5, 3\)"):
        open_shards(tmp_path).read(2)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 shards are missing .* 00002"):
        open_shards(tmp_path)
    for text in ("{}", "[", '{"format": "patchsae-tokens-2"}'):
        (tmp_path / "cache.json").write_text(text)
        with pytest.raises(ValueError, match=r"cache.json does not describe .* patchsae-tokens-1"):
            open_shards(tmp_path)


# --- batches


def take(batches: Iterator[Any], n: int) -> list[Any]:
    return list(islice(batches, n))


CONFIGS = pytest.mark.parametrize("config", [
    TrainConfig(batch_tokens=9),
    TrainConfig(batch_tokens=20, cls_share=0.3),
    TrainConfig(batch_tokens=4, tokens="cls"),
])  # fmt: skip


@CONFIGS
def test_batches_do_not_depend_on_how_tokens_are_stored(
    tmp_path: Path, config: TrainConfig
) -> None:
    """As long as there are no more shards than are mixed at a time."""
    shards, memory = in_shards(tmp_path), held()
    assert len(shards.sizes) == 3
    for start in (0, 8):
        both = zip(shards.mixed(config, 3, start), memory.mixed(config, 3, start), strict=False)
        for from_shards, from_memory in islice(both, 20):
            assert torch.equal(from_shards, from_memory)
            assert from_shards.dtype == torch.float32


@given(
    seed=st.integers(0, 3),
    start=st.integers(0, 9),
    batch_tokens=st.integers(1, 20),
    cls_share=st.sampled_from([-1.0, 0.0, 0.3, 1.0]),
)
@settings(deadline=None, max_examples=25)
def test_a_batch_depends_on_seed_and_number_only(
    seed: int, start: int, batch_tokens: int, cls_share: float
) -> None:
    config = TrainConfig(batch_tokens=batch_tokens, cls_share=cls_share)
    from_the_start = take(held().mixed(config, seed), start + 3)[start:]
    resumed = take(held().mixed(config, seed, start), 3)
    assert all(torch.equal(a, b) for a, b in zip(from_the_start, resumed, strict=True))
    assert all(z.shape == (batch_tokens, 3) and z.dtype == torch.float32 for z in resumed)


def test_another_seed_or_number_gives_other_tokens() -> None:
    config = TrainConfig(batch_tokens=10)
    first, second = take(held().mixed(config, 0), 2)
    (third,) = take(held().mixed(config, 1), 1)
    assert names(first) != names(second)
    assert names(first) != names(third)


@given(batch_tokens=st.integers(1, 200), start=st.integers(0, 30), seed=st.integers(0, 3))
@settings(deadline=None, max_examples=25)
def test_every_token_comes_once_before_any_comes_twice(
    batch_tokens: int, start: int, seed: int
) -> None:
    """Over any stretch of batches, whole passes or not, counts differ by 1 within a pass."""
    n = N_IMAGES * N_TOKENS
    batches = take(held().mixed(TrainConfig(batch_tokens=batch_tokens), seed), start + 1)
    drawn = [name for z in batches for name in names(z)]
    counts = [drawn.count((i, t)) for i in range(N_IMAGES) for t in range(N_TOKENS)]
    assert {len(drawn) // n, -(-len(drawn) // n)} == set(counts)


def test_passes_are_shuffled_each_in_its_own_way() -> None:
    # One batch a token: else a batch's order, which does not matter, would hide it.
    first, second = (
        [names(z)[0] for z in take(held().mixed(TrainConfig(batch_tokens=1), 0, start), 55)]
        for start in (0, 55)
    )
    assert sorted(first) == sorted(second)
    assert first != second
    assert first != sorted(first)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_cls_share_is_kept_in_every_batch(share: float) -> None:
    config = TrainConfig(batch_tokens=20, cls_share=share)
    batches = take(held().mixed(config, 0), 11)
    for z in batches:
        assert sum(token == 0 for _, token in names(z)) == share * 20
    images = {image for z in batches for image, token in names(z) if token == 0}
    assert len(images) == (N_IMAGES if share else 0)  # 11 or more draws: every picture came


def test_cls_only() -> None:
    config = TrainConfig(tokens="cls", batch_tokens=4)
    assert {token for z in take(held().mixed(config, 0), 6) for _, token in names(z)} == {0}


def test_patches_that_are_not_there_are_a_clear_error() -> None:
    only_cls = Tokens.hold(held()[:][:, :1])
    with pytest.raises(ValueError, match="CLS tokens only: set tokens = 'cls'"):
        next(only_cls.mixed(TrainConfig(cls_share=0.5), 0))
    assert next(only_cls.mixed(TrainConfig(batch_tokens=7), 0)).shape == (7, 3)


def test_a_selection_of_rows_is_not_for_training() -> None:
    with pytest.raises(ValueError, match="a selection of rows is not for training"):
        next(held().select([1, 2]).mixed(TrainConfig(batch_tokens=2), 0))


@pytest.mark.parametrize("n", [1, 4, 6, 99])
def test_the_first_images_are_trained_on_as_if_they_had_been_collected_alone(
    tmp_path: Path, n: int
) -> None:
    whole, alone = (in_shards(tmp_path / str(m), Grey(min(m, N_IMAGES))) for m in (N_IMAGES, n))
    config = TrainConfig(batch_tokens=11, cls_share=-1)
    first = whole.first(n)
    assert torch.equal(first[:], alone[:])
    assert torch.equal(first.indices, alone.indices)
    batches = (take(tokens.mixed(config, 3), 9) for tokens in (first, alone))
    assert all(torch.equal(*both) for both in zip(*batches, strict=True))
    assert torch.equal(whole.select([5, 2, 0]).first(2)[:], whole[[5, 2]])


@pytest.mark.parametrize("buffer", [1, 2, 3])
def test_batches_hold_the_tokens_of_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffer: int
) -> None:
    monkeypatch.setattr(tokens_module, "BUFFER", buffer)
    config = TrainConfig(batch_tokens=11, cls_share=-1)
    batches = take(in_shards(tmp_path).mixed(config, 0), 10)
    drawn = [name for z in batches for name in names(z)]  # 110: two passes
    assert sorted(drawn) == sorted([(i, t) for i in range(11) for t in range(5)] * 2)


def rows_of(
    sizes: list[int], config: TrainConfig, n: int, buffer: int, start: int = 0
) -> list[np.ndarray]:
    """The rows of n batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens_module, "BUFFER", buffer)
        return take(token_rows(sizes, N_TOKENS, config, 0, start), n)


SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=7)


@given(
    sizes=SIZES,
    buffer=st.integers(1, 4),
    start=st.integers(0, 40),
    batch=st.integers(1, 60),
    cls_share=st.sampled_from([-1.0, 0.3]),
)
@settings(deadline=None, max_examples=60)
def test_a_batch_depends_on_its_number_only_and_every_shard_is_visited(
    sizes: list[int], buffer: int, start: int, batch: int, cls_share: float
) -> None:
    config = TrainConfig(batch_tokens=batch, cls_share=cls_share)
    n = sum(sizes) * N_TOKENS
    batches = rows_of(sizes, config, start + 2, buffer)
    resumed = rows_of(sizes, config, 2, buffer, start)
    assert all(np.array_equal(a, b) for a, b in zip(batches[start:], resumed, strict=True))
    rows = np.concatenate(batches)
    kinds = [rows] if cls_share < 0 else [rows[rows % 5 == 0], rows[rows % 5 > 0]]
    for kind, one_pass in zip(kinds, [n] if cls_share < 0 else [n // 5, n * 4 // 5], strict=True):
        counts = np.unique(np.bincount(kind, minlength=n))
        assert set(counts) <= {0, len(kind) // one_pass, -(-len(kind) // one_pass)}


@given(sizes=SIZES, world=st.integers(1, 4), batch=st.integers(4, 30))
@settings(deadline=None, max_examples=30)
def test_processes_share_a_batch_out(sizes: list[int], world: int, batch: int) -> None:
    config = TrainConfig(batch_tokens=batch)
    (undivided,) = rows_of(sizes, config, 1, 2, 2)
    parts = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("patchsae_lib.distributed.world_size", lambda: world)
        for number in range(world):
            patch.setattr("patchsae_lib.distributed.rank", lambda number=number: number)
            parts += rows_of(sizes, config, 1, 2, 2)
    assert np.array_equal(np.concatenate(parts), undivided)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_only_a_buffer_of_shards_is_mixed_and_each_pass_differently() -> None:
    sizes, config = [4] * 6, TrainConfig(batch_tokens=2 * 4 * N_TOKENS)
    groups = [
        {int(row) // (4 * N_TOKENS) for row in rows} for rows in rows_of(sizes, config, 12, 2)
    ]
    assert all(len(shards) == 2 for shards in groups)
    passes = [groups[i : i + 3] for i in range(0, 12, 3)]
    assert all(set.union(*shards) == set(range(6)) for shards in passes)
    assert len({str(shards) for shards in passes}) > 1


def test_a_batch_of_fewer_tokens_than_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokens_module, "world_size", lambda: 8)
    with pytest.raises(ValueError, match="a batch of 7 tokens is too small for 8 processes"):
        next(held().mixed(TrainConfig(batch_tokens=7), 0))
