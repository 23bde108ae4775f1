"""`evaluate` and `predict` where an adapter, or a plain language model, answers prompts."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import DataError, RecipeError
from . import prompting as p

if TYPE_CHECKING:
    from ..tasks.question import PromptTask
    from ..training.prompt_predictor import PromptPredictor

TEST = "test"
"""The split of a benchmark that is answered if none is named."""
SCORES: dict[str, tuple[Literal["mean", "sum", "calibrated"], bool]] = {
    "mean": ("mean", False),
    "sum": ("sum", False),
    "calibrated": ("calibrated", False),
    "calibrated-icl": ("calibrated", True),
}
"""How a candidate may be scored, and whether the prompt to calibrate by has the demonstrations too."""


def asks(directory: Path) -> bool:
    """Whether a folder's adapter answers prompts."""
    from ..training.predictor import asks

    return asks(directory)


@dataclass(frozen=True)
class Shown:
    """Demonstrations of in-context learning, and how candidates are scored, as options say."""

    k: int = 32
    fixed: int = 0
    """Sets of demonstrations that all rows share, scored one after the other; 0 draws for each row."""
    score: str = "mean"
    seed: int = 0


def evaluate_prompts(
    directory: Path | None,
    method: str | None,
    rows: Mapping[str, Any],
    asked: p.Asked,
    how: Shown,
    machine: dict[str, Any],
) -> tuple[dict[str, dict[str, float]], dict[str, int], list[str]]:
    """Scores of an adapter that answers prompts, or of the plain model, by split; their rows; what is to be said.

    `rows` says which: `task`, `data`, `data_dir`, `label`, `eval_size`. What it leaves out, and `asked`, the adapter
    knows from its training.

    Raises:
        RecipeError: options that contradict one another or are missing.
    """
    from ..training.prompt_predictor import PromptPredictor, shown

    if method not in (None, "zero-shot", "icl"):
        raise RecipeError(f"--method {method}", expected="zero-shot or icl")
    if method and directory:
        raise RecipeError(f"--method {method}", expected="a plain model", found=f"the adapter {directory}")
    if method and not machine["model"]:
        raise RecipeError(f"--method {method}", expected="--model beside it", found="none")
    if how.fixed and method != "icl":
        raise RecipeError("--fixed", expected="--method icl beside it", found=f"--method {method}" * bool(method))
    if how.score not in SCORES:
        raise RecipeError(f"--score {how.score}", expected="mean, sum, calibrated or calibrated-icl")
    reduction, keep_blank = SCORES[how.score]
    given = asked.written()
    predictor = PromptPredictor(directory, reduction=reduction, generation=given.get("generation"), **machine)
    known, asked = _as_trained(predictor.task, rows, asked)
    questions = p.prompts(asked=asked, judge_only=method != "icl", seed=how.seed, **known)
    if predictor.task.get("objective") == "generate" and questions.generates:
        described = predictor.described()
        questions.generation |= described.generation
        questions.stop = given.get("stop", described.stop)
    sets = []
    for number in range(max(1, how.fixed)):
        asking = questions
        if method == "icl":
            asking = shown(questions, predictor, how.k, how.seed + number, bool(how.fixed), keep_blank)
        sets.append(predictor.judge(asking))
    found: dict[str, dict[str, float]] = {}
    counts: dict[str, int] = {}
    for split, examples in questions.evaluation.items():
        for number, each in enumerate(sets):
            found[f"{split}, set {number}" if how.fixed > 1 else split] = each[split]
        if how.fixed > 1:
            found |= _means(split, [each[split] for each in sets])
        counts |= {name: len(examples) for name in found if name not in counts}
    return found, counts, predictor.notices


def _as_trained(trained: dict[str, Any], rows: Mapping[str, Any], asked: p.Asked) -> tuple[dict[str, Any], p.Asked]:
    """Rows and prompts as they were asked for, with what an adapter's training says of the rest."""
    known = dict(rows)
    asked = replace(asked, chat=asked.chat or bool(trained.get("chat")))
    if known["task"] is None and known["data"] is None and trained.get("benchmark"):
        known["task"] = trained["name"]
    own = trained.get("asked")
    if known["data"] is not None and own:
        learned = {
            name: getattr(asked, name) or own.get(name) for name in ("template", "candidates", "answer", "blank")
        }
        if asked.answer or asked.candidates:  # another way to answer than the one that was learned
            learned |= {"answer": asked.answer, "candidates": asked.candidates}
        asked = replace(asked, **learned, stop=asked.stop or (trained["stop"] if learned["answer"] else None))
        known["label"] = known["label"] or (own["label"] if learned["candidates"] else None)
    return known, asked


def _means(split: str, sets: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """A split's mean scores over the sets of demonstrations, and their standard deviations."""
    return {
        f"{split}, {what}": {metric: function(scores[metric] for scores in sets) for metric in sets[0]}
        for what, function in (("mean", statistics.mean), ("sd", statistics.stdev))
    }


def own_split(task: Any, split: str | None) -> list[Any]:
    """Rows of an own task's evaluation split, the first if none is named.

    Raises:
        DataError: no such split, or none at all.
    """
    name = next(iter(task.evaluation), None) if split is None else split
    if name not in task.evaluation:
        there = ", ".join(task.evaluation)
        raise DataError(
            f"task {task.name}" + (f", --split {split}" if split else ""),
            expected=f"one of its evaluation splits ({there})" if there else "evaluation rows",
            found="none" if not there else f"{split!r}",
        )
    return list(task.evaluation[name])


def answers(
    predictor: PromptPredictor, data: str | None, task: str | None, split: str | None, data_dir: Path | None
) -> Iterator[dict[str, Any]]:
    """Answers of an adapter to own rows in its template, or to a task's split, as lines of predictions.jsonl.

    Raises:
        RecipeError: own rows for an adapter that has no template.
        DataError: an own task of labels, or a split that a task does not have.
    """
    from ..tasks.ask import own_questions
    from ..tasks.question import PromptTask, Question
    from ..tasks.reading import prompt, prompt_rows, read_question
    from ..tasks.registered import is_registered, registered_task
    from ..training.prompt_outputs import answer_line

    described = predictor.described()
    if data is not None:
        if not described.asked:
            raise RecipeError("--data", expected="an adapter trained on own rows in a template", found=described.name)
        asked = {key: value for key, value in described.asked.items() if key in ("template", "candidates", "blank")}
        questions: Iterable[Question] = own_questions(data, **asked)
    elif is_registered(task):
        own = registered_task(task or "")
        if not isinstance(own, PromptTask):
            raise DataError(
                f"task {own.name}", expected="a beft.PromptTask, for this adapter answers prompts", found="a beft.Task"
            )
        questions = own_split(own, split)
        described = _asked_of(described, own.name, own.labels, own.generates)
    else:
        spec = prompt(task or "")
        rows = prompt_rows(spec, split or TEST, data_dir)
        questions = (read_question(spec, row, number) for number, row in enumerate(rows))
        described = _asked_of(described, spec.name, spec.labels, not spec.candidates)
    for each in predictor.stream(described, questions):
        yield answer_line(described, *each)


def _asked_of(described: PromptTask, name: str, labels: tuple[str, ...] | None, writes: bool) -> PromptTask:
    """An adapter's task with the labels of the one that is asked now, which may be another."""
    return replace(described, name=name, labels=labels, writes=writes, asked=None)
