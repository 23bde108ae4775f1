"""Every file of a run is there, and they agree with one another."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

import beft
from beft.errors import StoreError
from beft.training import outputs
from toys import COLOURS, fast, toy_task
from training.common import learn

FILES = {
    "README.md", "adapter_config.json", "adapter_model.safetensors", "beft.json", "confusion_matrix.png", "errors.csv",
    "head.safetensors", "history.csv", "learning_curve.png", "metrics.json", "per_class.csv", "predictions.jsonl",
    "run.json",
}  # fmt: skip


def folder(result: beft.Result) -> Path:
    assert result.directory is not None
    return result.directory


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_exactly_the_files_of_the_specification_are_written(trained: beft.Result) -> None:
    assert {path.name for path in folder(trained).iterdir()} == FILES


def test_what_a_run_writes_is_what_overwriting_clears(trained: beft.Result, tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes(b"")
    outputs.clear_results(tmp_path)
    assert not list(tmp_path.iterdir())


def test_metrics_have_every_name(trained: beft.Result) -> None:
    metrics = json.loads((folder(trained) / "metrics.json").read_text())
    assert metrics == trained.metrics
    names = {"accuracy", "f1_macro"}
    assert set(metrics["evaluation"]) == set(metrics["dev"]) == names
    for baseline in ("majority", "frozen_logistic_regression"):
        assert names <= set(metrics["baselines"][baseline])
    sizes = {"vectors": "adapter_model.safetensors", "head": "head.safetensors"}
    assert metrics["adapter_bytes"] == {key: (folder(trained) / name).stat().st_size for key, name in sizes.items()}
    assert metrics["trainable_parameters"] == 2 * 32 + 3 * 33
    for name in ("train_seconds", "train_examples_per_second", "eval_examples_per_second", "peak_memory_mib"):
        assert metrics[name] > 0, name
    assert metrics["train_examples"] == 60
    assert metrics["evaluation_rows"] == {"evaluation": 30}


def test_predictions_reproduce_the_metrics(trained: beft.Result) -> None:
    rows = lines(folder(trained) / "predictions.jsonl")
    gold, guess = [row["gold"] for row in rows], [row["prediction"] for row in rows]
    assert trained.evaluation["accuracy"] == pytest.approx(accuracy_score(gold, guess))
    assert trained.evaluation["f1_macro"] == pytest.approx(f1_score(gold, guess, average="macro"))
    (part,) = trained.task.evaluation.values()
    for row, example in zip(rows, part, strict=True):
        assert row["id"] == example.id
        assert row["gold"] == COLOURS[int(example.label or 0)]
        assert list(row["scores"]) == list(COLOURS)
        assert sum(row["scores"].values()) == pytest.approx(1, abs=1e-5)
        assert row["prediction"] == max(row["scores"], key=row["scores"].__getitem__)


def test_errors_are_the_wrong_rows_most_confident_first(trained: beft.Result) -> None:
    wrong = [row for row in lines(folder(trained) / "predictions.jsonl") if row["gold"] != row["prediction"]]
    errors = table(folder(trained) / "errors.csv")
    assert {row["id"] for row in errors} == {str(row["id"]) for row in wrong}
    assert len(errors) > 1
    sure = [float(row["confidence"]) for row in errors]
    assert sure == sorted(sure, reverse=True)
    assert all(set(row["text"].split()) & set(COLOURS) for row in errors)


def test_per_class_scores_are_scikit_learns(trained: beft.Result) -> None:
    rows = lines(folder(trained) / "predictions.jsonl")
    expected = precision_recall_fscore_support(
        [row["gold"] for row in rows], [row["prediction"] for row in rows], labels=COLOURS, zero_division=0
    )
    for number, row in enumerate(table(folder(trained) / "per_class.csv")):
        assert row["label"] == COLOURS[number]
        found = [float(row[key]) for key in ("precision", "recall", "f1", "rows")]
        assert found == pytest.approx([float(each[number]) for each in expected], abs=1e-4)


def test_the_history_has_a_line_an_epoch(trained: beft.Result) -> None:
    rows = table(folder(trained) / "history.csv")
    assert [(row["phase"], int(row["epoch"])) for row in rows][:3] == [("select", 1), ("select", 2), ("select", 3)]
    assert len(rows) == 3 + trained.metrics["best_epoch"]
    best = rows[trained.metrics["best_epoch"] - 1]
    assert float(best["dev_accuracy"]) == pytest.approx(trained.metrics["dev"]["accuracy"])
    assert float(rows[0]["lr"]) > float(rows[1]["lr"])


def test_the_run_can_be_repeated_from_its_record(trained: beft.Result, bert: Path) -> None:
    record = json.loads((folder(trained) / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["model"] == str(bert)
    assert beft.Recipe.from_dict(record["recipe"]) == trained.recipe
    assert record["data"]["fingerprint"] == trained.task.fingerprint()
    assert {"beft", "python", "torch", "transformers"} <= set(record["versions"])
    assert {"device", "dtype", "attention", "threads", "token_budget"} <= set(record["machine"])


def test_the_model_card_is_yaml_and_markdown(trained: beft.Result) -> None:
    text = (folder(trained) / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    card = yaml.safe_load(head)
    assert card["library_name"] == "beft"
    (result,) = card["model-index"][0]["results"]
    measured = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert measured == pytest.approx(trained.evaluation, abs=1e-4)
    assert body.lstrip().startswith("# toy")
    assert "beft.load(" in body
    for picture in ("confusion_matrix.png", "learning_curve.png"):
        assert f"({picture})" in body


@pytest.mark.parametrize("name", ["confusion_matrix.png", "learning_curve.png"])
def test_pictures_are_pictures(trained: beft.Result, name: str) -> None:
    with Image.open(folder(trained) / name) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 200
        assert len(set(picture.convert("L").resize((64, 64)).get_flattened_data())) > 8


@pytest.mark.usefixtures("pictures")
def test_a_regression_has_its_own_files(bert: Path, tmp_path: Path) -> None:
    result = learn(bert, toy_task(40, 20, regression=True), fast(), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == FILES - {"per_class.csv", "confusion_matrix.png"} | {"scatter.png"}
    rows = lines(tmp_path / "out" / "predictions.jsonl")
    assert [row["prediction"] for row in rows] == pytest.approx(result.predictions["evaluation"])
    misses = [float(row["error"]) for row in table(tmp_path / "out" / "errors.csv")]
    assert misses == sorted(misses, reverse=True)
    assert len(misses) == 20


def test_two_evaluation_splits_have_files_each(bert: Path, tmp_path: Path) -> None:
    task = toy_task(24, 9)
    task.evaluation = {"matched": task.evaluation["evaluation"], "mismatched": task.evaluation["evaluation"][:5]}
    result = learn(bert, task, fast(epochs=1), tmp_path / "out")
    assert len(lines(tmp_path / "out" / "predictions.jsonl")) == 9
    assert len(lines(tmp_path / "out" / "predictions-mismatched.jsonl")) == 5
    assert set(result.metrics["evaluation_splits"]) == {"matched", "mismatched"}
    assert result.evaluation == result.metrics["evaluation_splits"]["matched"]


def test_without_evaluation_rows_nothing_is_scored(bert: Path, tmp_path: Path) -> None:
    result = learn(bert, toy_task(24, 0), fast(epochs=1), tmp_path / "out", with_baselines=True)
    assert result.metrics["evaluation"] == {}
    assert not (tmp_path / "out" / "predictions.jsonl").exists()
    _, head, _ = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    assert "model-index" not in yaml.safe_load(head)


def test_a_failed_write_leaves_the_results_that_were_there(
    trained: beft.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = beft.Result(
        dict(trained.metrics), tmp_path, trained.task, trained.recipe, trained.choices, trained.history,
        dict(trained.predictions), dict(trained.probabilities),
    )  # fmt: skip
    outputs.write_results(tmp_path, result, "m")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(outputs.plots, "available", lambda: True)

    def full(*args: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs.plots, "learning_curve", full)
    result.metrics["evaluation"] = {"accuracy": 0.0, "f1_macro": 0.0}
    with pytest.raises(StoreError, match=r"No space left on device.*[Ff]ree some space"):
        outputs.write_results(tmp_path, result, "m")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
