"""Scores by hand; those of an adapter folder against the plain model's own biases, and against autograd on them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel

import beft
from beft.analysis import measure
from beft.analysis.importance import Importance, SiteScores, magnitude_score, projection_score
from beft.analysis.measure import all_terms, measure_importance
from beft.core.sites import find_sites, get_module
from beft.core.store import MANIFEST, WEIGHTS
from beft.errors import DataError, StoreError
from beft.files import read_json, to_json
from beft.tasks.question import PromptTask, Question
from beft.training.base import add_adapter, load_base
from beft.training.machine import choose
from toys import fast, save_base, texts, tokenizer, toy_task
from training.common import learn


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 4.0], [6.0, 8.0], 0.5),  # the same direction, twice the length
        ([3.0, 4.0], [1.5, 2.0], 0.5),  # half the length: the score does not know which came first
        ([3.0, 4.0], [-4.0, 3.0], 1.0),  # orthogonal
        ([3.0, 4.0], [-3.0, -4.0], 2.0),
        ([1.0, 0.0], [1.0, 1.0], 1 - 0.5**0.5 * 0.5**0.5),
        ([0.0, 0.0], [1.0, 1.0], None),
    ],
)
def test_projection_by_hand(before: list[float], after: list[float], expected: float | None) -> None:
    found = projection_score(torch.tensor(before), torch.tensor(after))
    assert found == (None if expected is None else pytest.approx(expected))


def test_magnitude_by_hand() -> None:
    assert magnitude_score(torch.tensor([1.0, -1.0]), torch.tensor([1.5, 1.0])) == pytest.approx(1.25)


def test_biases_that_have_not_moved_have_no_scores(bert: Path, tmp_path: Path) -> None:
    learn(bert, toy_task(), fast(terms="all", lr=1e-3, head_lr=1e-3, epochs=1), tmp_path / "out")
    weights = load_file(tmp_path / "out" / WEIGHTS)
    save_file({key: torch.zeros_like(value) for key, value in weights.items()}, tmp_path / "out" / WEIGHTS)
    about = read_json(tmp_path / "out" / MANIFEST)
    (tmp_path / "out" / MANIFEST).write_text(to_json({**about, "sha256": {}}))
    with pytest.raises(StoreError, match="expected an adapter whose biases have moved, found vectors of zeros"):
        measure_importance(tmp_path / "out")


def test_scores_of_a_folder_are_those_of_merged_biases(bert: Path, tuned_bert: Path) -> None:
    found = measure_importance(tuned_bert, toy_task())
    plain = AutoModel.from_pretrained(bert)
    merged = beft.merge(AutoModel.from_pretrained(bert), str(tuned_bert))
    assert len(found.sites) == 8 * 2
    for site in found.sites:
        before, after = (get_module(model, site.module).bias.detach() for model in (plain, merged))
        assert site.projection == pytest.approx(projection_score(before, after), rel=1e-4, abs=1e-6)
        assert site.magnitude == pytest.approx(float((after - before).abs().mean()), rel=1e-4, abs=1e-7)
    assert [note.split(",")[0][:10] for note in found.notes] == ["key: inert"]


def test_effects_are_on_texts_as_the_adapter_reads_them(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, read = toy_task(6, pairs=True), []
    learn(bert, task, fast(head_penalty="none", pairs="apart", epochs=1), tmp_path / "out")
    monkeypatch.setattr(measure, "relative_effects", lambda bank, adapter, batches: read.extend(batches) or {})
    measure_importance(tmp_path / "out", task)
    words = tokenizer()
    assert [batch["input_ids"][0].tolist() for batch in read] == [
        words(text)["input_ids"] for example in task.train for text in example.texts
    ]


def test_fisher_is_autograds_on_the_models_own_biases(bert: Path, tmp_path: Path) -> None:
    """The same head, seeded; gradients of the stock class's own biases, of 20 examples and of batches of 8, 8, 4."""
    task = toy_task(20)
    folder = tmp_path / "out"
    learn(bert, task, fast(terms="all", head="model", refit=False), folder)
    found = measure_importance(folder, task)

    base = load_base(str(bert), choose("cpu", "fp32"), head="model", outputs=3, labels=task.labels)
    bank = beft.attach(base.model, "none", names=[])
    add_adapter(bank, base, "head", fast(terms="all", head="model"), 3, task.labels)
    head = bank["head"].head
    bank.detach()
    model = base.model
    for path in head.paths:
        model.get_submodule(path).load_state_dict(head.module(path).state_dict())
    sites = find_sites(model, "all")
    biases = [get_module(model, site.module).bias for site in sites]
    heads = [p for path in head.paths for p in model.get_submodule(path).parameters()]
    rest = [*biases, *heads]
    if not any("pooler" in path for path in head.paths):
        rest.append(model.bert.pooler.dense.bias)
    for parameter in rest:
        parameter.requires_grad_(True)
    ids = [base.tokenizer(example.texts[0])["input_ids"] for example in task.train]

    def gradients(rows: list[int]) -> list[torch.Tensor]:
        losses = [
            nn.functional.cross_entropy(model(input_ids=torch.tensor([ids[row]])).logits, torch.tensor([label]))
            for row, label in ((row, int(task.train[row].label)) for row in rows)
        ]
        return list(torch.autograd.grad(torch.stack(losses).mean(), rest))

    textbook = [torch.zeros_like(bias) for bias in biases]
    papers = [torch.zeros_like(bias) for bias in biases]
    for row in range(20):
        for total, gradient in zip(textbook, gradients([row]), strict=False):
            total += gradient**2 / 20
    norms = []
    for rows in (range(8), range(8, 16), range(16, 20)):
        found_here = gradients(list(rows))
        norms.append(float(torch.nn.utils.get_total_norm(found_here)))
        for total, gradient in zip(papers, found_here, strict=False):
            total += (gradient / max(1.0, norms[-1])) ** 2 / 3
    assert max(norms) > 1  # clipping is at work
    scores = {(site.module, site.term): site for site in found.sites}
    for site, a, b in zip(sites, textbook, papers, strict=True):
        assert scores[site.key].fisher == pytest.approx(float(a.mean()), rel=1e-3, abs=1e-13)
        assert scores[site.key].fisher_paper == pytest.approx(float(b.mean()), rel=1e-3, abs=1e-13)


