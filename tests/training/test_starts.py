"""Where heads begin: at the means they say, on the rows they may know."""

import math
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, AutoTokenizer

import beft
from beft.errors import Interrupted
from beft.tasks.task import Example, stratified_split
from beft.training.loop import Run
from beft.training.machine import choose
from beft.training.open_ground import open_ground
from beft.training.plan import Plan
from beft.training.progress import Listener
from beft.training.recipe import Pairs
from beft.training.signals import StopRequest
from beft.training.starts import UNSEEN, means_layer
from beft.training.steps import Step, take
from toys import fast, toy_task
from training.common import After, learn

STILL: dict[str, Any] = {"lr": 1e-9, "epochs": 1, "selection": "none"}
"""Trains nothing that shows: what ends is what began."""


def nearest_mean(states: NDArray[Any], gold: NDArray[Any], asked: NDArray[Any]) -> NDArray[Any]:
    """Classes whose mean direction has the greatest cosine with a row."""
    unit = states / np.linalg.norm(states, axis=1, keepdims=True)
    classes = np.unique(gold)
    means = np.stack([unit[gold == each].mean(axis=0) for each in classes])
    cosines = (asked @ means.T) / np.linalg.norm(means, axis=1) / np.linalg.norm(asked, axis=1, keepdims=True)
    return classes[cosines.argmax(axis=1)]


def plain_states(base: Path, rows: Sequence[Example], last: bool) -> NDArray[Any]:
    """The mean of a text's last states in the plain model, or the last of them."""
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModel.from_pretrained(base).eval()
    with torch.inference_mode():
        states = [model(**tokenizer(*row.texts, return_tensors="pt")).last_hidden_state[0] for row in rows]
    return np.stack([(each[-1] if last else each.mean(dim=0)).numpy() for each in states])


def regression(strength: float) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength / 100, max_iter=2000))


def test_the_layer_answers_with_the_nearest_mean() -> None:
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(30, 16))
    gold = draw.permutation(np.repeat([each for each in range(30) if each != 4], 3))
    states = (centres[gold] + draw.normal(size=(len(gold), 16)) + 2.0).astype(np.float32)
    asked = (centres[draw.integers(0, 30, 200)] + draw.normal(size=(200, 16)) + 2.0).astype(np.float32)
    weight, bias = means_layer(states, gold, 30)
    answers = (asked @ weight.T + bias).argmax(axis=1)
    assert np.array_equal(answers, nearest_mean(states, gold, asked))
    assert bias[4] == UNSEEN
    assert 4 not in answers, "a class without rows"


@pytest.mark.parametrize("start", ["means", "regression", "probe"])
@pytest.mark.parametrize("family", ["bert", "llama"])  # pooled by the mean, and by the last token
def test_a_run_begins_with_its_answers(request: pytest.FixtureRequest, family: str, start: str) -> None:
    base, task = request.getfixturevalue(family), toy_task(60, 30)
    asked_for = {"method": "probe"} if start == "probe" else {"head_start": start}
    result = learn(base, task, fast(**asked_for, **STILL))
    last = family == "llama"
    train, asked = (plain_states(base, rows, last) for rows in (task.train, task.evaluation["evaluation"]))
    gold = np.array([example.label for example in task.train])
    if start == "means":
        wanted = nearest_mean(train, gold, asked)
    else:
        scores = {}
        rest, dev = stratified_split(task.train, 12, 0, True)
        for strength in (0.01, 0.1, 1.0, 10.0, 100.0):
            model = regression(strength).fit(train[rest], gold[rest])
            likely = np.log(np.maximum(model.predict_proba(train[dev])[range(len(dev)), gold[dev]], 1e-3)).mean()
            scores[strength] = (model.score(train[dev], gold[dev]), likely)
        wanted = regression(max(scores, key=lambda each: scores[each])).fit(train, gold).predict(asked)
    found = np.array(result.probabilities["evaluation"]).argmax(axis=1)
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("start", ["means", "regression"])
def test_dev_rows_have_no_say_in_the_phase_they_judge(bert: Path, start: str) -> None:
    task, recipe = toy_task(60, 30), fast(head_start=start, lr=1e-9, epochs=1, selection="dev")
    _, dev = stratified_split(task.train, round(60 * recipe.dev_fraction), recipe.seed, classes=True)
    other = replace(task, train=list(task.train))
    one, two = (next(row for row in dev if task.train[row].label == label) for label in (0, 1))
    for row, label in ((one, 1), (two, 0)):  # two rows change labels: the split stays
        other.train[row] = replace(task.train[row], label=label)
    first, second = (learn(bert, each, recipe).history for each in (task, other))
    assert [row["phase"] for row in first] == ["select", "refit"]
    if start == "means":  # of a regression they choose the strength
        assert first[0]["train_loss"] == second[0]["train_loss"]
    assert first[0]["dev_loss"] != second[0]["dev_loss"]
    assert first[1]["train_loss"] != second[1]["train_loss"], "the second phase begins anew, on all rows"


