"""Making a `PromptTask` of a benchmark: rows read as the prompts of `beft.tasks.prompts`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError, nearest
from .load import hub_rows, split_file
from .prompts import PROMPTS, Prompt
from .question import NEW_TOKENS, Id, PromptTask, Question
from .registered import is_registered, registered_task
from .table import Row, read_rows
from .task import Example, read_size, subset
from .template import Template

CONJUNCTIONS = {"cause": "because", "effect": "so"}
"""COPA's questions as words between premise and choice."""


def prompt(name: str) -> Prompt:
    """How a benchmark reads, by its name; case ignored, "SST-2" and "sst_2" are understood.

    Raises:
        DataError: no such task; the nearest name is suggested.
    """
    key = name.lower().replace("-", "").replace("_", "")
    if key not in PROMPTS:
        raise DataError(f"task {name!r}", expected="a known prompt task", found="none", remedy=nearest(name, PROMPTS))
    return PROMPTS[key]


def prompt_task(
    name: str,
    data_dir: str | Path | None = None,
    *,
    size: int | str = 1000,
    eval_size: int | None = 1000,
    seed: int = 0,
) -> PromptTask:
    """A benchmark as prompts: a seeded subset of its training rows and the first rows of its validation set.

    Rows come from `data_dir`, else the folder named by the environment variable BEFT_DATA, else the Hub. The training
    rows are the first `size` of a permutation seeded with `seed`, or all ("all", or where there are no more; a notice
    says so); `eval_size` None takes the whole validation set. MultiRC is one question an answer; in ReCoRD the
    candidates are the passage's entities and every one that answers is right; in SQuAD and DROP every answer that an
    annotator gave is accepted (in DROP each span by itself, as in the protocol). The name may be of a prompt task from
    outside too (`register_task`, or "my_file.py:name"), which brings its own rows.

    Raises:
        DataError: an unknown task, a size that is no positive number, or files that cannot be read.
        ExtensionError: a file of one's own that cannot be loaded or has no such task.
    """
    if is_registered(name):
        return _task_from_outside(name, size, eval_size, seed)
    spec = prompt(name)
    rows = prompt_rows(spec, "train", data_dir)
    count = _count(size, len(rows), f"{spec.name}, train size")
    if count < len(rows):
        chosen = subset([Example(number, ()) for number in range(len(rows))], count, seed)
        numbers = [int(each.id) for each in chosen]
    else:
        numbers = list(range(len(rows)))
    held = prompt_rows(spec, "validation", data_dir)
    if eval_size is not None:
        held = held[: _count(eval_size, len(held), f"{spec.name}, evaluation size")]
    task = PromptTask(
        name=spec.name,
        train=[read_question(spec, rows[number], number) for number in numbers],
        evaluation={"validation": [read_question(spec, row, number) for number, row in enumerate(held)]},
        labels=spec.labels,
        metrics=spec.metrics,
        benchmark=True,
        generation={} if spec.candidates else {"max_new_tokens": NEW_TOKENS},
    )
    if size != "all" and int(size) > len(rows):
        task.notices.append(f"{spec.name} has {len(rows):,} training rows at hand, not {int(size):,}")
    return task


def _task_from_outside(name: str, size: int | str, eval_size: int | None, seed: int) -> PromptTask:
    task = registered_task(name, seed)
    if not isinstance(task, PromptTask):
        raise DataError(
            f"task {name!r}", expected="prompts", found="a task of labels", remedy="use --objective classify"
        )
    count = _count(size, len(task.train), f"{task.name}, train size")
    if count < len(task.train):
        rows = subset([Example(number, ()) for number in range(len(task.train))], count, seed)
        task.train = [task.train[int(row.id)] for row in rows]
    if eval_size is not None:
        task.evaluation = {split: part[:eval_size] for split, part in task.evaluation.items()}
    return task


def prompt_rows(spec: Prompt, split: str, data_dir: str | Path | None = None) -> list[Row]:
    """The rows of one split, as they lie in a folder or on the Hub.

    Raises:
        DataError: no such folder or file, rows that cannot be read, or none.
    """
    rows: Iterable[Row]
    if data_dir is None and not os.environ.get("BEFT_DATA"):
        rows, where = hub_rows(*spec.hub, split=split), spec.hub[0]
    else:
        root = Path(data_dir or os.environ["BEFT_DATA"])
        if not root.is_dir():
            raise DataError(str(root), expected="a folder of benchmark data", found="no such folder")
        folder = next((root / name for name in spec.folders if (root / name).is_dir()), root / spec.name)
        file = split_file(folder, split)
        rows, where = (row for _, row in read_rows(file)), str(file)
    found = list(rows)
    if not found:
        raise DataError(where, expected="rows", found="none")
    return found


