"""The cache in shards: what is written, what of it is kept, and the batches made of it."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from patchsae_lib import activations
from patchsae_lib.activations import TokenCache, collect_tokens, token_batches, token_rows
from patchsae_lib.artefacts import config_hash
from patchsae_lib.profiles import TrainConfig
from patchsae_lib.shards import Shards, collect_shards, open_shards, shard_batches

N_TOKENS = 5  # CLS and 4 patches
MADE_BY = {"model": {"name": "fake", "weights": "ab12"}, "pictures": {"spec": "grey", "n": 11}}


class Grey:
    """Picture i is uniformly grey, of value i + 1, and of class i modulo 3; `bad` ones are not
    readable."""

    class_names = ("dark", "grey", "light")

    def __init__(self, n: int = 11, bad: tuple[int, ...] = ()) -> None:
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
    """Token t of a picture is (its grey, t + 1)."""

    def preprocess(self, pictures: Tensor) -> Tensor:
        return pictures.float()

    def tokens(self, images: Tensor) -> Tensor:
        z = torch.empty(len(images), N_TOKENS, 2)
        z[..., 0] = images.mean(dim=(1, 2, 3))[:, None]
        z[..., 1] = torch.arange(N_TOKENS) + 1
        return z


def collect(folder: Path, pictures: Grey | None = None, **more: Any) -> Shards:
    settings = {"made_by": MADE_BY, "shard": 4, "batch": 3, "progress": False, **more}
    return collect_shards(FakeClip(), Grey() if pictures is None else pictures, folder, **settings)


def names(z: Tensor) -> list[tuple[int, int]]:
    """(picture, token) of each token of a batch."""
    return [(int(picture) - 1, int(token) - 1) for picture, token in z.tolist()]


# --- the format


def test_shards_are_what_the_format_says(tmp_path: Path) -> None:
    """Read as other software would: without this library, the pictures or CLIP."""
    collect(tmp_path)
    about = json.loads((tmp_path / "cache.json").read_text())
    expected = collect_tokens(FakeClip(), Grey(), range(11), progress=False)
    assert about["format"] == "patchsae-tokens-1"
    assert about["made_by"] == MADE_BY
    assert about["hash"] == config_hash(MADE_BY)
    assert (about["dtype"], about["tokens"], about["d_vit"]) == ("bfloat16", N_TOKENS, 2)
    assert about["class_names"] == ["dark", "grey", "light"]
    assert about["skipped"] == []
    assert [s["images"] for s in about["shards"]] == [4, 4, 3]
    shards = [load_file(tmp_path / s["file"]) for s in about["shards"]]
    whole = {key: torch.cat([shard[key] for shard in shards]) for key in shards[0]}
    assert torch.equal(whole["tokens"], expected.tokens)
    assert whole["tokens"].dtype == torch.bfloat16
    assert whole["indices"].tolist() == list(range(11))
    assert whole["labels"].tolist() == [0, 1, 2, 0, -1, 2, 0, 1, 2, 0, 1]
    with safe_open(tmp_path / "00001.safetensors", "pt") as file:
        assert file.metadata() == {"made_by": config_hash(MADE_BY), "pictures": "4-7"}
    written = {"cache.json", *(s["file"] for s in about["shards"])}
    assert {path.name for path in tmp_path.iterdir()} == written


def test_an_opened_cache_knows_tokens_labels_and_class_names(tmp_path: Path) -> None:
    collect(tmp_path)
    shards = open_shards(tmp_path)
    assert (shards.n_tokens, shards.d_vit, shards.sizes) == (N_TOKENS, 2, (4, 4, 3))
    assert shards.class_names == ("dark", "grey", "light")
    cache, labels = shards.read(1)
    assert cache.indices.tolist() == [4, 5, 6, 7]
    assert labels.tolist() == [-1, 2, 0, 1]
    assert names(cache.tokens.flatten(0, 1))[:6] == [*((4, t) for t in range(5)), (5, 0)]


# --- collecting


def test_a_whole_cache_is_not_collected_again(tmp_path: Path) -> None:
    collect(tmp_path)
    pictures = Grey()
    collect(tmp_path, pictures)
    assert pictures.asked == []


def test_a_collection_that_was_killed_goes_on(tmp_path: Path) -> None:
    class Unplugged(Grey):
        def batch(self, indices: list[int]) -> Tensor:
            if 9 in indices:
                raise KeyboardInterrupt
            return super().batch(indices)

    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path, Unplugged())
    with pytest.raises(FileNotFoundError, match="not collected, or not to the end"):
        open_shards(tmp_path)
    pictures = Grey()
    resumed = collect(tmp_path, pictures)
    assert pictures.asked == [8, 9, 10]  # those of the last shard
    assert [resumed.read(i)[0].indices.tolist() for i in range(3)] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10],
    ]  # fmt: skip


@pytest.mark.parametrize("spoil", ["cut", "another", "shorter"])
def test_shards_that_are_cut_or_of_another_cache_are_collected_again(
    tmp_path: Path, spoil: str
) -> None:
    collect(tmp_path, made_by={"another": 1} if spoil == "another" else MADE_BY)
    (tmp_path / "cache.json").unlink()
    path = tmp_path / "00001.safetensors"
    if spoil == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    pictures = Grey()
    collect(tmp_path, pictures, shard=5 if spoil == "shorter" else 4)
    again = {"cut": range(4, 8), "another": range(11), "shorter": range(11)}[spoil]
    assert pictures.asked == list(again)


def test_unreadable_pictures_are_skipped_and_listed(tmp_path: Path) -> None:
    shards = collect(tmp_path, Grey(120, bad=(37,)), shard=50)
    assert shards.skipped == (37,)
    assert shards.sizes == (49, 50, 20)
    assert 37 not in shards.read(0)[0].indices
    many = r"2 of 120 pictures cannot be read, more than 1%; the first is number 37"
    for bad in ((37, 38), (37, 70)):  # in one shard, and in two
        folder = tmp_path / str(bad)
        with pytest.raises(ValueError, match=many):
            collect(folder, Grey(120, bad), shard=50)
        assert not (folder / "cache.json").exists()
    with pytest.raises(ValueError, match=many):  # also when it goes on from what is there
        collect(folder, Grey(120, bad), shard=50)
    with pytest.raises(ValueError, match="none of the pictures 4 … 7 can be read"):
        collect(tmp_path / "b", Grey(11, bad=(4, 5, 6, 7)))
    with pytest.raises(ValueError, match="no pictures"):
        collect(tmp_path / "c", Grey(0))


def test_shards_are_shared_out_to_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from patchsae_lib import shards

    monkeypatch.setattr(shards, "world_size", lambda: 2)
    asked = []
    for rank in (1, 0):  # the first one, which writes cache.json, last
        monkeypatch.setattr(shards, "rank", lambda rank=rank: rank)
        pictures = Grey()
        if rank == 1:
            with pytest.raises(FileNotFoundError):
                collect(tmp_path, pictures)
        else:
            collect(tmp_path, pictures)
        asked.append(pictures.asked)
    assert asked == [[4, 5, 6, 7], [0, 1, 2, 3, 8, 9, 10]]


def test_a_cache_made_by_something_else_is_an_error_that_names_both(tmp_path: Path) -> None:
    collect(tmp_path)
    other = {**MADE_BY, "pictures": {"spec": "grey", "n": 12}}
    message = f"made by {config_hash(MADE_BY)}, this is {config_hash(other)} .*n: 11 there, 12"
    for use in (lambda: collect(tmp_path, made_by=other), lambda: open_shards(tmp_path, other)):
        with pytest.raises(ValueError, match=message):
            use()
    assert open_shards(tmp_path, MADE_BY).sizes == (4, 4, 3)


def test_what_is_no_cache_is_a_clear_error(tmp_path: Path) -> None:
    collect(tmp_path)
    path = tmp_path / "00002.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="not a token cache"):
        open_shards(tmp_path).read(2)
    save_file({"tokens": torch.ones(1, 5, 2), "indices": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"holds tokens \(1, 5, 2\), cache.json says \(3, 5, 2\)"):
        open_shards(tmp_path).read(2)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 shards are missing .* 00002"):
        open_shards(tmp_path)
    for content in ("{}", "[", '{"format": "patchsae-tokens-2"}'):
        (tmp_path / "cache.json").write_text(content)
        with pytest.raises(ValueError, match="does not describe a cache patchsae-tokens-1"):
            open_shards(tmp_path)


# --- batches


@pytest.mark.parametrize("config", [
    TrainConfig(batch_tokens=9),
    TrainConfig(batch_tokens=20, cls_share=0.3),
    TrainConfig(batch_tokens=4, tokens="cls"),
])  # fmt: skip
def test_batches_of_one_shard_are_those_of_one_file(tmp_path: Path, config: TrainConfig) -> None:
    shards = collect(tmp_path, shard=11)
    cache = collect_tokens(FakeClip(), Grey(), range(11), progress=False)
    for start in (0, 8):
        ours = shard_batches(shards, config, 3, start)
        theirs = token_batches(cache, config, 3, start)
        for a, b in islice(zip(ours, theirs, strict=False), 20):
            assert torch.equal(a, b)
            assert a.dtype == torch.float32


@pytest.mark.parametrize("buffer", [1, 2, 3, 16])
def test_batches_are_of_the_tokens_in_the_shards(tmp_path: Path, buffer: int) -> None:
    shards = collect(tmp_path)
    config = TrainConfig(batch_tokens=11, cls_share=-1)
    batches = list(islice(shard_batches(shards, config, 0, 0, buffer), 10))
    everything = [name for z in batches for name in names(z)]  # 110: two passes
    assert sorted(everything) == sorted([(i, t) for i in range(11) for t in range(5)] * 2)


def rows_of(
    sizes: list[int], config: TrainConfig, start: int, buffer: int, seed: int = 0
) -> Iterator[np.ndarray]:
    return token_rows(sizes, N_TOKENS, config, seed, start, buffer)


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
    batches = list(islice(rows_of(sizes, config, 0, buffer), start + 2))
    resumed = list(islice(rows_of(sizes, config, start, buffer), 2))
    assert all(np.array_equal(a, b) for a, b in zip(batches[start:], resumed, strict=True))
    seen = np.concatenate(batches)
    for kind in (seen,) if cls_share < 0 else (seen[seen % 5 == 0], seen[seen % 5 > 0]):
        one_pass = n if cls_share < 0 else n // 5 if len(kind) and kind[0] % 5 == 0 else n * 4 // 5
        counts = np.unique(np.bincount(kind, minlength=n))
        assert set(counts) <= {0, len(kind) // one_pass, -(-len(kind) // one_pass)}


@given(sizes=SIZES, world=st.integers(1, 4), batch=st.integers(4, 30))
@settings(deadline=None, max_examples=30)
def test_processes_share_a_batch_out(sizes: list[int], world: int, batch: int) -> None:
    config = TrainConfig(batch_tokens=batch)
    (whole,) = islice(rows_of(sizes, config, 2, 2), 1)
    parts = []
    with pytest.MonkeyPatch.context() as patch:
        for rank in range(world):
            mine = slice(batch * rank // world, batch * (rank + 1) // world)
            patch.setattr(activations, "my_part", lambda n, mine=mine: mine)
            parts += islice(rows_of(sizes, config, 2, 2), 1)
    assert np.array_equal(np.concatenate(parts), whole)


def test_only_a_buffer_of_shards_is_mixed_and_each_pass_differently() -> None:
    sizes, config = [4] * 6, TrainConfig(batch_tokens=2 * 4 * N_TOKENS)
    groups = [
        {int(row) // (4 * N_TOKENS) for row in rows}
        for rows in islice(rows_of(sizes, config, 0, 2), 12)
    ]
    assert all(len(shards) == 2 for shards in groups)
    passes = [groups[i : i + 3] for i in range(0, 12, 3)]
    assert all(set.union(*shards) == set(range(6)) for shards in passes)
    assert len({str(shards) for shards in passes}) > 1


def test_a_batch_of_fewer_tokens_than_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(activations, "world_size", lambda: 8)
    cache = TokenCache(torch.ones(3, 5, 2), torch.arange(3))
    with pytest.raises(ValueError, match="a batch of 7 tokens is too small for 8 processes"):
        next(token_batches(cache, TrainConfig(batch_tokens=7), 0))
