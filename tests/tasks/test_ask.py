"""The user's own rows as prompts: templates, candidates, answers, splits, and what is wrong with them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from beft.errors import DataError, RecipeError
from beft.tasks import own
from beft.tasks.ask import own_prompt_task, own_questions
from beft.tasks.question import Question

TEMPLATE = "{text} It was"
WORDS = {"negative": " bad", "positive": " good"}
ROWS: list[dict[str, Any]] = [{"text": f"w{n}", "label": ("negative", "positive")[n % 3 == 0]} for n in range(30)]
OPTIONS: list[dict[str, Any]] = [{"q": f"w{n}?", "options": ["red", f"blue{n}"], "right": n % 2} for n in range(10)]
ASKED: list[dict[str, Any]] = [{"q": f"w{n}?", "a": f"answer {n}"} for n in range(10)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        lines = [rows[0], *(row.values() for row in rows)]
        path.write_text("".join(",".join(f'"{cell}"' for cell in line) + "\n" for line in lines), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["d.csv", "d.jsonl"])
@pytest.mark.parametrize("candidates", [WORDS, "negative= bad,positive= good"])
def test_a_candidate_for_each_label(tmp_path: Path, name: str, candidates: Any) -> None:
    task = own_prompt_task(
        write(tmp_path / name, ROWS), TEMPLATE, candidates=candidates, label="label", hold_out=False, blank="It was"
    )
    first = 2 if name == "d.csv" else 1  # the line in the file
    assert task.train[:2] == [
        Question(first, "w0 It was", (" bad", " good"), (1,), blank="It was"),
        Question(first + 1, "w1 It was", (" bad", " good"), (0,), blank="It was"),
    ]
    assert task.labels == ("negative", "positive")
    assert task.metrics == ("accuracy", "f1_macro")
    assert (task.name, task.generates, task.notices, task.evaluation) == ("d", False, [], {})


def test_a_list_of_candidates_and_labels_that_are_their_words_or_numbers(tmp_path: Path) -> None:
    for label, rows in (("word", ["bad", "good"]), ("number", [0, 1])):
        file = write(tmp_path / f"{label}.jsonl", [{"text": f"w{n}", label: rows[n % 2]} for n in range(8)])
        task = own_prompt_task(file, TEMPLATE, candidates=[" bad", " good"], label=label, hold_out=False)
        assert [question.gold for question in task.train] == [(0,), (1,)] * 4
        assert task.labels == ("bad", "good")


@pytest.mark.parametrize("form", ["list", "json", "bars"])
def test_a_column_of_candidates(tmp_path: Path, form: str) -> None:
    write_as = {"list": list, "json": json.dumps, "bars": "|".join}[form]
    rows = [{**row, "options": write_as(row["options"])} for row in OPTIONS]
    task = own_prompt_task(
        write(tmp_path / "d.jsonl", rows), "{q} ", candidates="options", label="right", hold_out=False
    )
    assert task.train[3] == Question(4, "w3? ", ("red", "blue3"), (1,))
    assert (task.labels, task.metrics) == (None, ("accuracy",))


def test_several_right_candidates(tmp_path: Path) -> None:
    rows = [{"q": "w?", "options": ["a", "b", "c"], "right": ["c", "a"]} for _ in range(6)]
    task = own_prompt_task(
        write(tmp_path / "d.jsonl", rows), "{q} ", candidates="options", label="right", hold_out=False
    )
    assert task.train[0].gold == (2, 0)


def test_answers_to_write(tmp_path: Path) -> None:
    rows = [*ASKED, {"q": "w?", "a": [" one ", "two", "one"]}, {"q": "w?", "a": '["x", "y"]'}, {"q": "w?", "a": 7}]
    task = own_prompt_task(write(tmp_path / "d.jsonl", rows), "Q: {q}\nA:", answer="a", hold_out=False)
    assert task.train[0] == Question(1, "Q: w0?\nA:", answers=("answer 0",))
    assert [question.answers for question in task.train[-3:]] == [("one", "two"), ("x", "y"), ("7",)]
    assert task.generates
    assert (task.metrics, task.stop) == (("token_f1", "em"), ("\n",))


def test_other_stop_strings_allow_answers_of_several_lines(tmp_path: Path) -> None:
    file = write(tmp_path / "d.jsonl", [{"q": "w?", "a": "one\ntwo"}] * 6)
    with pytest.raises(DataError, match=r"line 1, a: .*found '\\n' in it. Give another stop string"):
        own_prompt_task(file, "{q}", answer="a", hold_out=False)
    task = own_prompt_task(file, "{q}", answer="a", hold_out=False, stop=("###",))
    assert (task.train[0].answers, task.stop) == (("one\ntwo",), ("###",))


def test_a_stratified_fifth_is_held_out(tmp_path: Path) -> None:
    task = own_prompt_task(write(tmp_path / "d.csv", ROWS), TEMPLATE, candidates=WORDS, label="label")
    (held,) = task.evaluation.values()
    assert list(task.evaluation) == ["held-out"]
    assert Counter(question.gold for question in held) == {(0,): 4, (1,): 2}
    assert not {question.id for question in held} & {question.id for question in task.train}
    assert len(task.train) + len(held) == 30


@pytest.mark.parametrize("answer", [True, False])
def test_other_tasks_hold_out_a_plain_fifth(tmp_path: Path, answer: bool) -> None:
    options: dict[str, Any] = {"answer": "a"} if answer else {"candidates": "options", "label": "right"}
    file = write(tmp_path / "d.jsonl", ASKED if answer else OPTIONS)
    first, again = (own_prompt_task(file, "{q} ", **options, seed=5) for _ in range(2))
    assert (len(first.train), len(first.evaluation["held-out"])) == (8, 2)
    assert first.fingerprint() == again.fingerprint()
    assert first.fingerprint() != own_prompt_task(file, "{q} ", **options, seed=6).fingerprint()


def test_an_evaluation_file_is_read_in_the_same_way(tmp_path: Path) -> None:
    train, test = write(tmp_path / "a.csv", ROWS), write(tmp_path / "b.csv", [*ROWS[:2], {"text": "z", "label": "0"}])
    task = own_prompt_task(train, TEMPLATE, candidates=WORDS, label="label", evaluation=test)
    assert [question.gold for question in task.evaluation["evaluation"]] == [(1,), (0,), (0,)]
    assert task.notices == ["2 evaluation prompt(s) stand in the training rows too"]
    assert len(task.train) == 30


@pytest.mark.parametrize("size", [2, 11, 24, "all"])
def test_sizes(tmp_path: Path, size: int | str) -> None:
    file = write(tmp_path / "d.csv", ROWS)
    task = own_prompt_task(file, TEMPLATE, candidates=WORDS, label="label", size=size, eval_size=3)
    assert len(task.train) == (24 if size == "all" else size)
    assert len(task.evaluation["held-out"]) == 3
    assert len({question.gold for question in task.train}) == 2


def test_notices_of_what_is_odd(tmp_path: Path) -> None:
    rows = [*ROWS, {"text": "w0", "label": "negative"}]
    task = own_prompt_task(
        write(tmp_path / "d.csv", rows),
        TEMPLATE,
        candidates={"negative": "bad", "positive": "good"},
        label="label",
        hold_out=False,
    )
    assert task.notices == [
        "1 training text has two labels, e.g. 'w0'",
        "a candidate follows its prompt without a space: 'w0 It wasbad'; "
        "begin candidates with a space, or end the template with one",
    ]


@pytest.mark.parametrize(("template", "candidate"), [("{text} ", "bad"), ("{text}", " bad"), ("{text}:", "bad")])
def test_no_notice_where_words_stay_apart(tmp_path: Path, template: str, candidate: str) -> None:
    words = {"negative": candidate, "positive": " good"}
    file = write(tmp_path / "d.csv", ROWS)
    assert own_prompt_task(file, template, candidates=words, label="label", hold_out=False).notices == []


def test_values_may_hold_braces_and_be_numbers(tmp_path: Path) -> None:
    file = write(tmp_path / "d.jsonl", [{"a b": "{x}", "n": 3, "e": None}])
    (question,) = own_questions(file, "{{{a b}}} {n}{e}!")
    assert question == Question(1, "{{x}} 3!")


def test_rows_without_truth_are_a_stream(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"text": "a"}\n{"text": "b"}\nbroken\n')
    stream = own_questions(file, TEMPLATE, candidates=WORDS)
    assert [next(stream), next(stream)] == [
        Question(1, "a It was", (" bad", " good")),
        Question(2, "b It was", (" bad", " good")),
    ]
    with pytest.raises(DataError, match="line 3"):
        next(stream)


ONE = {"text": "a", "label": "negative"}
FIXED: dict[str, Any] = {"candidates": WORDS, "label": "label"}
BAD: dict[str, tuple[list[dict[str, Any]], str, dict[str, Any], str]] = {  # rows, template, options, message
    "no such field": (
        [ONE],
        "{txt} It",
        FIXED,
        r"template field \{txt\}: expected a column of .*d\.jsonl, found text, label. Did you mean 'text'\?",
    ),
    "no such field in the blank": ([ONE], TEMPLATE, {**FIXED, "blank": "{tex}"}, r"template field \{tex\}"),
    "no field": ([ONE], "It was", FIXED, r"template: expected at least one \{column\}, found 'It was'"),
    "a single brace": ([ONE], "{text", FIXED, "template, character 1: .* found a single '{'"),
    "candidates alike": ([ONE], TEMPLATE, {**FIXED, "candidates": [" x", "x"]}, "candidates that differ, found 'x'"),
    "an empty candidate": ([ONE], TEMPLATE, {**FIXED, "candidates": "a=,b= x"}, "candidate 1: .*found an empty one"),
    "a label outside": (
        [ONE, {"text": "b", "label": "positiv"}],
        TEMPLATE,
        FIXED,
        r"d\.jsonl, line 2, label: expected a label among the candidates \('negative', 'positive'\), found 'positiv'. "
        r"Did you mean 'positive'\?",
    ),
    "no label": ([ONE, {"text": "b", "label": None}], TEMPLATE, FIXED, "line 2, label: expected a label, found None"),
    "no label column": ([ONE], TEMPLATE, {**FIXED, "label": "lab"}, r"column 'lab': .* Did you mean 'label'\?"),
    "no text": (
        [ONE, {"text": " ", "label": "negative"}],
        TEMPLATE,
        FIXED,
        "line 2: expected text in text, found none",
    ),
    "a list as text": (
        [{"text": ["a"], "label": 0}],
        TEMPLATE,
        FIXED,
        "line 1, text: expected text or a number, found",
    ),
    "one class": ([ONE] * 6, TEMPLATE, FIXED, r"d\.jsonl, column 'label': .* found one class only \('negative'\)"),
    "no rows": ([], TEMPLATE, FIXED, r"d\.jsonl: expected rows, found none"),
    "few rows": ([ONE] * 3, TEMPLATE, FIXED, r"d\.jsonl: expected at least 5 rows to hold some out, found 3"),
    "no candidates": ([ONE], TEMPLATE, {"label": "label"}, "expected candidates and a label column.*no candidates"),
    "no labels": ([ONE], TEMPLATE, {"candidates": WORDS}, "expected candidates and a label column.*no label column"),
    "both": ([ONE], TEMPLATE, {**FIXED, "answer": "label"}, "expected candidates or an answer column, found both"),
    "no list column": ([OPTIONS[0]], "{q}", {"candidates": "option", "label": "right"}, "mean 'options'"),
    "row's candidates alike": (
        [{**OPTIONS[0], "options": ["a", "a"]}],
        "{q}",
        {"candidates": "options", "label": "right"},
        "line 1, candidates: expected candidates that differ, found 'a' twice",
    ),
    "row's candidates empty": (
        [{**OPTIONS[0], "options": "a|"}],
        "{q}",
        {"candidates": "options", "label": "right"},
        "line 1, candidates, candidate 2: expected a text, found an empty one",
    ),
    "row's label outside": (
        [{**OPTIONS[0], "right": 2}],
        "{q}",
        {"candidates": "options", "label": "right"},
        r"line 1, right: expected a label among the candidates \('red', 'blue0'\), found '2'",
    ),
    "an empty answer": ([{"q": "x", "a": " "}], "{q}", {"answer": "a"}, "line 1, a: .* found an empty cell"),
    "an empty answer of several": ([{"q": "x", "a": ["y", ""]}], "{q}", {"answer": "a"}, "an answer as text, found ''"),
    "no answers": ([{"q": "x", "a": []}], "{q}", {"answer": "a"}, "line 1, a: expected an answer, found an empty list"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(tmp_path: Path, case: str) -> None:
    rows, template, options, message = BAD[case]
    with pytest.raises((DataError, RecipeError), match=message) as caught:
        own_prompt_task(write(tmp_path / "d.jsonl", rows), template, **options)
    assert "\n" not in str(caught.value)


def test_an_evaluation_file_without_rows_is_refused(tmp_path: Path) -> None:
    train, test = write(tmp_path / "a.csv", ROWS), write(tmp_path / "b.jsonl", [])
    with pytest.raises(DataError, match=r"b\.jsonl: expected rows, found none"):
        own_prompt_task(train, TEMPLATE, candidates=WORDS, label="label", evaluation=test)


def test_a_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(dataset: str, config: str | None, split: str) -> list[dict[str, Any]]:
        assert (dataset, config) == ("owner/name", None)
        return ROWS if split == "train" else ROWS[:3]

    monkeypatch.setattr(own, "hub_rows", rows)
    task = own_prompt_task("owner/name", TEMPLATE, candidates=WORDS, label="label", evaluation="owner/name")
    assert (task.name, len(task.train), len(task.evaluation["evaluation"])) == ("name", 30, 3)
