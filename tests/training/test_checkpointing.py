"""Gradient checkpointing and micro-batches of so many rows change memory and time, not what is learned."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import beft
from beft.errors import Interrupted, RecipeError
from beft.training.loop import Run
from toys import adapter_files, fast, same_tensors, save_base, toy_task
from training.common import After, learn, leaves_of, new_run
from training.test_prompts import choosing, decoder, writing
from training.test_prompts import learn as learn_prompts
from training.test_prompts import new_run as new_prompt_run

__all__ = ["decoder"]

AGAIN = {"gradient_checkpointing": True}
TASKS = {"one token": choosing(6, 0), "a tree": choosing(6, 0, long=True), "written": writing(6, 0)}


def gradients(run: Run) -> tuple[dict[str, torch.Tensor], float, int]:
    """Gradients and loss of a step in the mode that training is in, and how often the first value site's module ran.

    The adapter that is active is another one, so that layers which run again outside the route would show.
    """
    part, calls = run.parts["refit"], list[int]()
    lengths = run.aim.lengths(part)  # tries the ways that hold here, in forwards of its own
    site = next(site for site in run.bank[run.name].sites if site.term.name == "value")
    run.bank.model.get_submodule(site.module).register_forward_hook(lambda *_: calls.append(1))
    run.bank.add("other", terms="value")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for leaf in run.bank.parameters("other"):
            leaf.fill_(3.0)
        for leaf in run.leaves.values():
            leaf.add_(0.1 * torch.randn(leaf.shape, generator=generator))
    run.bank.active = "other"
    run.aim.fit(part)
    run._set_mode()
    value = run._gradients(part, lengths, list(range(6)), [0])
    run._unset_mode()
    found = {key: leaf.grad.clone() for key, leaf in run.leaves.items() if leaf.grad is not None}
    return found, value, len(calls)


def compare(make: Callable[..., Run]) -> None:
    plain, value, once = gradients(make({}))
    again, same, twice = gradients(make(AGAIN))
    assert twice == 2 * once > 0
    assert same == pytest.approx(value, abs=1e-6)
    assert max(float(each.abs().max()) for each in plain.values()) > 1e-3
    same_tensors(again, plain, 1e-5)


@pytest.mark.parametrize("head", ["linear", "model"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "llama", "gpt2", "opt"])
def test_gradients_of_a_head_are_the_plain_ones(family: str, head: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / family, family)
    compare(lambda machine: new_run(base, toy_task(), fast(head=head), **machine))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mistral"])
@pytest.mark.parametrize("task", TASKS)
def test_gradients_of_prompts_are_the_plain_ones(family: str, task: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / family, family, head="lm", special=False)
    compare(lambda machine: new_prompt_run(base, TASKS[task], machine=machine))


def test_dropout_draws_alike_when_layers_run_again(bert: Path) -> None:
    compare(lambda machine: new_run(bert, toy_task(), fast(dropout=0.3), **machine))


def test_a_run_learns_the_same_and_remembers(bert: Path, tmp_path: Path) -> None:
    learn(bert, toy_task(), fast(), tmp_path / "plain")
    result = learn(bert, toy_task(), fast(), tmp_path / "again", gradient_checkpointing=True, micro_batch_size=3)
    names = ("adapter_model.safetensors", "head.safetensors")
    for name in names:
        same_tensors(*(beft_tensors(tmp_path / each / name) for each in ("again", "plain")), 1e-4)
    machine = json.loads((tmp_path / "again" / "run.json").read_text())["machine"]
    assert (machine["gradient_checkpointing"], machine["micro_batch_size"]) == (True, 3)
    assert result.evaluation == beft.train(str(bert), toy_task(), fast(), dtype="fp32").evaluation


def beft_tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize("kind", ["head", "prompts"])
def test_a_resumed_run_goes_on_as_it_began(bert: Path, decoder: Path, tmp_path: Path, kind: str) -> None:
    def go(out: str, **options: object) -> beft.Result:
        if kind == "head":
            return learn(bert, toy_task(), fast(), tmp_path / out, **options)
        return learn_prompts(decoder, choosing(18, 6), tmp_path / out, **options)

    go("whole", micro_batch_size=3, **AGAIN)
    stop = After(3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        go("cut", micro_batch_size=3, **AGAIN, listener=stop)
    result = go("cut", resume=True)
    assert result.choices.gradient_checkpointing
    assert result.choices.micro_batch_size == 3
    assert adapter_files(tmp_path / "cut") == adapter_files(tmp_path / "whole")


def test_micro_batches_of_so_many_rows_give_the_same_weights(decoder: Path) -> None:
    whole, cut = (new_prompt_run(decoder, choosing(), machine={"micro_batch_size": size}) for size in (None, 3))
    forwards: list[int] = []
    cut.bank.model.register_forward_hook(lambda *_: forwards.append(1))
    whole.learn()
    cut.learn()
    same_tensors(leaves_of(cut), leaves_of(whole), 1e-5)
    assert len(forwards) >= 2 * len(cut.position.history)


@pytest.mark.parametrize("family", ["albert", "mpnet"])
def test_a_family_that_cannot_is_refused(family: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / family, family)
    with pytest.raises(RecipeError, match=r"layers can run again during backward, found .*does not support it"):
        learn(base, toy_task(), fast(), gradient_checkpointing=True)


def test_layers_are_not_dropped_where_dropout_is_none(tmp_path: Path) -> None:
    base = save_base(tmp_path / "opt", "opt", layerdrop=0.9)
    compare(lambda machine: new_run(base, toy_task(), fast(), **machine))
