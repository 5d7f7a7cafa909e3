"""Training: what it learns, that it can be killed at any moment, and what it refuses."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from patchsae_lib import training
from patchsae_lib.artefacts import read_checkpoint
from patchsae_lib.distributed import resolve_precision
from patchsae_lib.profiles import SAEConfig, TrainConfig
from patchsae_lib.sae import ACTIVATIONS, SAE, explained_variance, l0, reconstruction_loss
from patchsae_lib.tokens import Tokens
from patchsae_lib.training import Trainer, pack, shuffled, train, unpack

D_VIT = 16
SAE_CONFIG = SAEConfig(expansion=2, l1=1e-3, k=3)
CONFIG = TrainConfig(
    batch_tokens=32, steps=30, lr=1e-3, warmup=10, dead_after=4, checkpoint_every=7
)


def dictionary_tokens(n_images: int = 60, seed: int = 0) -> Tokens:
    """Tokens that are sums of a few of 20 directions, around a large mean."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(20, D_VIT, generator=generator)
    active = torch.rand(n_images, 5, 20, generator=generator) < 0.1
    z = (active * torch.rand(active.shape, generator=generator)) @ directions + 3
    return Tokens.hold(z)


CACHE = dictionary_tokens()
Z = CACHE[:]


def run(
    sae_config: SAEConfig = SAE_CONFIG, config: TrainConfig = CONFIG, **more: Any
) -> tuple[SAE, training.History]:
    return train(more.pop("tokens", CACHE), sae_config, config, progress=False, **more)


def assert_equal(sae: SAE, expected: SAE) -> None:
    """Bit for bit."""
    for name, tensor in sae.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name


# --- what it learns


@pytest.mark.parametrize(
    ("activation", "precision"),
    [
        ("relu", "float32"),
        ("topk", "float32"),
        ("batchtopk", "float32"),
        ("relu", "bfloat16"),
        ("batchtopk", "bfloat16"),
    ],
)
def test_it_learns_sparse_latents_that_explain_the_tokens(activation: str, precision: str) -> None:
    sae_config = replace(SAE_CONFIG, activation=activation, scale_inputs=True)
    sae_config = replace(sae_config, l1=1e-3 if activation == "relu" else 0.0)
    config = replace(CONFIG, batch_tokens=256, steps=150, lr=1e-2, precision=precision)
    sae, history = run(sae_config, config)
    f = sae.encode(Z)
    assert explained_variance(Z, sae.decode(f)) > 0.8
    assert l0(f) < (8 if activation == "relu" else 3.3)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


@pytest.mark.parametrize(
    ("activation", "precision"),
    [("relu", "float32"), ("batchtopk", "float32"), ("batchtopk", "bfloat16")],
)
def test_the_first_latents_of_a_nested_dictionary_explain_tokens_alone(
    activation: str, precision: str
) -> None:
    plain = replace(SAE_CONFIG, activation=activation, l1=1e-4, scale_inputs=True)
    config = replace(CONFIG, batch_tokens=256, steps=150, lr=1e-2, precision=precision)

    def explained(nested: tuple[int, ...]) -> float:
        sae, _ = run(replace(plain, nested=nested), config)
        first = sae.encode(Z) * (torch.arange(sae.d_sae) < 8)
        return float(explained_variance(Z, sae.decode(first)))

    assert explained((8,)) > explained(()) + 0.1


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    first, again = run(), run()
    assert_equal(first[0], again[0])
    assert first[1] == again[1]
    another, _ = run(config=replace(CONFIG, seed=1))
    assert not torch.equal(first[0].W_enc, another.W_enc)


@given(steps=st.integers(1, 6), activation=st.sampled_from(list(ACTIVATIONS)))
@settings(deadline=None, max_examples=6)
def test_decoder_rows_have_unit_norm_after_any_step(steps: int, activation: str) -> None:
    sae, _ = run(replace(SAE_CONFIG, activation=activation), replace(CONFIG, steps=steps))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(sae.d_sae))


