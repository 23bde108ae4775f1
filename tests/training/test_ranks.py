"""Two ranks of a run learn what one process learns, write one set of files, and stop together."""

import csv
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import beft
from beft.cli import main
from beft.errors import Interrupted, RanksError, RecipeError, StoreError, TrainingError
from beft.launcher import place
from beft.objectives.classify import ClassifyLoss
from beft.tasks.task import Task
from beft.training.machine import choose
from beft.training.plan import Plan
from beft.training.quantize import loading_keywords
from beft.training.ranks import Ranks, check_device, here, own_threads, together
from beft.training.recipe import Recipe
from toys import adapter_files, fast, same_tensors, toy_task
from training.common import After, learn
from training.pair import Outcome, Pair
from training.test_prompts import choosing, decoder, recipe, writing

__all__ = ["decoder"]

BALANCED = fast(batch_size=12, warmup=0.2, class_weight="balanced")
UNEVEN = 37
"""Training rows: refitted in batches of 12, the last of which is one row, so that a rank has none."""


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    found = Pair()
    yield found
    found.end()


def uneven() -> Task:
    """Colours in unequal numbers, so that their weights differ."""
    task = toy_task(UNEVEN + 8, 13)
    greens = [row for row in task.train if row.label == 1]
    return dataclasses.replace(task, train=[row for row in task.train if row not in greens[:8]])


def together_learn(base: Path, task: Any, how: Recipe, out: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    """A run in a rank; its metrics."""
    return learn(base, task, how, out, **options).metrics


def values(outcomes: list[Outcome]) -> list[Any]:
    for outcome in outcomes:
        assert outcome.error is None, outcome.error
    return [outcome.value for outcome in outcomes]


def same_run(one: Path, two: Path) -> None:
    """Two folders hold the same files, the same weights to 1e-6, the same scores and predictions."""
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    for name in names:
        if name.endswith(".safetensors"):
            same_tensors(load_file(one / name), load_file(two / name), 1e-6)
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (one, two))
    for key in ("dev", "evaluation", "evaluation_splits", "baselines", "best_epoch", "evaluation_rows"):
        assert first[key] == second[key], key
    answers = [
        [line.get("prediction") for line in map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())]
        for folder in (one, two)
    ]
    assert answers[0] == answers[1]


class TestOneRun:
    @pytest.mark.parametrize("head", ["linear", "model"])
    def test_the_weights_are_those_of_one_process(self, bert: Path, tmp_path: Path, pair: Pair, head: str) -> None:
        how = dataclasses.replace(BALANCED, head=head)
        options = {"with_baselines": head == "linear"}
        learn(bert, uneven(), how, tmp_path / "one", **options)
        both = values(pair.run(together_learn, bert, uneven(), how, tmp_path / "two", options))
        same_run(tmp_path / "one", tmp_path / "two")
        assert both[0] == both[1] == json.loads((tmp_path / "two/metrics.json").read_text())

    def test_so_it_is_with_texts_read_apart(self, bert: Path, tmp_path: Path, pair: Pair) -> None:
        task, how = toy_task(31, 7, pairs=True), dataclasses.replace(BALANCED, pairs="apart")
        learn(bert, task, how, tmp_path / "one")
        values(pair.run(together_learn, bert, task, how, tmp_path / "two", {}))
        same_run(tmp_path / "one", tmp_path / "two")

    def test_so_it_is_with_prompts_chosen_or_written(self, decoder: Path, tmp_path: Path, pair: Pair) -> None:
        for name, task in (("chosen", choosing(31, 7)), ("written", writing(21, 5))):
            how = recipe(batch_size=10)
            learn(decoder, task, how, tmp_path / f"{name}-1", with_baselines=True)
            options = {"with_baselines": True}
            values(pair.run(together_learn, decoder, task, how, tmp_path / f"{name}-2", options))
            same_run(tmp_path / f"{name}-1", tmp_path / f"{name}-2")

    @pytest.mark.parametrize("method", ["layernorm", "lora"])
    def test_so_it_is_with_what_another_method_trains(
        self, bert: Path, tmp_path: Path, pair: Pair, method: str
    ) -> None:
        how = BALANCED.with_method(method)
        learn(bert, uneven(), how, tmp_path / "one")
        values(pair.run(together_learn, bert, uneven(), how, tmp_path / "two", {}))
        same_run(tmp_path / "one", tmp_path / "two")

    def test_so_are_the_losses_of_full_fine_tuning(self, bert: Path, tmp_path: Path, pair: Pair) -> None:
        """Its key biases move by rounding alone, so not every weight can be the same."""
        how = dataclasses.replace(BALANCED.with_method("full"), lr=1e-3)
        learn(bert, uneven(), how, tmp_path / "one")
        values(pair.run(together_learn, bert, uneven(), how, tmp_path / "two", {}))
        one, two = (
            [float(row["train_loss"]) for row in csv.DictReader((tmp_path / name / "history.csv").open())]
            for name in ("one", "two")
        )
        assert one == pytest.approx(two, abs=1e-5)


