"""What chooses the weights, what happens when a loss is not finite, and heads in every kind of model."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import beft
from beft.core.adapter import LinearHead, ModelHead
from beft.core.bank import attach
from beft.errors import RecipeError, StoreError, TrainingError
from beft.objectives.classify import ClassifyLoss
from beft.tasks.metrics import standard_error
from beft.training import loop as loop_module
from beft.training.base import add_adapter, load_base
from beft.training.grounds import dev_split
from beft.training.infer import predict_logits
from beft.training.machine import choose
from beft.training.selection import kept_scores
from beft.training.steps import take
from toys import COLOURS, FAST, adapter_files, fast, same_tensors, save_base, toy_task
from training.common import Notes, learn, leaves_of, new_run


class TestSelection:
    def test_dev_rows_come_out_of_the_training_rows_with_their_shares(self) -> None:
        task = toy_task(60)
        rest, dev = dev_split(task, fast(dev_fraction=0.2))
        assert sorted(rest + dev) == list(range(60))
        assert [sum(task.train[i].label == c for i in dev) for c in range(3)] == [4, 4, 4]
        assert dev_split(task, fast(selection="none")) == (list(range(60)), [])

    def test_evaluation_rows_change_no_weight(self, bert: Path, tmp_path: Path) -> None:
        task = toy_task()
        (part,) = task.evaluation.values()
        labels = [row.label for row in part]
        pairs = zip(part, labels[1:] + labels[:1], strict=True)
        permuted = [dataclasses.replace(row, label=label) for row, label in pairs]
        other = dataclasses.replace(task, evaluation={"evaluation": permuted})
        a = learn(bert, task, fast(epochs=4), tmp_path / "a", with_baselines=True)
        b = learn(bert, other, fast(epochs=4), tmp_path / "b", with_baselines=True)
        learn(bert, dataclasses.replace(task, evaluation={}), fast(epochs=4), tmp_path / "c", with_baselines=True)
        assert adapter_files(tmp_path / "a") == adapter_files(tmp_path / "b") == adapter_files(tmp_path / "c")
        assert a.metrics["dev"] == b.metrics["dev"]
        assert a.predictions == b.predictions
        assert a.evaluation != b.evaluation

    def test_the_refit_trains_on_every_row_for_the_best_number_of_epochs(
        self, bert: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        notes, recipe = Notes(), fast(epochs=3)
        run = new_run(bert, toy_task(), recipe, dev=8)
        run.listener = notes
        position = run.learn()
        best = position.best_epoch
        assert notes.stages == [("select", 3 * 4), ("refit", best * 5)]  # 28 of 36 rows, then 36, eight a step
        monkeypatch.setitem(loop_module.PHASES, "select", loop_module.PHASES["refit"])
        alone = new_run(bert, toy_task(), fast(epochs=best, selection="none"))
        alone.learn()
        same_tensors(leaves_of(run), leaves_of(alone), 0.0)

    def test_without_a_refit_the_weights_of_the_last_epoch_near_the_best_are_kept(self, bert: Path) -> None:
        run = new_run(bert, toy_task(48), fast(epochs=5, lr=0.05, refit=False), dev=12)
        position = run.learn()
        scored = [row["dev_accuracy"] for row in position.history]
        losses = [row["dev_loss"] for row in position.history]
        least = losses.index(min(losses))
        near = max(scored[least:]) - standard_error("accuracy", max(scored[least:]), 12)
        chosen = position.best_epoch
        assert chosen > least
        assert scored[chosen - 1] >= near
        assert all(score < near for score in scored[chosen:])
        dev = run.parts["dev"]
        guess = predict_logits(run.bank, "default", dev.encoded, run.choices).argmax(-1).tolist()
        accuracy = np.mean([g == row.label for g, row in zip(guess, dev.examples, strict=True)])
        assert accuracy == pytest.approx(scored[chosen - 1])
        assert kept_scores(position, ["accuracy"])["accuracy"] == pytest.approx(scored[chosen - 1])

    def test_the_papers_recipe_selects_on_the_evaluation_rows_and_says_so(self, bert: Path, tmp_path: Path) -> None:
        recipe = beft.paper_recipe("sst2", epochs=4, lr=0.05)
        result = learn(bert, toy_task(), recipe, tmp_path / "out")
        scored = [row["dev_accuracy"] for row in result.history]
        assert len(result.history) == 4
        assert result.evaluation["accuracy"] == pytest.approx(max(scored))
        assert result.metrics["selected_on"] == "evaluation"
        assert result.metrics["dev"] == {}
        assert "optimistic" in (tmp_path / "out" / "README.md").read_text()

    def test_selecting_on_evaluation_rows_needs_some(self, bert: Path) -> None:
        with pytest.raises(RecipeError, match=r"selection 'evaluation': expected evaluation rows.*found none"):
            learn(bert, toy_task(evaluation=0), beft.paper_recipe("sst2"))

    def test_too_few_rows_for_a_dev_part_are_trained_on_to_the_end(self, bert: Path) -> None:
        task = dataclasses.replace(toy_task(2, 0), labels=COLOURS[:2])
        result = learn(bert, task, fast())
        assert result.metrics["selected_on"] is None
        assert result.metrics["best_epoch"] == 2


class TestNotFinite:
    @staticmethod
    def poison(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
        calls, summed = [0], ClassifyLoss.summed

        def wrong(self: Any, logits: Tensor, targets: Tensor) -> Tensor:
            calls[0] += logits.requires_grad
            return summed(self, logits, targets) * (float("nan") if calls[0] == call else 1.0)

        monkeypatch.setattr(ClassifyLoss, "summed", wrong)

    @pytest.mark.parametrize("on_disk", [True, False])
    def test_the_step_is_named_and_the_best_adapter_kept(
        self, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_disk: bool
    ) -> None:
        out = tmp_path / "out"
        recipe = fast(epochs=4, refit=False, schedule="constant")
        best = learn(bert, toy_task(), dataclasses.replace(recipe, epochs=1), tmp_path / "one")
        self.poison(monkeypatch, 6)  # four steps an epoch: the second step of the second epoch
        with pytest.raises(TrainingError, match=r"step 6 of 16 \(select\): expected a finite loss.*Lower --lr"):
            learn(bert, toy_task(), recipe, out if on_disk else None)
        if on_disk:
            assert (
                adapter_files(out)["adapter_model.safetensors"]
                == adapter_files(tmp_path / "one")["adapter_model.safetensors"]
            )
            assert json.loads((out / "run.json").read_text())["status"] == "failed"
            predictor = beft.load(out)
            assert predictor.predict(["red w1"])[0] in COLOURS
        assert best.metrics["best_epoch"] == 1

    def test_where_no_epoch_is_chosen_the_last_one_is_kept(self, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        recipe = fast(epochs=4, selection="none", schedule="constant")
        for steps in (4, 9):  # five steps an epoch
            run, one = (
                new_run(bert, toy_task(), recipe),
                new_run(bert, toy_task(), dataclasses.replace(recipe, epochs=1)),
            )
            kept = leaves_of(run)
            if steps > 5:
                one.learn()
                kept = leaves_of(one)
            with monkeypatch.context() as patch:
                self.poison(patch, steps)
                with pytest.raises(TrainingError, match=rf"step {steps} of 20 \(select\)"):
                    run.learn()
            same_tensors(leaves_of(run), kept, 0.0)

    def test_in_the_refit_the_best_of_the_first_phase_is_kept(
        self, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        learn(bert, toy_task(), fast(refit=False), tmp_path / "one")
        self.poison(monkeypatch, 9)
        with pytest.raises(TrainingError, match=r"step 1 of \d+ \(refit\)"):
            learn(bert, toy_task(), fast(), tmp_path / "out")
        kept, wanted = adapter_files(tmp_path / "out"), adapter_files(tmp_path / "one")
        assert kept["adapter_model.safetensors"] == wanted["adapter_model.safetensors"]
        assert kept["head.safetensors"] == wanted["head.safetensors"]

    def test_a_learning_rate_far_too_high_stops_the_run(self, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run = new_run(bert, toy_task(), fast(epochs=1), dev=8)

        def breaks(wishes: Any) -> list[float]:
            norms = take(wishes)
            with torch.no_grad():
                run.leaves["head.weight"].fill_(float("inf"))
            return norms

        monkeypatch.setattr("beft.training.loop.take", breaks)
        run.parts["select"] = run.parts["select"].take(range(8))  # one step, so only the dev rows can tell
        with pytest.raises(TrainingError, match="epoch 1, dev rows: expected a finite loss"):
            run.learn()
        assert all(torch.isfinite(leaf).all() for leaf in run.leaves.values())


HEADS = {  # family, words of parameters the checkpoint lacks, modules of the model's own head
    "bert": ("base", (), ["classifier"]),
    "bert-without-pooler": ("base", ("pooler",), ["classifier", "bert.pooler.dense"]),
    "roberta": ("base", (), ["classifier"]),
    "distilbert": ("base", (), ["pre_classifier", "classifier"]),
    "electra": ("base", (), ["classifier"]),
    "llama": ("base", (), ["score"]),
    "gpt2": ("base", (), ["score"]),
}


class TestHeads:
    @pytest.mark.parametrize("case", HEADS)
    def test_the_models_own_head_is_trained_saved_and_loaded(self, tmp_path: Path, case: str) -> None:
        kind, without, paths = HEADS[case]
        family = case.partition("-")[0]
        special, pad = family not in ("llama", "gpt2"), family != "gpt2"
        base = save_base(tmp_path / "base", family, head=kind, without=without, special=special, pad=pad)
        result = learn(base, toy_task(), fast(head="model"), tmp_path / "out")
        manifest = json.loads((tmp_path / "out" / "beft.json").read_text())
        assert sorted(manifest["head"]["modules"]) == sorted(paths)
        assert ("pooler" in manifest["terms"]) == (case == "bert")
        run = new_run(base, toy_task(), fast(head="model"))
        start = leaves_of(run)
        run.learn()
        moved = {key for key, value in leaves_of(run).items() if (value != start[key]).any()}
        assert moved == set(start)
        (part,) = toy_task().evaluation.values()
        again = beft.load(tmp_path / "out").predict_proba([row.texts[0] for row in part])
        assert np.allclose(again, result.probabilities["evaluation"], atol=1e-5)

    @pytest.mark.parametrize("head", ["linear", "model"])
    def test_a_row_padded_among_others_scores_as_alone(self, tmp_path: Path, head: str) -> None:
        base = save_base(tmp_path / "base", "gpt2", special=False, pad=False)
        learn(base, toy_task(), fast(head=head), tmp_path / "out")
        predictor = beft.load(tmp_path / "out")
        texts = ["red w1 w2 w3 w4 w5", "green", "w1 [UNK]", "w7 w8 [UNK] [UNK]"]
        together = predictor.predict_proba(texts)
        assert np.allclose(together, np.concatenate([predictor.predict_proba([t]) for t in texts]), atol=1e-5)
        assert abs(predictor.predict_proba(["w1 w2"]) - predictor.predict_proba(["w1"])).max() > 1e-5

    def test_a_pad_token_known_to_the_tokenizer_alone_serves_the_head(self, tmp_path: Path) -> None:
        base = save_base(tmp_path / "base", "llama", special=False, pad_token_id=None)
        assert learn(base, toy_task(), fast(head="model")).evaluation

    def test_a_new_head_does_not_depend_on_other_random_numbers(self, bert: Path) -> None:
        def weights(noise: int) -> Tensor:
            torch.manual_seed(noise)
            torch.rand(noise)
            choices = choose("cpu", "fp32")
            base = load_base(str(bert), choices, head="model", outputs=3, labels=COLOURS)
            torch.rand(noise)
            bank = attach(base.model, names=[])
            add_adapter(bank, base, "a", fast(head="model"), 3, COLOURS)
            assert isinstance(bank["a"].head, ModelHead)
            return bank["a"].head.module("classifier").weight.detach().clone()

        assert torch.equal(weights(1), weights(7))

    def test_a_linear_head_reads_the_mean_of_an_encoder_and_the_last_token_of_a_causal_model(
        self, bert: Path, llama: Path
    ) -> None:
        for base, pooling in ((bert, "mean"), (llama, "last")):
            head = new_run(base, toy_task(), fast()).bank["default"].head
            assert isinstance(head, LinearHead)
            assert head.pooling == pooling

    def test_a_linear_head_fits_states_narrower_than_the_layers(self, tmp_path: Path) -> None:
        base = save_base(tmp_path / "base", "opt-350m", special=False)
        assert learn(base, toy_task(), fast()).metrics["trainable_parameters"] == 2 * 32 + 3 * 21

    def test_an_encoder_decoder_takes_its_own_head_only(self, tmp_path: Path) -> None:
        base = save_base(tmp_path / "base", "t5")
        with pytest.raises(StoreError, match=r"for a linear head, found an encoder-decoder\. Try --head model"):
            learn(base, toy_task(), fast())
        assert learn(base, toy_task(12, 6), fast(head="model"), with_baselines=True).evaluation

    @pytest.mark.parametrize("head", ["linear", "model"])
    def test_a_tuned_key_bias_gives_the_outputs_of_the_head_alone(self, bert: Path, head: str) -> None:
        task = toy_task()
        key, none, value = (learn(bert, task, fast(terms=t, head=head)) for t in ("key", "none", "value"))
        scores = [np.asarray(result.probabilities["evaluation"]) for result in (key, none, value)]
        assert abs(scores[0] - scores[1]).max() < 1e-5
        assert abs(scores[2] - scores[1]).max() > 1e-3

    def test_the_head_alone_is_an_adapter_that_loads(self, bert: Path, tmp_path: Path) -> None:
        result = learn(bert, toy_task(), fast(terms="none"), tmp_path / "out")
        assert result.metrics["trainable_parameters"] == 3 * 32 + 3
        (part,) = toy_task().evaluation.values()
        again = beft.load(tmp_path / "out").predict_proba([row.texts[0] for row in part])
        assert np.allclose(again, result.probabilities["evaluation"], atol=1e-6)

    def test_layers_choose_where_vectors_are(self, bert: Path, tmp_path: Path) -> None:
        result = learn(bert, toy_task(), fast(layers="last:1"), tmp_path / "out")
        assert result.metrics["trainable_parameters"] == 32 + 3 * 33
        manifest = json.loads((tmp_path / "out" / "beft.json").read_text())
        assert manifest["layers"] == [1]
        assert beft.load(tmp_path / "out").predict(["red"])[0] in COLOURS


@pytest.mark.usefixtures("pictures")
def test_a_regression_learns_and_predicts_numbers(bert: Path, tmp_path: Path) -> None:
    task = toy_task(90, 30, regression=True)
    result = learn(bert, task, fast(epochs=8, lr=0.02), tmp_path / "out", with_baselines=True)
    assert result.evaluation["pearson"] > 0.5  # the number of words, which means of states hold well
    assert result.metrics["baselines"]["majority"]["pearson"] == 0.0
    (part,) = task.evaluation.values()
    numbers = beft.load(tmp_path / "out").predict([row.texts[0] for row in part])
    assert numbers == pytest.approx(result.predictions["evaluation"], abs=1e-5)
    gold = [float(row.label or 0) for row in part]
    assert min(gold) - 2 < np.mean(numbers) < max(gold) + 2
    assert (tmp_path / "out" / "scatter.png").exists()
    assert not (tmp_path / "out" / "per_class.csv").exists()


def test_balanced_classes_lift_a_rare_class(bert: Path) -> None:
    task = toy_task(90, 30)
    task.train = [row for row in task.train if row.label != 2 or int(row.id) < 9]
    plain, balanced = (learn(bert, task, fast(epochs=3, class_weight=w)) for w in (None, "balanced"))

    def rare(result: beft.Result) -> float:
        return float(np.mean([p[2] for p in result.probabilities["evaluation"]]))

    assert rare(balanced) > rare(plain)


def test_the_same_seed_gives_the_same_files_and_another_seed_others(bert: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        learn(bert, toy_task(), fast(seed=seed), tmp_path / name)
    assert adapter_files(tmp_path / "a") == adapter_files(tmp_path / "b")
    assert adapter_files(tmp_path / "a") != adapter_files(tmp_path / "c")


def test_texts_too_long_are_counted_and_the_models_own_limit_holds(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "roberta")
    task = toy_task()
    task.train[0] = dataclasses.replace(task.train[0], texts=("red " * 10_000,))
    result = learn(base, task, beft.Recipe(**{**FAST, "max_length": 512}), tmp_path / "out")
    assert result.notices[:1] == ["1 of 36 train texts were cut to 62 tokens (--max-length sets the limit)"]
    assert beft.load(tmp_path / "out").predict(["red " * 10_000])[0] in COLOURS


def test_the_majority_and_the_regression_on_frozen_states_stand_beside_it(bert: Path) -> None:
    result = learn(bert, toy_task(60, 30), fast(), with_baselines=True)
    baselines = result.metrics["baselines"]
    assert baselines["majority"]["accuracy"] == pytest.approx(1 / 3)
    assert baselines["frozen_logistic_regression"]["accuracy"] > 0.5  # a colour word shifts the mean of states


def test_a_start_from_the_regression_begins_with_its_answers(bert: Path) -> None:
    recipe = fast(head_start="regression", lr=1e-9, epochs=1)
    result = learn(bert, toy_task(60, 30), recipe, with_baselines=True)
    assert result.evaluation == pytest.approx(
        {k: v for k, v in result.metrics["baselines"]["frozen_logistic_regression"].items() if k != "splits"}
    )


@pytest.mark.parametrize("family", ["distilbert", "deberta-v3"])
def test_a_models_own_head_of_several_modules_learns_in_bf16(tmp_path: Path, family: str) -> None:
    base = save_base(tmp_path / "base", family)
    result = beft.train(str(base), toy_task(), fast(head="model"), device="cpu", dtype="bf16", with_baselines=False)
    assert result.choices.dtype == "bf16"
    assert all(math.isfinite(row["train_loss"]) for row in result.history)


def test_judged_rows_of_classes_without_a_training_row_weigh_nothing(bert: Path) -> None:
    task = toy_task(24, 6)
    task = dataclasses.replace(task, train=[row for row in task.train if row.label != 0])
    task.evaluation = {"evaluation": [row for row in task.evaluation["evaluation"] if row.label == 0]}
    result = learn(bert, task, fast(class_weight="balanced", selection="none"))
    assert result.evaluation["accuracy"] == 0
