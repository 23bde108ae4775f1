"""Work dealt out: nothing lost, nobody idle, nobody with much more than the others."""

from dataclasses import replace

import pytest

import beft
from beft.training.plan import Plan
from beft.training.work import deal, expected_work, most_steps
from toys import fast, toy_task
from training.test_prompts import choosing


def plans(*recipes: beft.Recipe) -> list[Plan]:
    return [Plan(f"r{number}", recipe).resolve(toy_task(), "model") for number, recipe in enumerate(recipes)]


@pytest.mark.parametrize("hands", [1, 2, 3, 7, 20])
def test_every_plan_is_dealt_once_and_about_evenly(hands: int) -> None:
    all_plans = plans(*(fast(epochs=1 + number * 5 % 11, seed=number) for number in range(12)))
    dealt = deal(all_plans, hands)
    assert sorted(plan.name for hand in dealt for plan in hand) == sorted(plan.name for plan in all_plans)
    assert len(dealt) == min(hands, 12)
    assert all(hand == sorted(hand, key=all_plans.index) for hand in dealt)
    loads = [sum(map(expected_work, hand)) for hand in dealt]
    best = max(sum(map(expected_work, all_plans)) / len(dealt), *map(expected_work, all_plans))
    assert max(loads) <= best * 4 / 3


def test_work_grows_with_epochs_rows_and_length_alone() -> None:
    one, two, other = plans(fast(), fast(epochs=4), fast(batch_size=3, seed=5))
    assert expected_work(two) > 1.9 * expected_work(one) - 12 * 12
    assert expected_work(other) == expected_work(one)
    assert most_steps(other) > most_steps(one)
    (blind,) = plans(fast(selection="none"))
    assert expected_work(blind) < expected_work(one)
    task = toy_task()
    few = Plan("few", fast(), rows=range(9)).resolve(task, "model")
    longer = replace(task, train=[replace(row, texts=(" ".join([row.texts[0]] * 3),)) for row in task.train])
    assert expected_work(few) < expected_work(one) < expected_work(Plan("long", fast()).resolve(longer, "model"))


def test_candidates_count_as_tokens_of_a_prompt() -> None:
    task = choosing()
    long = choosing(long=True)
    recipe = beft.prompt_recipe(task.name, epochs=2)
    plan = Plan("a", recipe)
    assert expected_work(plan.resolve(long, "model")) > expected_work(plan.resolve(task, "model"))
