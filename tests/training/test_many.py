"""Many runs side by side: each gives the weights it has alone, whatever its company."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import beft
from beft.errors import DataError, Interrupted, RecipeError, StoreError
from beft.objectives.classify import ClassifyLoss
from beft.tasks.task import Task
from beft.training import memory
from beft.training.checkpoint import NAME as CHECKPOINT
from beft.training.progress import BankListener, Listener
from beft.training.summary import over_seeds
from toys import adapter_files, fast, same_tensors, save_base, toy_task
from training.common import kill_midway, learn
from training.test_prompts import choosing, writing
from training.test_prompts import learn as learn_prompts
from training.test_prompts import recipe as prompt_recipe

Plan = beft.Plan


def many(base: Path, task: Any, plans: list[Plan], out: Path | None = None, **options: Any) -> beft.ManyResult:
    return beft.train_many(str(base), task, plans, out, **{"dtype": "fp32", "with_baselines": False, **options})


def tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {
        f"{path.name}.{key}": value
        for path in sorted(folder.glob("*.safetensors"))
        for key, value in load_file(path).items()
    }


def as_alone(base: Path, task: Task, plan: Plan, together: Path, alone: Path) -> None:
    """Assert that a run's folder holds what the run gives alone."""
    assert plan.recipe is not None
    own = plan.resolve(task, "model").own_task()
    wanted = learn(base, own, plan.recipe, alone / plan.name)  # type: ignore[arg-type]
    same_tensors(tensors(together / plan.name), tensors(alone / plan.name), 1e-6)
    metrics = json.loads((together / plan.name / "metrics.json").read_text())
    for key in ("dev", "evaluation", "best_epoch", "trainable_parameters", "train_examples"):
        assert metrics[key] == pytest.approx(wanted.metrics[key]), key
    assert {path.name for path in (together / plan.name).iterdir()} == {
        path.name for path in (alone / plan.name).iterdir()
    }


def unlike(head: str) -> list[Plan]:
    """Runs that have little in common but their base."""
    return [
        Plan("plain", fast(head=head)),
        Plan("seed", fast(seed=3, lr=3e-3, epochs=3, head=head)),
        Plan("terms", fast(terms="query+value", layers="last:1", batch_size=5, schedule="constant", head=head)),
        Plan("cut", fast(max_length=5, batch_size=3, epochs=1, clip=0.1, lr=1e-3, head=head)),
        Plan("kept", fast(refit=False, patience=1, epochs=4, lr=0.05, head=head)),
        Plan("blind", fast(selection="none", warmup=0.3, weight_decay=0.1, head=head)),
        Plan("paper", fast(selection="evaluation", refit=False, group_by_length=False, head=head)),
        Plan("balanced", fast(class_weight="balanced", head_lr=1e-3, beta1=0.8, head=head)),
        # with seed 0 the first gradient of one entry is 2e-6: near Adam's epsilon, where rounding grows
        Plan("fold", fast(head=head, seed=1), rows=range(5, 33), judged=range(5)),
    ]


