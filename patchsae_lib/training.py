"""Training the sparse autoencoder, so that a killed run goes on where it was (section 3.1).

A checkpoint is one safetensors file: parameters `sae.*`, Adam's moments `adam.<parameter>.*`, and
`silent` (d_sae,), the steps since each latent was active. Its metadata hold `step`, `scale`,
`history` and `run` (all that the result depends on) as JSON. A run that is resumed ends bit for
bit where it would have ended undisturbed, given the same machine and number of threads.

Of several processes (`distributed.processes`) each takes its part of every batch. Gradients,
measures and which latents fired are added up, so that all go the same way; the first one writes
the checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from patchsae_lib.activations import TokenCache, check_tokens, token_batches
from patchsae_lib.artefacts import _difference, atomic_path
from patchsae_lib.clip import best_device, precision
from patchsae_lib.distributed import (
    any_of_all,
    from_first,
    rank,
    rows_of_all,
    sum_of_all,
    wait_for_all,
    world_size,
)
from patchsae_lib.gradients import ActiveLatents, DecodeActive
from patchsae_lib.profiles import SAEConfig, TrainConfig
from patchsae_lib.sae import (
    SAE,
    explained_variance,
    ghost_loss,
    initial_b_dec,
    l1_loss,
    reconstruction_loss,
)

Batches = Callable[[int], Iterator[Tensor]]
History = list[dict[str, float]]

SAMPLE_TOKENS = 8192  # tokens that b_dec and the input scale are estimated from
HISTORY_ROWS = 200  # as many points as a learning curve can show
# Tokens that pass the autoencoder together. On a CPU the (…, d_sae) tensors then stay in its
# cache: 1,024 were 1.8 times as fast as 4,096 (192 → 3,072, bfloat16, two threads). A GPU has room
# for 4,096 at d_sae = 49,152.
CHUNK = {"cpu": 1024, "cuda": 4096}
SPARSE = 0.02  # of all latents: up to that many active ones, gathering beats multiplying


def objective(
    sae: SAE, z: Tensor, l1: float, dead: Tensor | None = None, bfloat16: bool = False
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The loss of eq. 2 for tokens z (n, d_vit), plus the ghost term of latents `dead` (d_sae).

    Returns `loss` and its parts `reconstruction`, `l1` (mean ‖f‖₁ without λ) and `ghost`; the
    latents f (n, d_sae); ẑ (n, d_vit). `bfloat16` concerns the matrix products and f.
    """
    with torch.autocast(z.device.type, torch.bfloat16, enabled=bfloat16):
        pre = sae.pre_activations(z)
        many = sae.activation == "batchtopk" and world_size() > 1
        f = _batchtopk_of_all(pre, sae.k) if many else sae.activate(pre)
        z_hat = sae.decode(f)
        parts = {"reconstruction": reconstruction_loss(z, z_hat), "l1": l1_loss(f)}
        loss = parts["reconstruction"] + l1 * parts["l1"]
        parts["ghost"] = torch.zeros_like(loss)
        if dead is not None:
            parts["ghost"] = ghost_loss(z, z_hat, pre, sae.W_dec, dead)
            loss = loss + parts["ghost"]
    return {"loss": loss, **parts}, f, z_hat


def _batchtopk_of_all(pre: Tensor, k: int) -> Tensor:
    """`sae.batchtopk` where this process has only its part (n, d_sae) of the batch."""
    n_kept = k * int(sum_of_all(torch.tensor(len(pre))))
    largest = pre.detach()[pre > 0].float()
    largest = rows_of_all(largest.topk(min(len(largest), n_kept + 1)).values)
    if len(largest) <= n_kept:
        return pre.relu()
    largest_dropped = largest.kthvalue(len(largest) - n_kept).values
    return F.threshold(pre, float(largest_dropped), 0.0)


