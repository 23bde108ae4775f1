"""The loss: micro-batches sum to the plain batch's gradient, class weights are torch's, numbers are squared errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss

from beft.objectives.classify import ClassifyLoss, read_logits, scores
from beft.objectives.encode import encode
from beft.tasks.task import Example
from toys import fast, same_tensors, tokenizer, toy_task
from training.common import gradients_of, new_run

TASK = toy_task()
SKEWED = [row for row in TASK.train if row.label != 2 or int(row.id) < 9]


def test_the_sum_over_pieces_is_torchs_mean() -> None:
    logits, loss = torch.randn(12, 3), ClassifyLoss(TASK, TASK.train)
    targets = loss.targets(TASK.train[:12], "cpu")
    pieces = sum(loss.summed(logits[a:b], targets[a:b]) for a, b in ((0, 5), (5, 6), (6, 12)))
    assert torch.allclose(pieces / loss.total_weight(targets), cross_entropy(logits, targets), atol=1e-6)


def test_balanced_is_torchs_weighted_cross_entropy_with_scikit_learns_weights() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    gold = [int(row.label or 0) for row in SKEWED]
    weights = compute_class_weight("balanced", classes=np.arange(3), y=gold)
    assert weights.max() > 1.5 * weights.min()
    loss = ClassifyLoss(TASK, SKEWED, balanced=True)
    logits = torch.randn(len(gold), 3)
    targets = loss.targets(SKEWED, "cpu")
    expected = cross_entropy(logits, targets, weight=torch.tensor(weights, dtype=torch.float32))
    assert torch.allclose(loss.summed(logits, targets) / loss.total_weight(targets), expected, atol=1e-6)


def test_regression_is_the_squared_error_in_units_of_the_labels_variance() -> None:
    task = toy_task(regression=True)
    loss = ClassifyLoss(task, task.train)
    gold = torch.tensor([float(row.label or 0) for row in task.train])
    logits = torch.randn(len(gold), 1)
    expected = mse_loss(logits[:, 0], gold) / gold.var(unbiased=False)
    targets = loss.targets(task.train, "cpu")
    assert torch.allclose(loss.summed(logits, targets) / loss.total_weight(targets), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "balanced", "regression"])
@pytest.mark.parametrize("head", ["linear", "model"])
def test_micro_batched_gradients_equal_the_plain_batchs(bert: Path, kind: str, head: str) -> None:
    task = toy_task(regression=kind == "regression")
    recipe = fast(head=head, class_weight="balanced" if kind == "balanced" else None)
    whole, values = gradients_of(new_run(bert, task, recipe, token_budget=10_000), rows=16)
    for budget in (40, 1):
        parts, cut_values = gradients_of(new_run(bert, task, recipe, token_budget=budget), rows=16)
        same_tensors(parts, whole, 1e-6)
        assert cut_values == pytest.approx(values, abs=1e-6)


def test_read_logits_gives_classes_with_probabilities_and_numbers_as_they_are() -> None:
    logits = torch.tensor([[0.0, 2.0, -1.0], [5.0, 0.0, 0.0]])
    predictions, probabilities = read_logits(logits, ("a", "b", "c"))
    assert predictions == [1, 0]
    assert np.allclose(probabilities, logits.double().softmax(-1))
    assert read_logits(torch.tensor([[1.5], [-2.0]]), None) == ([1.5, -2.0], [[1.5], [-2.0]])


def test_scores_are_of_the_examples_labels() -> None:
    assert scores(("accuracy",), [Example(0, ("a",), 1), Example(1, ("b",), 0)], [1, 1]) == {"accuracy": 0.5}


def test_targets_have_the_dtype_the_loss_wants() -> None:
    assert ClassifyLoss(TASK, TASK.train).targets(TASK.train[:2], "cpu").dtype == torch.int64
    numbers = toy_task(regression=True)
    assert ClassifyLoss(numbers, numbers.train).targets(numbers.train[:2], "cpu").dtype == torch.float32
    assert len(encode(tokenizer(), TASK.train, 32)) == len(TASK.train)
