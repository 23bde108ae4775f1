"""Recipes check themselves, and the paper's has the paper's numbers."""

import math

import pytest

from beft.errors import RecipeError, TermError
from beft.training.recipe import PAPER_EPOCHS, PAPER_LR, Recipe, paper_recipe


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe(lr=-1.0, epochs=0, batch_size=0, dropout=1.5, head="both", schedule="cosine")  # type: ignore[arg-type]
    for name in ("lr = -1.0", "epochs = 0", "batch_size = 0", "dropout = 1.5", "head = 'both'", "schedule = 'cosine'"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": 0.0}, {"lr": math.nan}, {"lr": math.inf}, {"head_lr": 0.0}, {"warmup": 1.0}, {"weight_decay": -0.1},
        {"clip": -1.0}, {"dropout": "much"}, {"max_length": 3}, {"dev_fraction": 0.0}, {"dev_fraction": 0.6},
        {"patience": -1}, {"seed": -1}, {"seed": 2**32},
        {"class_weight": "even"}, {"selection": "test"}, {"beta1": 1.0}, {"eps": 0.0},
    ],
    ids=str,
)  # fmt: skip
def test_values_out_of_range_are_named(changes: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=f"recipe: expected values in range, found {next(iter(changes))} = "):
        Recipe(**changes)  # type: ignore[arg-type]


def test_a_term_that_is_none_suggests_the_nearest() -> None:
    with pytest.raises(TermError, match=r"[Dd]id you mean 'value'"):
        Recipe(terms="vallue")


def test_a_recipe_survives_its_dict_and_unknown_fields_are_refused() -> None:
    recipe = Recipe(lr=0.3, layers="last:2", dropout="model")
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    with pytest.raises(RecipeError, match="found learning_rate"):
        Recipe.from_dict({"learning_rate": 1.0})


def test_the_papers_recipe() -> None:
    recipe = paper_recipe("rte", "bert-base-cased")
    assert (recipe.lr, recipe.epochs, recipe.batch_size, recipe.max_length) == (1e-3, 30, 16, 128)
    assert (recipe.schedule, recipe.clip, recipe.eps, recipe.weight_decay) == ("constant", 1.0, 1e-6, 0.0)
    assert (recipe.head, recipe.dropout, recipe.selection, recipe.refit) == ("model", "model", "evaluation", False)
    assert paper_recipe("sst2", "bert-base-cased").epochs == 16
    assert paper_recipe("sst2", "roberta-base").epochs == 30
    assert paper_recipe("sst2", lr=0.1).lr == 0.1
    assert set(PAPER_LR) == set(PAPER_EPOCHS)