def sparse_objective(
    sae: SAE, z: Tensor, l1: float, dead: Tensor | None = None, bfloat16: bool = False
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """`objective` of ReLU, at the cost of the latents that are active; f (entries,) is theirs.

    `bfloat16` concerns the one dense product. Returns the parts with `l0`, the active latents a
    token; which latents fired (d_sae); ẑ.
    """
    # b_dec's gradient takes the second path, as in `SAE.pre_activations`
    shift = (sae.b_dec - sae.b_dec.detach()) @ sae.W_enc.detach()
    centred = z - sae.b_dec.detach()
    token, latent, f = ActiveLatents.apply(centred, sae.W_enc, sae.b_enc - shift, bfloat16)
    z_hat = DecodeActive.apply(f, sae.W_dec, token, latent, len(z)) + sae.b_dec
    parts = {"reconstruction": reconstruction_loss(z, z_hat), "l1": f.sum() / len(z)}
    loss = parts["reconstruction"] + l1 * parts["l1"]
    parts["ghost"] = torch.zeros_like(loss)
    if dead is not None:
        some = dead.nonzero()[:, 0]
        pre = centred @ sae.W_enc.index_select(1, some) + (sae.b_enc - shift)[some]
        W_dec = sae.W_dec.index_select(0, some)
        every = torch.ones(len(some), dtype=torch.bool)
        parts["ghost"] = ghost_loss(z, z_hat, pre, W_dec, every)
        loss = loss + parts["ghost"]
    parts["l0"] = torch.tensor(len(f) / len(z))
    fired = torch.zeros(sae.d_sae, dtype=torch.bool).index_fill_(0, latent, True)
    return {"loss": loss, **parts}, fired, z_hat


class AnotherRun(ValueError):
    """A checkpoint that is whole, but not of this run."""


class Trainer:
    """An autoencoder in training: weights, Adam's moments, and how long each latent is silent."""

    def __init__(self, sae: SAE, sae_config: SAEConfig, train_config: TrainConfig) -> None:
        self.sae, self.sae_config, self.train_config = sae, sae_config, train_config
        self.adam = torch.optim.Adam(sae.parameters(), lr=train_config.lr, fused=True)
        self.silent = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.W_enc.device)
        self.n_steps, self.scale = 0, 1.0
        self.history: History = []

    @torch.no_grad()
    def start(self, sample: Tensor) -> None:
        """Set the input scale and the biases from a sample of tokens z (n, d_vit).

        Deviation: the points of b_dec's geometric median are tokens drawn as in training, where
        the authors take images and average over token positions.
        """
        if self.sae_config.scale_inputs:
            self.scale = float(sample.norm(dim=-1).mean())
        self.sae.b_dec.copy_(initial_b_dec(sample / self.scale, self.sae_config.b_dec_init))
        self.sae.b_enc.fill_(self.sae_config.b_enc_init)

    def step(self, z: Tensor) -> float:
        """One step of Adam on (scaled) tokens z (n, d_vit); returns the loss before it.

        As the authors do: decoder rows are set to unit norm first, the gradient along them is
        taken away, and latents silent for more than `dead_after` steps get ghost gradients.

        Raises `FloatingPointError`, before Adam's step, when the loss is NaN or infinite.
        """
        config = self.train_config
        every = max(1, config.steps // HISTORY_ROWS)
        logged = self.n_steps % every == 0 or self.n_steps + 1 == config.steps
        self.sae.normalise_decoder()
        self.adam.zero_grad()
        row, fired = self._gradients(z, logged)
        if not math.isfinite(row["loss"]):
            raise FloatingPointError(
                f"the loss is {row['loss']} at step {self.n_steps}: lower train.lr (it is "
                f"{config.lr}) or set sae.scale_inputs, which gives tokens a norm of about 1"
            )
        self.sae.remove_parallel_gradient()
        for group in self.adam.param_groups:
            group["lr"] = config.lr * min(1.0, (self.n_steps + 1) / max(1, config.warmup))
        self.adam.step()
        self.silent += 1
        self.silent[fired] = 0
        if logged:
            row["dead"] = float((self.silent > config.dead_after).float().mean())
            self.history.append({"step": self.n_steps, **row})
        self.n_steps += 1
        return row["loss"]

    def _gradients(self, z: Tensor, logged: bool) -> tuple[dict[str, float], Tensor]:
        """Add up the gradients of z's chunks, and those of all processes; the measures of the
        whole batch, and which latents fired."""
        sae, ghosts = self.sae, self.sae_config.ghost_gradients
        silent = self.silent > self.train_config.dead_after
        dead = silent if ghosts and bool(silent.any()) else None
        fired = torch.zeros_like(silent)
        totals: dict[str, Tensor] = {}
        reconstructions = []
        n_tokens = int(sum_of_all(torch.tensor(len(z))))
        # BatchTopK chooses among all tokens of a batch: it cannot see them in chunks.
        sparse = self._is_sparse(z)
        whole = sparse or sae.activation == "batchtopk"
        chunk = len(z) if whole else CHUNK.get(z.device.type, 4096)
        for part in z.split(chunk):
            given = sae, part, self.sae_config.l1, dead, self.train_config.precision == "bfloat16"
            share = len(part) / n_tokens
            if sparse:
                measured, those, z_hat = sparse_objective(*given)
                (measured["loss"] * share).backward()
                fired |= those
            else:
                measured, f, z_hat = objective(*given)
                (measured["loss"] * share).backward()
                f = f.detach()
                fired |= f.amax(dim=0) > 0
                if logged:  # counting costs as much as a tenth of the step
                    measured["l0"] = f.count_nonzero() / len(part)
            if logged:
                reconstructions.append(z_hat.detach())
            for key, value in measured.items():
                mine = value.detach() * share
                totals[key] = totals[key] + mine if key in totals else mine
            if sae.activation == "batchtopk":
                sae.learn_threshold(rows_of_all(f[f > 0]))
        for parameter in sae.parameters():
            if parameter.grad is not None:
                sum_of_all(parameter.grad)
        values = sum_of_all(torch.stack(list(totals.values()))).tolist()
        row = dict(zip(totals, values, strict=True))
        if logged and math.isfinite(row["loss"]):
            z_hat = rows_of_all(torch.cat(reconstructions))
            row["explained_variance"] = explained_variance(rows_of_all(z), z_hat)
        return row, any_of_all(fired)

    @torch.no_grad()
    def _is_sparse(self, z: Tensor) -> bool:
        """Whether few latents are active, by some of the tokens: on a CPU, and ReLU."""
        if self.sae.activation != "relu" or z.device.type != "cpu":
            return False
        some = z[:: max(1, len(z) // 64)]
        share = self.sae.pre_activations(some).gt(0).float().mean()
        # alike for all processes, which add up the same measures
        return bool(sum_of_all(share) < SPARSE * world_size())

    def save(self, path: Path, run: dict[str, Any]) -> None:
        """Write everything that the next step depends on, as one file and atomically."""
        tensors = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        tensors["silent"] = self.silent
        for name, parameter in self.sae.named_parameters():
            for key, moment in self.adam.state[parameter].items():
                tensors[f"adam.{name}.{key}"] = moment
        state = {"run": run, "step": self.n_steps, "scale": self.scale, "history": self.history}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, {key: json.dumps(v) for key, v in state.items()})

    def load(self, path: Path, run: dict[str, Any]) -> None:
        """Take up a run where `save` left it; `ValueError` if the file is no such run's."""
        advice = "delete it to start again, or give another path for the checkpoint"
        try:
            with safe_open(path, framework="pt", device=str(self.silent.device)) as file:
                state = {key: json.loads(v) for key, v in (file.metadata() or {}).items()}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            theirs = state["run"]
        except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is not a whole checkpoint ({error!r}): {advice}") from error
        if theirs != run:
            raise AnotherRun(f"{path} is another run's checkpoint ({_difference(theirs, run)})")
        names = self.sae.state_dict()
        self.sae.load_state_dict({name: tensors[f"sae.{name}"] for name in names})
        for name, parameter in self.sae.named_parameters():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                self.adam.state[parameter][key] = tensors[f"adam.{name}.{key}"]
        self.silent = tensors["silent"]
        self.n_steps, self.scale, self.history = state["step"], state["scale"], state["history"]


def _sample(batches: Batches) -> tuple[Tensor, str]:
    """The first tokens (n, d_vit) that training will see, and a hash of its first batch."""
    parts: list[Tensor] = []
    for z in batches(0):
        if z.ndim != 2:
            raise ValueError(f"batches must be tokens (n, d_vit), got {tuple(z.shape)}")
        check_tokens(z, f"batch {len(parts)}")
        parts.append(rows_of_all(z))
        if sum(map(len, parts)) >= SAMPLE_TOKENS:
            break
    if not sum(map(len, parts)):
        raise ValueError("no tokens to learn from: the data set is empty")
    digest = hashlib.sha256(parts[0].cpu().contiguous().numpy().tobytes()).hexdigest()
    return torch.cat(parts)[:SAMPLE_TOKENS], digest[:16]


def train(
    tokens: TokenCache | Batches,
    sae_config: SAEConfig,
    train_config: TrainConfig,
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> tuple[SAE, History]:
    """Train an autoencoder on a cache, or on batches z (n, d_vit) float32 from a given step on,
    of which each process gives its part (`token_batches` does).

    It is resumed from `checkpoint` if that file exists, and written there every
    `checkpoint_every` steps and at the end; another run's file is set aside with a warning. The
    SAE returned is frozen, in eval mode, and works on raw residual tokens (`SAE.fold`).
    Deviation: its decoder rows are set to unit norm (times the input scale) once more after the
    last step.

    It runs on `device`, by default the GPU if there is one, and ends up on the CPU.

    History, about 200 rows over the run: `step`; of that step's batch, before its update, `loss`
    and its parts `reconstruction`, `l1` (mean ‖f‖₁, without λ) and `ghost`, `l0` (active latents a
    token) and `explained_variance` (centred); `dead`, the share of latents silent for more than
    `dead_after` steps. With `scale_inputs` all are in units of scaled tokens.

    Raises `ValueError` before the first step for NaN, infinity or no tokens, and for a file that
    is no checkpoint; later for a batch of another width or the end of the batches.
    `FloatingPointError` when the loss stops being a number.
    """
    if isinstance(tokens, TokenCache):
        check_tokens(tokens.tokens, "the token cache")
        tokens = partial(token_batches, tokens, train_config, train_config.seed)
    batches: Batches = tokens
    device = torch.device(device or best_device())
    resolved = precision(train_config.precision, device)
    train_config = replace(train_config, precision=resolved)
    sample, digest = _sample(batches)
    d_vit = sample.shape[1]
    settings = {**asdict(train_config), "checkpoint_every": None}  # which changes no result
    run = {"sae": asdict(sae_config), "train": settings, "d_vit": d_vit, "first_batch": digest}
    d_sae = sae_config.expansion * d_vit
    sae = SAE(d_vit, d_sae, sae_config.activation, sae_config.k, train_config.seed)
    trainer = Trainer(sae.to(device), sae_config, train_config)
    path = Path(checkpoint) if checkpoint else None
    if path and path.exists():
        try:
            trainer.load(path, run)
        except AnotherRun as error:
            wait_for_all()  # to have read it
            if rank() == 0:
                old = path.replace(path.with_name(f"{path.name}.old"))
                warnings.warn(f"{error}: kept as {old.name}, starting again", stacklevel=2)
    if len(steps := rows_of_all(torch.tensor([trainer.n_steps])).unique()) > 1:
        raise ValueError(
            f"{path} is at steps {steps.tolist()} in different processes: it must be in a folder "
            "that all of them see"
        )
    if trainer.n_steps == 0:
        trainer.start(sample.to(device))
    for tensor in sae.state_dict().values():  # machines may differ in the last bit
        from_first(tensor)
    with tqdm(
        total=train_config.steps * train_config.batch_tokens,
        initial=trainer.n_steps * train_config.batch_tokens,
        unit=" tokens",
        unit_scale=True,
        **({} if progress and rank() == 0 else {"disable": True}),  # else TQDM_DISABLE decides
    ) as bar:
        source = batches(trainer.n_steps)
        while trainer.n_steps < train_config.steps:
            z = next(source, None)
            if z is None or z.ndim != 2 or z.shape[1] != d_vit or not len(z):
                got = "the end of the data" if z is None else tuple(z.shape)
                where = f"step {trainer.n_steps} of {train_config.steps}"
                raise ValueError(f"{where}: expected tokens (n, {d_vit}), got {got}")
            check_tokens(z, f"the batch of step {trainer.n_steps}")
            loss = trainer.step(z.to(device) / trainer.scale)
            bar.set_postfix(loss=f"{loss:.4g}", L0=f"{trainer.history[-1]['l0']:.1f}")
            bar.update(train_config.batch_tokens)
            done = trainer.n_steps == train_config.steps
            regular = trainer.n_steps % train_config.checkpoint_every == 0
            if path and rank() == 0 and (done or regular):
                trainer.save(path, run)
    sae.zero_grad()
    sae.normalise_decoder()
    sae = sae.fold(trainer.scale) if sae_config.scale_inputs else sae
    return sae.cpu().eval().requires_grad_(False), trainer.history