def test_scaled_inputs_make_the_unit_of_the_tokens_irrelevant() -> None:
    config = replace(SAE_CONFIG, scale_inputs=True)
    sae, history = run(config)
    times_8, history_8 = run(config, tokens=Tokens.hold(8 * Z))
    assert history == history_8  # a power of two: exactly
    torch.testing.assert_close(times_8.encode(8 * Z), sae.encode(Z))
    torch.testing.assert_close(times_8(8 * Z), 8 * sae(Z))
    torch.testing.assert_close(
        sae.W_dec.norm(dim=1), Z.norm(dim=-1).mean().expand(sae.d_sae), rtol=0.02, atol=0
    )


def test_the_result_is_frozen_and_in_eval_mode() -> None:
    for scale_inputs in (False, True):
        sae, _ = run(replace(SAE_CONFIG, scale_inputs=scale_inputs))
        assert not sae.training
        assert all(not p.requires_grad and p.grad is None for p in sae.parameters())


def test_batchtopk_learns_a_threshold_that_keeps_about_k() -> None:
    config = replace(SAE_CONFIG, activation="batchtopk", l1=0.0)
    sae, _ = run(config, replace(CONFIG, steps=200, batch_tokens=128))
    assert sae.threshold > 0
    assert l0(sae.encode(Z)) == pytest.approx(config.k, rel=0.1)


# --- controls that know nothing

FROZEN = {"encoder": "W_enc", "decoder": "W_dec"}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("frozen", FROZEN)
def test_what_is_frozen_stays_bit_for_bit_and_the_rest_is_trained(
    frozen: str, activation: str
) -> None:
    sae_config = replace(SAE_CONFIG, activation=activation, b_enc_init=-0.1)
    sae, _ = run(sae_config, replace(CONFIG, frozen=frozen))
    start = SAE(D_VIT, 2 * D_VIT, activation, seed=CONFIG.seed)
    stays = {n for n, p in sae.named_parameters() if torch.equal(p, start.get_parameter(n))}
    assert stays == {FROZEN[frozen]}
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(sae.d_sae))
    assert not any(parameter.requires_grad for parameter in sae.parameters())


