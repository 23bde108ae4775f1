"""A search that was stopped goes on where it was, repeats nothing, and ends as one that was never stopped."""

import json
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import beft
from beft.errors import Interrupted, RecipeError, StoreError
from beft.training.progress import BankListener, Listener
from beft.training.refit import REFIT
from toys import same_tensors, toy_task
from training.common import kill_midway, learn
from training.pair import Pair
from training.test_many import Stopping
from training.test_prompts import choosing, decoder
from training.test_prompts import recipe as prompt_recipe
from training.test_tune import SMALL, tune

__all__ = ["decoder"]

SPACE = replace(SMALL, lrs=(0.003, 0.01, 0.03), terms=("value", "query"))
OPTIONS: dict[str, Any] = {"space": SPACE, "runs": 42, "combine": "soup", "seeds": 2, "seed": 1}
"""Three rounds of 18, 12 and 6 runs, 3 of a second seed, and the refit of a soup of two."""


class Counting(BankListener):
    """Counts steps, and runs that begin."""

    def __init__(self) -> None:
        self.steps, self.begun = 0, list[str]()

    def of(self, name: str) -> Listener:
        outer = self
        self.begun.append(name)

        class One(Listener):
            def step(self, loss: float | None, examples: int) -> None:
                outer.steps += loss is not None

        return One()


