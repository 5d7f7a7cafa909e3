"""Two processes do what one does."""

import os
import socket
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_training import CACHE, CONFIG, SAE_CONFIG

from patchsae_lib import distributed
from patchsae_lib.distributed import my_part, processes, rows_of_all, world_size
from patchsae_lib.profiles import SAEConfig, TrainConfig
from patchsae_lib.training import Trainer, train

TESTS = Path(__file__).parent
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
CASES: dict[str, tuple[SAEConfig, TrainConfig]] = {
    # 33 tokens: the two parts are not equally long
    activation: (
        replace(SAE_CONFIG, activation=activation, scale_inputs=True),
        replace(CONFIG, batch_tokens=33, steps=20, precision=precision),
    )
    for activation, precision in
    (("relu", "float32"), ("topk", "bfloat16"), ("batchtopk", "float32"))
}  # fmt: skip


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rtol: float) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=rtol, atol=rtol / 10, msg=name)


# --- one process


def test_a_single_process_is_all_of_them() -> None:
    x = torch.arange(6).view(3, 2)
    with processes() as device:
        assert device.type in ("cpu", "cuda")
        assert world_size() == 1
        assert rows_of_all(x) is x
        assert distributed.sum_of_all(x) is x
        assert range(10)[my_part(10)] == range(10)


@pytest.mark.parametrize("n", [0, 2, 10])
def test_the_parts_of_processes_are_all_rows(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    parts = []
    for number in range(3):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        parts.append(range(n)[my_part(n)])
    assert [row for part in parts for row in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"process 2 .* there are 2: .*--nproc-per-node=gpu"):
        next(iter(processes().gen))


# --- two processes train like one

PAIR = """
    import sys
    sys.path.insert(0, {tests!r})
    import torch
    from safetensors.torch import save_file
    from test_distributed import CACHE, CASES
    from patchsae_lib.distributed import (
        any_of_all, first_alone, from_first, processes, rank, rows_of_all, sum_of_all,
    )
    from patchsae_lib.training import train

    with processes():
        rows = rows_of_all(torch.full((3 * rank(), 2), 7.0))
        assert rows.shape == (3, 2) and bool((rows == 7).all())
        number = torch.tensor([rank(), 1])
        assert from_first(number.clone()).tolist() == [0, 1]
        assert sum_of_all(number.clone()).tolist() == [1, 2]
        assert any_of_all(number == torch.tensor([1, 2])).tolist() == [True, False]
        with first_alone():
            with open({folder!r} + "/order", "a") as file:
                file.write(str(rank()))
        for name, (sae_config, config) in CASES.items():
            path = {folder!r} + "/" + name
            sae, history = train(CACHE, sae_config, config, path, progress=False)
            rows = torch.tensor([[row[key] for key in sorted(row)] for row in history])
            tensors = {{"history": rows, **sae.state_dict()}}
            save_file(tensors, f"{{path}}-{{rank()}}.safetensors")
"""


def test_two_processes_train_like_one_and_go_on_where_one_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pulled(Exception):
        pass

    def pulled(trainer: Trainer, z: torch.Tensor) -> float:
        if trainer.n_steps == 15:
            raise Pulled
        return step(trainer, z)

    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", pulled)
    with pytest.raises(Pulled):
        train(CACHE, *CASES["topk"], tmp_path / "topk", progress=False)
    monkeypatch.undo()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    script = textwrap.dedent(PAIR.format(tests=str(TESTS), folder=str(tmp_path)))
    pair = [
        subprocess.Popen([sys.executable, "-c", script], env=ONE_THREAD | job | {"RANK": str(i)})
        for i in range(2)
    ]
    assert [process.wait(120) for process in pair] == [0, 0]
    assert (tmp_path / "order").read_text() == "01"
    for name, (sae_config, config) in CASES.items():
        first, second = (load_file(tmp_path / f"{name}-{i}.safetensors") for i in range(2))
        assert all(torch.equal(first[key], second[key]) for key in first)
        sae, history = train(CACHE, sae_config, config, progress=False)
        rows = torch.tensor([[row[key] for key in sorted(row)] for row in history])
        rtol = 0.02 if config.precision == "bfloat16" else 1e-3
        close(first, {"history": rows, **sae.state_dict()}, rtol)
