"""Settings chosen by cross-validation: folds, rounds, the search, what it writes and what it refuses."""

import csv
import itertools
import json
import re
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import beft
from beft.errors import DataError, Interrupted, RecipeError, StoreError, TrainingError
from beft.report import plots
from beft.tasks.question import PromptTask
from beft.tasks.task import Example
from beft.training.auto_lr import choose_lr
from beft.training.folds import fold_count, make_folds, paired
from beft.training.halving import plan_rounds
from beft.training.progress import BankListener, Listener
from beft.training.space import candidates
from beft.training.tune_report import of_majority, plain, recommend
from toys import fast, toy_task
from training.common import learn
from training.test_prompts import choosing, decoder, writing
from training.test_prompts import recipe as prompt_recipe

__all__ = ["decoder"]

SMALL = beft.Space(lrs=(0.01, 0.03), terms=("value",), layers=(None,), heads=("linear",), epochs=(2,))


def tune(base: Path, task: Any, out: Path | None = None, **options: Any) -> beft.TuneResult:
    values: dict[str, Any] = {"dtype": "fp32", "space": SMALL, "recipe": fast(), "runs": 6, "folds": 3, "repeats": 1}
    return beft.tune(str(base), task, out, **{**values, **options})


# ---- folds -----------------------------------------------------------------------------------------------------------


def test_every_row_is_judged_once_and_classes_keep_their_shares() -> None:
    task = toy_task(37)
    folds = make_folds(task, 5, 0, seed=3)
    assert sorted(row for fold in folds for row in fold.judged) == list(range(37))
    for fold in folds:
        assert not set(fold.rows) & set(fold.judged)
        assert len(fold.rows) + len(fold.judged) == 37
        counts = Counter(task.train[row].label for row in fold.judged)
        assert max(counts.values()) - min(counts.values()) <= 1
    assert make_folds(task, 5, 0, seed=3) == folds
    assert [fold.judged for fold in make_folds(task, 5, 1, seed=3)] != [fold.judged for fold in folds]


def rare(count: int) -> Any:
    """A toy task with so many rows of one class."""
    task = toy_task(36)
    kept = [each for each in task.train if each.label != 2] + [each for each in task.train if each.label == 2][:count]
    return replace(task, train=kept)


@pytest.mark.parametrize("regression", [False, True])
def test_rows_of_one_text_are_in_one_fold(regression: bool) -> None:
    task = toy_task(36, regression=regression)
    task.train += task.train[:15] + task.train[:4]
    folds = make_folds(task, 5, 0, seed=3)
    assert sorted(row for fold in folds for row in fold.judged) == list(range(55))
    for fold in folds:
        assert not {task.train[row].texts for row in fold.rows} & {task.train[row].texts for row in fold.judged}


def uneven(rows: tuple[int, ...]) -> PromptTask:
    """Questions of which so many have each candidate as their answer, each twice in a row."""
    asked = choosing(3 * max(rows)).train
    kept = [q for number, count in enumerate(rows) for q in [q for q in asked if q.label == number][:count]]
    return replace(choosing(), train=[each for q in kept for each in (q, q)])


def test_questions_are_dealt_by_their_answers() -> None:
    task = uneven((20, 10, 5))
    for repeat in range(3):
        folds = make_folds(task, 5, repeat, seed=3)
        assert sorted(row for fold in folds for row in fold.judged) == list(range(70))
        for fold in folds:
            counts = Counter(task.train[row].label for row in fold.judged)
            assert [counts[number] for number in range(3)] == [8, 4, 2]
            assert not {task.train[row].prompt for row in fold.rows} & {task.train[row].prompt for row in fold.judged}


def test_the_number_of_folds_goes_by_the_rarest_answer() -> None:
    assert fold_count(uneven((8, 8, 8)), None) == (5, [])
    assert fold_count(uneven((8, 8, 4)), None) == (4, [])
    with pytest.raises(DataError, match="5 folds: expected as many rows of every class, found 4 of 'blue'"):
        fold_count(uneven((8, 8, 4)), 5)
    assert fold_count(replace(uneven((8, 8, 4)), labels=None), 20) == (20, [])  # each has candidates of its own
    assert fold_count(writing(), 24) == (24, [])


