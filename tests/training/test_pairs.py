"""Rows of two texts read apart: what a head is given, companies of such runs, folders, and when `auto` takes them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import beft
import real
from beft.core.adapter import compare
from beft.core.store import HEAD
from beft.errors import BankError, RecipeError, StoreError
from beft.tasks.load import benchmark_task
from beft.training.checkpoint import load_checkpoint
from beft.training.folder import prepare
from beft.training.machine import choose
from beft.training.pairs import NOTICE, encodes_sentences, settle_pairs
from beft.training.plan import Plan
from beft.training.space import candidates
from beft.training.tune_report import plain
from toys import fast, toy_task
from training.common import gradients_of, learn, new_run

APART = fast(pairs="apart")


def test_two_states_are_compared_in_their_own_scale() -> None:
    a, b = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 1.0]])
    (row,) = compare(a, b)
    spread = (2.5 * 5.0) ** 0.25
    cosine = 20 * 1.0 / 50**0.5
    assert torch.allclose(row, torch.tensor([1.0, -2.0, 3.0, 1.0, 2.0, 3.0, 3.0 / spread, -2.0 / spread, cosine]))
    a, b = torch.randn(2, 3, 8)
    scaled, plain = compare(7 * a, 7 * b), compare(a, b)
    assert torch.allclose(scaled[:, :-1], 7 * plain[:, :-1], atol=1e-5)
    assert torch.allclose(scaled[:, -1], plain[:, -1], atol=1e-5)
    spread = (a.square().mean(1) * b.square().mean(1)) ** 0.25
    cosines = nn.functional.cosine_similarity(a, b)
    assert torch.allclose(plain[:, 24:32].sum(1), 8 * spread * cosines, atol=1e-5)
    assert torch.allclose(plain[:, 32], 20 * cosines, atol=1e-5)
    assert compare(torch.zeros(1, 8), torch.zeros(1, 8)).isfinite().all()


def test_gradients_are_those_of_plain_transformers(bert: Path) -> None:
    task = toy_task(12, pairs=True)
    run = new_run(bert, task, APART)
    ours, _ = gradients_of(run, 12)
    adapter = run.bank["default"]
    run.bank.detach()
    model = run.bank.model
    for leaf in run.leaves.values():
        leaf.grad = None
    tokenizer = real_tokenizer(bert)
    total = torch.zeros(())
    for example in task.train:
        means = []
        for text in example.texts:
            hooks = [_add(model, site, adapter.vector(site)) for site in adapter.sites]
            means.append(model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1))
            for hook in hooks:
                hook.remove()
        logits = nn.functional.linear(compare(*means), adapter.head.weight, adapter.head.bias)
        total = total + nn.functional.cross_entropy(logits, torch.tensor([int(example.label or 0)])) / 12
    total.backward()
    for key, leaf in run.leaves.items():
        assert torch.allclose(leaf.grad, ours[key], atol=1e-6), key


def _add(model: Any, site: Any, vector: torch.Tensor) -> Any:
    return model.get_submodule(site.module).register_forward_hook(lambda module, args, output: output + vector)


def real_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_a_run_in_company_gives_the_weights_it_has_alone(bert: Path) -> None:
    """Beside another on pairs in one forward, and beside heads on one input, which have forwards of their own."""
    task = toy_task(pairs=True)
    plans = [
        Plan("a", APART),
        Plan("b", replace(APART, seed=1, batch_size=5)),
        Plan("joint", fast(pairs="joint")),
        Plan("single", fast(), toy_task()),
        Plan("model", fast(head="model")),
    ]
    with_all = beft.train_many(str(bert), task, plans, dtype="fp32", with_baselines=False)
    for plan in plans:
        alone = learn(bert, plan.task or task, plan.recipe or fast())
        assert with_all.results[plan.name].evaluation == alone.evaluation
        ours, theirs = (np.array(r.probabilities["evaluation"]) for r in (with_all.results[plan.name], alone))
        assert np.abs(ours - theirs).max() < 1e-5


def test_a_folder_predicts_what_training_measured(bert: Path, tmp_path: Path) -> None:
    task = toy_task(pairs=True)
    result = learn(bert, task, APART, tmp_path / "out", with_baselines=True)
    assert any("read apart" in note for note in result.notices)
    about = json.loads((tmp_path / "out" / "beft.json").read_text())
    assert about["head"]["pooling"] == about["task"]["pooling"] == "pair"
    assert json.loads((tmp_path / "out" / "run.json").read_text())["recipe"]["pairs"] == "apart"
    predictor = beft.load(tmp_path / "out")
    rows = next(iter(task.evaluation.values()))
    found = predictor.predict_proba([row.texts for row in rows])
    assert np.abs(np.array(found) - np.array(result.probabilities["evaluation"])).max() < 1e-5
    assert found[0] == pytest.approx(predictor.predict_proba([rows[0].texts])[0], abs=1e-6)
    frozen = result.metrics["baselines"]["frozen_logistic_regression"]
    assert set(frozen["splits"]["evaluation"]) == {"accuracy", "f1_macro"}
    with pytest.raises(BankError, match=r"expected a head on one input a row, found one that compares two texts"):
        beft.merge(_base(bert), tmp_path / "out")
    del about["task"]["pooling"]  # the head's says it
    (tmp_path / "out" / "beft.json").write_text(json.dumps(about))
    assert np.array_equal(beft.load(tmp_path / "out").predict_proba([row.texts for row in rows]), found)
    about["head"]["pooling"] = "max"
    (tmp_path / "out" / "beft.json").write_text(json.dumps(about))
    with pytest.raises(StoreError, match=r"beft.json: expected a head's pooling, mean, last, pair, found 'max'"):
        beft.load(tmp_path / "out")


def _base(folder: Path) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder)


@pytest.mark.parametrize("terms", ["none", "all"])
@pytest.mark.parametrize("start", ["means", "regression"])
def test_the_head_alone_and_other_starts(bert: Path, terms: str, start: str) -> None:
    """Where only the head is trained its states are computed once; a start reads the same states."""
    task = toy_task(pairs=True)
    result = learn(bert, task, fast(pairs="apart", terms=terms, head_start=start, epochs=2))
    assert result.metrics["trainable_parameters"] >= task.outputs * (4 * 16 + 1)
    assert len(result.predictions["evaluation"]) == 12


@pytest.mark.parametrize("method", ["full", "lora", "prefix", "prompt", "bias-lora", "probe"])
def test_what_one_would_train_instead(bert: Path, tmp_path: Path, method: str) -> None:
    task = toy_task(pairs=True)
    result = learn(bert, task, fast(pairs="apart", epochs=1), tmp_path / "out", method=method)
    found = beft.load(tmp_path / "out").predict_proba([row.texts for row in task.evaluation["evaluation"]])
    assert np.abs(np.array(found) - np.array(result.probabilities["evaluation"])).max() < 1e-5


def test_numbers_of_pairs(bert: Path) -> None:
    task = toy_task(pairs=True, regression=True)
    assert set(learn(bert, task, APART).evaluation) == {"spearman", "pearson"}


def test_every_row_of_a_route_through_its_own_head(bert: Path) -> None:
    run = new_run(bert, toy_task(pairs=True), APART)
    bank, part = run.bank, run.parts["refit"]
    width = run.bank["default"].head.weight.shape[1]
    for number, name in enumerate(("a", "b", "one")):
        bank.add(name, "value")
        shape = (width // 4, "mean") if name == "one" else (width, "pair")
        head = beft.LinearHead(shape[0], 3, ["x", "y", "z"], shape[1])
        torch.manual_seed(number)
        with torch.no_grad():
            head.weight.normal_()
            for _, vector in bank[name].items():
                vector.normal_()
        bank.set_head(name, head)
    batch = part.encoded.batch(range(4))
    with torch.no_grad():
        with bank.route(["a", "b", "b", "a"]):
            routed = bank.logits(**batch)
        for name, rows in (("a", [0, 3]), ("b", [1, 2])):
            with bank.route(name):
                assert torch.allclose(bank.logits(**batch)[rows], routed[rows], atol=1e-5)
        bank.one_forward = True
        with bank.route(["a", "b", "b", "a"]):
            assert torch.allclose(bank.logits(**batch), routed, atol=1e-5)
        bank.one_forward = False
        with bank.route("a"), pytest.raises(BankError, match="expected two inputs a row, `second` beside the first"):
            bank.logits(input_ids=batch["input_ids"])
        for second, message in (
            ({"input_ids": batch["input_ids"][:1]}, "second: expected 4 rows, as the first inputs have, found 1"),
            (batch["input_ids"], "second: expected a batch, as the first inputs are, found a Tensor"),
        ):
            with bank.route("a"), pytest.raises(BankError, match=message):
                bank.logits(input_ids=batch["input_ids"], second=second)
        with (
            bank.route(["a", "one", "b", "a"]),
            pytest.raises(BankError, match="logits of 'one': expected one input a row, found two"),
        ):
            bank.logits(**batch)


@pytest.mark.parametrize(
    ("changes", "task", "message"),
    [
        ({}, toy_task(), "expected two texts a row and a linear head, found the task toy of one text"),
        ({"head": "model"}, toy_task(pairs=True), "found head 'model'"),
        ({"pairs": "both"}, toy_task(pairs=True), "expected auto, joint or apart"),
    ],
)
def test_what_cannot_be_read_apart(bert: Path, changes: dict[str, Any], task: beft.Task, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        learn(bert, task, fast(**{"pairs": "apart", **changes}))


def test_a_causal_model_reads_one_input(llama: Path) -> None:
    with pytest.raises(RecipeError, match="pairs 'apart': expected an encoder, found a causal model"):
        learn(llama, toy_task(pairs=True), APART)


def test_auto_reads_apart_what_a_sentence_encoder_was_trained_on(bert: Path, tmp_path: Path) -> None:
    two, one = toy_task(pairs=True), toy_task()
    assert not encodes_sentences(str(bert))
    assert settle_pairs(fast(), two, str(bert)).pairs == "joint"
    for kind in ("llama", "bert"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        (tmp_path / "modules.json").write_text("[]")
        assert encodes_sentences(str(tmp_path)) == (kind == "bert")
    assert settle_pairs(fast(), two, str(tmp_path)).pairs == "apart"
    assert settle_pairs(fast(pairs="joint"), two, str(tmp_path)).pairs == "joint"
    assert settle_pairs(fast(), one, str(tmp_path)).pairs == "joint"
    assert settle_pairs(fast(head="model"), two, str(tmp_path)).pairs == "joint"


@pytest.mark.parametrize(
    ("modules", "kind", "expected"),
    [
        ([{"path": ""}, {"path": "1_Pooling"}], {"model_type": "SentenceTransformer"}, True),
        ([{"path": ""}, {"path": "1_Pooling"}], {"__version__": {}}, True),
        ([{"path": ""}], {"model_type": "CrossEncoder"}, False),
        ([{"path": ""}, {"path": "beft/pooling"}, {"path": "beft/dense"}], {"__version__": {}}, False),
    ],
)
def test_what_has_modules_but_encodes_no_sentences(
    tmp_path: Path, modules: list[dict[str, str]], kind: dict[str, Any], expected: bool
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(kind))
    assert encodes_sentences(str(tmp_path)) == expected


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no such/model", "runs/of/mine"])
def test_whoever_loads_a_model_says_that_there_is_none(name: str) -> None:
    assert not encodes_sentences(name)


def test_what_was_open_is_what_texts_read_apart_want(bert: Path) -> None:
    def settled(**changes: Any) -> tuple[float, str, str]:
        recipe = settle_pairs(beft.Recipe(**changes), toy_task(pairs=True), str(bert)).resolve(100, 3)
        return float(recipe.lr), recipe.head_start, recipe.head_penalty

    assert settled() == settled(pairs="joint") == (3e-3, "zero", "none")
    assert settled(pairs="apart") == (1e-3, "regression", "regression")
    assert settled(pairs="apart", lr=3e-3) == (3e-3, "regression", "regression")
    assert settled(pairs="apart", head_start="zero", head_penalty="none") == (1e-3, "zero", "none")
    assert settled(pairs="apart", method="head")[0] == 1e-3
    assert settled(pairs="apart", method="full")[0] == beft.Recipe(method="full").lr
    assert settled(head_penalty="regression") == (3e-3, "zero", "regression")


def test_heads_from_before_they_read_the_cosine_answer_as_they_did(bert: Path, tmp_path: Path) -> None:
    texts = [row.texts for row in toy_task(pairs=True).evaluation["evaluation"]]
    learn(bert, toy_task(pairs=True), APART, tmp_path)
    about = json.loads((tmp_path / "beft.json").read_text())
    (tmp_path / "beft.json").write_text(json.dumps({**about, "sha256": {}}))
    weights = load_file(tmp_path / HEAD)
    weights["weight"][:, -1] = 0
    save_file(weights, tmp_path / HEAD)
    blind = beft.load(tmp_path).predict_proba(texts)
    save_file({**weights, "weight": weights["weight"][:, :-1].contiguous()}, tmp_path / HEAD)
    assert np.array_equal(beft.load(tmp_path).predict_proba(texts), blind)
    save_file({**weights, "weight": weights["weight"][:, :-2].contiguous()}, tmp_path / HEAD)
    with pytest.raises(StoreError, match="expected a head on 129 features, found one on 127"):
        beft.load(tmp_path)


def test_checkpoints_of_heads_from_before_they_read_the_cosine_are_refused(bert: Path, tmp_path: Path) -> None:
    run = new_run(bert, toy_task(pairs=True), APART)
    run.directory = tmp_path
    run.save()
    run.leaves["head.weight"] = nn.Parameter(run.leaves["head.weight"].detach()[:, :-1].clone())
    with pytest.raises(StoreError, match=r"head.weight of the shape \(3, 128\), found one of the shape \(3, 129\)"):
        load_checkpoint(tmp_path, run.leaves, run.optimiser)


def test_runs_from_before_there_was_a_choice_are_resumed(bert: Path, tmp_path: Path) -> None:
    """They read texts as one input, whatever is settled on now."""
    task, recipe = toy_task(pairs=True), fast(pairs="joint", epochs=1)
    record = {"status": "running", "model": str(bert), "data": {"fingerprint": task.fingerprint()}}
    before = recipe.resolve(36).to_dict()
    del before["pairs"], before["head_penalty"]
    (tmp_path / "run.json").write_text(json.dumps({**record, "recipe": before}))
    choices = choose("cpu", "fp32")
    assert prepare(tmp_path, str(bert), task, recipe.resolve(36), choices, True, False) is False
    with pytest.raises(StoreError, match=r"another pairs \(apart in place of joint\)"):
        prepare(tmp_path, str(bert), task, replace(recipe.resolve(36), pairs="apart"), choices, True, False)


def test_tuning_tries_one_input_beside_texts_read_apart(bert: Path) -> None:
    space = beft.Space(lrs=(0.01,), terms=("value",), layers=(None,), epochs=(2,), heads=("apart", "joint"))
    result = beft.tune(str(bert), toy_task(pairs=True), space=space, runs=6, folds=3, dtype="fp32")
    assert [trial.candidate.head for trial in result.trials] == ["apart"] * 3 + ["joint"] * 3
    baselines = [trial.baseline for trial in result.trials]  # read as the first does, whoever wins
    assert baselines[:3] == baselines[3:]
    assert result.notices.count(NOTICE) == (result.winner.head == "apart")
    assert plain(toy_task(), "apart")[1] == "--method probe --pairs apart"
    assert result.refitted.recipe.pairs == result.winner.head
    heads = beft.Space().resolve(toy_task(60, pairs=True), settle_pairs(APART, toy_task(pairs=True), str(bert))).heads
    assert heads == ("apart", "linear", "joint")


def test_the_linear_model_beside_a_run_may_read_otherwise(bert: Path) -> None:
    plans = [
        Plan("joint", fast(pairs="joint", terms="none", epochs=1)),
        Plan("apart", fast(pairs="apart", terms="none", epochs=1)),
        Plan("both", fast(pairs="joint", terms="none", epochs=1), probed="apart"),
    ]
    found = beft.train_many(str(bert), toy_task(30, 24, pairs=True), plans, dtype="fp32")
    joint, apart, both = (each.metrics["baselines"]["frozen_logistic_regression"] for each in found.results.values())
    assert joint != apart == both
    assert found.baselines == {}  # of all runs there are none


def test_heads_of_a_search_on_a_model_that_reads_texts_apart(bert: Path) -> None:
    task, recipe = toy_task(pairs=True), APART.resolve(36)
    space = beft.Space(heads=("linear", "model", "joint")).resolve(task, recipe)
    read = {each.head: settle_pairs(each.recipe, task, str(bert)).pairs for each in candidates(space, recipe)}
    assert read == {"linear": "apart", "model": "joint", "joint": "joint"}
    joint = replace(recipe, pairs="joint")
    with pytest.raises(RecipeError, match="heads: expected every value once, found 'linear' and 'joint', the same"):
        beft.Space(heads=("linear", "joint")).resolve(task, joint)


def test_paraphrases_are_told_apart_with_a_hundred_rows() -> None:
    """On MiniLM the frozen states compared beat what the same states of one input give."""
    task = benchmark_task("mrpc", real.data(), size=100, eval_size=200, seed=0)
    scores = {}
    for way in ("joint", "apart"):
        recipe = beft.Recipe(terms="none", pairs=way, epochs=10)
        scores[way] = learn(real.model("minilm-l6-uncased"), task, recipe).evaluation["accuracy"]
    assert scores["apart"] > scores["joint"] + 0.03