@pytest.mark.parametrize("head", ["linear", "model"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_runs_in_company_give_the_weights_they_have_alone(
    request: pytest.FixtureRequest, tmp_path: Path, family: str, head: str
) -> None:
    base, task, plans = request.getfixturevalue(family), toy_task(), unlike(head)
    many(base, task, plans, tmp_path / "bank")
    for plan in plans:
        as_alone(base, task, plan, tmp_path / "bank", tmp_path / "alone")


def test_one_run_alone_in_its_bank_is_the_single_run(bert: Path, tmp_path: Path) -> None:
    plan = Plan("one", fast())
    many(bert, toy_task(), [plan], tmp_path / "bank")
    as_alone(bert, toy_task(), plan, tmp_path / "bank", tmp_path / "alone")


@pytest.mark.parametrize("limits", [{}, {"token_budget": 40}], ids=["whole", "cut"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_one_two_and_forty_runs_in_small_micro_batches(
    request: pytest.FixtureRequest, tmp_path: Path, family: str, limits: dict[str, int]
) -> None:
    base, task = request.getfixturevalue(family), toy_task(24, 6)
    plans = [Plan(f"r{n}", fast(seed=n, lr=0.002 * (1 + n % 5), batch_size=4 + n % 7, epochs=1)) for n in range(40)]
    for runs in (plans[7:8], plans[7:9], plans):
        many(base, task, runs, tmp_path / str(len(runs)), **limits)
    for plan in plans[7:9]:
        as_alone(base, task, plan, tmp_path / "2", tmp_path / "alone")
    for name, company in (("r7", "1"), ("r7", "40"), ("r8", "40")):
        same_tensors(tensors(tmp_path / company / name), tensors(tmp_path / "alone" / name), 1e-6)


def test_tasks_of_their_own_with_labels_numbers_and_pairs(bert: Path, tmp_path: Path) -> None:
    two = replace(toy_task(), labels=("red", "not red"), name="red")
    two.train = [replace(example, label=int(example.label != 0)) for example in two.train]
    two.evaluation = {}
    plans = [
        Plan("colours", fast()),
        Plan("red", fast(), task=two),
        Plan("number", fast(lr=3e-3), task=toy_task(regression=True)),
        Plan("pairs", fast(), task=toy_task(20, 5, pairs=True)),
        Plan("warm", fast(head_start="regression")),
        Plan("means", fast(head_start="means")),
        Plan("headed", fast(head="model")),
        Plan("headed-red", fast(head="model"), task=two),
    ]
    many(bert, toy_task(), plans, tmp_path / "bank")
    for plan in plans:
        as_alone(bert, plan.task or toy_task(), plan, tmp_path / "bank", tmp_path / "alone")  # type: ignore[arg-type]


def test_baselines_are_those_of_single_runs(bert: Path) -> None:
    plans = [Plan("a", fast(epochs=1)), Plan("b", fast(epochs=1, seed=4)), Plan("c", fast(epochs=1), rows=range(24))]
    found = many(bert, toy_task(), plans, with_baselines=True)
    for plan in plans:
        own = plan.resolve(toy_task(), "model").own_task()
        alone = learn(bert, own, plan.recipe, with_baselines=True)  # type: ignore[arg-type]
        assert found.results[plan.name].metrics["baselines"] == alone.metrics["baselines"]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("decoder") / "tiny-llama", "llama", head="lm", special=False)


def test_prompts_chosen_and_written_side_by_side(decoder: Path, tmp_path: Path) -> None:
    plans = [
        Plan("short", prompt_recipe()),
        Plan("long", prompt_recipe(batch_size=5, lr=0.01, seed=2), task=choosing(20, 6, long=True)),
        Plan("few", prompt_recipe(epochs=1, terms="query"), rows=range(12), judged=range(12, 18)),
        Plan("text", prompt_recipe(batch_size=4), task=writing()),
    ]
    found = many(decoder, choosing(), plans, tmp_path / "bank", with_baselines=True)
    for plan in plans:
        own = plan.resolve(choosing(), "model").own_task()
        wanted = learn_prompts(decoder, own, tmp_path / plan.name, recipe=plan.recipe)  # type: ignore[arg-type]
        same_tensors(tensors(tmp_path / "bank" / plan.name), tensors(tmp_path / plan.name), 1e-6)
        ours = found.results[plan.name]
        assert ours.metrics["evaluation"] == pytest.approx(wanted.metrics["evaluation"])
        assert ours.metrics["baselines"] == wanted.metrics["baselines"]
        assert ours.predictions == wanted.predictions


class TestOfTheModelItself:
    """Runs whose method changes the model that others of a bank share: each has one to itself."""

    PLANS = (
        Plan("lora", fast(method="lora", rank=2)),
        Plan("bias", fast()),
        Plan("lora-again", fast(method="lora", rank=2, seed=1)),
        Plan("full", fast(method="full", lr=1e-4, head="model")),
        Plan("prompt", fast(method="prompt", virtual_tokens=4)),
        Plan("bias-again", fast(seed=1)),
    )

    def test_each_is_as_it_is_alone(self, bert: Path, tmp_path: Path) -> None:
        pytest.importorskip("peft")
        plans = list(self.PLANS)
        found = many(bert, toy_task(), plans, tmp_path / "bank")
        assert [row["run"] for row in found.table] == [plan.name for plan in plans]
        for plan in plans:
            as_alone(bert, toy_task(), plan, tmp_path / "bank", tmp_path / "alone")

    def test_they_go_on_after_a_stop(self, bert: Path, tmp_path: Path) -> None:
        pytest.importorskip("peft")
        plans, out = list(self.PLANS[::2]), tmp_path / "out"
        many(bert, toy_task(), plans, tmp_path / "whole")
        with pytest.raises(Interrupted, match="--resume"):
            many(bert, toy_task(), plans, out, listener=Stopping(25))
        many(bert, toy_task(), plans, out, resume=True)
        for plan in plans:
            same_tensors(tensors(out / plan.name), tensors(tmp_path / "whole" / plan.name), 1e-6)

    def test_of_prompts(self, decoder: Path, tmp_path: Path) -> None:
        pytest.importorskip("peft")
        plans = [Plan(f"r{n}", prompt_recipe(method="lora", rank=2, lr=1e-3, seed=n)) for n in range(2)]
        many(decoder, choosing(), plans, tmp_path / "bank")
        for plan in plans:
            learn_prompts(decoder, choosing(), tmp_path / plan.name, recipe=plan.recipe)
            same_tensors(tensors(tmp_path / "bank" / plan.name), tensors(tmp_path / plan.name), 1e-6)


def test_a_run_whose_loss_is_not_finite_fails_alone(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [Plan("a", fast()), Plan("bad", fast(seed=1, refit=False, epochs=6)), Plan("c", fast(seed=2, batch_size=5))]
    many(bert, toy_task(), [plans[0], plans[2]], tmp_path / "without")
    calls, fit, summed = [0], ClassifyLoss.__init__, ClassifyLoss.summed
    poisoned: list[ClassifyLoss] = []

    def numbered(self: ClassifyLoss, *args: Any, **kwargs: Any) -> None:
        fit(self, *args, **kwargs)
        poisoned.append(self)

    def wrong(self: ClassifyLoss, logits: Tensor, targets: Tensor) -> Tensor:
        if self is poisoned[1] and logits.requires_grad:
            calls[0] += 1
            if calls[0] > 6:
                return summed(self, logits * float("nan"), targets)
        return summed(self, logits, targets)

    monkeypatch.setattr(ClassifyLoss, "__init__", numbered)
    monkeypatch.setattr(ClassifyLoss, "summed", wrong)
    found = many(bert, toy_task(), plans, tmp_path / "bank")
    assert list(found.results) == ["a", "c"]
    assert "expected a finite loss" in str(found.failures["bad"])
    for name in ("a", "c"):
        same_tensors(tensors(tmp_path / "bank" / name), tensors(tmp_path / "without" / name), 1e-6)
    kept = tensors(tmp_path / "bank" / "bad")
    assert any(value.abs().max() > 0 for value in kept.values())
    assert all(torch.isfinite(value).all() for value in kept.values())
    record = json.loads((tmp_path / "bank" / "bad" / "run.json").read_text())
    assert record["status"] == "failed"
    rows = {row["run"]: row for row in json.loads((tmp_path / "bank" / "summary.json").read_text())["runs"]}
    assert [rows[name]["status"] for name in ("a", "bad", "c")] == ["finished", "failed", "finished"]
    monkeypatch.undo()
    again = many(bert, toy_task(), plans, tmp_path / "bank", resume=True)
    assert "expected a finite loss" in str(again.failures["bad"])


def test_a_slot_that_falls_free_is_taken_by_the_next(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = [Plan(f"r{n}", fast(seed=n, epochs=1 + n % 3)) for n in range(7)]
    free = many(bert, toy_task(), plans)
    monkeypatch.setattr("beft.training.banks.guard", lambda *args, **options: 2)
    active: set[str] = set()
    most = [0]

    class Counting(BankListener):
        def of(self, name: str) -> Listener:
            active.add(name)
            most[0] = max(most[0], len(active))
            return Listener()

        def ended(self, name: str, scores: Any, error: Any) -> None:
            active.discard(name)

    two = many(bert, toy_task(), plans, listener=Counting())
    assert most[0] == 2
    assert not active
    assert list(two.results) == [plan.name for plan in plans]
    for name, result in free.results.items():
        assert two.results[name].predictions == result.predictions
        assert [row["train_loss"] for row in two.results[name].history] == pytest.approx(
            [row["train_loss"] for row in result.history], abs=1e-6
        )


def test_texts_are_tokenised_once(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from beft.training import grounds

    seen: list[int] = []
    encode = grounds.encode

    def counting(tokenizer: Any, rows: Any, limit: int, **how: Any) -> Any:
        seen.append(len(rows))
        return encode(tokenizer, rows, limit, **how)

    monkeypatch.setattr(grounds, "encode", counting)
    many(bert, toy_task(), [Plan(f"r{n}", fast(epochs=1, seed=n)) for n in range(5)])
    assert seen == [36, 12]


class TestMemory:
    def test_less_memory_lowers_the_budget_then_the_runs(self, bert: Path) -> None:
        from beft.training.base import load_base
        from beft.training.machine import choose

        plans = [Plan(f"r{n}", fast(max_length=8)).resolve(toy_task(), "model") for n in range(1000)]
        choices = choose("cpu", "fp32", 8, 4096)
        model = load_base(str(bert), choices, head="linear").model
        found = []
        for gib in (8.0, 0.02, 0.001):
            own = replace(choices)
            found.append((memory.guard(model, plans, own, gib, fixed=False), own.token_budget))
        assert found[0] == (1000, memory.CPU_TOKENS)
        assert memory.guard(model, plans, choices, 8.0, fixed=True) == 1000
        assert choices.token_budget == 4096
        choices.token_budget = 10**6
        assert memory.guard(model, plans, choices, 8.0, fixed=False) == 1000
        assert choices.token_budget == memory.CPU_TOKENS
        assert memory.guard(model, plans, replace(choices, token_budget=10**6), 8.0, fixed=True) == 1000
        assert found[0][0] >= found[1][0] > found[2][0] >= 1
        assert found[0][1] >= found[1][1] > found[2][1] >= 8
        with pytest.raises(RecipeError, match=r"memory .* GiB: expected .* for one run and one micro-batch"):
            memory.guard(model, plans, choices, 1e-5, fixed=False)

    def test_running_short_halves_the_budget_and_changes_nothing(
        self, bert: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plans = [Plan("a", fast()), Plan("b", fast(seed=1))]
        whole = many(bert, toy_task(), plans)
        calls, summed = [0], ClassifyLoss.summed

        def short(self: ClassifyLoss, logits: Tensor, targets: Tensor) -> Tensor:
            calls[0] += 1
            if calls[0] == 4:
                raise torch.OutOfMemoryError("no more")
            return summed(self, logits, targets)

        monkeypatch.setattr(ClassifyLoss, "summed", short)
        cut = many(bert, toy_task(), plans, token_budget=64)
        assert cut.results["a"].choices.token_budget == 32
        for name in ("a", "b"):
            losses = [[row["train_loss"] for row in each.results[name].history] for each in (whole, cut)]
            assert losses[0] == pytest.approx(losses[1], abs=1e-6)


class TestRefused:
    @pytest.mark.parametrize(
        ("plans", "message"),
        [
            ([], "runs: expected at least one"),
            ([Plan("a"), Plan("b"), Plan("a")], "runs: expected every name once, found 'a' twice"),
            ([Plan("a", fast(dropout=0.1))], "'a', dropout 0.1: expected 0 in a bank.*Train it alone"),
            ([Plan("a", fast(dropout="model"))], "dropout 'model': expected 0 in a bank"),
            ([Plan("../a")], "run '../a': expected a folder name"),
            ([Plan("a", fast(head="none"))], "head 'none': expected linear or model"),
            ([Plan("a"), Plan("b", task=choosing())], "expected tasks of labels or tasks of prompts, found both"),
        ],
    )
    def test_plans_that_are_no_bank(self, bert: Path, tmp_path: Path, plans: list[Plan], message: str) -> None:
        with pytest.raises(RecipeError, match=message):
            many(bert, toy_task(), plans, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("rows", [[], [36], [-1]])
    def test_rows_that_are_not_there(self, bert: Path, rows: list[int]) -> None:
        with pytest.raises(DataError, match="run 'a', rows: expected numbers of the 36 training rows"):
            many(bert, toy_task(), [Plan("a", rows=rows)])

    def test_a_notice_names_the_runs_that_have_it_unless_all_do(self, bert: Path) -> None:
        plans = [Plan("a", fast(epochs=1, max_length=4)), Plan("b", fast(epochs=1, max_length=4, lr=0.1))]
        alike = many(bert, toy_task(), plans).notices
        assert any("were cut" in note for note in alike)
        assert not any(note.startswith(("a: ", "b: ", "a, b: ")) for note in alike)
        found = many(bert, toy_task(), [plans[0], Plan("c", fast(epochs=1))]).notices
        assert any(note.startswith("a: ") and "were cut" in note for note in found)

    def test_a_bank_that_cannot_begin_leaves_no_folder(self, bert: Path, tmp_path: Path) -> None:
        out, missing = tmp_path / "out", tmp_path / "no-model"
        for _ in range(2):  # and so the corrected command may be repeated
            with pytest.raises(StoreError, match="no-model"):
                many(missing, toy_task(), [Plan("a", fast()), Plan("b", fast(seed=1))], out)
            assert not out.exists()
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match="file/out: expected a folder that can be written"):
            many(bert, toy_task(), [Plan("a", fast())], tmp_path / "file" / "out")
        out.mkdir()
        with pytest.raises(StoreError, match="no-model"):
            many(missing, toy_task(), [Plan("a", fast())], out)
        assert out.is_dir(), "a folder of the user's stays"

    def test_folders_of_other_things(self, bert: Path, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("all of it")
        for options, message in (({}, "empty or new folder"), ({"resume": True}, "a bank"), ({"overwrite": True}, "a")):
            with pytest.raises(StoreError, match=message):
                many(bert, toy_task(), [Plan("a", fast())], tmp_path, **options)

    def test_a_file_where_a_run_has_its_folder(self, bert: Path, tmp_path: Path) -> None:
        many(bert, toy_task(), [Plan("a", fast(epochs=1))], tmp_path)
        (tmp_path / "b").write_text("all of it")
        with pytest.raises(StoreError, match="b: expected a folder that can be written, found File exists"):
            many(bert, toy_task(), [Plan("b", fast(epochs=1))], tmp_path, resume=True)

    def test_a_resume_as_another_bank(self, bert: Path, llama: Path, tmp_path: Path) -> None:
        many(bert, toy_task(), [Plan("a", fast(epochs=1))], tmp_path)
        with pytest.raises(StoreError, match="expected the recipe the run was started with"):
            many(bert, toy_task(), [Plan("a", fast(epochs=2))], tmp_path, resume=True)
        with pytest.raises(StoreError, match="expected the data the run was started with"):
            many(bert, toy_task(40), [Plan("a", fast(epochs=1))], tmp_path, resume=True)
        with pytest.raises(StoreError, match="expected the model the run was started with"):
            many(llama, toy_task(), [Plan("a", fast(epochs=1))], tmp_path, resume=True)


BANK = [Plan(f"r{n}", fast(seed=n, epochs=2 + 4 * (n % 2), batch_size=6)) for n in range(4)]


class Stopping(BankListener):
    """Asks to stop after so many steps, counted over all runs."""

    def __init__(self, after: int) -> None:
        self.left = after

    def of(self, name: str) -> Listener:
        outer = self

        class One(Listener):
            def step(self, loss: float | None, examples: int) -> None:
                outer.left -= loss is not None
                if outer.left == 0:
                    os.kill(os.getpid(), signal.SIGTERM)

        return One()


@pytest.fixture(scope="module")
def whole(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bank that was never stopped."""
    out = tmp_path_factory.mktemp("whole") / "out"
    many(bert, toy_task(), BANK, out)
    return out


class TestResume:
    @pytest.mark.parametrize("steps", [1, 23, 46, 70])
    def test_stopped_by_a_signal(self, bert: Path, tmp_path: Path, whole: Path, steps: int) -> None:
        out = tmp_path / "out"
        with pytest.raises(Interrupted, match="--resume"):
            many(bert, toy_task(), BANK, out, listener=Stopping(steps))
        assert any((out / plan.name / CHECKPOINT).exists() for plan in BANK)
        many(bert, toy_task(), BANK, out, resume=True)
        for plan in BANK:
            same_tensors(tensors(out / plan.name), tensors(whole / plan.name), 1e-6)
        assert _without_times(out) == _without_times(whole)

    def test_killed_in_the_middle(self, bert: Path, tmp_path: Path, whole: Path) -> None:
        out = tmp_path / "out"
        code = "from training.test_many import BANK, many, toy_task\nmany(BASE, toy_task(), BANK, OUT)\n"
        kill_midway(code, bert, out, out / "r0" / "metrics.json", 0.1)
        before = {name: (out / name / "metrics.json") for name in ("r0", "r1", "r2", "r3")}
        done = {name: path.stat().st_mtime_ns for name, path in before.items() if path.exists()}
        begun: list[str] = []

        class Begun(BankListener):
            def of(self, name: str) -> Listener:
                begun.append(name)
                return Listener()

        found = many(bert, toy_task(), BANK, out, resume=True, listener=Begun())
        assert set(begun) == {"r0", "r1", "r2", "r3"} - set(done)
        for name, stamp in done.items():
            assert before[name].stat().st_mtime_ns == stamp
        assert list(found.results) == ["r0", "r1", "r2", "r3"]
        for plan in BANK:
            same_tensors(tensors(out / plan.name), tensors(whole / plan.name), 1e-6)

    def test_a_finished_bank_is_read_and_not_repeated(self, bert: Path, tmp_path: Path) -> None:
        first = many(bert, toy_task(), BANK[:2], tmp_path)
        files = adapter_files(tmp_path / "r0")
        again = many(bert, toy_task(), BANK[:3], tmp_path, resume=True)  # and one more
        assert adapter_files(tmp_path / "r0") == files
        assert again.table[:2] == first.table
        assert again.results["r0"].history == first.results["r0"].history
        assert list(again.results) == ["r0", "r1", "r2"]

    def test_baselines_are_told_where_runs_share_their_rows(self, bert: Path) -> None:
        plans = [Plan(f"s{seed}-{lr}", fast(epochs=1, seed=seed, lr=lr)) for seed in (0, 1) for lr in (1e-3, 1e-2)]
        found = many(bert, toy_task(), plans, with_baselines=True)
        scores = [found.results[f"s{seed}-0.001"].metrics["baselines"]["majority"]["accuracy"] for seed in (0, 1)]
        assert found.baselines["majority"]["accuracy"]["mean"] == pytest.approx(sum(scores) / 2)
        parts = [Plan("few", fast(epochs=1), rows=range(8)), Plan("more", fast(epochs=1), rows=range(16))]
        assert many(bert, toy_task(), parts, with_baselines=True).baselines == {}
        assert many(bert, toy_task(), plans[:1], with_baselines=False).baselines == {}

    def test_runs_of_which_none_is_known_are_said_to_begin(self, bert: Path, tmp_path: Path) -> None:
        class Notes(BankListener):
            def __init__(self) -> None:
                self.notes: list[str] = []

            def note(self, text: str) -> None:
                self.notes.append(text)

        first, other, same = Notes(), Notes(), Notes()
        many(bert, toy_task(), [Plan("a", fast(epochs=1))], tmp_path, resume=True, listener=first)
        assert first.notes == [f"nothing to resume in {tmp_path}, which is new: all runs begin"]
        two = [Plan(name, fast(epochs=1, seed=1)) for name in ("b", "c")]
        many(bert, toy_task(), two, tmp_path, resume=True, listener=other)
        assert other.notes == [f"nothing to resume in {tmp_path}, which holds a: all runs begin"]
        many(bert, toy_task(), two, tmp_path, resume=True, listener=same)
        assert not same.notes

    def test_overwrite_takes_former_runs_out(self, bert: Path, tmp_path: Path) -> None:
        many(bert, toy_task(), BANK[:2], tmp_path)
        (tmp_path / "r0" / "thesis.txt").write_text("all of it")
        many(bert, toy_task(), BANK[2:3], tmp_path, overwrite=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "bank.json", "r0", "r2", "summary.csv", "summary.json",
        ]  # fmt: skip
        assert [path.name for path in (tmp_path / "r0").iterdir()] == ["thesis.txt"]

    def test_runs_that_a_resume_leaves_out_stay_the_bank_s(self, bert: Path, tmp_path: Path) -> None:
        many(bert, toy_task(), BANK[:2], tmp_path)
        many(bert, toy_task(), BANK[1:3], tmp_path, resume=True)
        assert set(json.loads((tmp_path / "bank.json").read_text())["runs"]) == {"r0", "r1", "r2"}
        many(bert, toy_task(), BANK[2:3], tmp_path, overwrite=True)
        assert not (tmp_path / "r0").exists()


def _without_times(folder: Path) -> list[dict[str, Any]]:
    rows = json.loads((folder / "summary.json").read_text())["runs"]
    return [{key: value for key, value in row.items() if key != "train_seconds"} for row in rows]


def test_a_folder_of_a_bank_is_an_adapter_and_the_summary_a_table(bert: Path, tmp_path: Path) -> None:
    plans = [Plan("low", fast(lr=1e-3)), Plan("high", fast(lr=1e-2))]
    found = many(bert, toy_task(), plans, tmp_path)
    predictor = beft.load(tmp_path / "high")
    texts = [example.texts[0] for example in toy_task().evaluation["evaluation"]]
    labels = toy_task().labels
    assert labels is not None
    wanted = [labels[int(number)] for number in found.results["high"].predictions["evaluation"]]
    assert predictor.predict(texts) == wanted
    lines = (tmp_path / "summary.csv").read_text().splitlines()
    assert lines[0].startswith("run,terms,lr,seed,status,dev_accuracy,dev_f1_macro,evaluation_accuracy")
    assert [line.split(",")[:4] for line in lines[1:]] == [
        ["low", "value", "0.001", "0"], ["high", "value", "0.01", "0"],
    ]  # fmt: skip


def test_means_over_seeds_are_of_runs_that_differ_in_nothing_else() -> None:
    def row(run: str, seed: int, **scores: float) -> dict[str, Any]:
        return {"run": run, "lr": 0.01, "seed": seed, "status": "finished", "train_seconds": 1.0, **scores}

    folds = [row("fold0", 0, evaluation_accuracy=0.5), row("fold1", 0, evaluation_accuracy=0.7)]
    assert over_seeds(folds) == []
    mixed = [
        row("a0", 0, dev_accuracy=0.5, evaluation_accuracy=0.5),
        row("a1", 1, evaluation_accuracy=0.7),  # too few rows for a dev part
        row("number0", 0, dev_spearman=0.1, evaluation_spearman=0.1),
        row("number1", 1, dev_spearman=0.3, evaluation_spearman=0.3),
    ]
    found = over_seeds(mixed)
    assert [set(each) for each in found] == [
        {"lr", "runs", "evaluation_accuracy"},
        {"lr", "runs", "dev_spearman", "evaluation_spearman"},
    ]
    assert found[0]["evaluation_accuracy"]["mean"] == pytest.approx(0.6)


def test_runs_that_end_at_once_make_room_for_the_others(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beft.training.banks.guard", lambda *args, **options: 1)
    task = replace(toy_task(), evaluation={})
    plans = [Plan(name, fast(seed=seed).with_method("probe")) for seed, name in enumerate(("a", "b", "c"))]
    found = many(bert, task, plans)
    assert set(found.results) == {"a", "b", "c"}
    assert not found.failures
