"""Collecting residual tokens, and the batches made of them."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from patchsae_lib.activations import (
    TokenCache,
    check_tokens,
    collect_tokens,
    open_cache,
    stream_batches,
    token_batches,
)
from patchsae_lib.profiles import TrainConfig

N_IMAGES, N_TOKENS = 11, 5  # CLS and 4 patches


class FakePictures:
    """Picture i is uniformly grey, of value i + 1."""

    def __len__(self) -> int:
        return N_IMAGES

    def batch(self, indices: list[int]) -> Tensor:
        return (
            torch.tensor(indices, dtype=torch.uint8).add(1).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
        )


class FakeClip:
    """Token t of a picture is (its grey, t + 1, weight): each is recognised by its values."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight, self.n_seen = weight, 0

    def preprocess(self, pictures: Tensor) -> Tensor:
        return pictures.float()

    def tokens(self, images: Tensor) -> Tensor:
        self.n_seen += len(images)
        z = torch.full((len(images), N_TOKENS, 3), self.weight)
        z[..., 0] = images.mean(dim=(1, 2, 3))[:, None]
        z[..., 1] = torch.arange(N_TOKENS) + 1
        return z


def cache() -> TokenCache:
    return collect_tokens(FakeClip(), FakePictures(), range(N_IMAGES), progress=False)


def names(z: Tensor) -> list[tuple[int, int]]:
    """(image, token) of each token of a batch."""
    return [(int(image) - 1, int(token) - 1) for image, token, _ in z.tolist()]


def take(batches: Iterator[Tensor], n: int) -> list[Tensor]:
    return list(islice(batches, n))


# --- collecting


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_cache_holds_the_tokens_of_the_chosen_pictures_in_order(batch: int) -> None:
    chosen = [7, 2, 9, 0, 4]
    found = collect_tokens(FakeClip(), FakePictures(), chosen, batch=batch, progress=False)
    assert found.indices.tolist() == chosen
    assert found.tokens.shape == (5, N_TOKENS, 3)
    assert found.tokens.dtype == torch.bfloat16
    expected = [(i, t) for i in chosen for t in range(N_TOKENS)]
    assert names(found.tokens.flatten(0, 1).float()) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_file_holds_what_memory_would(dtype: torch.dtype, tmp_path: Path) -> None:
    arguments = (FakeClip(), FakePictures(), [3, 1, 8])
    path = tmp_path / "new" / "tokens.safetensors"
    file = collect_tokens(*arguments, path, batch=2, dtype=dtype, progress=False)
    memory = collect_tokens(*arguments, dtype=dtype, progress=False)
    assert torch.equal(file.tokens, memory.tokens)
    assert file.tokens.dtype == dtype
    for name, tensor in load_file(path).items():  # an ordinary safetensors file
        assert torch.equal(tensor, getattr(memory, name))
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0  # its data are aligned
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_collected_once(tmp_path: Path) -> None:
    path, clip = tmp_path / "tokens.safetensors", FakeClip()
    first = collect_tokens(clip, FakePictures(), range(N_IMAGES), path, progress=False)
    assert clip.n_seen == N_IMAGES
    again = collect_tokens(clip, FakePictures(), range(N_IMAGES), path, progress=False)
    assert clip.n_seen == N_IMAGES + 2  # the first and the last, to compare
    assert torch.equal(first.tokens, again.tokens)


@pytest.mark.parametrize(("weight", "chosen"), [(1.0, [1, 2, 3]), (2.0, [1, 2])])
def test_a_file_of_other_tokens_is_collected_again(tmp_path: Path, weight, chosen) -> None:
    path = tmp_path / "tokens.safetensors"
    collect_tokens(FakeClip(), FakePictures(), [1, 2], path, progress=False)
    clip = FakeClip(weight=weight)
    with pytest.warns(match="of another CLIP, block or set: collecting again"):
        again = collect_tokens(clip, FakePictures(), chosen, path, progress=False)
    fresh = collect_tokens(clip, FakePictures(), chosen, progress=False)
    assert torch.equal(again.tokens, fresh.tokens)
    assert open_cache(path).indices.tolist() == chosen


