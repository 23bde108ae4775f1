"""Learning curves: sizes, draws, the bank of runs, files and the advice."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import beft
from beft.errors import DataError, Interrupted, RecipeError, StoreError
from beft.training.curve import _sizes, advise
from beft.training.progress import BankListener, Listener
from toys import fast, toy_task
from training.common import learn
from training.test_many import Stopping


def curve(base: Path, task: Any, out: Path | None = None, **options: Any) -> beft.Curve:
    return beft.learning_curve(str(base), task, out, **{"dtype": "fp32", "recipe": fast(epochs=1), **options})


def test_a_curve_is_a_bank_of_runs_on_growing_parts(bert: Path, tmp_path: Path, pictures: None) -> None:
    task = toy_task(36, 12)
    found = curve(bert, task, tmp_path / "out", sizes=[36, 12], seeds=[0, 1])
    assert [(row["rows"], row["seed"]) for row in found.runs] == [(12, 0), (12, 1), (36, 0), (36, 1)]
    assert [point["rows"] for point in found.points] == [12, 36]
    assert all(point["frozen"] and point["runs"] == 2 for point in found.points)
    alone = learn(bert, task, fast(epochs=1, seed=1), with_baselines=True)
    assert found.runs[3]["accuracy"] == alone.evaluation["accuracy"]
    assert found.runs[3]["frozen"] == alone.metrics["baselines"]["frozen_logistic_regression"]["accuracy"]
    record = json.loads((tmp_path / "out" / "learning_curve.json").read_text())
    assert record["advice"] == found.advice
    assert record["points"] == found.points
    with (tmp_path / "out" / "learning_curve.csv").open() as handle:
        assert [float(row["accuracy"]) for row in csv.DictReader(handle)] == [row["accuracy"] for row in found.runs]
    assert (tmp_path / "out" / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(StoreError, match="expected an empty or new folder"):
        curve(bert, task, tmp_path / "out", sizes=[12])


def test_a_curve_that_was_stopped_is_gone_on_with(bert: Path, tmp_path: Path, pictures: None) -> None:
    out, options = tmp_path / "out", dict[str, Any](sizes=[12, 36], seeds=[0, 1])
    with pytest.raises(Interrupted, match="--resume"):
        curve(bert, toy_task(36, 12), out, **options, listener=Stopping(20))
    with pytest.raises(StoreError, match="Use --resume to go on"):
        curve(bert, toy_task(36, 12), out, **options)
    done = [path.parent.name for path in (out / "runs").glob("*/metrics.json")]
    (out / ".learning_curve.png.123.part").write_bytes(b"half")
    begun: list[str] = []

    class Begun(BankListener):
        def of(self, name: str) -> Listener:
            begun.append(name)
            return Listener()

    found = curve(bert, toy_task(36, 12), out, **options, resume=True, listener=Begun())
    assert done
    assert not set(begun) & set(done)
    assert found.points == curve(bert, toy_task(36, 12), **options).points
    assert sorted(path.name for path in out.iterdir()) == [
        "learning_curve.csv", "learning_curve.json", "learning_curve.png",
    ]  # fmt: skip
    with pytest.raises(StoreError, match=r"expected a curve to resume, found a finished one. Read its learning_curve"):
        curve(bert, toy_task(36, 12), out, **options, resume=True)


def test_a_stop_without_a_folder_keeps_nothing(bert: Path) -> None:
    with pytest.raises(Interrupted, match="Start anew: nothing was kept"):
        curve(bert, toy_task(36, 12), sizes=[12], seeds=[0], listener=Stopping(1))


def test_without_evaluation_rows_a_fifth_is_set_aside(bert: Path) -> None:
    found = curve(bert, toy_task(40, 0), sizes=[9, 32], seeds=[0])
    assert (found.split, found.judged) == ("held-out", 8)
    with pytest.raises(DataError, match="expected evaluation rows with labels, or 10 training rows"):
        curve(bert, toy_task(9, 0))


def test_usual_sizes_double_up_to_all() -> None:
    assert _sizes(toy_task(300), None) == [24, 48, 96, 192, 300]
    assert _sizes(toy_task(50), None) == [24, 50]
    assert _sizes(toy_task(20), None) == [10, 20]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sizes": [12, 37]}, DataError, "size 37: expected 3 to 36, the training rows at hand, found 37"),
        ({"sizes": [2]}, DataError, "size 2: expected 3 to 36"),
        ({"sizes": []}, DataError, "sizes: expected at least one, found none"),
        ({"seeds": []}, RecipeError, "seeds: expected one or more"),
        ({"seeds": [1, 1]}, RecipeError, "seeds: expected one or more, every one once"),
        ({"recipe": fast(selection="evaluation")}, RecipeError, "expected a recipe that selects on training rows"),
    ],
)
def test_refused(bert: Path, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        curve(bert, toy_task(), **options)


def test_advice_goes_by_the_last_growth() -> None:
    def points(*means: float, sd: float = 0.005) -> list[dict[str, Any]]:
        return [
            {"rows": 50 * 2**n, "runs": 3, "score": {"mean": mean, "sd": sd}, "frozen": None}
            for n, mean in enumerate(means)
        ]

    def advice(*means: float, sd: float = 0.005, judged: int = 100_000) -> str:
        return advise(points(*means, sd=sd), "accuracy", judged)

    assert advice(0.5, 0.6, 0.7) == (
        "More labels would help: from 100 to 200 rows accuracy went +0.100 (± 0.004), about +0.100 a doubling."
    )
    assert advice(0.5, 0.7, 0.701).startswith("More labels would hardly help")
    assert advice(0.7, 0.71, sd=0.01).startswith("More labels may help")
    assert advice(0.7, 0.70, sd=0.03).startswith("It is not clear whether more labels would help")
    assert advice(0.7).startswith("One size says nothing")


def test_where_nothing_is_learned_more_labels_are_no_question() -> None:
    points = [
        {"rows": n, "runs": 3, "score": {"mean": 0.5, "sd": 0.0}, "majority": {"mean": 0.5, "sd": 0.0}} for n in (8, 16)
    ]
    assert advise(points, "accuracy", 100).startswith(
        "Nothing was learned from 16 rows: one answer to all has accuracy"
    )
    points[1]["score"] = {"mean": 0.9, "sd": 0.0}
    assert advise(points, "accuracy", 100).startswith("More labels would help")


def test_a_gain_of_two_rows_or_of_one_seed_is_no_verdict() -> None:
    points = [{"rows": n, "runs": 3, "score": {"mean": mean, "sd": 0.0}} for n, mean in ((50, 0.7), (100, 0.8))]
    assert advise(points, "accuracy", 2000).startswith("More labels would help")
    assert advise(points, "accuracy", 20).startswith(
        "More labels may help: from 50 to 100 rows accuracy went +0.100 (± 0.067)"
    )
    alone = [{**point, "runs": 1} for point in points]
    assert advise(alone, "accuracy", 2000) == (
        "One seed does not tell a gain from chance: from 50 to 100 rows accuracy went +0.100. Give --seeds two or more."
    )


def test_evaluation_rows_without_labels_do_not_judge(bert: Path) -> None:
    task = toy_task(40, 4)
    task.evaluation = {"test": [replace(row, label=None) for row in task.evaluation["evaluation"]]}
    assert curve(bert, task, sizes=[12], seeds=[0]).split == "held-out"


def test_a_curve_that_cannot_begin_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no-model"):
        curve(tmp_path / "no-model", toy_task(), tmp_path / "out", sizes=[12], seeds=[0])
    assert not (tmp_path / "out").exists()
