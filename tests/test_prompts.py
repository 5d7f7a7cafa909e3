"""Prompts are read from files without running any code."""

import os
import struct
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from patchsae_lib.artefacts import DATA
from patchsae_lib.interop.prompts import load_prompts, save_prompts
from patchsae_lib.maple import Prompts


def random_prompts() -> Prompts:
    generator = torch.Generator().manual_seed(0)
    shapes = (3, 2, 24), (3, 2, 32)
    return Prompts(*(torch.randn(shape, generator=generator) for shape in shapes))


def test_prompts_survive_a_file(tmp_path: Path) -> None:
    prompts = replace(random_prompts(), config={"classes": ["a", "é"]})
    save_prompts(tmp_path / "p", prompts)
    found = load_prompts(tmp_path / "p")
    assert torch.equal(found.text, prompts.text)
    assert torch.equal(found.visual, prompts.visual)
    assert (found.template, found.config) == (prompts.template, prompts.config)


def test_prompts_that_are_no_numbers_are_not_written(tmp_path: Path) -> None:
    prompts = random_prompts()
    prompts.text[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"text prompts"):
        save_prompts(tmp_path / "p", prompts)
    assert not list(tmp_path.iterdir())


class Warmup(torch.optim.lr_scheduler.LRScheduler):
    """A scheduler that holds another, as the one that MaPLe's checkpoints hold."""

    def __init__(self, optimizer, successor) -> None:
        self.successor = successor
        super().__init__(optimizer)

    def get_lr(self):
        return [group["lr"] for group in self.optimizer.param_groups]


def official(depth: int = 3, n_classes: int = 5) -> OrderedDict:
    """The state dict of an official checkpoint."""
    generator = torch.Generator().manual_seed(depth)

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    state = OrderedDict()
    state["prompt_learner.ctx"] = noise(2, 24).half()
    state["prompt_learner.proj.weight"] = noise(32, 24).half()
    state["prompt_learner.proj.bias"] = noise(32).half()
    for i in range(depth - 1):
        state[f"prompt_learner.compound_prompts_text.{i}"] = noise(2, 24)
        of = f"prompt_learner.compound_prompt_projections.{i}"
        state[f"{of}.weight"], state[f"{of}.bias"] = noise(32, 24), noise(32)
    state["prompt_learner.token_prefix"] = noise(n_classes, 1, 24)
    state["prompt_learner.token_suffix"] = noise(n_classes, 13, 24)
    state["image_encoder.conv1.weight"] = noise(32, 3, 2, 2)
    return state


def write(path: Path, state, **more) -> Path:
    """As Dassl writes it: an optimiser's state, and a scheduler that lives."""
    parameter = nn.Parameter(torch.ones(3))
    sgd = torch.optim.SGD([parameter], 0.1, momentum=0.9)
    parameter.sum().backward()
    sgd.step()
    live = Warmup(sgd, torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 5))
    whole = {"state_dict": state, "epoch": 5, "optimizer": sgd.state_dict(), "scheduler": live}
    torch.save({**whole, **more}, path)
    return path


@pytest.mark.parametrize("depth", [1, 3, 9])
def test_an_official_checkpoint_is_read_with_the_depth_it_has(depth: int, tmp_path: Path) -> None:
    state = official(depth)
    found = load_prompts(write(tmp_path / "model.pth.tar-5", state))
    assert found.text.shape == (depth, 2, 24)
    assert found.visual.shape == (depth, 2, 32)
    mine = {k.removeprefix("prompt_learner."): v.float() for k, v in state.items()}
    wanted = mine["ctx"] @ mine["proj.weight"].T + mine["proj.bias"]
    assert torch.allclose(found.visual[0], wanted)
    if depth > 1:
        last = f"compound_prompt_projections.{depth - 2}"
        wanted = mine[f"compound_prompts_text.{depth - 2}"] @ mine[f"{last}.weight"].T
        assert torch.allclose(found.visual[-1], wanted + mine[f"{last}.bias"])


def of_coop(*shape: int) -> OrderedDict:
    """The state dict of a checkpoint of CoOp."""
    parts = {"token_prefix": torch.ones(5, 1, 24), "token_suffix": torch.ones(5, 9, 24)}
    return OrderedDict(ctx=torch.randn(shape, generator=torch.Generator().manual_seed(0)), **parts)


