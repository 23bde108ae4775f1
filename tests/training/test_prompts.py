"""Training a language model on questions: equal to the plain way, resumable, judged by choosing or by writing."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import beft
import real
from beft.core.bank import attach
from beft.errors import DataError, RecipeError, StoreError
from beft.objectives.prompt_tokens import encode_answers
from beft.tasks.question import PromptTask, Question
from beft.tasks.reading import prompt_task
from beft.training.aims import Part
from beft.training.infer import EVALUATION_FACTOR
from beft.training.language import load_language_model
from beft.training.loop import Run
from beft.training.machine import choose
from beft.training.prompt_aims import PromptAim
from beft.training.prompt_ground import settle_generation
from beft.training.prompt_predictor import PromptPredictor, shown
from beft.training.recipe import PROMPT_LR, Recipe, prompt_recipe
from toys import COLOURS, adapter_files, same_tensors, save_base, texts, write_csv
from training.common import After, leaves_of

PLAIN = {"selection": "none", "refit": False}


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its language-model head."""
    return save_base(tmp_path_factory.mktemp("decoder") / "tiny-llama", "llama", head="lm", special=False)


def questions(count: int, seed: int = 1, long: bool = False) -> list[Question]:
    tail = " w1" if long else ""
    return [
        Question(number, f"{text} !", tuple(f" {colour}{tail}" for colour in COLOURS), (colour,), blank="!")
        for number, (text, colour) in enumerate(texts(count, seed))
    ]


def choosing(train: int = 36, evaluation: int = 12, **options: Any) -> PromptTask:
    held = {"evaluation": questions(evaluation, 2, **options)}
    return PromptTask("toy", questions(train, **options), held, COLOURS, ("accuracy", "f1_macro"))


def writing(train: int = 24, evaluation: int = 6) -> PromptTask:
    def of(count: int, seed: int) -> list[Question]:
        return [Question(q.id, q.prompt, answers=(COLOURS[q.gold[0]],)) for q in questions(count, seed)]

    return PromptTask("toy", of(train, 1), {"evaluation": of(evaluation, 2)}, metrics=("token_f1", "em"), stop=("w39",))


def recipe(**changes: Any) -> Recipe:
    return prompt_recipe(**{"epochs": 2, "lr": 0.05, "max_length": 64, **changes})


def learn(base: Path, task: PromptTask, out: Path | None = None, **options: Any) -> beft.Result:
    return beft.train(str(base), task, options.pop("recipe", recipe()), out, dtype="fp32", **options)


def new_run(
    base: Path, task: PromptTask, budget: int = 4096, machine: dict[str, Any] | None = None, **changes: Any
) -> Run:
    choices = replace(choose("cpu", "fp32", 64, budget), **(machine or {}))
    loaded = load_language_model(str(base), choices)
    bank = attach(loaded.model, "value", names=["default"])
    aim = PromptAim(bank, "default", task, loaded.tokenizer, choices, 64)
    part = aim.part(task.train, to_learn=True)
    return Run(bank, "default", aim, recipe(**{**PLAIN, **changes}), choices, {"select": part, "refit": part})


