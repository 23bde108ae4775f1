"""Several seeds of the same settings: what a soup and an ensemble answer, when one is kept, and what its folder is."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import beft
from beft.core.bank import Bank
from beft.errors import BeftError, RecipeError, StoreError
from beft.tasks.task import Task
from beft.training import machine
from beft.training import seeds as module
from beft.training.combination import Combination, check_combine, keep
from beft.training.folds import make_folds, paired
from beft.training.search import Budget
from beft.training.tune import expect
from beft.training.tune_report import of_seeds
from toys import fast, same_tensors, toy_task
from training.common import learn
from training.test_prompts import choosing, decoder, writing
from training.test_prompts import recipe as prompt_recipe
from training.test_tune import SMALL, tune

__all__ = ["decoder"]

ONE_CANDIDATE = replace(SMALL, lrs=(0.02,), epochs=(4,))


def tune_seeds(base: Path, task: Any, out: Path | None = None, **options: Any) -> beft.TuneResult:
    """One candidate, two seeds, three folds."""
    values: dict[str, Any] = {"space": ONE_CANDIDATE, "runs": 6, "combine": "auto", "seeds": 2}
    return tune(base, task, out, **{**values, **options})


@pytest.fixture
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way that is kept, whatever the folds say: toy seeds differ too little for the rule."""
    monkeypatch.setattr(module, "keep", lambda scores, folds: request.param)
    return str(request.param)


def only(way: str) -> Any:
    return pytest.mark.parametrize("kept", [way], indirect=True)


# ---- the rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("soup", "ensemble", "kept"),
    [
        ([0.0] * 5, [0.0] * 5, "one"),
        ([0.05, 0.05, 0.04, 0.06, 0.05], None, "soup"),
        ([0.05, -0.05, 0.04, -0.03, 0.01], None, "one"),
        ([-0.05] * 5, [0.05, 0.05, 0.04, 0.06, 0.05], "ensemble"),
        ([0.05, 0.05, 0.04, 0.06, 0.05], [0.06, 0.05, 0.04, 0.05, 0.05], "soup"),
        ([0.05, 0.05, 0.04, 0.06, 0.05], [0.1, 0.11, 0.09, 0.1, 0.1], "ensemble"),
    ],
)
def test_a_way_is_kept_that_gains_more_than_one_standard_error(
    soup: list[float], ensemble: list[float] | None, kept: str
) -> None:
    alone = [0.7, 0.72, 0.65, 0.8, 0.75]
    scores = {"one": alone, "soup": [a + b for a, b in zip(alone, soup, strict=True)]}
    if ensemble is not None:
        scores["ensemble"] = [a + b for a, b in zip(alone, ensemble, strict=True)]
    assert keep(scores, 5) == kept
    gain = paired([round(each, 12) for each in soup], 5)
    if ensemble is None:
        assert (gain.mean > gain.error) == (kept == "soup")


def combination(kept: str = "soup", gain: float = 0.1) -> Combination:
    names = [f"r1f{number}" for number in range(3)]
    scores = {"one": dict.fromkeys(names, 0.5), "soup": {name: 0.5 + gain + n / 100 for n, name in enumerate(names)}}
    gains = {"soup": paired([scores["soup"][name] - 0.5 for name in names], 3)}
    return Combination(2, 3, scores, gains, kept, 3)


def test_what_to_expect_is_the_way_that_other_folds_would_keep(bert: Path) -> None:
    trials = tune(bert, toy_task(30, 0), space=ONE_CANDIDATE, runs=3).trials
    trials = [replace(t, fold=replace(t.fold, repeat=1)) for t in trials]
    winner = trials[0].candidate.name
    several, _, difference = expect(trials, 3, winner, combination())
    assert several["mean"] == pytest.approx(0.61)
    assert difference is not None
    baselines = [trial.baseline or 0.0 for trial in trials]
    assert difference.mean == pytest.approx(0.61 - sum(baselines) / 3)
    assert expect(trials, 3, winner, combination("one", -0.1))[0]["mean"] == pytest.approx(0.5)
    alone = expect(trials, 3, winner, None)[0]
    assert expect(trials, 3, "another", combination())[0] == alone


def test_what_is_said() -> None:
    assert of_seeds(combination()).startswith("Kept is the mean of 2 seeds' adapters, which gains +0.110 ± ")
    said = of_seeds(combination("one", -0.1))
    assert said.startswith("One seed is kept: the mean of 2 seeds' adapters gains -0.090 ± ")
    assert said.endswith("on 3 folds, not more than its standard error.")


# ---- the comparison --------------------------------------------------------------------------------------------------