def test_folds_are_counted_by_texts() -> None:
    task = replace(toy_task(36), train=toy_task(36).train[:6] * 3)
    assert fold_count(task, None)[0] == 3
    with pytest.raises(DataError, match="7 folds: expected 2 to 6, the number of training texts"):
        make_folds(task, 7, 0, seed=0)


def test_the_number_of_folds_goes_by_the_smallest_class() -> None:
    assert fold_count(toy_task(36), None) == (5, [])
    assert fold_count(rare(4), None) == (4, [])
    count, (note,) = fold_count(rare(1), None)
    assert count == 3
    assert "the class 'blue' has fewer rows than the 3 folds" in note
    assert fold_count(toy_task(36, regression=True), 10) == (10, [])
    with pytest.raises(DataError, match="5 folds: expected as many rows of every class, found 4 of 'blue'"):
        fold_count(rare(4), 5)
    with pytest.raises(DataError, match="40 folds: expected 2 to 36"):
        fold_count(toy_task(36, regression=True), 40)
    with pytest.raises(DataError, match="expected at least 3, found 2"):
        fold_count(replace(toy_task(36), train=toy_task(36).train[:2]), None)


def test_a_paired_test_allows_for_rows_in_common() -> None:
    from scipy.stats import t

    differences = [0.1, 0.2, 0.0, 0.1, 0.2]
    found = paired(differences, 5)
    sd = 0.0836660026534
    assert found.mean == pytest.approx(0.12)
    assert found.sd == pytest.approx(sd)
    assert found.sure == pytest.approx(t.cdf(0.12 / (sd * (1 / 5 + 1 / 4) ** 0.5), 4))
    assert paired([-each for each in differences], 5).sure == pytest.approx(1 - found.sure)
    assert paired([0.0, 0.0], 2).sure == 0.5
    assert paired([0.1, 0.1], 2).sure == 1.0


# ---- rounds and candidates -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", [5, 14, 29, 30, 59, 64, 112, 1000])
@pytest.mark.parametrize("count", [1, 2, 5, 24, 96])
def test_rounds_keep_within_the_budget_and_grow_surer(runs: int, count: int) -> None:
    rounds = plan_rounds(count, 5, 2, runs)
    assert sum(each.runs for each in rounds) <= runs
    assert rounds[0].candidates <= count
    assert rounds[-1].share == 1
    assert rounds[-1].folds == 5
    for early, late in itertools.pairwise(rounds):
        assert late.candidates < early.candidates
        assert late.folds * late.repeats >= early.folds * early.repeats
        assert late.share >= early.share


def test_the_usual_budget() -> None:
    rounds = plan_rounds(96, 5, 2, 112)
    assert [(each.candidates, each.folds * each.repeats) for each in rounds] == [(24, 2), (8, 3), (4, 5), (2, 10)]
    with pytest.raises(RecipeError, match="a budget of 4 runs: expected at least 5, one candidate on each of 5 folds"):
        plan_rounds(96, 5, 2, 4)


def test_candidates_near_the_usual_settings_come_first() -> None:
    recipe = beft.Recipe()
    space = beft.Space().resolve(toy_task(300), recipe)
    found = candidates(space, recipe)
    assert len(found) == 4 * 3 * 2 * 2 * 2
    assert len({each.recipe for each in found}) == len(found)
    first = [("value", 0.003), ("all", 0.003), ("value", 0.01)]
    assert [(each.terms, each.lr) for each in found[:3]] == first
    assert all(each.usual for each in found[:3])
    rates = [each.lr for each in found if each.usual and each.terms == "value"]
    assert rates == [0.003, 0.01, 0.001, 0.03]
    for axis in ("terms", "lr", "epochs", "head", "layers"):  # the usual budget sees every axis
        assert len({getattr(each, axis) for each in found[:24]}) > 1, axis
    assert all(each.recipe.selection == "none" for each in found)