def plans() -> list[Plan]:
    return [Plan("plain", BALANCED), Plan("other", fast(seed=3, lr=3e-3, terms="query+value", batch_size=5))]


def many(base: Path, out: Path, names: list[str]) -> dict[str, Any]:
    """A bank of the plans of these names; its runs' evaluation scores."""
    chosen = [plan for plan in plans() if plan.name in names]
    found = beft.train_many(str(base), uneven(), chosen, out, dtype="fp32", with_baselines=False)
    return {name: result.evaluation for name, result in found.results.items()}


def test_a_bank_gives_each_run_what_it_has_in_one_process(bert: Path, tmp_path: Path, pair: Pair) -> None:
    names = [plan.name for plan in plans()]
    alone = many(bert, tmp_path / "one", names)
    both = values(pair.run(many, bert, tmp_path / "two", names))
    assert both == [alone, alone]
    assert {path.name for path in (tmp_path / "one").iterdir()} == {path.name for path in (tmp_path / "two").iterdir()}
    for name in names:
        same_run(tmp_path / "one" / name, tmp_path / "two" / name)


# ---- stopping --------------------------------------------------------------------------------------------------------


def stop_the_other(base: Path, out: Path, folder: Path) -> None:
    """A run whose second rank gets a signal at its third step."""
    rank = int(os.environ["RANK"])
    (folder / f"pid-{rank}").write_text(str(os.getpid()))

    def strike() -> None:
        os.kill(int((folder / "pid-1").read_text()), signal.SIGTERM)
        time.sleep(0.5)  # so that it is there when both ask

    learn(base, uneven(), BALANCED, out, listener=After(3, strike))


def test_a_signal_to_any_rank_stops_all_and_resume_goes_on(bert: Path, tmp_path: Path, pair: Pair) -> None:
    outcomes = pair.run(stop_the_other, bert, tmp_path / "out", tmp_path)
    assert [type(outcome.error) for outcome in outcomes] == [Interrupted, Interrupted]
    assert {str(outcome.error) for outcome in outcomes} == {str(outcomes[0].error)}
    assert not (tmp_path / "out/metrics.json").exists()
    values(pair.run(together_learn, bert, uneven(), BALANCED, tmp_path / "out", {"resume": True}))
    values(pair.run(together_learn, bert, uneven(), BALANCED, tmp_path / "whole", {}))
    assert adapter_files(tmp_path / "out") == adapter_files(tmp_path / "whole")


def spoil(call: int, how: Callable[[], Any]) -> Callable[[], None]:
    """Call `how` in the second rank at a loss of its training; gives the way back."""
    calls, summed = [0], ClassifyLoss.summed

    def wrong(self: ClassifyLoss, logits: Tensor, targets: Tensor) -> Tensor:
        calls[0] += logits.requires_grad
        factor = how() if calls[0] == call and os.environ["RANK"] == "1" else 1.0
        return summed(self, logits, targets) * factor

    ClassifyLoss.summed = wrong  # type: ignore[method-assign]

    def back() -> None:
        ClassifyLoss.summed = summed  # type: ignore[method-assign]

    return back


def not_finite() -> float:
    return float("nan")


def a_fault() -> float:
    raise ValueError("shapes do not fit")


def death() -> float:
    os._exit(1)


def spoiled(base: Path, out: Path, how: Callable[[], Any]) -> None:
    """A run whose second rank meets trouble in its third step."""
    back = spoil(3, how)
    try:
        learn(base, uneven(), BALANCED, out)
    finally:
        back()