def test_a_linear_head_passes_gradients_back(tuned_bert: Path) -> None:
    found = measure_importance(tuned_bert, toy_task())
    by_term = found.values("fisher")
    assert by_term["value"] > 1e3 * by_term["key"]
    assert len(by_term) == 8


def test_without_biases_the_projection_is_undefined_and_the_effect_is_told(llama: Path, tuned_llama: Path) -> None:
    found = measure_importance(tuned_llama, toy_task())
    assert found.values("projection") == {}
    assert any("undefined for query, key, value" in note for note in found.notes)
    assert set(found.values("magnitude")) == set(found.terms)
    plain = AutoModel.from_pretrained(llama)
    bank = beft.attach(plain, "value", names=[])
    adapter = bank.load(str(tuned_llama))
    path = "layers.0.self_attn"
    vector = adapter.vector(next(site for site in adapter.sites if site.module == f"{path}.v_proj")).detach()
    bank.detach()
    wide = vector.view(2, -1).repeat_interleave(2, 0).flatten()  # two heads of keys and values, four of queries
    constant = plain.get_submodule(path).o_proj.weight @ wide
    seen: list[torch.Tensor] = []
    plain.get_submodule(path).o_proj.register_forward_hook(lambda m, a, output: seen.append(output[0]))
    words = tokenizer(special=False)
    with torch.no_grad():
        for example in toy_task().train:
            plain(**words(example.texts[0], return_tensors="pt", return_token_type_ids=False))
    expected = float(constant.detach().norm() / torch.cat(seen).norm(dim=-1).mean())
    value = next(site for site in found.sites if site.term == "value" and site.layer == 0)
    assert value.effect == pytest.approx(expected, rel=1e-4)
    assert all(site.effect is None for site in found.sites if site.term != "value")