def test_seeds_are_compared_on_the_last_rounds_folds(bert: Path) -> None:
    task = toy_task(30, 0)
    result = tune_seeds(bert, task)
    found = result.combination
    assert found is not None
    assert found.runs == 3
    folds = make_folds(task, 3, 0, 0)
    assert list(found.scores["one"]) == [fold.name for fold in folds]
    for fold, trial in zip(folds, result.trials, strict=True):
        own = replace(
            task,
            train=[task.train[row] for row in fold.rows],
            evaluation={"held": [task.train[row] for row in fold.judged]},
        )
        recipe = result.winner.recipe
        alone = [learn(bert, own, replace(recipe, seed=seed)) for seed in (0, 1)]
        scores = [each.evaluation["accuracy"] for each in alone]
        assert trial.score == pytest.approx(scores[0])
        assert found.scores["one"][fold.name] == pytest.approx(sum(scores) / 2)
        mean = np.mean([each.probabilities["held"] for each in alone], axis=0)
        right = mean.argmax(1) == [row.label for row in own.evaluation["held"]]
        assert found.scores["ensemble"][fold.name] == pytest.approx(right.mean())
    assert found.gains["soup"].mean == pytest.approx(
        sum(found.scores["soup"].values()) / 3 - sum(found.scores["one"].values()) / 3
    )
    assert result.kept == keep({way: list(own.values()) for way, own in found.scores.items()}, 3)


def test_seeds_count_against_the_budget() -> None:
    def budget(runs: int | None, more: int = 2) -> Budget:
        return Budget(runs, None, 5, 2, more)

    assert budget(112).repeats_of_seeds(112) == 2
    assert budget(112).for_rounds(112) == 92
    assert budget(30).repeats_of_seeds(30) == 1
    assert budget(30).for_rounds(30) == 20
    assert budget(30).for_rounds(12) == 12, "rounds come before seeds"
    assert budget(112, more=0).for_rounds(112) == 112
    budget(15).check()
    with pytest.raises(RecipeError, match=r"a budget of 14 runs: expected at least 15, .* 5 folds, with 3 seeds each"):
        budget(14).check()


def test_minutes_hold_seeds_too(bert: Path) -> None:
    result = tune_seeds(bert, toy_task(30, 0), runs=None, minutes=5, combine="soup")
    assert result.combination is not None
    assert set(result.combination.scores) == {"one", "soup"}
    with pytest.raises(RecipeError, match=r"a budget of 1e-06 minutes: .* on each of 3 folds, and the refit"):
        tune_seeds(bert, toy_task(30, 0), runs=None, minutes=1e-6)


# ---- what is written -------------------------------------------------------------------------------------------------


def refits(base: Path, task: Task, result: beft.TuneResult) -> list[beft.Result]:
    """The refits of both seeds, each trained alone."""
    return [learn(base, task, replace(result.winner.recipe, seed=seed), result.directory.parent / f"alone{seed}")  # type: ignore[union-attr]
            for seed in (0, 1)]  # fmt: skip


@only("soup")
@pytest.mark.parametrize("regression", [False, True])
def test_a_soup_is_one_adapter_the_mean_of_its_seeds(bert: Path, tmp_path: Path, kept: str, regression: bool) -> None:
    task = toy_task(30, 12, regression=regression)
    result = tune_seeds(bert, task, tmp_path / "out", space=replace(ONE_CANDIDATE, heads=("linear",)))
    alone = refits(bert, task, result)
    for file in ("adapter_model.safetensors", "head.safetensors"):
        tensors = [load_file(each.directory / file) for each in alone if each.directory]
        if regression and file.startswith("head"):  # units folded in before the mean
            tensors = [
                {
                    "weight": each["weight"] * each["spread"],
                    "bias": each["bias"] * each["spread"] + each["offset"],
                    "offset": torch.zeros(1),
                    "spread": torch.ones(1),
                }
                for each in tensors
            ]
        mean = {key: (tensors[0][key] + tensors[1][key]) / 2 for key in tensors[0]}
        same_tensors(load_file(tmp_path / "out" / file), mean, 1e-6)
    found = json.loads((tmp_path / "out" / "tune.json").read_text())
    assert found["combination"]["kept"] == "soup"
    assert "the mean of 2 seeds" in found["recommendation"]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["seeds"] == {"kept": "soup", "numbers": [0, 1]}
    assert "mean of the adapters of the seeds 0, 1" in (tmp_path / "out" / "README.md").read_text()
    losses = [[row["train_loss"] for row in each.history] for each in alone]
    assert [row["train_loss"] for row in result.refitted.history] == pytest.approx(np.mean(losses, axis=0), abs=1e-6)
    texts = [row.texts[0] for row in task.evaluation["evaluation"]]
    predicted = beft.load(tmp_path / "out").predict(texts)
    words = [each if regression else task.labels[int(each)] for each in result.refitted.predictions["evaluation"]]  # type: ignore[index]
    assert predicted == (pytest.approx(words, abs=1e-5) if regression else words)
    assert not (tmp_path / "out" / "search").exists()
    assert not (tmp_path / "out" / "members").exists()