@pytest.mark.parametrize("long", [False, True])
def test_a_steps_gradient_is_the_plain_ways(decoder: Path, long: bool) -> None:
    task = choosing(6, 0, long=long)
    run = new_run(decoder, task)
    with torch.no_grad():
        for leaf in run.leaves.values():
            leaf.fill_(0.05)
    part = run.parts["refit"]
    value = run._gradients(part, run.aim.lengths(part), list(range(6)), [0])
    found = {key: leaf.grad.clone() for key, leaf in run.leaves.items() if leaf.grad is not None}

    model = AutoModelForCausalLM.from_pretrained(decoder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    bank = attach(model, "value", names=["default"])
    with torch.no_grad():
        for leaf in bank.parameters("default"):
            leaf.fill_(0.05)
    total = torch.zeros(())
    for question in task.train:
        scores = []
        for candidate in question.candidates:
            prompt = tokenizer(question.prompt)["input_ids"]
            ids = torch.tensor([tokenizer(question.prompt + candidate)["input_ids"]])
            logs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            scores.append(logs[torch.arange(len(logs)), ids[0, 1:]][len(prompt) - 1 :].mean())
        total = total + torch.nn.functional.cross_entropy(torch.stack(scores)[None], torch.tensor(question.gold))
    (total / 6).backward()
    expected = {key: leaf.grad for key, leaf in bank["default"].leaves() if leaf.grad is not None}
    same_tensors(found, expected, 1e-5)
    assert value == pytest.approx(float(total.detach()) / 6, abs=1e-5)


def test_the_token_budget_changes_no_weight(decoder: Path) -> None:
    whole, cut = (new_run(decoder, choosing(long=True), budget) for budget in (4096, 40))
    whole.learn()
    cut.learn()
    same_tensors(leaves_of(cut), leaves_of(whole), 1e-5)


@pytest.mark.parametrize("task", [choosing(), choosing(long=True), writing()], ids=["one", "long", "write"])
def test_it_learns_and_the_base_stays(decoder: Path, task: PromptTask, tmp_path: Path) -> None:
    before = (decoder / "model.safetensors").read_bytes()
    result = learn(decoder, task, tmp_path / "out", recipe=recipe(epochs=6))
    losses = [row["train_loss"] for row in result.history if row["phase"] == "refit"]
    assert losses[-1] < losses[0] - 0.05
    assert result.metrics["trainable_parameters"] == sum(
        parameter.numel() for parameter in new_run(decoder, task).leaves.values()
    )
    assert set(result.evaluation) == set(task.metrics)
    assert set(result.metrics["baselines"]["zero_shot"]) == {*task.metrics, "splits"}
    assert (decoder / "model.safetensors").read_bytes() == before


def test_choosing_beats_the_plain_model_clearly(decoder: Path) -> None:
    result = learn(decoder, choosing(60, 30), recipe=recipe(epochs=12, terms="all"))
    assert result.evaluation["accuracy"] > result.metrics["baselines"]["zero_shot"]["accuracy"] + 0.2


def test_a_run_stopped_in_the_middle_goes_on_to_the_same_weights(decoder: Path, tmp_path: Path) -> None:
    import os
    import signal

    task = choosing(24, 6)
    learn(decoder, task, tmp_path / "whole")
    with pytest.raises(beft.BeftError, match="--resume"):
        learn(decoder, task, tmp_path / "cut", listener=After(4, lambda: os.kill(os.getpid(), signal.SIGINT)))
    learn(decoder, task, tmp_path / "cut", resume=True)
    assert adapter_files(tmp_path / "cut") == adapter_files(tmp_path / "whole")


def test_the_files_and_the_predictor(decoder: Path, tmp_path: Path) -> None:
    task = choosing(24, 6)
    learn(decoder, task, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [question.id for question in task.evaluation["evaluation"]]
    assert all(set(line["scores"]) == set(COLOURS) for line in lines)
    assert all(line["prediction"] == max(line["scores"], key=line["scores"].get) for line in lines)
    predictor = beft.load(tmp_path / "out")
    assert isinstance(predictor, PromptPredictor)
    assert predictor.predict(task.evaluation["evaluation"]) == [line["prediction"] for line in lines]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "zero-shot" in card
    assert "text-generation" in card
    for name in ("metrics.json", "run.json", "history.csv", "errors.csv"):
        assert (tmp_path / "out" / name).exists()


def test_written_answers_are_predicted_too(decoder: Path, tmp_path: Path) -> None:
    task = writing()
    learn(decoder, task, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    predictor = beft.load(tmp_path / "out")
    assert predictor.predict(task.evaluation["evaluation"]) == [line["prediction"] for line in lines]  # type: ignore[arg-type]


def test_texts_are_written_in_wider_batches_than_a_small_budgets_and_stay_the_same(decoder: Path) -> None:
    found = []
    for budget in (64, 4096):
        sizes: list[int] = []
        run = new_run(decoder, writing(), budget)
        judged = run.aim.judge(run.aim.part(writing().train), lambda rows, left, sizes=sizes: sizes.append(rows))
        found.append((judged.predictions, max(sizes), sum(sizes)))
    (texts_of_small, most_of_small, done), (texts_of_large, most_of_large, all_done) = found
    assert texts_of_small == texts_of_large
    assert done == all_done == 24
    assert 2 * EVALUATION_FACTOR * 64 // 60 <= most_of_small < most_of_large


def test_as_many_tokens_are_written_as_the_longest_answer_learned_has(decoder: Path) -> None:
    """At least 50, and no more than half of the limit beyond that, which is said."""
    tokenizer, task = AutoTokenizer.from_pretrained(decoder), writing()
    for words, most in ((1, 50), (69, 70), (149, 128)):
        asked = [replace(task.train[0], answers=("w1 " * words,)), *task.train[1:]]
        learned = encode_answers(tokenizer, asked, 256, stop=" w39")
        settings, notices = settle_generation(task, Part(asked, learned, learned), 256)
        assert settings == {"max_new_tokens": most}
        assert [note.split(" (")[0] for note in notices] == [
            "1 of 24 train answers are longer than the 128 tokens that are written"
        ] * (most == 128)
    chosen = settle_generation(replace(task, generation={"max_new_tokens": 9}), Part([], learned, learned), 256)[0]
    assert chosen == {"max_new_tokens": 9}
    assert learn(decoder, task).task.generation == {"max_new_tokens": 50}  # type: ignore[union-attr]


def test_prompts_are_cut_where_new_tokens_need_the_room(decoder: Path) -> None:
    task = writing()
    long = [replace(task.train[0], prompt="w1 " * 20 + "!")]
    result = learn(decoder, replace(task, evaluation={"evaluation": long}), recipe=recipe(epochs=1))
    assert any("1 of 1 evaluation prompts were cut on the left to 14 tokens" in note for note in result.notices)


def test_own_rows_made_in_python_answer_rows_again(decoder: Path, tmp_path: Path) -> None:
    rows = write_csv(tmp_path / "rows.csv", texts(20, 1), ("text", "colour"))
    task = beft.own_prompt_task(rows, "{text} !", candidates=[" red", " green", " blue"], label="colour")
    learn(decoder, task, tmp_path / "out")
    answers = beft.load(tmp_path / "out").predict([{"text": "w1 red"}, {"text": "w2 blue"}])
    assert set(answers) <= set(COLOURS)


def test_the_majority_and_each_class_are_told_of_candidates_with_labels(decoder: Path, tmp_path: Path) -> None:
    task = choosing()
    result = learn(decoder, task, tmp_path / "out")
    golds = [question.gold[0] for question in task.train]
    common = max(sorted(set(golds)), key=golds.count)
    held = [question.gold[0] for question in task.evaluation["evaluation"]]
    assert result.metrics["baselines"]["majority"]["accuracy"] == pytest.approx(held.count(common) / len(held))
    with (tmp_path / "out" / "per_class.csv").open() as handle:
        assert [(row["label"], int(row["rows"])) for row in csv.DictReader(handle)] == [
            (colour, held.count(number)) for number, colour in enumerate(COLOURS)
        ]


def test_the_adapter_merges_into_a_stock_model_that_chooses_alike(decoder: Path, tmp_path: Path) -> None:
    from beft.core.ship import merge_checkpoint

    task = choosing(24, 6)
    result = learn(decoder, task, tmp_path / "out")
    merge_checkpoint(decoder, tmp_path / "out", tmp_path / "merged")
    plain = PromptPredictor(None, model=str(tmp_path / "merged"), dtype="fp32", max_length=64)
    assert plain.judge(task)["evaluation"] == result.evaluation


def test_copa_learns_the_right_text_and_is_judged_by_choosing(decoder: Path) -> None:
    task = replace(choosing(12, 4, long=True), name="copa", labels=None, metrics=("accuracy",))
    run = new_run(decoder, task)
    assert run.aim.teaches  # type: ignore[attr-defined]
    part = run.parts["refit"]
    assert [len(each) for each in part.learned.candidates] == [1] * 12
    assert set(run.aim.judge(part).metrics) == {"accuracy"}


def test_demonstrations_as_many_as_fit(decoder: Path) -> None:
    task = choosing(20, 3)
    predictor = PromptPredictor(None, model=str(decoder), dtype="fp32", max_length=60)
    found = shown(task, predictor, 12).evaluation["evaluation"]
    assert all(0 < question.shots < 12 for question in found)
    assert set(predictor.judge(replace(task, evaluation={"e": found}))["e"]) == set(task.metrics)
    assert predictor.cut == 0


def test_demonstrations_leave_room_for_the_chat_template_around_them(decoder: Path) -> None:
    task = replace(choosing(20, 3), chat=True)
    predictor = PromptPredictor(None, model=str(decoder), dtype="fp32", max_length=60)
    predictor.tokenizer.chat_template = "{% for m in messages %}w1 w2 w3 w4 w5 {{ m.content }} w6 w7 w8 w9 {% endfor %}"
    found = shown(task, predictor, 12)
    assert all(0 < question.shots < 12 for question in found.evaluation["evaluation"])
    predictor.judge(found)
    assert predictor.cut == 0


@pytest.mark.parametrize(("name", "lr"), [("cb", 1e-2), ("copa", 1e-4), ("rte", 1e-3), ("mine", 1e-3)])
def test_the_papers_decoder_recipe(name: str, lr: float) -> None:
    made = prompt_recipe(name)
    assert (made.lr, made.epochs, made.batch_size, made.schedule, made.head) == (lr, 5, 8, "linear", "none")
    assert PROMPT_LR.get(name, 1e-3) == lr


class TestRefused:
    def test_an_encoder(self, bert: Path) -> None:
        with pytest.raises(StoreError, match="expected a causal language model"):
            load_language_model(str(bert / "nothing"), choose("cpu", "fp32"))
        with pytest.raises((StoreError, RecipeError), match="causal language model"):
            learn(bert, choosing())

    def test_questions_without_a_truth(self, decoder: Path) -> None:
        task = choosing(6, 3)
        task.evaluation = {"e": [replace(question, gold=()) for question in task.evaluation["evaluation"]]}
        predictor = PromptPredictor(None, model=str(decoder), dtype="fp32", max_length=64)
        with pytest.raises(DataError, match="expected right answers to compare with"):
            predictor.judge(task)

    def test_an_answer_longer_than_the_context(self, decoder: Path) -> None:
        task = choosing(6, 0)
        task.train[2] = replace(task.train[2], candidates=(" red" * 80, " green"), gold=(0,))
        with pytest.raises(DataError, match="2"):
            learn(decoder, task)

    def test_a_head_of_none_for_labels(self, bert: Path) -> None:
        from toys import toy_task

        with pytest.raises(RecipeError, match="head 'none'"):
            beft.train(str(bert), toy_task(), Recipe(head="none"))


def test_a_real_decoder_on_real_questions() -> None:
    base, data = real.model("stories260k-llama"), real.data()
    task = prompt_task("sst2", data, size=40, eval_size=20)
    result = beft.train(str(base), task, prompt_recipe("sst2", epochs=2, **PLAIN), dtype="fp32")
    assert 0 <= result.evaluation["accuracy"] <= 1
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