@pytest.mark.parametrize("limit", [0.0, 1.0], ids=["dense", "sparse"])
@pytest.mark.parametrize("frozen", FROZEN)
def test_what_is_not_frozen_still_learns(
    frozen: str, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SPARSE", limit)
    config = replace(CONFIG, batch_tokens=256, steps=150, lr=1e-2, frozen=frozen)
    sae, history = run(replace(SAE_CONFIG, scale_inputs=True), config)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    whole, _ = run(replace(SAE_CONFIG, scale_inputs=True), replace(config, frozen=""))
    ev = [explained_variance(Z, trained(Z)) for trained in (sae, whole)]
    assert 0.2 < ev[0] < ev[1]


@pytest.mark.parametrize("frozen", FROZEN)
def test_a_frozen_run_is_resumed_bit_for_bit(
    frozen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAMPLE_TOKENS", 32)
    config, path = replace(CONFIG, frozen=frozen), tmp_path / "c"
    expected, history = run(config=config)
    first = list(islice(batches(), 10))
    with pytest.raises(ValueError, match="the data ends at step 10"):
        run(config=config, checkpoint=path, tokens=lambda start: iter(first[start:]))
    resumed, resumed_history = run(config=config, checkpoint=path)
    assert_equal(resumed, expected)
    assert resumed_history == history
    with pytest.warns(match="another run's checkpoint"):
        run(checkpoint=path)  # nothing is frozen here


def test_shuffled_tokens_keep_their_marginals_and_nothing_else() -> None:
    config = replace(CONFIG, batch_tokens=300)
    real, mixed = next(batches(0, config)), next(shuffled(CACHE, config)(0))
    assert torch.equal(mixed.sort(0).values, real.sort(0).values)

    def correlation(z: Tensor) -> Tensor:
        return torch.corrcoef(z.T).fill_diagonal_(0).abs().mean()

    assert correlation(mixed) < 0.06 < 0.15 < correlation(real)


def test_shuffled_batches_depend_on_seed_and_step_alone() -> None:
    first, second = islice(shuffled(CACHE, CONFIG)(3), 2)
    assert torch.equal(next(shuffled(CACHE, CONFIG)(4)), second)
    assert torch.equal(next(shuffled(CACHE, CONFIG)(3)), first)
    # the same batch is dealt anew at another step
    held = SameBatch(next(batches()))
    assert not torch.equal(*islice(shuffled(held, CONFIG)(0), 2))
    of_seeds = [next(shuffled(held, replace(CONFIG, seed=seed))(0)) for seed in (0, 1)]
    assert not torch.equal(*of_seeds)


class SameBatch:
    """Tokens of which every batch is the same."""

    def __init__(self, z: Tensor) -> None:
        self.z = z

    def mixed(self, config: TrainConfig, seed: int, start_step: int = 0) -> Iterator[Tensor]:
        while True:
            yield self.z


# --- one step


def trainer(sae_config: SAEConfig = SAE_CONFIG, config: TrainConfig = CONFIG) -> Trainer:
    sae = SAE(D_VIT, 2 * D_VIT, sae_config.activation, sae_config.k)
    made = Trainer(sae, sae_config, config)
    made.start(Z.flatten(0, 1))
    return made


def batches(start: int = 0, config: TrainConfig = CONFIG) -> Iterator[Tensor]:
    return CACHE.mixed(config, config.seed, start)


def test_a_run_starts_from_its_config_and_a_sample_of_tokens() -> None:
    changes = {"b_enc_init": -0.5, "b_dec_init": "mean", "scale_inputs": True}
    made, scale = trainer(replace(SAE_CONFIG, **changes)), Z.norm(dim=-1).mean()
    assert made.sae.b_enc.tolist() == [-0.5] * 2 * D_VIT
    assert made.scale == pytest.approx(float(scale))
    torch.testing.assert_close(made.sae.b_dec.detach(), Z.mean((0, 1)) / scale)


def test_the_learning_rate_warms_up_and_stays() -> None:
    made = trainer(config=replace(CONFIG, warmup=4))
    rates = []
    for z, _ in zip(batches(), range(6), strict=False):
        made.step(z)
        rates.append(made.adam.param_groups[0]["lr"] / CONFIG.lr)
    assert rates == [0.25, 0.5, 0.75, 1, 1, 1]


@pytest.mark.parametrize("ghosts", [True, False])
def test_ghost_gradients_move_a_latent_once_it_is_silent_too_long(ghosts: bool) -> None:
    made = trainer(replace(SAE_CONFIG, ghost_gradients=ghosts))
    with torch.no_grad():
        made.sae.b_enc[5] = -8  # cannot fire by itself
    before = made.sae.W_dec[5].clone()
    moved = []
    for z, _ in zip(batches(), range(7), strict=False):
        made.step(z)
        moved.append(not torch.allclose(made.sae.W_dec[5], before, atol=1e-6))
    assert made.silent[5] == 7
    assert moved == [False] * 5 + [ghosts] * 2  # more than dead_after = 4 steps of silence
    assert made.history[-1]["dead"] >= 1 / 32


def test_silent_counts_the_steps_since_a_latent_fired() -> None:
    made = trainer(replace(SAE_CONFIG, activation="topk", k=1))
    expected = [0] * 2 * D_VIT
    for z, _ in zip(batches(), range(5), strict=False):
        fired = (made.sae.encode(z) > 0).any(dim=0).tolist()
        made.step(z)
        expected = [0 if f else n + 1 for f, n in zip(fired, expected, strict=True)]
        assert made.silent.tolist() == expected
    assert {0, 5} <= set(expected) != {0, 5}  # some always, never and now and then


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_chunks_do_not_show(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sae_config = replace(SAE_CONFIG, activation=activation)
    whole, chunked = trainer(sae_config), trainer(sae_config)
    for z, _ in zip(batches(), range(8), strict=False):
        monkeypatch.setattr(training, "batch_size", lambda *_, least: 4 * least)
        loss = whole.step(z)
        monkeypatch.setattr(training, "batch_size", lambda *_, least: 7)
        assert chunked.step(z) == pytest.approx(loss, rel=1e-5)
    assert torch.equal(chunked.silent, whole.silent)
    assert chunked.history[-1] == pytest.approx(whole.history[-1], rel=1e-4, abs=1e-5)
    parameters = zip(chunked.sae.parameters(), whole.sae.parameters(), strict=True)
    for parameter, expected in parameters:
        torch.testing.assert_close(parameter, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_history_describes_the_batch_before_its_update(activation: str) -> None:
    made = trainer(replace(SAE_CONFIG, activation=activation))
    z = next(batches())
    f = made.sae.encode(z)
    z_hat = made.sae.decode(f)
    loss = made.step(z)
    (row,) = made.history
    assert row["step"] == 0
    assert row["loss"] == loss == pytest.approx(row["reconstruction"] + 1e-3 * row["l1"])
    assert row["reconstruction"] == pytest.approx(reconstruction_loss(z, z_hat).item())
    assert row["l1"] == pytest.approx(f.sum().item() / len(z))
    assert row["l0"] == pytest.approx(l0(f))
    explained = explained_variance(z, z_hat).item()
    assert row["explained_variance"] == pytest.approx(explained, abs=1e-5)
    assert (row["dead"], row["ghost"]) == (0, 0)


def test_long_runs_record_about_200_rows_with_the_first_and_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert training.HISTORY_ROWS == 200
    monkeypatch.setattr(training, "HISTORY_ROWS", 20)
    _, history = run(config=replace(CONFIG, steps=46, batch_tokens=8))
    assert [row["step"] for row in history] == [*range(0, 46, 2), 45]


# --- dense or sparse


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_ends_alike_on_both_ways(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    z = [torch.randn(256, 8, generator=generator) for _ in range(40)]
    sae_config = SAEConfig(expansion=16, b_enc_init=-1.0, l1=1e-3)
    config = TrainConfig(batch_tokens=256, steps=40, lr=1e-3, precision=precision, dead_after=5)
    ends = []
    for limit in (0.0, 1.0):
        monkeypatch.setattr(training, "SPARSE", limit)
        ends.append(run(sae_config, config, tokens=lambda start: iter(z[start:])))
    (dense, history), (sparse, sparse_history) = ends
    rtol = 0.02 if precision == "bfloat16" else 1e-3
    assert sparse_history[-1]["loss"] == pytest.approx(history[-1]["loss"], rel=rtol)
    assert sparse_history[-1]["l0"] == pytest.approx(history[-1]["l0"], rel=rtol)
    assert (sparse.W_dec - dense.W_dec).norm() < rtol * dense.W_dec.norm()


def test_the_way_is_chosen_by_how_many_latents_are_active(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    for name in ("dense_pass", "sparse_pass"):
        real = getattr(training, name)
        monkeypatch.setattr(training, name, lambda *a, f=real, n=name: (taken.append(n), f(*a))[1])
    z = torch.randn(128, 8, generator=torch.Generator().manual_seed(0))
    for activation, bias in (("relu", 0.0), ("relu", -3.0), ("topk", -3.0)):
        made = Trainer(SAE(8, 400, activation, 3), SAEConfig(activation), TrainConfig())
        made.sae.b_enc.data.fill_(bias)
        made.step(z)
    assert taken == ["dense_pass", "sparse_pass", "dense_pass"]


# --- killed and resumed


class Pulled(Exception):
    """The plug."""


@pytest.mark.parametrize(("last", "precision"), [(7, "float32"), (20, "bfloat16")])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_interrupted_run_ends_bit_for_bit_like_an_undisturbed_one(
    activation: str, precision: str, last: int, tmp_path: Path
) -> None:
    sae_config = replace(SAE_CONFIG, activation=activation, scale_inputs=True)
    config = replace(CONFIG, precision=precision)

    def unplugged(start: int) -> Iterator[Tensor]:
        for step, z in zip(range(start, last + 1), batches(start, config), strict=False):
            if step == last:
                raise Pulled
            yield z

    path = tmp_path / "checkpoint.safetensors"
    monkey = pytest.MonkeyPatch()
    monkey.setattr(training, "SAMPLE_TOKENS", 64)  # which `unplugged` has before it fails
    try:
        expected, history = run(sae_config, config, tokens=lambda start: batches(start, config))
        with pytest.raises(Pulled):
            run(sae_config, config, tokens=unplugged, checkpoint=path)
        with safe_open(path, "pt") as file:
            assert int(file.metadata()["step"]) == last // 7 * 7  # checkpoint_every
        resumed, resumed_history = run(
            sae_config, config, tokens=lambda start: batches(start, config), checkpoint=path
        )
    finally:
        monkey.undo()
    assert_equal(resumed, expected)
    assert resumed_history == history


def test_a_killed_process_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    z = torch.stack(list(islice(batches(), CONFIG.steps)))
    torch.save(z, tmp_path / "tokens")
    script = f"""
        import time, torch
        from patchsae_lib.profiles import SAEConfig, TrainConfig
        from patchsae_lib.training import Trainer, train
        torch.set_num_threads({torch.get_num_threads()})
        z, step = torch.load({str(tmp_path / "tokens")!r}), Trainer.step
        # Long enough at step 10 to be killed there, three steps after the last checkpoint.
        Trainer.step = lambda t, z: time.sleep(120 * (t.n_steps == 10)) or step(t, z)
        train(lambda start: iter(z[start:]), {SAE_CONFIG!r}, {CONFIG!r}, {str(path)!r})
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with safe_open(path, "pt") as file:
        assert file.metadata()["step"] == "7"
    (tmp_path / ".checkpoint.safetensors.1.tmp").write_bytes(b"killed while writing")
    expected, history = run(tokens=lambda start: iter(z[start:]))
    resumed, resumed_history = run(tokens=lambda start: iter(z[start:]), checkpoint=path)
    assert_equal(resumed, expected)
    assert resumed_history == history


def test_what_does_not_fit_into_memory_is_refused_before_it_is_made() -> None:
    large = replace(SAE_CONFIG, expansion=10**9)
    with pytest.raises(ValueError, match=r"sae.expansion is too large: .* GB do not"):
        run(sae_config=large)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first, history = run(checkpoint=tmp_path / "c")
    written = (tmp_path / "c").read_bytes()
    # How often checkpoints are written changes no result, so it may change.
    again, history_again = run(
        checkpoint=tmp_path / "c", config=replace(CONFIG, checkpoint_every=1)
    )
    assert_equal(first, again)
    assert history == history_again
    assert (tmp_path / "c").read_bytes() == written


def test_resuming_does_not_write_into_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c"
    run(config=CONFIG, checkpoint=path)
    written = path.read_bytes()
    with safe_open(path, "pt") as file:
        about = {key: json.loads(value) for key, value in file.metadata().items()}
    made = trainer()
    made.restore(*read_checkpoint(path, about["run"]))
    made.step(next(batches()))
    assert path.read_bytes() == written


def test_a_checkpoint_holds_weights_and_moments_of_any_optimiser() -> None:
    models = [torch.nn.Linear(2, 3) for _ in range(2)]
    optimisers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in models]

    def step(i: int) -> None:
        optimisers[i].zero_grad()
        models[i](torch.ones(1, 2)).pow(2).sum().backward()
        optimisers[i].step()

    step(0)
    unpack(
        {k: v.clone() for k, v in pack(models[0], optimisers[0]).items()}, models[1], optimisers[1]
    )
    for i in (0, 1):
        step(i)
    for parameter, expected in zip(models[1].parameters(), models[0].parameters(), strict=True):
        assert torch.equal(parameter, expected)


# --- what it refuses


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sae_config": replace(SAE_CONFIG, l1=0.5)}, r"sae.l1: 0.001 there, 0.5 here"),
        ({"config": replace(CONFIG, steps=31)}, r"train.steps: 30 there, 31 here"),
        ({"tokens": dictionary_tokens(seed=1)}, "first_batch: "),
    ],
)
def test_another_runs_checkpoint_is_set_aside(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "c"
    run(checkpoint=path)
    written = path.read_bytes()
    with pytest.warns(match=f"another run's checkpoint .*{message}.*: kept as c.old"):
        started_again, _ = run(**change, checkpoint=path)
    undisturbed, _ = run(**change)
    assert torch.equal(started_again.W_dec, undisturbed.W_dec)
    assert (tmp_path / "c.old").read_bytes() == written


def test_a_broken_or_foreign_checkpoint_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "c"
    run(checkpoint=path)
    whole = path.read_bytes()
    foreign = tmp_path / "foreign"
    save_file({"W_enc": torch.zeros(2)}, foreign)
    for content in (whole[: len(whole) // 2], whole[:-1], b"", foreign.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"not a whole checkpoint .*: delete it"):
            run(checkpoint=path)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (lambda start: iter([]), "the data set is empty"),
        (lambda start: iter([torch.zeros(0, 16)]), r"step 0: expected tokens .*, got \(0, 16\)"),
        (lambda start: iter([torch.ones(2, 5, 16)]), r"expected tokens \(n, d_vit\), got"),
        (lambda start: iter([torch.full((4, 16), math.nan)]), "step 0: 4 of 4 tokens"),
        (lambda start: iter([torch.full((4, 16), math.inf)]), "step 0: 4 of 4 tokens"),
        (lambda start: iter([torch.zeros(4, 16)]), "step 0: 4 of 4 tokens"),
    ],
)
def test_bad_tokens_are_refused_before_any_step(tokens: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(tokens=tokens, config=replace(CONFIG, checkpoint_every=1), checkpoint=tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def later(z: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Batches of which the third is z, or missing."""
    monkeypatch.setattr(training, "SAMPLE_TOKENS", 32)
    good = [next(batches()) for _ in range(2)]
    return lambda start: iter([*good, z][start:] if z is not None else good[start:])


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.ones(4, 17), r"the batch of step 2: expected tokens \(n, 16\), got \(4, 17\)"),
        (torch.ones(0, 16), r"the batch of step 2: expected tokens \(n, 16\), got \(0, 16\)"),
        (None, "the data ends at step 2 of 30"),
        (torch.full((4, 16), math.nan), "the batch of step 2: 4 of 4 tokens"),
    ],
)
def test_a_bad_batch_later_stops_the_run(
    z: Tensor | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=message):
        run(tokens=later(z, monkeypatch))


def test_a_loss_that_is_no_number_stops_before_the_weights_are_spoilt() -> None:
    made = trainer(config=replace(CONFIG, lr=1e30, warmup=1))
    made.step(next(batches()))
    with pytest.raises(
        FloatingPointError, match=r"the loss is (nan|inf) at step 1: lower train.lr"
    ):
        made.step(next(batches()))
    assert all(torch.isfinite(parameter).all() for parameter in made.sae.parameters())


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        (SAEConfig, {"l1": -1e-5}, "sae.l1 must be 0 or more"),
        (SAEConfig, {"l1": float("nan")}, "sae.l1 must be 0 or more"),
        (SAEConfig, {"nested": (8, 4)}, "sae.nested must be growing numbers from 1"),
        (TrainConfig, {"lr": 0.0}, "lr must be above 0"),
        (TrainConfig, {"cls_share": 1.5}, "cls_share"),
        (TrainConfig, {"frozen": "latents"}, "train.frozen must be '' or 'encoder' or 'decoder'"),
        (TrainConfig, {"precision": "int8"}, "precision"),
        (TrainConfig, {"checkpoint_every": 0}, "checkpoint_every"),
    ],
)
def test_impossible_settings_are_refused(kind: Any, setting: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**setting)


def test_a_nested_dictionary_is_smaller_than_all() -> None:
    with pytest.raises(ValueError, match=r"sae.nested \(8, 32\) must be below d_sae = 32"):
        run(replace(SAE_CONFIG, nested=(8, 2 * D_VIT)))


def test_progress_shows_loss_l0_and_rate_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    train(CACHE, SAE_CONFIG, CONFIG)
    shown = capsys.readouterr()
    assert "loss=" in shown.err
    assert "L0=" in shown.err
    assert "tokens/s" in shown.err
    assert shown.out == ""


def test_auto_precision_is_what_the_hardware_does_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for capabilities, expected in (
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
        ({"avx2": True}, "float32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capabilities: c)
        assert resolve_precision("auto", cpu) == expected
        assert resolve_precision("float32", cpu) == "float32"
    for has, expected in ((True, "bfloat16"), (False, "float32")):  # a T4 only emulates it
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda h=has, **_: h)
        assert resolve_precision("auto", torch.device("cuda")) == expected