def test_without_a_task_only_what_the_folder_tells(tuned_bert: Path) -> None:
    found = measure_importance(tuned_bert)
    assert found.values("fisher") == {}
    assert found.values("projection").keys() == set(found.terms)
    assert any("no Fisher scores" in note for note in found.notes)


def test_an_inert_term_is_told(tuned_bert: Path) -> None:
    found = measure_importance(tuned_bert, toy_task())
    assert found.inert() == ["key"]  # softmax cancels what all scores of a query share
    assert any("key: inert" in note for note in found.notes)
    assert "key" in found.values("projection")
    assert all("key" not in ranking for ranking in found.to_dict()["rankings"].values())
    without = measure_importance(tuned_bert)
    assert without.inert() == []
    assert any("nothing tells which terms are inert" in note for note in without.notes)


def test_bad_input(tuned_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="a folder that beft trained"):
        measure_importance(tmp_path)
    with pytest.raises(DataError, match="labels None"):
        measure_importance(tuned_bert, toy_task(regression=True))
    other = toy_task(40)
    assert any("not those" in note for note in measure_importance(tuned_bert, other).notes)


def test_all_terms_are_those_the_model_has(bert: Path, tmp_path: Path) -> None:
    assert all_terms(str(bert)).count("+") == 7
    assert "output_norm" not in all_terms(str(save_base(tmp_path / "gptj", "gptj", special=False)))


def test_means_over_layers_and_rows_of_the_heatmap() -> None:
    def site(term: str, layer: int, projection: float | None, attention: str = "self", stack: str = "") -> SiteScores:
        return SiteScores(term, layer, "m", attention, stack, 4, projection, 0.0)

    scores = [site("value", 0, 0.2), site("value", 1, 0.4), site("query", 0, None), site("query", 1, 0.5)]
    found = Importance("m", "t", [*scores, site("key", 0, None)])
    assert found.values("projection") == {"query": 0.5, "value": pytest.approx(0.3)}
    assert found.ranking("projection") == ["query", "value"]
    assert found.terms == ["query", "key", "value"]
    assert found.matrix("projection") == [[None, None, 0.2], [0.5, None, 0.4]]
    both = Importance("m", "t", [site("value", 0, 1.0, "cross", "decoder"), site("value", 0, 1.0, "self", "decoder"),
                                 site("value", 1, 1.0, "self", "encoder")])  # fmt: skip
    assert both.rows() == [("encoder", "self", 1), ("decoder", "self", 0), ("decoder", "cross", 0)]


def test_an_inert_term_of_a_high_score_has_no_rank() -> None:
    """With absolute positions the optimiser turns the key bias far, though the task never moved it."""
    scores = {"query": (0.1, 1.0), "key": (0.99, 1e-20), "value": (0.4, 2.0)}
    found = Importance(
        "m",
        "t",
        [SiteScores(term, 0, "m", "self", "", 4, projection, 0.0, None, fisher)
         for term, (projection, fisher) in scores.items()],
    )  # fmt: skip
    assert found.values("projection")["key"] == 0.99
    assert found.ranked("projection") == {"query": 0.1, "value": 0.4}
    assert found.ranking("projection") == found.ranking("fisher") == ["value", "query"]


def test_prompts_have_scores_too(llama: Path, tmp_path: Path) -> None:
    """No head: the gradients come back through the model's own vocabulary."""
    questions = [
        Question(number, f"{text} is", (" red", " green", " blue"), (colour,))
        for number, (text, colour) in enumerate(texts(12))
    ]
    task = PromptTask("colours", questions, {"evaluation": questions[:4]}, labels=("red", "green", "blue"))
    recipe = beft.prompt_recipe(epochs=1, terms="value+key", refit=False, max_length=64)
    beft.train(str(llama), task, recipe, tmp_path / "out", dtype="fp32", with_baselines=False)
    found = measure_importance(tmp_path / "out", task)
    assert found.values("fisher")["value"] > 0
    assert found.values("effect")["value"] > 0