@pytest.mark.parametrize("labels", ["two classes", "three", "three, one without rows", "numbers"])
@pytest.mark.parametrize("pairs", ["joint", "apart"])
def test_a_penalised_head_that_starts_at_the_regression_is_at_rest(bert: Path, labels: str, pairs: Pairs) -> None:
    """Its gradient over all rows is nothing; without the penalty, or with another, it is not."""
    task = toy_task(60, 0, pairs=pairs == "apart", regression=labels == "numbers")
    if labels == "two classes":
        task = replace(task, labels=("a", "b"), train=[row for row in task.train if row.label in (0, 1)])
    if labels == "three, one without rows":
        task = replace(task, train=[row for row in task.train if row.label != 1])
    recipe = fast(
        head_start="regression", head_penalty="regression", pairs=pairs, selection="dev", terms="none", clip=0.0
    )
    resting = {}
    for phase in ("select", "refit"):
        for penalty in ("regression", "none"):
            run = begin(bert, task, replace(recipe, head_penalty=penalty))
            if phase == "refit":
                run._restore(run.start)
            part = run.parts[phase]
            run.aim.fit(part)
            loss = run._gradients(part, run.aim.lengths(part), list(range(len(part.examples))), [0])
            held = {run.leaves[key]: factors for key, factors in run.penalties.get(phase, {}).items()}
            take([Step(run.optimiser, loss, penalties=held)])
            resting[phase, penalty] = float(run.leaves["head.weight"].grad.norm())
        # one without rows is nearly out of the softmax, not quite
        assert resting[phase, "regression"] < (0.05 if "without" in labels else 0.02) * resting[phase, "none"], resting


def begin(base: Path, task: beft.Task, recipe: beft.Recipe) -> Run:
    """A run as `beft.train` begins it."""
    plan = Plan("run", recipe).resolve(task, str(base))
    ground = open_ground(str(base), plan, choose("cpu", "fp32"))
    with StopRequest() as stop:
        run = ground.begin(plan, None, Listener(), stop, with_baselines=False).run
    ground.bank.active = "run"
    return run


@pytest.mark.parametrize("changes", [{"head_start": "means"}, {"pairs": "apart"}], ids=["means", "regression, held"])
def test_a_stopped_run_begins_its_second_phase_where_a_whole_one_does(
    bert: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    task, recipe = toy_task(60, 30, pairs="pairs" in changes), fast(**changes, epochs=3)
    whole = learn(bert, task, recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        learn(bert, task, recipe, tmp_path / "out", listener=After(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    resumed = learn(bert, task, recipe, tmp_path / "out", resume=True)
    assert [row["train_loss"] for row in resumed.history] == [row["train_loss"] for row in whole.history]


@pytest.mark.parametrize(
    ("rows", "classes", "changes", "start"),
    [
        (100, 77, {}, "means"),
        (159, 20, {}, "means"),
        (160, 20, {}, "zero"),
        (100, 19, {}, "zero"),
        (100, 77, {"head": "model"}, "zero"),
        (100, 77, {"head_start": "zero"}, "zero"),
        (5000, 2, {"head_start": "means"}, "means"),
    ],
)
def test_a_head_starts_by_itself_at_the_means_where_rows_of_a_class_are_few(
    rows: int, classes: int, changes: dict[str, Any], start: str
) -> None:
    assert beft.Recipe(**changes).resolve(rows, classes).head_start == start


def test_one_number_has_no_spread(bert: Path) -> None:
    task = toy_task(regression=True)
    task = replace(task, train=task.train[:1])
    result = learn(bert, task, fast(selection="none"))
    assert all(math.isfinite(row["train_loss"]) for row in result.history)