def test_where_the_default_head_starts_at_the_means_a_search_does_too() -> None:
    few = replace(toy_task(60), labels=tuple(f"label {number}" for number in range(20)))
    assert beft.Space().resolve(few, beft.Recipe()).heads == ("means", "linear", "regression")
    assert beft.Space().resolve(toy_task(60), beft.Recipe()).heads == ("linear", "regression")
    assert beft.Space().resolve(toy_task(60, regression=True), beft.Recipe()).heads == ("linear",)
    space = beft.Space(heads=("means",)).resolve(few, beft.Recipe())
    assert {each.recipe.head_start for each in candidates(space, beft.Recipe())} == {"means"}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (beft.Space(lrs=()), "lrs: expected one value or more, every one once, found none"),
        (beft.Space(terms=("value", "value")), "found 'value' twice"),
        (beft.Space(terms=("value+query", "b_q+v")), r"found 'value\+query' and 'b_q\+v', the same"),
        (beft.Space(heads=("none",)), "head 'none': expected linear, means, regression, apart, joint or model"),
        (beft.Space(lrs=(-1.0,)), "lr = -1.0"),
        (beft.Space(epochs=(0,)), "epochs = 0"),
    ],
)
def test_spaces_that_cannot_be(bert: Path, space: beft.Space, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tune(bert, toy_task(), space=space)


# ---- the search ------------------------------------------------------------------------------------------------------


def test_the_folder_is_the_adapter_of_all_rows_with_what_was_found(bert: Path, tmp_path: Path, pictures: None) -> None:
    task = toy_task(30, 12)
    space = replace(SMALL, lrs=(0.003, 0.01, 0.03), terms=("value", "query"))
    result = tune(bert, task, tmp_path / "out", space=space, runs=36)
    found = json.loads((tmp_path / "out" / "tune.json").read_text())
    assert [(each["candidates"], each["folds"]) for each in found["rounds"]] == [(6, 3), (4, 3), (2, 3)]
    with (tmp_path / "out" / "tune.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == len(result.trials) == found["runs"] == 36
    last = [row for row in rows if row["round"] == "3"]
    assert {row["repeat"] for row in last} == {"1"}
    assert len({(row["fold"], row["baseline"]) for row in last}) == 3, "one baseline a fold"
    assert found["winner"]["lr"] == result.winner.lr
    assert found["recommendation"] == result.recommendation
    assert {row["candidate"] for row in found["candidates"]} == {trial.candidate.name for trial in result.trials}
    assert found["candidates"][0]["candidate"] == result.winner.name
    means = [row["score"]["mean"] for row in found["candidates"] if row["rounds"] == 3]
    assert means == sorted(means, reverse=True)
    assert (tmp_path / "out" / "lr_curve.png").read_bytes().startswith(b"\x89PNG")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"in 36 runs of cross-validation (3 folds) on the training rows alone. {result.recommendation}" in card
    assert card.index("(lr_curve.png)") < card.index("## Recipe")
    alone = learn(bert, task, replace(result.winner.recipe, seed=0))
    assert result.refitted.evaluation == alone.evaluation
    assert len(beft.load(tmp_path / "out").predict(["w1 red w2"])) == 1
    learn(bert, task, fast(), tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "tune.json").exists()


def test_nothing_can_be_judged_with_one_row_of_every_class(bert: Path) -> None:
    task = toy_task(60, 0)
    rows = [next(row for row in task.train if row.label == number) for number in range(3)]
    with pytest.raises(DataError, match=r"training rows: expected two of a class at least.*found one of every class"):
        beft.tune(str(bert), replace(task, train=rows), runs=18)


@pytest.mark.parametrize(
    ("shares", "score", "weights", "said"),
    [
        ((9, 1), 0.9, None, "90% of the training rows are 'no': .* --class-weight balanced lets"),
        ((9, 1), 0.9, "balanced", "scores as much. More rows of the others would help"),
        ((9, 1), 0.97, None, None),
        ((5, 5), 0.5, None, None),
    ],
)
def test_an_answer_that_stands_in_for_a_model(
    shares: tuple[int, int], score: float, weights: Any, said: str | None
) -> None:
    rows = [Example(f"{label}{n}", ("a",), label) for label, count in enumerate(shares) for n in range(count)]
    task = beft.Task("toy", ("no", "yes"), ("text",), ("accuracy", "f1_macro"), rows)
    notices = of_majority(task, beft.Recipe(class_weight=weights), {"mean": score, "sd": 0.02})
    assert len(notices) == (said is not None)
    assert said is None or re.search(said, notices[0])


def test_a_search_that_cannot_begin_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no-model"):
        tune(tmp_path / "no-model", toy_task(), tmp_path / "out", space=SMALL, runs=18)
    assert not (tmp_path / "out").exists()


def test_a_bad_rate_dies_early_and_a_good_one_wins(bert: Path) -> None:
    space = replace(SMALL, lrs=(1e-9, 0.02, 900.0), epochs=(6,))
    result = tune(bert, toy_task(60, 0), space=space, runs=18)
    assert result.winner.lr == 0.02
    assert result.expected["mean"] > 0.4
    assert result.refitted.evaluation == {}


def test_expected_scores_are_those_of_the_finalist_that_other_folds_choose(bert: Path) -> None:
    result = tune(bert, toy_task(30, 0))
    scores: dict[str, dict[str, float]] = {}
    for trial in result.trials:
        assert trial.score is not None
        scores.setdefault(trial.fold.name, {})[trial.candidate.name] = trial.score
    chosen = []
    for fold, own in scores.items():
        others = [scores[other] for other in scores if other != fold]
        best = max(("c1", "c2"), key=lambda name: sum(other[name] for other in others))
        chosen.append(own[best])
    assert result.expected["mean"] == pytest.approx(sum(chosen) / 3)
    assert result.baseline is not None
    assert result.difference is not None
    assert result.difference.mean == pytest.approx(result.expected["mean"] - result.baseline["mean"])


def test_runs_that_all_fail_are_an_error(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from beft.objectives.classify import ClassifyLoss

    plain = ClassifyLoss.summed
    monkeypatch.setattr(ClassifyLoss, "summed", lambda self, *given: plain(self, *given) * float("nan"))
    with pytest.raises(TrainingError, match="all 2 candidates: expected a finite loss"):
        tune(bert, toy_task(30, 0))
    with pytest.raises(TrainingError, match=r"lr auto, 0\.003, 0\.01, 0\.03: expected a finite loss"):
        choose_lr(str(bert), toy_task(30, 0), fast(), dtype="fp32")


def test_minutes_bound_the_search(bert: Path) -> None:
    notes: list[str] = []

    class Noting(BankListener):
        def note(self, text: str) -> None:
            notes.append(text)

    result = tune(bert, toy_task(30, 0), runs=None, minutes=5, listener=Noting())
    assert len(result.trials) == 6
    assert re.fullmatch(r"round 1: 2 candidates on 3 folds, all epochs; about \d+ s to the end", notes[1])
    with pytest.raises(RecipeError, match=r"a budget of 1e-06 minutes: expected about .* at least: one candidate"):
        tune(bert, toy_task(30, 0), runs=None, minutes=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"runs": 2}, RecipeError, "a budget of 2 runs: expected at least 3"),
        ({"runs": 0}, RecipeError, "a budget of 0 runs"),
        ({"minutes": 1}, RecipeError, "runs and minutes: expected one of them, found both"),
        ({"runs": None, "minutes": -1}, RecipeError, "minutes -1: expected a number above 0"),
        ({"repeats": 0}, RecipeError, "repeats 0: expected at least 1"),
        ({"folds": 13}, DataError, "13 folds: expected as many rows of every class, found 12 of"),
    ],
)
def test_refused(bert: Path, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tune(bert, toy_task(), **options)


def test_a_folder_in_use_and_a_signal(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="expected an empty or new folder"):
        tune(bert, toy_task(), tmp_path)

    class Stopping(BankListener):
        def of(self, name: str) -> Listener:
            signal.raise_signal(signal.SIGTERM)
            return Listener()

    with pytest.raises(Interrupted, match="a search without a folder keeps nothing"):
        tune(bert, toy_task(), listener=Stopping())


def test_prompts_and_numbers_can_be_tuned(decoder: Path, bert: Path) -> None:
    space = beft.Space(lrs=(0.01, 0.05), terms=("value",), layers=(None,), epochs=(1,))
    result = tune(decoder, choosing(18, 6), space=space, recipe=prompt_recipe())
    assert result.winner.head == "none"
    assert result.baseline is not None
    assert "plain model" in result.recommendation
    assert " for 1 epoch" in result.recommendation
    assert " for 1 epochs" not in result.recommendation
    numbers = tune(bert, toy_task(30, 0, regression=True), space=replace(SMALL, heads=None))
    assert numbers.metric == "spearman"
    assert numbers.winner.head == "linear"
    assert "logistic" not in numbers.recommendation
    assert "ridge regression on frozen states" in numbers.recommendation


def test_what_peft_refuses_is_said_of_the_adapter_and_not_of_losers(decoder: Path, tmp_path: Path) -> None:
    for first, second in (("value", "all"), ("all", "value")):  # of equals the first one wins
        space = beft.Space(lrs=(1e-9,), terms=(first, second), layers=(None,), epochs=(1,))
        result = tune(decoder, choosing(18, 6), tmp_path / first, space=space, recipe=prompt_recipe())
        assert result.winner.terms == first
        said = [note for note in result.notices if "stock PEFT will refuse" in note]
        assert len(said) == (first == "all")


def test_what_is_recommended(bert: Path) -> None:
    recipe = beft.Recipe()
    winner = candidates(beft.Space().resolve(toy_task(300), recipe), recipe)[0]
    expected, baseline = {"mean": 0.8, "sd": 0.02}, {"mean": 0.7, "sd": 0.03}

    def said(*differences: float) -> str:
        beside, instead = plain(toy_task())
        return recommend(winner, "accuracy", expected, baseline, paired(differences, 5), beside=beside, instead=instead)

    better = said(0.1, 0.11, 0.09, 0.1, 0.1)
    assert better.startswith("Train value biases of all layers at lr 0.003 for 11 epochs, with a linear head")
    assert replace(winner, terms="none").described().startswith("no biases at lr 0.003")
    assert "0.100 above logistic regression on frozen states (0.700 ± 0.030)" in better
    assert "more than 99 % sure" in better
    assert said(-0.1, -0.11, -0.09, -0.1, -0.1).startswith("Not better than logistic regression")
    assert "not surely better than logistic regression" in said(0.1, -0.1, 0.1, -0.1, 0.01)
    assert recommend(winner, "accuracy", expected, None, None, beside="", instead="").endswith(
        "(mean and spread over folds)."
    )


# ---- --lr auto -------------------------------------------------------------------------------------------------------


def test_a_rate_chosen_on_training_rows_alone(bert: Path) -> None:
    task = toy_task(60, 6)
    rates = choose_lr(str(bert), task, fast(epochs=6), [1e-9, 0.02], dtype="fp32")
    assert rates.chosen == 0.02
    assert set(rates.scores) == {1e-9, 0.02}
    blind = replace(task, evaluation={"evaluation": [Example(0, ("w1",), None)]})
    assert choose_lr(str(bert), blind, fast(epochs=6), [1e-9, 0.02], dtype="fp32") == rates
    assert "learning rate 0.02, by 3 folds of the training rows (accuracy 1e-09: " in rates.described()


def test_where_no_rate_can_be_chosen(bert: Path) -> None:
    with pytest.raises(RecipeError, match="lr auto: expected a recipe that selects on training rows"):
        choose_lr(str(bert), toy_task(), beft.paper_recipe("sst2", dropout=0.0))
    with pytest.raises(RecipeError, match="expected 0 in a bank"):
        choose_lr(str(bert), toy_task(), fast(dropout=0.1))
    with pytest.raises(DataError, match="training texts: expected at least 3, found 2"):
        choose_lr(str(bert), toy_task(2, 0), fast())


def test_a_rate_is_chosen_beside_a_class_of_one_row(bert: Path) -> None:
    rates = choose_lr(str(bert), rare(1), fast(), [1e-9, 0.02], dtype="fp32")
    assert None not in rates.scores.values()
    assert [note.split(":")[0] for note in rates.notices] == ["the class 'blue' has fewer rows than the 3 folds"]
    assert choose_lr(str(bert), rare(3), fast(), [0.02], dtype="fp32").notices == []


def test_no_picture_without_matplotlib(bert: Path, tmp_path: Path) -> None:
    assert not plots.available()
    tune(bert, toy_task(30, 0), tmp_path / "out")
    assert not (tmp_path / "out" / "lr_curve.png").exists()
    assert (tmp_path / "out" / "tune.json").exists()