def test_a_checkpoint_of_coop_has_prompts_for_the_text_alone(tmp_path: Path) -> None:
    state = of_coop(4, 24)
    found = load_prompts(write(tmp_path / "model.pth.tar-50", state))
    assert torch.equal(found.text, state["ctx"][None])
    assert found.visual.shape == (0, 4, 0)
    assert found.template == "X X X X {}."
    with pytest.raises(ValueError, match=r"ctx is \(5, 4, 24\): a context for each class"):
        load_prompts(write(tmp_path / "model.pth.tar-50", of_coop(5, 4, 24)))


def test_a_checkpoint_of_another_class_list_has_the_same_prompts(tmp_path: Path) -> None:
    one, other = official(), official()
    other["prompt_learner.token_prefix"] = torch.zeros(9, 1, 24)
    other["prompt_learner.token_suffix"] = torch.zeros(9, 13, 24)
    found = [load_prompts(write(tmp_path / str(i), s)) for i, s in enumerate((one, other))]
    assert torch.equal(found[0].text, found[1].text)
    assert torch.equal(found[0].visual, found[1].visual)


class Runs:
    """A pickle of it calls a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("how", ["system", "exec", "import", "in the weights"])
def test_a_hostile_checkpoint_runs_nothing(how: str, tmp_path: Path) -> None:
    mark, state = tmp_path / "ran", official()
    evil = {
        "system": Runs(os.system, f"touch {mark}"),
        "exec": Runs(exec, f"open({str(mark)!r}, 'w')"),
        "import": Runs(__import__, "this"),
        "in the weights": None,
    }[how]
    if evil is None:
        state["prompt_learner.ctx"] = Runs(os.system, f"touch {mark}")
        with pytest.raises(ValueError, match=r"has no ctx"):
            load_prompts(write(tmp_path / "model.pth.tar-5", state))
    else:
        found = load_prompts(write(tmp_path / "model.pth.tar-5", state, val_result=evil))
        assert found.text.shape == (3, 2, 24)
    assert not mark.exists()
    assert torch.load(tmp_path / "model.pth.tar-5", weights_only=False)  # it is what it seems
    assert mark.exists() or how == "import"


@pytest.mark.filterwarnings("ignore:.torch.jit.script")
def test_torchscript_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pth.tar-5"
    torch.jit.script(nn.Linear(2, 2)).save(path)
    with pytest.raises(ValueError, match=r"TorchScript"):
        load_prompts(path)


def without(state, *names):
    return OrderedDict((k, v) for k, v in state.items() if not k.endswith(names))


SECOND = "prompt_learner.compound_prompts_text.1"


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (without(official(), "ctx"), "has no ctx"),
        (without(official(), "projections.1.bias"), "has no compound_prompt_projections.1.bias"),
        (without(official(), "prompts_text.1"), "unknown parts.*compound_prompt_projections.1"),
        (without(official(), "prompts_text.0"), "has no compound_prompts_text.0"),
        (official() | {"prompt_learner.extra": torch.ones(1)}, "unknown parts.*extra"),
        (official() | {SECOND: torch.ones(3, 24)}, r"text.1 is \(3, 24\).*\(2, 24\)"),
        (official() | {"prompt_learner.proj.weight": torch.ones(24, 32)}, r"\(24, 32\)"),
        (official() | {"prompt_learner.ctx": torch.full((2, 24), torch.nan)}, "text prompts"),
        ({}, "has no ctx"),
    ],
)  # fmt: skip
def test_half_a_learner_is_refused_and_never_filled(state, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        load_prompts(write(tmp_path / "model.pth.tar-5", state))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_checkpoint_is_an_error(share: float, tmp_path: Path) -> None:
    path = write(tmp_path / "model.pth.tar-5", official())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match=r"damaged or cut short"):
        load_prompts(path)
    save_prompts(path, random_prompts())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match=r"damaged or cut short|neither safetensors"):
        load_prompts(path)


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no prompts at .*5_maple"):
        load_prompts(tmp_path / "nowhere")
    (tmp_path / "text").write_text("these are no prompts at all")
    with pytest.raises(ValueError, match=r"neither safetensors nor a torch checkpoint"):
        load_prompts(tmp_path / "text")
    with pytest.raises(ValueError, match=r"not prompts of ours"):
        load_prompts(DATA / "sae.safetensors")
    (tmp_path / "list").write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(ValueError, match=r"not prompts of ours"):
        load_prompts(tmp_path / "list")
    torch.save([1, 2], tmp_path / "a list.pt")
    with pytest.raises(ValueError, match=r"has no ctx"):
        load_prompts(tmp_path / "a list.pt")