def test_a_file_that_is_no_cache_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "tokens.safetensors"
    collect_tokens(FakeClip(), FakePictures(), range(N_IMAGES), path, progress=False)
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:20], b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"not a token cache .*: delete it"):
            collect_tokens(FakeClip(), FakePictures(), range(N_IMAGES), path, progress=False)
    save_file({"W_enc": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not a token cache"):
        open_cache(path)


def test_an_interrupted_collection_leaves_no_file(tmp_path: Path) -> None:
    class Unplugged(FakeClip):
        def tokens(self, images: Tensor) -> Tensor:
            if self.n_seen >= 4:
                raise KeyboardInterrupt
            return super().tokens(images)

    with pytest.raises(KeyboardInterrupt):
        collect_tokens(
            Unplugged(), FakePictures(), range(8), tmp_path / "t", batch=2, progress=False
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("indices", [[], [0, N_IMAGES], [-1]])
def test_indices_must_be_of_pictures_that_exist(indices: list[int]) -> None:
    with pytest.raises(ValueError, match=r"one or more of 0 … 10 expected, got"):
        collect_tokens(FakeClip(), FakePictures(), indices, progress=False)


@pytest.mark.parametrize(
    ("weight", "dtype"), [(float("nan"), torch.bfloat16), (1e5, torch.float16)]
)
def test_tokens_that_are_no_numbers_stop_the_collection(weight: float, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"pictures 4 … 6: 15 of 15 .* the first at image 0"):
        collect_tokens(FakeClip(weight), FakePictures(), [4, 5, 6], dtype=dtype, progress=False)


@given(st.integers(0, 5), st.integers(0, 3), st.sampled_from([float("nan"), -float("inf"), 0.0]))
@settings(deadline=None)
def test_a_bad_token_is_named(image: int, token: int, value: float) -> None:
    z = torch.ones(6, 4, 3)
    check_tokens(z, "the tokens")
    z[image, token] = value
    with pytest.raises(ValueError, match=f"1 of 24 .* the first at image {image} token {token}"):
        check_tokens(z, "the tokens")


def test_an_empty_or_misshapen_cache_is_refused() -> None:
    with pytest.raises(ValueError, match="no tokens to learn from"):
        TokenCache(torch.zeros(0, 5, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match=r"got \(5, 3\) and \(5,\)"):
        TokenCache(torch.zeros(5, 3), torch.arange(5))


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    collect_tokens(FakeClip(), FakePictures(), [0, 1])
    shown = capsys.readouterr()
    assert "tokens of 2 pictures" in shown.err
    assert shown.out == ""


# --- batches


def cached(config: TrainConfig, seed: int, start: int) -> Iterator[Tensor]:
    return token_batches(cache(), config, seed, start)


def streamed(config: TrainConfig, seed: int, start: int) -> Iterator[Tensor]:
    clip, pictures = FakeClip(), FakePictures()
    return stream_batches(clip, pictures, range(N_IMAGES), config, seed, start, buffer=4)


SOURCES = pytest.mark.parametrize("source", [cached, streamed])
Source = Callable[[TrainConfig, int, int], Iterator[Tensor]]


@SOURCES
@given(
    seed=st.integers(0, 3),
    start=st.integers(0, 9),
    batch_tokens=st.integers(1, 20),
    cls_share=st.sampled_from([-1.0, 0.0, 0.3, 1.0]),
)
@settings(deadline=None, max_examples=25)
def test_a_batch_depends_on_seed_and_number_only(
    source: Source, seed: int, start: int, batch_tokens: int, cls_share: float
) -> None:
    config = TrainConfig(batch_tokens=batch_tokens, cls_share=cls_share)
    from_the_start = take(source(config, seed, 0), start + 3)[start:]
    resumed = take(source(config, seed, start), 3)
    assert all(torch.equal(a, b) for a, b in zip(from_the_start, resumed, strict=True))
    assert all(z.shape == (batch_tokens, 3) and z.dtype == torch.float32 for z in resumed)


@SOURCES
def test_another_seed_or_number_gives_other_tokens(source: Source) -> None:
    config = TrainConfig(batch_tokens=10)
    first, second = take(source(config, 0, 0), 2)
    (other,) = take(source(config, 1, 0), 1)
    assert names(first) != names(second)
    assert names(first) != names(other)


@given(batch_tokens=st.integers(1, 200), start=st.integers(0, 30), seed=st.integers(0, 3))
@settings(deadline=None, max_examples=25)
def test_every_token_comes_once_before_any_comes_twice(
    batch_tokens: int, start: int, seed: int
) -> None:
    """Over any stretch of batches, whole passes or not, counts differ by 1 within a pass."""
    n = N_IMAGES * N_TOKENS
    batches = take(token_batches(cache(), TrainConfig(batch_tokens=batch_tokens), seed), start + 1)
    seen = [name for z in batches for name in names(z)]
    counts = [seen.count((i, t)) for i in range(N_IMAGES) for t in range(N_TOKENS)]
    assert {len(seen) // n, -(-len(seen) // n)} == set(counts)


def test_passes_are_shuffled_each_in_its_own_way() -> None:
    # One batch a token: else a batch's order, which does not matter, would hide it.
    first, second = (
        [names(z)[0] for z in take(token_batches(cache(), TrainConfig(batch_tokens=1), 0, s), 55)]
        for s in (0, 55)
    )
    assert sorted(first) == sorted(second)
    assert first != second
    assert first != sorted(first)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_cls_share_is_kept_in_every_batch(share: float) -> None:
    config = TrainConfig(batch_tokens=20, cls_share=share)
    batches = take(token_batches(cache(), config, 0), 11)
    for z in batches:
        assert sum(token == 0 for _, token in names(z)) == share * 20
    images = {image for z in batches for image, token in names(z) if token == 0}
    assert len(images) == (N_IMAGES if share else 0)  # 11 or more draws: every picture came


@SOURCES
def test_cls_only(source: Source) -> None:
    config = TrainConfig(tokens="cls", batch_tokens=4)
    assert {token for z in take(source(config, 0, 0), 6) for _, token in names(z)} == {0}


def test_patches_that_are_not_there_are_a_clear_error() -> None:
    only_cls = TokenCache(cache().tokens[:, :1], torch.arange(N_IMAGES))
    with pytest.raises(ValueError, match="CLS tokens only: set tokens = 'cls'"):
        next(token_batches(only_cls, TrainConfig(cls_share=0.5), 0))
    assert next(token_batches(only_cls, TrainConfig(batch_tokens=7), 0)).shape == (7, 3)


def test_a_stream_passes_over_all_pictures() -> None:
    # Buffers of 4 pictures have 20 tokens: 2 batches of 10. 11 buffers are 4 passes.
    config = TrainConfig(batch_tokens=10)
    buffers = [
        {image for z in take(streamed(config, 0, start), 2) for image, _ in names(z)}
        for start in range(0, 22, 2)
    ]
    images = [image for buffer in buffers for image in buffer]
    assert sorted(images) == sorted([*range(N_IMAGES)] * 4)


def test_a_stream_does_not_always_leave_out_the_same_tokens() -> None:
    # Buffers of 4 pictures have 20 tokens, of which one batch takes 12.
    batches = take(streamed(TrainConfig(batch_tokens=12), 0, 0), 10)
    assert len({tuple(sorted(token for _, token in names(z))) for z in batches}) > 5


def test_a_buffer_smaller_than_a_batch_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="4 images have 20 tokens, fewer than a batch of 21"):
        next(streamed(TrainConfig(batch_tokens=21), 0, 0))
