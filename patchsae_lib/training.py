"""Training the sparse autoencoder, so that a killed run goes on where it was (section 3.1).

A run resumed from its checkpoint ends bit for bit where it would have ended undisturbed, given the
same machine and number of threads. Of several processes each takes its part of every batch, and
they add up gradients and measures, so that all take the same step; the first writes checkpoints.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from tqdm import tqdm

from patchsae_lib import distributed
from patchsae_lib.artefacts import AnotherRun, read_checkpoint, save_checkpoint, set_aside
from patchsae_lib.distributed import batch_size, rows_of_all, sum_of_all
from patchsae_lib.profiles import SAEConfig, TrainConfig
from patchsae_lib.sae import (
    SAE,
    explained_variance,
    ghost_loss,
    initial_b_dec,
    keep_largest,
    l1_loss,
    nested_loss,
    reconstruction_loss,
    require_tokens,
)
from patchsae_lib.sparse import EncodeDecode

Batches = Callable[[int], Iterator[Tensor]]
History = list[dict[str, float]]

SAMPLE_TOKENS = 8192  # tokens that b_dec and the input scale are estimated from
HISTORY_ROWS = 200  # as many points as a learning curve can show
SPARSE = 0.04  # share of active latents up to which gathering is faster than multiplying


class MixedTokens(Protocol):
    """Residual tokens, mixed into endless batches z (n, d_vit) float32, as by `tokens.Tokens`."""

    def mixed(self, config: TrainConfig, seed: int, start_step: int = 0) -> Iterator[Tensor]:
        """Yield batches of a seed, from number `start_step` on."""


class Latents(NamedTuple):
    """The latents of n tokens: all of them, or only those that are active."""

    f: Tensor  # (n, d_sae), or (entries,)
    fired: Tensor  # (d_sae,) bool: active in a token
    l1: Tensor  # () mean ‖f‖₁


Pass = tuple[Latents, Tensor, Tensor | None]  # with ẑ (n, d_vit), and g (n, d_vit) of `ghost_loss`


def objective(
    sae: SAE,
    z: Tensor,
    l1: float,
    dead: Tensor | None = None,
    bfloat16: bool = False,
    sparse: bool = False,
    nested: tuple[int, ...] = (),
) -> tuple[dict[str, Tensor], Latents, Tensor]:
    """Compute the loss of eq. 2 for tokens z (n, d_vit), plus the ghost term of latents `dead`.

    Returns `loss` and its parts `reconstruction`, `l1` (mean ‖f‖₁ without λ) and `ghost`; the
    latents; ẑ (n, d_vit). `dead` are numbers of latents (m,); `bfloat16` concerns matrix products
    and dense latents; `sparse`, for ReLU, computes with active latents only; `nested` are sizes of
    `nested_loss`, which needs all latents."""
    forward = sparse_pass if sparse else dense_pass
    latents, z_hat, ghosts = forward(sae, z, dead, bfloat16)
    reconstruction = reconstruction_loss(z, z_hat)
    if nested:
        with torch.autocast(z.device.type, torch.bfloat16, enabled=bfloat16):
            reconstruction = nested_loss(sae, z, latents.f, z_hat, nested)
    ghost = reconstruction.new_zeros(()) if ghosts is None else ghost_loss(z, z_hat, ghosts)
    loss = reconstruction + l1 * latents.l1 + ghost
    parts = {"loss": loss, "reconstruction": reconstruction, "l1": latents.l1, "ghost": ghost}
    return parts, latents, z_hat


def dense_pass(sae: SAE, z: Tensor, dead: Tensor | None, bfloat16: bool) -> Pass:
    """Encode and decode tokens z (n, d_vit) by matrix products."""
    with torch.autocast(z.device.type, torch.bfloat16, enabled=bfloat16):
        pre = sae.pre_activations(z)
        divided = sae.activation == "batchtopk" and distributed.world_size() > 1
        f = _batchtopk_of_all(pre, sae.k) if divided else sae.activate(pre)
        ghosts = None if dead is None else pre[:, dead].exp() @ sae.W_dec[dead]
        return Latents(f, f.detach().amax(dim=0) > 0, l1_loss(f)), sae.decode(f), ghosts


def sparse_pass(sae: SAE, z: Tensor, dead: Tensor | None, bfloat16: bool) -> Pass:
    """Encode and decode with ReLU through its active latents; `bfloat16` concerns z W_enc only."""
    centred, bias = z - sae.b_dec.detach(), sae.encoder_bias()
    latent, f, decoded = EncodeDecode.apply(centred, sae.W_enc, bias, sae.W_dec, bfloat16)
    fired = torch.zeros_like(bias, dtype=torch.bool).index_fill(0, latent, True)
    ghosts = None
    if dead is not None:
        pre = centred @ sae.W_enc.index_select(1, dead) + bias[dead]
        ghosts = pre.exp() @ sae.W_dec.index_select(0, dead)
    return Latents(f, fired, f.sum() / len(z)), decoded + sae.b_dec, ghosts


def _batchtopk_of_all(pre: Tensor, k: int) -> Tensor:
    """`sae.batchtopk` where this process has only its part (n, d_sae) of the batch."""
    n_kept = k * int(sum_of_all(torch.tensor(len(pre))))
    flat = pre.detach().flatten().float()
    largest = flat.topk(min(len(flat), n_kept + 1), sorted=False).values
    return keep_largest(pre, rows_of_all(largest), n_kept)


class Trainer:
    """An autoencoder in training: weights, Adam's moments, and how long each latent is silent."""

    def __init__(self, sae: SAE, sae_config: SAEConfig, train_config: TrainConfig) -> None:
        self.sae, self.sae_config, self.train_config = sae, sae_config, train_config
        if train_config.frozen:
            frozen = {"encoder": sae.W_enc, "decoder": sae.W_dec}[train_config.frozen]
            frozen.requires_grad_(False)  # hence no gradient, and Adam leaves it alone
        self.adam = Adam(sae.parameters(), lr=train_config.lr, fused=True)
        self.silent = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.W_enc.device)
        self.n_steps, self.scale = 0, 1.0
        self.history: History = []

    @torch.no_grad()
    def start(self, sample: Tensor) -> None:
        """Set the input scale and the biases from a sample of tokens z (n, d_vit).
        Deviation: b_dec's median is over tokens; the authors' is over images (`initial_b_dec`)."""
        if self.sae_config.scale_inputs:
            self.scale = float(sample.norm(dim=-1).mean())
        self.sae.b_dec.copy_(initial_b_dec(sample / self.scale, self.sae_config.b_dec_init))
        self.sae.b_enc.fill_(self.sae_config.b_enc_init)

    def step(self, z: Tensor) -> float:
        """Take one step of Adam on (scaled) tokens z (n, d_vit); return the loss before it.

        As in the authors' code, decoder rows are first set to unit norm, the gradient along them
        is removed, and latents silent for more than `dead_after` steps get ghost gradients.
        Raises `FloatingPointError`, before Adam's step, when the loss is NaN or infinite.
        """
        config, step = self.train_config, self.n_steps
        logged = step % max(1, config.steps // HISTORY_ROWS) == 0 or step + 1 == config.steps
        self._normalise_decoder()
        self.adam.zero_grad()
        row, silent = self._gradients(z, logged)
        if broken := [name for name, x in row.items() if not math.isfinite(x)]:
            at = f"the {broken[0]} is {row[broken[0]]} at step {step}"
            raise FloatingPointError(f"{at}: lower train.lr ({config.lr}) or set sae.scale_inputs")
        self.sae.remove_parallel_gradient()
        self.adam.param_groups[0]["lr"] = config.lr * min(1.0, (step + 1) / max(1, config.warmup))
        self.adam.step()
        self.silent = silent
        if logged:
            self.history.append({"step": step, **row})
        self.n_steps += 1
        return row["loss"]

    def _gradients(self, z: Tensor, logged: bool) -> tuple[dict[str, float], Tensor]:
        """Add up the gradients of z (n, d_vit), chunk by chunk, and over all processes.
        Returns the measures of the whole batch, and how long latents are then silent (d_sae,).
        A GPU is waited for twice: for the number of dead latents, and for the measures."""
        sae, l1, bfloat16 = self.sae, self.sae_config.l1, self.train_config.precision == "bfloat16"
        dead, dead_after = None, self.train_config.dead_after
        if self.sae_config.ghost_gradients:
            numbers = (self.silent > dead_after).nonzero()[:, 0]
            dead = numbers if len(numbers) else None
        nested = self.sae_config.nested
        sparse, n_tokens = self._is_sparse(z), int(sum_of_all(torch.tensor(len(z))))
        undivided = sparse or sae.activation == "batchtopk"  # which chooses among all tokens
        at_once = len(z) if undivided else batch_size(z.device, sae.d_sae, least=1024)
        totals, fired, z_hats = dict[str, Tensor](), torch.zeros_like(self.silent).bool(), []
        for chunk in z.split(at_once):
            parts, latents, z_hat = objective(sae, chunk, l1, dead, bfloat16, sparse, nested)
            share = len(chunk) / n_tokens
            (parts["loss"] * share).backward()
            f = latents.f.detach()
            if logged:  # counting costs as much as a tenth of the step
                parts["l0"] = f.count_nonzero() / len(chunk)
                z_hats.append(z_hat.detach())
            for name, part in parts.items():
                totals[name] = totals.get(name, 0.0) + part.detach() * share
            if sae.activation == "batchtopk":
                sae.learn_threshold(rows_of_all(f.where(f > 0, torch.inf).amin()[None]))
            fired |= latents.fired
        for gradient in [p.grad for p in sae.parameters() if p.grad is not None]:
            sum_of_all(gradient)
        silent = (self.silent + 1).masked_fill(distributed.any_of_all(fired), 0)
        names, measures = [*totals], [*sum_of_all(torch.stack([*totals.values()]))]
        if logged:
            names += ["explained_variance", "dead"]
            measures.append(explained_variance(rows_of_all(z), rows_of_all(torch.cat(z_hats))))
            measures.append((silent > dead_after).float().mean())
        return dict(zip(names, torch.stack(measures).tolist(), strict=True)), silent

    @torch.no_grad()
    def _is_sparse(self, z: Tensor) -> bool:
        """Whether few latents are active, judged by about 64 tokens: for ReLU on a CPU."""
        if self.sae.activation != "relu" or self.sae_config.nested or z.device.type != "cpu":
            return False
        share = self.sae.pre_activations(z[:: max(1, len(z) // 64)]).gt(0).float().mean()
        return bool(sum_of_all(share) < SPARSE * distributed.world_size())  # the same in each

    def finish(self) -> SAE:
        """Return the autoencoder for raw residual tokens, frozen and in eval mode."""
        self.sae.zero_grad()
        self._normalise_decoder()
        return self.sae.fold(self.scale).eval().requires_grad_(False)

    def _normalise_decoder(self) -> None:
        """Set decoder rows to unit norm; frozen ones have it, and stay bit for bit."""
        if self.sae.W_dec.requires_grad:
            self.sae.normalise_decoder()

    def save(self, path: Path, run: Mapping[str, Any]) -> None:
        """Write all that the next step depends on."""
        tensors = pack(self.sae, self.adam) | {"silent": self.silent}
        state = {"step": self.n_steps, "scale": self.scale, "history": self.history}
        save_checkpoint(path, run, tensors, **state)

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on where `save` left the run."""
        unpack(tensors, self.sae, self.adam)
        self.silent = tensors["silent"].to(self.silent.device)
        self.n_steps, self.scale, self.history = state["step"], state["scale"], state["history"]


def pack(model: nn.Module, optimiser: Optimizer) -> dict[str, Tensor]:
    """Name the weights of a model, and its optimiser's moments, for a checkpoint."""
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        moments = optimiser.state[parameter].items()
        tensors |= {f"optimiser/{name}/{key}": moment for key, moment in moments}
    return tensors


def unpack(tensors: Mapping[str, Tensor], model: nn.Module, optimiser: Optimizer) -> None:
    """Put what `pack` took back into a model and its optimiser."""
    model.load_state_dict({name: tensors[f"model/{name}"] for name in model.state_dict()})
    for path, tensor in tensors.items():
        if path.startswith("optimiser/"):
            _, name, key = path.split("/")
            parameter = model.get_parameter(name)
            optimiser.state[parameter][key] = tensor.to(parameter.device)


def train(
    tokens: MixedTokens | Batches,
    sae_config: SAEConfig,
    train_config: TrainConfig,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> tuple[SAE, History]:
    """Train an autoencoder on `tokens`, or on batches z (n, d_vit) float32 from a given step on.

    The SAE is on `device`, frozen, in eval mode, and works on raw residual tokens (`SAE.fold`). A
    checkpoint is written every `checkpoint_every` steps and at the end, and the run resumed from
    it; another run's file is set aside with a warning.
    Deviation: decoder rows are set to unit norm (times the input scale) again after the last step.

    History, about 200 rows: `step`; of its batch, before the update, `loss`, its parts
    `reconstruction`, `l1` (mean ‖f‖₁, without λ) and `ghost`, `l0` (active latents a token) and
    `explained_variance` (centred); `dead`, the share of latents silent for more than `dead_after`
    steps. With `scale_inputs` all are in units of scaled tokens.

    Raises `ValueError` for no tokens, tokens of another width, zero, NaN or infinity, too few
    batches, and a file that is no checkpoint; `FloatingPointError` for a loss that is no number.
    """
    precision = distributed.resolve_precision(train_config.precision, torch.device(device))
    train_config, seed = replace(train_config, precision=precision), train_config.seed
    batches = tokens if callable(tokens) else partial(tokens.mixed, train_config, seed)
    sample, run = _first_tokens(batches, sae_config, train_config)
    d_vit, path = sample.shape[1], Path(checkpoint) if checkpoint else None
    d_sae = sae_config.expansion * d_vit
    if sae_config.nested and sae_config.nested[-1] >= d_sae:
        raise ValueError(f"sae.nested {sae_config.nested} must be below d_sae = {d_sae}")
    # bytes of both matrices; on a CPU of their gradients and Adam's moments, too
    size = (32 if torch.device(device).type == "cpu" else 8) * d_vit * d_sae
    distributed.require_memory(size, f"sae.expansion is too large: {size / 1e9:.3g} GB")
    sae = SAE(d_vit, d_sae, sae_config.activation, sae_config.k, seed)
    trainer = Trainer(sae.to(device), sae_config, train_config)
    _resume(trainer, path, run)
    if trainer.n_steps == 0:
        trainer.start(sample.to(device))
    for tensor in sae.state_dict().values():  # machines may differ in the last bit
        distributed.from_first(tensor)
    _take_steps(trainer, batches, path, run, progress)
    return trainer.finish(), trainer.history


def shuffled(tokens: MixedTokens, config: TrainConfig) -> Batches:
    """Return the batches of a training with each coordinate permuted over the tokens of its batch,
    independently: the marginals of z stay, and nothing else. A control for `train`."""

    def permuted(start: int) -> Iterator[Tensor]:
        for step, z in enumerate(tokens.mixed(config, config.seed, start), start):
            generator = torch.Generator().manual_seed(2**20 * config.seed + step)
            order = torch.rand(z.shape, generator=generator).argsort(0)
            yield z.gather(0, order.to(z.device))

    return permuted


def _first_tokens(
    batches: Batches, sae_config: SAEConfig, train_config: TrainConfig
) -> tuple[Tensor, dict[str, Any]]:
    """The first tokens (n, d_vit) of a training, and all that its result depends on."""
    parts: list[Tensor] = []
    for z in _checked(batches, 0):
        parts.append(rows_of_all(z))
        if sum(map(len, parts)) >= SAMPLE_TOKENS:
            break
    if not parts:
        raise ValueError("no tokens to learn from: the data set is empty")
    digest = hashlib.sha256(parts[0].cpu().contiguous().numpy().tobytes()).hexdigest()
    settings = {**asdict(train_config), "checkpoint_every": None}  # which changes no result
    run: dict[str, Any] = {"format": 2, "sae": asdict(sae_config), "train": settings}
    run |= {"d_vit": parts[0].shape[1], "first_batch": digest[:16]}
    return torch.cat(parts)[:SAMPLE_TOKENS], run


def _checked(batches: Batches, start: int, d_vit: int | None = None) -> Iterator[Tensor]:
    """Yield tokens z (n, d_vit) from step `start` on; `ValueError` for anything else."""
    for step, z in enumerate(batches(start), start):
        at = f"the batch of step {step}"
        if z.ndim != 2 or not len(z) or z.shape[1] != (d_vit or z.shape[1]):
            raise ValueError(
                f"{at}: expected tokens (n, {d_vit or 'd_vit'}), got {tuple(z.shape)}"
            )
        require_tokens(z, at)
        yield z


def _resume(trainer: Trainer, path: Path | None, run: Mapping[str, Any]) -> None:
    """Restore this run's checkpoint, if there is one; set another run's aside.
    Raises `ValueError` for a broken file, and for one that not all processes see."""
    if path and path.exists():
        try:
            trainer.restore(*read_checkpoint(path, run))
        except AnotherRun as error:
            distributed.wait_for_all()  # to have read it
            if distributed.rank() == 0:
                set_aside(path, error)
    if len(steps := rows_of_all(torch.tensor([trainer.n_steps])).unique()) > 1:
        at = f"{path} is at steps {steps.tolist()} in different processes"
        raise ValueError(f"{at}: it must be in a folder that all of them see")


def _take_steps(
    trainer: Trainer, batches: Batches, path: Path | None, run: Mapping[str, Any], progress: bool
) -> None:
    """Take the steps that are left, and write checkpoints."""
    config, is_first = trainer.train_config, distributed.rank() == 0
    source = _checked(batches, trainer.n_steps, trainer.sae.d_vit)
    done, total = (n * config.batch_tokens for n in (trainer.n_steps, config.steps))
    hidden = {} if progress and is_first else {"disable": True}  # else TQDM_DISABLE decides
    with tqdm(initial=done, total=total, unit=" tokens", unit_scale=True, **hidden) as bar:
        for step in range(trainer.n_steps, config.steps):
            if (z := next(source, None)) is None:
                raise ValueError(f"the data ends at step {step} of {config.steps}")
            loss = trainer.step(z.to(trainer.silent.device) / trainer.scale)
            bar.set_postfix(loss=f"{loss:.4g}", L0=f"{trainer.history[-1]['l0']:.1f}")
            bar.update(config.batch_tokens)
            is_due = (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps
            if path and is_first and is_due:
                trainer.save(path, run)