@only("ensemble")
@pytest.mark.parametrize("regression", [False, True])
def test_an_ensemble_answers_with_the_mean_of_its_members(
    bert: Path, tmp_path: Path, kept: str, regression: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, out = toy_task(30, 12, regression=regression), tmp_path / "out"
    result = tune_seeds(bert, task, out)
    assert sorted(path.name for path in (out / "members").iterdir()) == ["seed0", "seed1"]
    assert not (out / "adapter_model.safetensors").exists()
    texts = [row.texts[0] for row in task.evaluation["evaluation"]]
    members = [beft.load(out / "members" / f"seed{seed}", dtype="fp32") for seed in (0, 1)]
    mean = np.mean([each.predict_proba(texts) for each in members], axis=0)  # type: ignore[union-attr]
    whole = beft.load(out, dtype="fp32")
    forwards = []
    plain = Bank.logits
    monkeypatch.setattr(machine, "CPU_PIECE_COST", 10**6)  # so that rows of all lengths make one piece
    monkeypatch.setattr(Bank, "logits", lambda self, **batch: forwards.append(1) or plain(self, **batch))
    assert whole.predict_proba(texts) == pytest.approx(mean, abs=1e-6)  # type: ignore[union-attr]
    assert len(forwards) == 1, "all members answer in one routed pass"
    assert result.refitted.probabilities["evaluation"] == pytest.approx(mean, abs=1e-5)
    alone = refits(bert, task, result)
    assert np.mean([each.probabilities["evaluation"] for each in alone], axis=0) == pytest.approx(mean, abs=1e-5)
    if not regression:
        assert whole.predict(texts) == [task.labels[each] for each in mean.argmax(1)]  # type: ignore[index]
        right = mean.argmax(1) == [row.label for row in task.evaluation["evaluation"]]
        assert result.refitted.evaluation["accuracy"] == pytest.approx(right.mean())
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["trainable_parameters"] == 2 * alone[0].metrics["trainable_parameters"]
    assert metrics["adapter_bytes"]["vectors"] == 2 * alone[0].metrics["adapter_bytes"]["vectors"]


@only("ensemble")
def test_an_ensemble_is_not_taken_for_an_adapter(bert: Path, tmp_path: Path, kept: str) -> None:
    out = tmp_path / "out"
    tune_seeds(bert, toy_task(30, 0), out)
    from beft.cli.inspect import _adapter
    from beft.core.restore import base_name

    with pytest.raises(StoreError, match=r"found an ensemble of 2.*members/seed0"):
        beft.load(out).bank.load(out)
    for call in (base_name, _adapter):
        with pytest.raises(StoreError, match="expected one adapter, found an ensemble of 2"):
            call(out)
    learn(bert, toy_task(30, 0), fast(), out, overwrite=True)
    assert not (out / "members").exists()
    assert not (out / "ensemble.json").exists()
    assert len(beft.load(out).predict(["w1 red"])) == 1


@only("ensemble")
def test_folders_that_are_no_ensemble(bert: Path, tmp_path: Path, kept: str) -> None:
    out = tmp_path / "out"
    tune_seeds(bert, toy_task(30, 0), out)
    record = json.loads((out / "ensemble.json").read_text())
    for change, message in (
        ({"format": 9}, "expected format 1, found 9"),
        ({"members": []}, "expected a list of members"),
        ({"members": ["members/seed0", "members/gone"]}, "gone"),
    ):
        (out / "ensemble.json").write_text(json.dumps({**record, **change}))
        with pytest.raises(StoreError, match=message):
            beft.load(out)
    (out / "ensemble.json").write_text(json.dumps(record))
    manifest = out / "members" / "seed1" / "beft.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "task": {"name": "another"}}))
    with pytest.raises(StoreError, match="seed1: expected the task, head and base of seed0, found another"):
        beft.load(out)


@only("ensemble")
def test_an_ensemble_of_prompts_averages_the_candidates_scores(decoder: Path, tmp_path: Path, kept: str) -> None:
    task, out = choosing(18, 6), tmp_path / "out"
    space = beft.Space(lrs=(0.05,), terms=("value",), layers=(None,), epochs=(1,))
    result = tune_seeds(decoder, task, out, space=space, recipe=prompt_recipe())
    questions = task.evaluation["evaluation"]
    members = [beft.load(out / "members" / f"seed{seed}") for seed in (0, 1)]
    own = [[scores for *_, scores in each.stream(task, questions)] for each in members]  # type: ignore[union-attr]
    whole = [scores for *_, scores in beft.load(out).stream(task, questions)]  # type: ignore[union-attr, arg-type]
    assert np.array(whole) == pytest.approx(np.mean(own, axis=0), abs=1e-5)
    assert np.array(result.refitted.probabilities["evaluation"]) == pytest.approx(np.array(whole), abs=1e-5)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"combine": "stew"}, "combine 'stew': expected none, soup, ensemble or auto"),
        ({"seeds": 1}, "seeds 1: expected at least 2 to combine"),
        ({"runs": 5}, "a budget of 5 runs: expected at least 6, .* with 2 seeds each"),
    ],
)
def test_refused(bert: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BeftError, match=message):
        tune_seeds(bert, toy_task(30, 0), **options)


def test_texts_have_no_scores_to_average(decoder: Path) -> None:
    with pytest.raises(RecipeError, match="combine 'ensemble': expected a task with scores to average"):
        tune_seeds(decoder, writing(), combine="ensemble", recipe=prompt_recipe())
    assert check_combine("auto", 2, writing()) == ["soup"]
