"""A head on a frozen base: its texts pass through the encoder once, and it learns what it would learn by epochs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import beft
from beft.core.bank import Bank
from beft.tasks.task import Task
from beft.training import grounds
from toys import fast, same_tensors, toy_task
from training.common import learn
from training.test_many import many, tensors

Passed = list[int]


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Passed:
    """Rows of every pass through a bank's base, as they come."""
    rows: Passed = []
    attach: Callable[..., None] = Bank.__init__

    def counted(bank: Bank, model: nn.Module, *args: object, **kwargs: object) -> None:
        attach(bank, model, *args, **kwargs)
        base = getattr(model, "base_model", model)
        base.register_forward_pre_hook(
            lambda _, args, kwargs: rows.append(len(args[0] if args else kwargs["input_ids"])), with_kwargs=True
        )

    monkeypatch.setattr(Bank, "__init__", counted)
    return rows


def through_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grounds, "reads_frozen_states", lambda *_: False)


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("family", ["bert", "llama"])  # pooled by the mean, and by the last token
@pytest.mark.parametrize("method", ["head", "frozen"])
def test_a_head_learns_the_same_as_through_the_encoder(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    method: str,
    regression: bool,
) -> None:
    base, task = request.getfixturevalue(family), toy_task(40, 20, regression=regression)
    recipe = fast(method=method, epochs=4, class_weight=None if regression else "balanced")
    once = learn(base, task, recipe, tmp_path / "once")
    through_the_encoder(monkeypatch)
    wanted = learn(base, task, recipe, tmp_path / "wanted")
    same_tensors(tensors(tmp_path / "once"), tensors(tmp_path / "wanted"), 1e-6)
    assert once.history[-1]["train_loss"] == pytest.approx(wanted.history[-1]["train_loss"], abs=1e-6)
    for split, rows in wanted.probabilities.items():
        assert torch.allclose(torch.tensor(once.probabilities[split]), torch.tensor(rows), atol=1e-6)
    assert once.evaluation == pytest.approx(wanted.evaluation, abs=1e-6)


@pytest.mark.parametrize("method", ["head", "frozen", "probe"])
def test_every_row_passes_through_the_encoder_once(bert: Path, passed: Passed, method: str) -> None:
    learn(bert, toy_task(40, 20), fast(method=method, epochs=5), with_baselines=True)
    assert sum(passed) == 40 + 20


def test_beside_others_a_head_takes_no_room_in_their_passes(bert: Path, passed: Passed) -> None:
    task = toy_task(40, 20)
    value = beft.Plan("value", fast())
    many(bert, task, [value])
    alone = sum(passed)
    passed.clear()
    heads = [beft.Plan(f"head {seed}", fast(method="head", seed=seed)) for seed in range(3)]
    many(bert, task, [value, *heads])
    assert sum(passed) == alone + 40 + 20


def test_beside_others_a_head_learns_what_it_learns_alone(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, plans = toy_task(40, 20), [beft.Plan("value", fast()), beft.Plan("head", fast(method="head", epochs=3))]
    found = many(bert, task, plans, tmp_path / "bank")
    through_the_encoder(monkeypatch)
    wanted = many(bert, task, plans, tmp_path / "wanted")
    for name in ("value", "head"):
        same_tensors(tensors(tmp_path / "bank" / name), tensors(tmp_path / "wanted" / name), 1e-6)
        assert found.results[name].evaluation == pytest.approx(wanted.results[name].evaluation, abs=1e-6)


def test_a_fold_takes_its_own_rows_of_the_states(bert: Path, passed: Passed) -> None:
    task: Task = toy_task(40, 20)
    rows, judged = range(30), range(30, 40)
    found = many(bert, task, [beft.Plan("fold", fast(method="head"), rows=rows, judged=judged)])
    assert sum(passed) == 40 + 20
    held_out = Task(**{**vars(task), "train": task.train[:30], "evaluation": {grounds.HELD_OUT: task.train[30:]}})
    assert found.results["fold"].evaluation == pytest.approx(learn(bert, held_out, fast(method="head")).evaluation)


@pytest.mark.parametrize("changes", [{"dropout": 0.1}, {"method": "bias"}, {"head": "model"}])
def test_what_moves_below_the_head_passes_through_in_every_epoch(
    bert: Path, passed: Passed, changes: dict[str, object]
) -> None:
    learn(bert, toy_task(40, 20), fast(**{"method": "head", "epochs": 3, "selection": "none", **changes}))
    assert sum(passed) == 3 * 40 + 20
