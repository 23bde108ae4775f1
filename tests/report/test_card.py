"""The model card's head is YAML whatever the names are."""

from typing import Any

import pytest
import yaml

from beft.report.card import model_card

RECIPE = {
    "terms": "value", "head": "linear", "lr": 1e-3, "epochs": 2, "batch_size": 8, "schedule": "linear",
    "max_length": 32, "seed": 0, "preset": "default",
}  # fmt: skip


def card(
    name: str = "toy", model: str = "org/base", labels: tuple[str, ...] | None = ("a", "b"), **metrics: Any
) -> tuple[dict[str, Any], str]:
    measured = {
        "adapter_bytes": {"vectors": 500, "head": 600}, "trainable_parameters": 163, "train_examples": 36,
        "train_seconds": 1.5, "best_epoch": 1, "selected_on": "dev", "evaluation": {"accuracy": 0.5},
        "evaluation_rows": {"held-out": 12}, "baselines": {"majority": {"accuracy": 0.25}}, **metrics,
    }  # fmt: skip
    text = model_card(
        model=model,
        metrics=measured,
        run={"recipe": RECIPE, "versions": {"beft": "0"}},
        task={"name": name, "labels": labels, "fields": ("text",)},
        pictures=["confusion_matrix.png"],
        peft_loads=False,
    )
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


@pytest.mark.parametrize("name", ["toy", "a: b", "#1", "yes", "007", "[x]", 'say "hi"', "überfällig", "@me", "null"])
def test_names_survive_yaml(name: str) -> None:
    head, _ = card(name)
    assert head["model-index"][0]["name"] == name
    assert head["model-index"][0]["results"][0]["dataset"] == {"name": name, "type": name}


@pytest.mark.parametrize(
    ("model", "named"), [("org/base", True), ("/a/folder", False), ("./x", False), ("gt-x", False)]
)
def test_only_a_hub_id_is_a_base_model(model: str, named: bool) -> None:
    head, body = card(model=model)
    assert head.get("base_model") == (model if named else None)
    assert model in body


def test_scores_stand_beside_the_baselines() -> None:
    _, body = card()
    assert "| this adapter | 0.500 |" in body
    assert "| majority | 0.250 |" in body


def test_a_run_that_stayed_where_it_began_says_so() -> None:
    assert "| best epoch | 1 |" in card()[1]
    assert (
        "| best epoch | 0: the head is the regression on frozen states, nothing else was learned |"
        in card(best_epoch=0)[1]
    )


def test_baselines_of_a_regression_go_by_their_names() -> None:
    scores = {"majority": {"accuracy": 0.25}, "frozen_logistic_regression": {"accuracy": 0.5}}
    _, body = card(labels=None, baselines=scores)
    assert "| frozen states + ridge regression | 0.500 |" in body
    assert "| the mean | 0.250 |" in body


def test_paragraphs_are_set_apart_with_and_without_scores() -> None:
    for changes in ({}, {"evaluation": {}, "evaluation_rows": {}}):
        _, body = card(**changes)
        assert body.startswith("\n# toy: a bias adapter for org/base\n\n163 trained values")
