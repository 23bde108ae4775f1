"""A run that was stopped and resumed makes the same files, bit for bit, as one that was not."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file

import beft
from beft.errors import Interrupted, StoreError, TrainingError
from beft.tasks.own import own_task
from beft.training import signals
from beft.training.checkpoint import NAME as CHECKPOINT
from beft.training.checkpoint import Pace, save_checkpoint
from beft.training.company import Company
from beft.training.grounds import LabelGround
from toys import adapter_files, fast, toy_task, write_csv
from training.common import After, Notes, learn

RECIPE = fast(batch_size=12, dropout="model", warmup=0.2, patience=2)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def history_without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "train_seconds"} for row in history]


@pytest.fixture(scope="module")
def whole(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, list[dict[str, Any]]]:
    """A run without a break: its folder, its number of steps and its history."""
    out, notes = tmp_path_factory.mktemp("whole") / "out", Notes()
    result = learn(bert, toy_task(), RECIPE, out, listener=notes)
    return out, notes.steps, history_without_times(result.history)


def test_stopped_after_any_step_and_resumed_equals_a_whole_run(
    bert: Path, tmp_path: Path, whole: tuple[Path, int, list[dict[str, Any]]]
) -> None:
    folder, steps, history = whole
    assert steps >= 9
    for number in range(1, steps + 1):
        out = tmp_path / f"stopped-{number}"
        with pytest.raises(Interrupted, match="--resume") as caught:
            learn(bert, toy_task(), RECIPE, out, listener=After(number, stop))
        assert caught.value.signal == signal.SIGTERM
        assert not (out / "metrics.json").exists()
        resumed = learn(bert, toy_task(), RECIPE, out, resume=True)
        assert adapter_files(out) == adapter_files(folder), number
        assert history_without_times(resumed.history) == history, number
        assert not (out / CHECKPOINT).exists()


def test_stopped_after_every_step_still_equals_a_whole_run(
    bert: Path, tmp_path: Path, whole: tuple[Path, int, list[dict[str, Any]]]
) -> None:
    out, resume = tmp_path / "out", False
    for _ in range(whole[1] + 1):
        try:
            learn(bert, toy_task(), RECIPE, out, resume=resume, listener=After(1, stop))
            break
        except Interrupted:
            resume = True
    assert adapter_files(out) == adapter_files(whole[0])


def test_a_run_out_of_patience_does_not_go_on_after_a_resume(bert: Path, tmp_path: Path) -> None:
    recipe = fast(lr=1e-9, epochs=5, patience=1, batch_size=40)  # one step an epoch: the second epoch gains nothing
    notes = Notes()
    learn(bert, toy_task(), recipe, tmp_path / "whole", listener=notes)
    with pytest.raises(Interrupted):
        learn(bert, toy_task(), recipe, tmp_path / "out", listener=After(2, stop))
    result = learn(bert, toy_task(), recipe, tmp_path / "out", resume=True)
    assert [row["epoch"] for row in result.history if row["phase"] == "select"] == [1, 2]
    assert adapter_files(tmp_path / "out") == adapter_files(tmp_path / "whole")


def test_resume_keeps_every_choice_that_was_made(bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        learn(bert, toy_task(), RECIPE, out, token_budget=77, listener=After(2, stop))
    result = learn(bert, toy_task(), RECIPE, out, resume=True, token_budget=9999, dtype="auto")
    assert result.choices.token_budget == 77
    assert result.choices.dtype == "fp32"


def test_stopped_before_the_first_epoch_is_resumed_from_the_start(
    bert: Path, tmp_path: Path, whole: tuple[Path, int, list[dict[str, Any]]]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        learn(bert, toy_task(), RECIPE, out, listener=After(1, stop))
    (out / CHECKPOINT).unlink()  # as if killed before the first one was written
    learn(bert, toy_task(), RECIPE, out, resume=True)
    assert adapter_files(out) == adapter_files(whole[0])


class TestCheckpointsThatCanWait:
    """Little training is worth no checkpoint: what a kill loses of it is trained again."""

    @pytest.fixture(autouse=True)
    def written(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The phase of every checkpoint, of which none but the first is ever due."""
        written: list[str] = []

        def save(directory: Path, position: Any, *rest: Any) -> None:
            written.append(position.phase)
            save_checkpoint(directory, position, *rest)

        monkeypatch.setattr("beft.training.checkpoint.WORTH", 1e9)
        monkeypatch.setattr("beft.training.loop.save_checkpoint", save)
        return written

    def test_a_kill_after_them_is_made_good(
        self, bert: Path, tmp_path: Path, whole: tuple[Path, int, list[dict[str, Any]]], written: list[str]
    ) -> None:
        def kill() -> None:
            raise KeyboardInterrupt

        for steps in (4, 7, whole[1]):  # the first epoch has three
            out = tmp_path / str(steps)
            with pytest.raises(KeyboardInterrupt):
                learn(bert, toy_task(), RECIPE, out, listener=After(steps, kill))
            assert written == ["select"]
            resumed = learn(bert, toy_task(), RECIPE, out, resume=True)
            assert adapter_files(out) == adapter_files(whole[0])
            assert history_without_times(resumed.history) == whole[2]
            written.clear()

    def test_a_stop_in_the_evaluation_keeps_all_training(
        self, bert: Path, tmp_path: Path, whole: tuple[Path, int, list[dict[str, Any]]], written: list[str]
    ) -> None:
        class InEvaluation(Notes):
            def stage(self, name: str, steps: int) -> None:
                super().stage(name, steps)
                if name == "evaluation":
                    stop()

        with pytest.raises(Interrupted):
            learn(bert, toy_task(), RECIPE, tmp_path, listener=InEvaluation())
        assert written == ["select", "done"]
        notes = Notes()
        learn(bert, toy_task(), RECIPE, tmp_path, resume=True, listener=notes)
        assert notes.steps == 0
        assert adapter_files(tmp_path) == adapter_files(whole[0])

    def test_a_stop_while_a_bank_evaluates_keeps_all_training(
        self, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: list[str]
    ) -> None:
        plans = [beft.Plan(name, fast(seed=seed)) for seed, name in enumerate("ab")]
        options: dict[str, Any] = {"dtype": "fp32", "with_baselines": False}
        beft.train_many(str(bert), toy_task(), plans, tmp_path / "whole", **options)
        judge = Company._judge

        def stopped(self: Company, members: Any) -> Any:
            if members[0].wish.final:
                stop()
            return judge(self, members)

        with monkeypatch.context() as patch:
            patch.setattr(Company, "_judge", stopped)
            written.clear()
            with pytest.raises(Interrupted):
                beft.train_many(str(bert), toy_task(), plans, tmp_path / "out", **options)
        assert written == ["select", "select", "done", "done"]
        monkeypatch.setattr(Company, "_gradients", None)  # nothing is left to train
        beft.train_many(str(bert), toy_task(), plans, tmp_path / "out", resume=True, **options)
        for plan in plans:
            assert adapter_files(tmp_path / "out" / plan.name) == adapter_files(tmp_path / "whole" / plan.name)

    @pytest.mark.parametrize("when", ["judged", "begun"])
    def test_a_stop_while_another_run_is_judged_at_the_end_or_begun_keeps_all_training(
        self, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
    ) -> None:
        """Of two runs with room for two the first ends as the other has its dev rows judged; then a third begins."""
        recipes = {"short": fast(refit=False), "long": fast(epochs=9), "late": fast()}
        judge, begin = Company._judge, LabelGround.begin

        def judging(self: Company, members: Any) -> Any:
            if members[0].wish.final and when == "judged":
                stop()
            return judge(self, members)

        def beginning(self: LabelGround, plan: beft.Plan, *rest: Any, **options: Any) -> Any:
            if plan.name == "late":
                raise Interrupted("stopped in the stage 'frozen'", signal=signal.SIGTERM, remedy="go on")
            return begin(self, plan, *rest, **options)

        monkeypatch.setattr(Company, "_judge", judging)
        monkeypatch.setattr(LabelGround, "begin", beginning)
        monkeypatch.setattr("beft.training.banks.guard", lambda *given, **options: 2)
        plans = [beft.Plan(name, recipe) for name, recipe in recipes.items()]
        with pytest.raises(Interrupted):
            beft.train_many(str(bert), toy_task(), plans, tmp_path, dtype="fp32", with_baselines=False)
        with safetensors.safe_open(tmp_path / "long" / CHECKPOINT, "pt") as file:
            position = json.loads(file.metadata()["position"])
        assert (position["epoch"], position["step"], len(position["history"])) == (2, 0, 2)

    def test_judging_counts_as_work(self, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pace = Pace()
        pace.wrote(0.25)
        monkeypatch.setattr("beft.training.checkpoint.WORTH", 20)
        pace.work(4.9)
        assert not pace.due
        pace.work(0.2)
        assert pace.due
        worked: list[float] = []
        monkeypatch.setattr(Pace, "work", lambda self, seconds: worked.append(seconds))
        learn(bert, toy_task(), fast(epochs=1, refit=False), tmp_path)  # four steps, and the dev rows
        assert len(worked) == 5
        assert min(worked) > 0


def test_a_failure_after_a_resume_leaves_what_was_resumed_from(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = fast(selection="none", epochs=3, schedule="constant"), tmp_path / "out"
    with pytest.raises(Interrupted):
        learn(bert, toy_task(), recipe, out, listener=After(7, stop))  # the second step of the second epoch
    with safetensors.safe_open(out / CHECKPOINT, "pt") as file:
        kept = {key.removeprefix("leaf.head."): file.get_tensor(key) for key in file.keys() if "head" in key}  # noqa: SIM118
    monkeypatch.setattr("beft.training.loop.take", lambda steps: [float("nan")])
    with pytest.raises(TrainingError, match="step 8 of 15"):
        learn(bert, toy_task(), recipe, out, resume=True)
    found = load_file(out / "head.safetensors")
    assert torch.equal(found["weight"], kept["weight"])


class TestRefused:
    @pytest.fixture
    def stopped(self, bert: Path, tmp_path: Path) -> Path:
        with pytest.raises(Interrupted):
            learn(bert, toy_task(), RECIPE, tmp_path / "out", listener=After(4, stop))
        return tmp_path / "out"

    def test_another_recipe(self, bert: Path, stopped: Path) -> None:
        other = dataclasses.replace(RECIPE, lr=0.02, seed=3)
        changed = r"another lr \(0\.02 in place of 0\.01\), seed \(3 in place of 0\)"
        with pytest.raises(StoreError, match=f"expected the recipe.*{changed}.*--overwrite"):
            learn(bert, toy_task(), other, stopped, resume=True)

    def test_other_data(self, bert: Path, stopped: Path) -> None:
        with pytest.raises(StoreError, match="expected the data the run was started with"):
            learn(bert, toy_task(40), RECIPE, stopped, resume=True)

    def test_another_model(self, llama: Path, stopped: Path) -> None:
        with pytest.raises(StoreError, match=r"expected the model the run was started with, found '.*tiny-llama'"):
            learn(llama, toy_task(), RECIPE, stopped, resume=True)

    def test_a_damaged_checkpoint(self, bert: Path, stopped: Path) -> None:
        file = stopped / CHECKPOINT
        file.write_bytes(file.read_bytes()[:-40])
        with pytest.raises(StoreError, match=rf"{CHECKPOINT}: expected a whole checkpoint"):
            learn(bert, toy_task(), RECIPE, stopped, resume=True)

    def test_starting_again_without_resume(self, bert: Path, stopped: Path) -> None:
        with pytest.raises(StoreError, match=r"expected an empty or new folder.*--resume.*--overwrite"):
            learn(bert, toy_task(), RECIPE, stopped)

    def test_a_finished_run_as_another_and_a_folder_that_is_none(self, bert: Path, tmp_path: Path) -> None:
        learn(bert, toy_task(), fast(epochs=1), tmp_path / "done")
        with pytest.raises(StoreError, match=r"expected the recipe .*another epochs \(2 in place of 1\)"):
            learn(bert, toy_task(), fast(epochs=2), tmp_path / "done", resume=True)
        with pytest.raises(StoreError, match=r"nowhere.*found no checkpoint.*[Ss]tart without --resume"):
            learn(bert, toy_task(), fast(epochs=1), tmp_path / "nowhere", resume=True)

    def test_a_folder_of_other_things(self, bert: Path, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("all of it")
        with pytest.raises(StoreError, match="found no checkpoint"):
            learn(bert, toy_task(), fast(epochs=1), tmp_path, resume=True)


def test_a_finished_run_is_read_and_what_a_killed_process_left_is_taken_out(bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = learn(bert, toy_task(), fast(epochs=1), out)
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / CHECKPOINT).write_bytes(b"whole")  # as if killed after the last file
    (out / ".run.json.123.old.part").write_bytes(b"half")
    again = learn(bert, toy_task(), fast(epochs=1), out, resume=True)
    assert again.metrics == first.metrics
    assert again.history == first.history
    assert again.notices == [*first.notices, "this run is finished already: nothing was left to do"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files


def test_a_resumed_run_takes_out_what_was_half_written(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        learn(bert, toy_task(), RECIPE, tmp_path, listener=After(4, stop))
    (tmp_path / f".{CHECKPOINT}.123.part").write_bytes(b"half")
    learn(bert, toy_task(), RECIPE, tmp_path, resume=True)
    assert not list(tmp_path.glob(".*"))


def test_a_failed_run_without_a_checkpoint_is_to_be_started_anew(bert: Path, tmp_path: Path) -> None:
    learn(bert, toy_task(), fast(epochs=1), tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**record, "status": "failed"}))
    with pytest.raises(StoreError, match=r"found no checkpoint\. Start anew with --overwrite"):
        learn(bert, toy_task(), fast(epochs=1), tmp_path, resume=True)


def test_a_stop_of_a_run_without_a_folder_keeps_nothing(bert: Path) -> None:
    with pytest.raises(Interrupted, match="Start anew: nothing was kept"):
        learn(bert, toy_task(), RECIPE, listener=After(1, stop))


def test_overwrite_equals_a_new_folder_and_leaves_foreign_files(bert: Path, tmp_path: Path) -> None:
    learn(bert, toy_task(regression=True), fast(epochs=1), tmp_path / "out")
    (tmp_path / "out" / "thesis.txt").write_text("all of it")
    learn(bert, toy_task(), fast(epochs=1), tmp_path / "out", overwrite=True)
    learn(bert, toy_task(), fast(epochs=1), tmp_path / "new")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {path.name for path in (tmp_path / "new").iterdir()} | {"thesis.txt"}
    assert adapter_files(tmp_path / "out") == adapter_files(tmp_path / "new")


def test_overwrite_with_a_model_that_is_none_keeps_the_old_adapter(bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    learn(bert, toy_task(), fast(epochs=1), out)
    before = adapter_files(out)
    with pytest.raises(StoreError, match="no such folder"):
        learn(tmp_path / "no-model", toy_task(), fast(epochs=1), out, overwrite=True)
    assert adapter_files(out) == before
    assert (out / "metrics.json").exists()


def test_signal_handlers_are_put_back(bert: Path) -> None:
    before = [signal.getsignal(number) for number in signals.HANDLED]
    learn(bert, toy_task(), fast(epochs=1))
    assert [signal.getsignal(number) for number in signals.HANDLED] == before


def test_a_second_ctrl_c_stops_at_once() -> None:
    with signals.StopRequest() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_threads_of_a_run_are_its_own(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr("beft.training.machine.own_threads", lambda: before + 1)
    assert learn(bert, toy_task(), fast(epochs=1)).choices.threads == before + 1
    assert torch.get_num_threads() == before
    beft.train_many(str(bert), toy_task(), [beft.Plan("a", fast(epochs=1))], dtype="fp32")
    assert torch.get_num_threads() == before


def test_killed_at_random_moments_and_resumed_equals_a_whole_run(bert: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "toy.csv")
    recipe = fast(epochs=24, batch_size=4, patience=0)
    learn(bert, own_task(data, ["text"], "label"), recipe, tmp_path / "whole")
    out, draw = tmp_path / "killed", random.Random(time.time_ns())
    options = {
        "--model": bert, "--data": data, "--text": "text", "--label": "label", "--out": out, "--dtype": "fp32",
        "--epochs": 24, "--batch-size": 4, "--lr": recipe.lr, "--max-length": 32, "--device": "cpu",
    }  # fmt: skip
    command = [sys.executable, "-m", "beft.cli.main", "train", "--quiet", *(str(x) for p in options.items() for x in p)]
    process = subprocess.Popen(command)
    while not (out / CHECKPOINT).exists():
        assert process.poll() is None, "the run ended before its first checkpoint"
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.8))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    shutil.copytree(out, tmp_path / "as-killed")
    status = json.loads((out / "run.json").read_text())["status"]
    assert status == "running"
    again = After(draw.randint(1, 9), stop)
    with pytest.raises(Interrupted):  # stopped once more, a little later
        learn(bert, own_task(data, ["text"], "label"), recipe, out, resume=True, listener=again)
    learn(bert, own_task(data, ["text"], "label"), recipe, out, resume=True)
    assert adapter_files(out) == adapter_files(tmp_path / "whole")
    assert (out / "predictions.jsonl").read_bytes() == (tmp_path / "whole" / "predictions.jsonl").read_bytes()