@pytest.fixture(scope="module")
def whole(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The folder of a search that was never stopped, and its steps."""
    out, counting = tmp_path_factory.mktemp("whole") / "out", Counting()
    tune(bert, toy_task(30, 12), out, **OPTIONS, listener=counting)
    return out, counting.steps


def told(folder: Path) -> dict[str, Any]:
    """tune.json without what a clock says, and without notes on pictures."""
    found = json.loads((folder / "tune.json").read_text())
    return {key: value for key, value in found.items() if key not in ("seconds", "notices")}


def same_end(out: Path, whole: Path) -> None:
    assert told(out) == told(whole)
    for file in ("adapter_model.safetensors", "head.safetensors"):
        same_tensors(load_file(out / file), load_file(whole / file), 1e-6)
    names = [sorted(path.name for path in each.iterdir() if path.suffix != ".png") for each in (out, whole)]
    assert names[0] == names[1]
    trials = [[line.split(",") for line in (each / "tune.csv").read_text().splitlines()] for each in (out, whole)]
    place = trials[0][0].index("train_seconds")
    assert [row[:place] + row[place + 1 :] for row in trials[0]] == [
        row[:place] + row[place + 1 :] for row in trials[1]
    ]


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.87, 0.99])
def test_stopped_in_any_stage_and_resumed_equals_a_whole_search(
    bert: Path, tmp_path: Path, whole: tuple[Path, int], share: float
) -> None:
    folder, steps = whole
    out, at = tmp_path / "out", max(1, round(share * steps))
    with pytest.raises(Interrupted, match="--resume"):
        tune(bert, toy_task(30, 12), out, **OPTIONS, listener=Stopping(at))
    assert not (out / "tune.json").exists()
    with pytest.raises(StoreError, match="Use --resume to go on"):
        tune(bert, toy_task(30, 12), out, **OPTIONS)
    rest = Counting()
    result = tune(bert, toy_task(30, 12), out, **OPTIONS, resume=True, listener=rest)
    assert rest.steps <= steps - at, "no step is made twice"
    assert result.combination is not None
    same_end(out, folder)


def test_killed_in_the_middle(bert: Path, tmp_path: Path, whole: tuple[Path, int]) -> None:
    out = tmp_path / "out"
    code = (
        "from beft.report import plots; plots.available = lambda: False\n"
        "from training.test_search_folder import OPTIONS, toy_task, tune\n"
        "tune(BASE, toy_task(30, 12), OUT, **OPTIONS)\n"
    )
    stage = random.Random(time.time_ns()).choice(["round1", "round2", "seeds", "refit"])
    kill_midway(code, bert, out, out / "search" / stage / "bank.json", 0.3)
    if (out / "tune.json").exists():
        shutil.rmtree(out)  # it was quicker: nothing to resume
    done, rest = len(list(out.glob("search/*/*/metrics.json"))), Counting()
    tune(bert, toy_task(30, 12), out, **OPTIONS, resume=True, listener=rest)
    assert len([name for name in rest.begun if name != REFIT]) == 18 + 12 + 6 + 3 + 2 - done
    same_end(out, whole[0])


def search_together(base: Path, out: Path, options: dict[str, Any]) -> tuple[int, float]:
    """A search, for a rank of several."""
    result = tune(base, toy_task(30, 12), out, **options)
    return len(result.trials), result.expected["mean"]


def test_two_processes_search_as_one(bert: Path, tmp_path: Path, whole: tuple[Path, int]) -> None:
    pair = Pair()
    try:
        outcomes = pair.run(search_together, bert, tmp_path / "out", OPTIONS)
        assert outcomes[0].error is None, outcomes[0].error
        assert outcomes[0].value == outcomes[1].value
        same_end(tmp_path / "out", whole[0])
        minutes = {**OPTIONS, "space": SMALL, "runs": None, "minutes": 5}
        outcomes = pair.run(search_together, bert, tmp_path / "minutes", minutes)
        assert outcomes[0].error is None, outcomes[0].error
        assert outcomes[0].value == outcomes[1].value
        assert not (tmp_path / "minutes" / "search").exists()
    finally:
        pair.end()


def test_prompts_keep_their_baseline_after_a_resume(decoder: Path, tmp_path: Path) -> None:
    space = beft.Space(lrs=(0.01, 0.05), terms=("value",), layers=(None,), epochs=(2,))
    options: dict[str, Any] = {"space": space, "recipe": prompt_recipe()}
    plain = tune(decoder, choosing(18, 6), tmp_path / "whole", **options)
    with pytest.raises(Interrupted):
        tune(decoder, choosing(18, 6), tmp_path / "out", **options, listener=Stopping(7))
    resumed = tune(decoder, choosing(18, 6), tmp_path / "out", **options, resume=True)
    assert resumed.baseline is not None
    assert told(tmp_path / "out") == told(tmp_path / "whole")
    assert resumed.difference == plain.difference


def test_minutes_go_on_from_what_was_used(bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = {**OPTIONS, "runs": None, "minutes": 5, "combine": "none"}
    with pytest.raises(Interrupted):
        tune(bert, toy_task(30, 0), out, **options, listener=Stopping(40))
    record = json.loads((out / "search" / "search.json").read_text())
    assert record["seconds"] > 0
    planned = [each["candidates"] for each in record["decided"]["round 1"]]
    record["seconds"] = 299.99  # all but spent
    (out / "search" / "search.json").write_text(json.dumps(record))
    result = tune(bert, toy_task(30, 0), out, **options, resume=True)
    assert len(planned) > 1
    assert [each.candidates for each in result.rounds] == planned[:1], "the round that had begun, and no other"
    assert any("time ran out before the last round" in note for note in result.notices)
    assert result.seconds > 299


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folds": 4}, "another folds"),
        ({"space": SMALL}, "another lrs, terms"),
        ({"seed": 2}, "another seed"),
        ({"runs": 60}, "another runs"),
        ({"combine": "auto"}, "another combine"),
    ],
)
def test_resumed_with_other_settings(bert: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        tune(bert, toy_task(30, 12), out, **OPTIONS, listener=Stopping(1))
    record = json.loads((out / "search" / "search.json").read_text())
    del record["settings"]["recipe"]["head_penalty"]  # as before there was a choice
    (out / "search" / "search.json").write_text(json.dumps(record))
    with pytest.raises(StoreError, match=rf"expected the settings the run was started with, found {message}\. "):
        tune(bert, toy_task(30, 12), out, **{**OPTIONS, **change}, resume=True)
    with pytest.raises(StoreError, match="another data"):
        tune(bert, toy_task(33, 12), out, **OPTIONS, resume=True)


def test_folders_without_a_search(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(StoreError, match="expected a search to resume, found other files"):
        tune(bert, toy_task(), tmp_path, resume=True)
    (tmp_path / "mine" / "search").mkdir(parents=True)
    (tmp_path / "mine" / "search" / "thesis.txt").write_text("all of it")
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(StoreError, match="search: expected a search, or nothing there yet, found other files"):
            tune(bert, toy_task(), tmp_path / "mine", **options)
    out = tmp_path / "out"
    tune(bert, toy_task(30, 0), out, resume=True)  # nothing there yet: it begins
    with pytest.raises(StoreError, match=r"expected a search to resume, found a finished one. Read its tune.json"):
        tune(bert, toy_task(30, 0), out, resume=True)


def test_killed_while_the_search_is_taken_away(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("beft.training.unfinished.shutil.rmtree", lambda *given, **more: None)
        tune(bert, toy_task(30, 0), out)
    (half,) = out.glob(".*.part")
    (half / "search.json").unlink()
    with pytest.raises(StoreError, match="found a finished one"):
        tune(bert, toy_task(30, 0), out, resume=True)
    assert not half.exists()


def test_a_search_that_an_error_breaks_off_keeps_its_finished_runs(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> None:
        raise StoreError("a disk", found="no space")

    monkeypatch.setattr("beft.training.many.write_summary", full)
    with pytest.raises(StoreError, match="no space"):
        tune(bert, toy_task(30, 0), tmp_path / "out")
    monkeypatch.undo()
    done, rest = len(list((tmp_path / "out").glob("search/round1/*/metrics.json"))), Counting()
    assert done
    tune(bert, toy_task(30, 0), tmp_path / "out", resume=True, listener=rest)
    assert rest.begun == ["seed0", REFIT]


def test_a_search_that_cannot_begin_leaves_the_folder_free(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a budget of 1e-06 minutes"):
        tune(bert, toy_task(30, 0), tmp_path / "out", runs=None, minutes=1e-6)
    tune(bert, toy_task(30, 0), tmp_path / "out")


def test_overwrite_begins_anew(bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    learn(bert, toy_task(30, 0), beft.Recipe(epochs=1), out)
    with pytest.raises(Interrupted):
        tune(bert, toy_task(30, 0), out, **OPTIONS, overwrite=True, listener=Stopping(60))
    assert (out / "metrics.json").exists(), "what was there stays until there is something better"
    assert os.listdir(out / "search")
    result = tune(bert, toy_task(30, 0), out, overwrite=True)
    assert len(result.trials) == 6
    assert not (out / "search").exists()


def test_without_a_folder_nothing_is_left(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tune(bert, toy_task(30, 0))
    with pytest.raises(Interrupted, match="a search without a folder keeps nothing") as stop:
        tune(bert, toy_task(30, 0), listener=Stopping(3))
    assert stop.value.signal == signal.SIGTERM
    assert not os.listdir(tmp_path)
