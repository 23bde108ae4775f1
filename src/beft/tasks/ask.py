"""The user's own rows as prompts: a template, and candidates to choose from or answers to write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import DataError, RecipeError, nearest
from .choices import Candidates, Choices, find_gold, listed, parse_choices
from .load import parse_size
from .own import is_missing, need_rows, rows_of, source_name
from .question import PromptTask, Question
from .table import Row
from .task import Example, Task, check_learnable, draw, split_texts
from .template import Template


def own_prompt_task(
    source: str | Path,
    template: str,
    *,
    candidates: Candidates | None = None,
    label: str | None = None,
    answer: str | None = None,
    blank: str = "",
    evaluation: str | Path | None = None,
    hold_out: bool = True,
    size: int | str | None = None,
    eval_size: int | None = None,
    stop: Sequence[str] = ("\n",),
    generation: Mapping[str, Any] | None = None,
    seed: int = 0,
    name: str | None = None,
) -> PromptTask:
    r"""A task from a file (CSV, TSV, JSON lines, Parquet) or a Hub data set, each row put into a template.

    Without `evaluation` a fifth of the rows is held out (stratified by label where all rows have the same candidates),
    unless `hold_out` is False.

    Args:
        source: the file, or the Hub data set as "owner/name[:config][@split]".
        template: the prompt, with columns as `{column}` and braces of the text doubled.
        candidates: what the answer is chosen from, exactly as it follows the prompt (so mostly with a space in front):
            a list, a mapping of labels to candidates, the name of a column that holds a list, or one of these as text
            (see `beft.tasks.choices.parse_choices`).
        label: the column that says which candidate is right: the candidate (spaces around it aside) or its label, or
            its number from 0; a list of them where several are right.
        answer: instead of both, the column of the text to write, or of a list of accepted texts (the first is learned).
        blank: the prompt without the input, for calibration; a template too.
        evaluation: rows to judge on, read in the same way.
        hold_out: whether to hold rows out where `evaluation` is not given.
        size: how many training rows to keep; all by default.
        eval_size: how many evaluation rows to keep.
        stop: strings that end a written answer; the first is learned as its end.
        generation: how answers are written, see `PromptTask.generation`.
        seed: of the draws.
        name: of the task; by default the file's.

    Raises:
        DataError: a template, column, candidate, label or answer that cannot be used; the row is named.
        RecipeError: options that contradict one another or leave out what is right.
    """
    _need_truth(candidates, label, answer)
    reader = _Reader(template, candidates, label, answer, blank, tuple(stop))
    train = list(reader.read(str(source), "train"))
    if not train:
        raise DataError(str(source), expected="rows", found="none")
    task = PromptTask(
        name=name or source_name(source),
        train=[],
        labels=reader.labels,
        metrics=_metrics(answer, reader),
        stop=tuple(stop),
        asked={"template": template, "candidates": candidates, "label": label, "answer": answer, "blank": blank},
        generation=dict(generation or {}),
    )
    held: list[_Pair] = []
    split, classes = "", reader.labels is not None
    if evaluation is not None:
        held, split = list(reader.read(str(evaluation), "validation")), "evaluation"
        if not held:
            raise DataError(str(evaluation), expected="rows", found="none")
        both = len({each.question.prompt for each in held} & {each.question.prompt for each in train})
        if both:
            task.notices.append(f"{both} evaluation prompt(s) stand in the training rows too")
    elif hold_out:
        need_rows(len(train), str(source))
        rest, part = split_texts([each.example for each in train], max(1, round(len(train) / 5)), seed, classes)
        train, held, split = [train[i] for i in rest], [train[i] for i in part], "held-out"
    if size is not None:
        count = parse_size(size, len(train), task.name)
        if count < len(train):
            train = [train[i] for i in draw([each.example for each in train], count, seed, classes)]
    if held:
        task.evaluation = {split: [each.question for each in held[:eval_size]]}
    task.train = [each.question for each in train]
    task.notices += reader.notices(task.name, str(source), train)
    return task


def own_rows_to_judge(
    source: str | Path,
    template: str,
    *,
    candidates: Candidates | None = None,
    label: str | None = None,
    answer: str | None = None,
    blank: str = "",
    eval_size: int | None = None,
    stop: Sequence[str] = ("\n",),
    generation: Mapping[str, Any] | None = None,
) -> PromptTask:
    """All rows of a file or Hub data set to judge on, and none to learn from; the arguments are `own_prompt_task`'s.

    Raises:
        DataError: as `own_prompt_task`, but for classes that are missing: whatever rows there are can be judged.
        RecipeError: options that contradict one another or leave out what is right.
    """
    _need_truth(candidates, label, answer)
    reader = _Reader(template, candidates, label, answer, blank, tuple(stop))
    questions = [each.question for each in islice(reader.read(str(source), "validation"), eval_size)]
    if not questions:
        raise DataError(str(source), expected="rows", found="none")
    name, metrics = source_name(source), _metrics(answer, reader)
    held = {"evaluation": questions}
    writing: dict[str, Any] = {"writes": answer is not None, "generation": dict(generation or {})}
    return PromptTask(name, [], held, reader.labels, metrics, tuple(stop), **writing)


def own_questions(
    source: str | Path,
    template: str,
    *,
    candidates: Candidates | None = None,
    label: str | None = None,
    answer: str | None = None,
    blank: str = "",
    split: str = "validation",
) -> Iterator[Question]:
    """Rows to answer or judge, as a stream; the arguments are `own_prompt_task`'s.

    Without `label` or `answer` the questions hold no truth, without `candidates` they are to be answered in free text.
    `split` is the Hub data set's.

    Raises:
        DataError: as `own_prompt_task`.
        RecipeError: options that contradict one another.
    """
    for each in _Reader(template, candidates, label, answer, blank).read(str(source), split):
        yield each.question


def questions_of(
    rows: Iterable[Row],
    template: str,
    *,
    candidates: Candidates | None = None,
    label: str | None = None,
    answer: str | None = None,
    blank: str = "",
) -> list[Question]:
    """Rows at hand as questions, see `own_questions`. A label or answer column that the rows lack is left out.

    Raises:
        DataError: a row without a field of the template; it is numbered from 0.
    """
    listed = list(rows)
    there = set(listed[0]) if listed else set()
    reader = _Reader(
        template, candidates, label if label in there else None, answer if answer in there else None, blank
    )
    if listed and reader.given is not None:
        reader.choices = parse_choices(reader.given, [str(column) for column in listed[0]])
    return [reader._pair("rows", number, row).question for number, row in enumerate(listed)]


@dataclass(frozen=True)
class _Pair:
    """A row as a question, and as an example of its fields and its right candidate, for what is common to tasks."""

    question: Question
    example: Example


class _Reader:
    """Reads rows as questions; the first row decides whether `candidates` name a column."""

    def __init__(
        self,
        template: str,
        candidates: Candidates | None,
        label: str | None,
        answer: str | None,
        blank: str,
        stop: tuple[str, ...] = (),
    ) -> None:
        if answer is not None and (candidates is not None or label is not None):
            raise RecipeError("own prompts", expected="candidates or an answer column", found="both")
        if label is not None and candidates is None:
            raise RecipeError("own prompts", expected="candidates for the label to choose from", found="none")
        self.template, self.blank = Template.parse(template), Template.parse(blank, "blank template")
        if not self.template.fields:
            raise DataError(
                "template", expected="at least one {column}", found=repr(template), remedy="name the input's columns"
            )
        self.given, self.label, self.answer, self.stop = candidates, label, answer, stop
        self.choices: Choices | None = None

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the candidates, where all questions have the same."""
        return self.choices.names or None if self.choices else None

    def read(self, source: str, split: str) -> Iterator[_Pair]:
        """The rows of a file or Hub data set."""
        for number, row in rows_of(source, split):
            if self.given is not None and self.choices is None:
                self.choices = parse_choices(self.given, [str(column) for column in row])
            yield self._pair(source, number, row)

    def _pair(self, source: str, number: int, row: Row) -> _Pair:
        where = f"{source}, line {number}"
        wanted = [(field, "template") for field in (*self.template.fields, *self.blank.fields)]
        column = self.choices.column if self.choices else ""
        wanted += [(each, "") for each in (column, self.label, self.answer) if each]
        for each, of in wanted:
            if each not in row:
                raise DataError(
                    f"{of} field {{{each}}}" if of else f"{source}, column {each!r}",
                    expected=f"a column of {source}" if of else "a column of this name",
                    found=", ".join(map(str, row)),
                    remedy=nearest(each, [str(name) for name in row]),
                )
        fields = {each: _text(where, each, row[each]) for each, of in wanted if of}
        values = tuple(fields[each] for each in self.template.fields)
        if not any(value.strip() for value in values):
            raise DataError(
                where,
                expected=f"text in {' or '.join(self.template.fields)}",
                found="none",
                remedy="fill it in or take the row out",
            )
        candidates = self.choices.of(f"{where}, candidates", row) if self.choices else ()
        gold: tuple[int, ...] = ()
        if self.choices and self.label:
            names = self.choices.names or tuple(candidate.strip() for candidate in candidates)
            gold = find_gold(f"{where}, {self.label}", row[self.label], names)
        question = Question(
            id=number,
            prompt=self.template.fill(fields),
            candidates=candidates,
            gold=gold,
            answers=self._answers(f"{where}, {self.answer}", row[self.answer]) if self.answer else (),
            blank=self.blank.fill(fields),
        )
        return _Pair(question, Example(number, values, gold[0] if gold and self.labels else None))

    def _answers(self, where: str, value: Any) -> tuple[str, ...]:
        answers = listed(where, value, bars=False)
        for each in answers:
            if isinstance(each, (list, dict)) or is_missing(each) or not str(each).strip():
                raise DataError(where, expected="an answer as text", found=repr(each))
        if not answers:
            raise DataError(where, expected="an answer", found="an empty list")
        cut = [mark for mark in self.stop if mark and mark in str(answers[0]).strip()]
        if cut:
            raise DataError(
                where,
                expected="an answer without the string that ends answers",
                found=f"{cut[0]!r} in it",
                remedy="give another stop string (--stop)",
            )
        return tuple(dict.fromkeys(str(each).strip() for each in answers))

    def notices(self, name: str, source: str, train: Sequence[_Pair]) -> list[str]:
        """What is odd about the training rows.

        Raises:
            DataError: see `check_learnable`, where all rows have the same candidates.
        """
        found = []
        if self.labels:
            examples = [each.example for each in train]
            task = Task(name, self.labels, self.template.fields, (), examples, label_field=self.label or "label")
            check_learnable(task, source)
            found += task.notices
        glued = next((text for each in train for text in _glued(each.question)), None)
        if glued:
            found.append(
                f"a candidate follows its prompt without a space: {glued!r}; "
                "begin candidates with a space, or end the template with one"
            )
        return found


def _need_truth(candidates: Candidates | None, label: str | None, answer: str | None) -> None:
    if answer is None and (candidates is None or label is None):
        raise RecipeError(
            "own prompts",
            expected="candidates and a label column, or an answer column",
            found="no candidates" if candidates is None else "no label column",
        )


def _metrics(answer: str | None, reader: _Reader) -> tuple[str, ...]:
    return ("token_f1", "em") if answer else ("accuracy", "f1_macro") if reader.labels else ("accuracy",)


def _glued(question: Question) -> Iterator[str]:
    """Where a word of the prompt runs into a candidate's."""
    for candidate in question.candidates:
        border = question.prompt[-1:] + candidate[:1]
        if len(border) == 2 and border.isascii() and border.isalnum():
            yield question.prompt[-20:] + candidate[:20]


def _text(where: str, column: str, value: Any) -> str:
    if isinstance(value, (list, tuple, dict)):
        raise DataError(f"{where}, {column}", expected="text or a number", found=type(value).__name__)
    return "" if is_missing(value) else str(value)