def test_a_loss_that_is_not_finite_on_one_rank_stops_all(bert: Path, tmp_path: Path, pair: Pair) -> None:
    outcomes = pair.run(spoiled, bert, tmp_path / "out", not_finite)
    assert [type(outcome.error) for outcome in outcomes] == [TrainingError, TrainingError]
    assert "step 3 of" in str(outcomes[0].error)
    assert json.loads((tmp_path / "out/run.json").read_text())["status"] == "failed"
    assert not any(hasattr(outcome.error, "__notes__") for outcome in outcomes)  # the first one's message suffices


def test_an_error_of_one_rank_is_told_to_the_others(bert: Path, tmp_path: Path, pair: Pair) -> None:
    first, second = pair.run(spoiled, bert, tmp_path / "out", a_fault)
    assert isinstance(second.error, ValueError)
    assert isinstance(first.error, RanksError)
    assert "process 2 of 2" in str(first.error)
    assert "shapes do not fit" in str(first.error)


def late() -> str:
    """The second rank is late for an exchange; whatever the first one then says."""
    with together(timedelta(seconds=3)) as ranks:
        if ranks.leads:
            return ranks.first(lambda: "met")
        time.sleep(5)
        return ""


def test_a_rank_that_is_late_is_not_waited_for_for_ever(pair: Pair) -> None:
    first, _ = pair.run(late)
    assert isinstance(first.error, RanksError)
    assert "gone or late" in str(first.error)


# ---- what is refused -------------------------------------------------------------------------------------------------


def command(*words: str) -> int:
    """Run the command line; its exit code."""
    sys.argv = ["beft", *words]
    try:
        main.run()
    except SystemExit as done:
        return int(done.code or 0)
    return 0


def test_a_refused_folder_is_one_message_and_exit_code_2(bert: Path, tmp_path: Path, pair: Pair) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("mine")
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"red w{n},red\nblue w{n},blue\n" for n in range(10)))
    words = ("train", "-m", str(bert), "--data", str(rows), "--text", "text", "--label", "label")
    outcomes = pair.run(command, *words, "-o", str(tmp_path / "out"))
    assert values(outcomes) == [2, 2]
    assert outcomes[0].text.count("error:") == 1
    assert "--overwrite" in outcomes[0].text
    assert "error:" not in outcomes[1].text
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def only_one_fails(fails: int) -> str:
    """An error of one rank before any sum; the other asks for something."""
    with together() as ranks:
        if ranks.rank == fails:
            raise StoreError("rows.csv", expected="a file", found="none")
        return ranks.first(lambda: "found")


def test_an_error_before_training_meets_the_others_where_they_ask(pair: Pair) -> None:
    for fails in (0, 1):
        outcomes = pair.run(only_one_fails, fails)
        assert [str(outcome.error) for outcome in outcomes] == ["rows.csv: expected a file, found none."] * 2


def test_a_device_map_and_a_numbered_gpu_are_refused(monkeypatch: pytest.MonkeyPatch, bert: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(RecipeError, match="2 processes and a base spread over devices"):
        loading_keywords(None, "auto", choose("cpu", "fp32"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RecipeError, match="1 GPU for process 2"):
        check_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda")
    with pytest.raises(RecipeError, match="a GPU for each process"):
        check_device("cuda:0")


# ---- rows and threads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 5, 12])
def test_every_row_has_one_rank(size: int, count: int) -> None:
    lengths = [3 * number % 7 for number in range(20)]
    rows = list(range(20))[-count:] if count else []
    ranks = [Ranks(number, size) for number in range(size)]
    assert sorted(row for each in ranks for row in each.dealt(rows, lengths)) == rows
    assert [row for each in ranks for row in each.stretch(rows)] == rows
    tokens = [sum(lengths[row] for row in each.dealt(rows, lengths)) for each in ranks]
    assert max(tokens) - min(tokens) <= max(lengths)


def test_without_a_launcher_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert place().size == 1
    with together() as ranks:
        assert ranks is here()
        assert ranks.alone
        assert not torch.distributed.is_initialized()


def test_ranks_share_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert choose("cpu", "fp32").threads == 6
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert own_threads() == torch.get_num_threads()


# ---- last, for it ends the pair --------------------------------------------------------------------------------------


def test_a_rank_that_dies_ends_the_others(bert: Path, tmp_path: Path, pair: Pair) -> None:
    first, second = pair.run(spoiled, bert, tmp_path / "out", death)
    assert second == Outcome()
    assert isinstance(first.error, RanksError)
    assert "--resume" in str(first.error)
    assert json.loads((tmp_path / "out/run.json").read_text())["status"] == "running"