def read_question(spec: Prompt, row: Row, number: int = 0) -> Question:
    """One row as a question; `number` is its place in the file. Without a label (hidden test sets) nothing is gold.

    Raises:
        DataError: a field that is missing, or a label outside the coding.
    """
    where = f"{spec.name}, row {number}"
    try:
        fields = _fields(spec.name, row)
        text = Template.parse(spec.text).fill(fields)
        blank = Template.parse(spec.blank).fill(fields)
        key = _key(row, number)
        if spec.name == "record":
            return _record(spec, where, row, key, text)
        if not spec.candidates:
            return Question(key, text, answers=tuple(dict.fromkeys(_answers(spec.name, row))), blank=blank)
        candidates = tuple(Template.parse(each).fill(fields) for each in spec.candidates)
    except KeyError as error:
        raise DataError(where, expected=f"the field {error.args[0]!r}", found=", ".join(map(str, row))) from None
    return Question(key, text, candidates, _gold(where, row.get("label"), len(candidates)), blank=blank)


def _count(size: int | str, available: int, where: str) -> int:
    count = read_size(size, where)
    return available if count is None else min(count, available)


def _key(row: Row, number: int) -> Id:
    """A row's own id: the benchmark's, its parts joined where there are several."""
    own = next((row[name] for name in ("idx", "id", "query_id") if row.get(name) is not None), number)
    if isinstance(own, Mapping):
        return "-".join(str(part) for part in own.values())
    return own if isinstance(own, (int, str)) else str(own)


def _gold(where: str, label: Any, count: int) -> tuple[int, ...]:
    if label is None:
        return ()
    try:
        known = int(label)
    except (ValueError, TypeError):
        known = count
    if known >= count:
        raise DataError(f"{where}, label", expected=f"a class number below {count}", found=repr(label))
    return (known,) if known >= 0 else ()


def _fields(name: str, row: Row) -> dict[str, str]:
    """A row's fields as the prompt wants them."""
    fields = {str(key): str(value) for key, value in row.items()}
    if name == "sst2":
        fields["sentence"] = fields["sentence"].strip()  # GLUE's sentences end with a space
    elif name == "rte":  # GLUE's names of SuperGLUE's fields
        for theirs, ours in (("sentence1", "premise"), ("sentence2", "hypothesis")):
            if theirs in fields:
                fields.setdefault(ours, fields[theirs])
    elif name == "boolq":
        question = fields["question"].strip().rstrip("?").rstrip()
        fields["question"] = question[:1].upper() + question[1:]
    elif name == "wsc":
        fields["span2_text"] = fields["span2_text"].lower()
    elif name == "copa":
        fields["premise"] = fields["premise"].strip().removesuffix(".")
        if fields["question"] not in CONJUNCTIONS:
            raise DataError("copa, question", expected=" or ".join(CONJUNCTIONS), found=repr(fields["question"]))
        fields["conjunction"] = CONJUNCTIONS[fields["question"]]
        for choice in ("choice1", "choice2"):
            fields[choice] = _small(fields[choice].strip())
    elif name == "record":
        fields["passage"] = fields["passage"].replace("@highlight\n", "- ")
    elif name in ("squad", "drop"):
        fields["question"] = fields["question"].strip()
    return fields


def _small(text: str) -> str:
    return text if text.split(" ")[0] == "I" else text[:1].lower() + text[1:]


def _record(spec: Prompt, where: str, row: Row, key: Id, text: str) -> Question:
    """A ReCoRD row: the line of the query once for each entity; right ones in the order of the answers."""
    if "@placeholder" not in row["query"]:
        raise DataError(f"{where}, query", expected="'@placeholder'", found="none")
    entities = tuple(dict.fromkeys(row["entities"]))
    answers = dict.fromkeys(row["answers"])
    unknown = [answer for answer in answers if answer not in entities]
    if unknown:
        raise DataError(f"{where}, answers", expected="entities of the passage", found=repr(unknown[0]))
    line = Template.parse(spec.candidates[0])
    candidates = tuple(line.fill({"line": row["query"].replace("@placeholder", entity)}) for entity in entities)
    gold = tuple(entities.index(answer) for answer in answers)
    return Question(key, text, candidates, gold, blank=spec.blank, names=entities)


def _answers(name: str, row: Row) -> list[str]:
    return list(row["answers"]["text"] if name == "squad" else row["answers_spans"]["spans"])
