"""`evaluate` and `predict` where an adapter, or a plain language model, answers prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError, RecipeError
from . import prompting as p

TEST = "test"
"""The split of a benchmark that is answered if none is named."""


def asks(directory: Path) -> bool:
    """Whether a folder's adapter answers prompts."""
    from ..training.predictor import asks

    return asks(directory)


def evaluate_prompts(
    directory: Path | None,
    method: str | None,
    model: str | None,
    what: tuple[Any, ...],
    how: tuple[int, bool, str, int],
    machine: dict[str, Any],
) -> tuple[dict[str, dict[str, float]], int, int]:
    """Scores of an adapter that answers prompts, or of the plain model; prompts cut, and the limit.

    Raises:
        RecipeError: options that contradict one another or are missing.
    """
    from ..training.prompt_predictor import PromptPredictor, shown

    task, data, data_dir, template, candidates, label, answer, blank, eval_size, chat = what
    k, fixed, reduction, seed = how
    if method not in (None, "zero-shot", "icl"):
        raise RecipeError(f"--method {method}", expected="zero-shot or icl")
    if method and directory:
        raise RecipeError(f"--method {method}", expected="a plain model", found=f"the adapter {directory}")
    if method and not model:
        raise RecipeError(f"--method {method}", expected="--model beside it", found="none")
    if reduction not in ("mean", "sum", "calibrated"):
        raise RecipeError(f"--score {reduction}", expected="mean, sum or calibrated")
    predictor = PromptPredictor(directory, model=model, reduction=reduction, **machine)  # type: ignore[arg-type]
    trained = predictor.task
    if directory is not None and data is not None and trained.get("asked"):
        asked, chat = trained["asked"], bool(trained.get("chat"))
        template, candidates, answer = template or asked["template"], candidates or asked["candidates"], asked["answer"]
        label, blank = label or asked["label"], blank or asked.get("blank")
    if task is None and data is None and trained.get("benchmark"):
        task, chat = trained["name"], bool(trained.get("chat"))
    questions = p.prompts(
        task,
        data,
        data_dir=data_dir,
        template=template,
        candidates=candidates,
        label=label,
        answer=answer,
        blank=blank,
        judge_only=method != "icl",
        eval_size=eval_size,
        chat=chat,
        seed=seed,
    )
    if method == "icl":
        questions = shown(questions, predictor, k, seed, fixed)
    found = predictor.judge(questions)
    rows = {f"{split} ({len(questions.evaluation[split])} rows)": scores for split, scores in found.items()}
    return rows, predictor.cut, predictor.max_length


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
    directory: Path,
    data: str | None,
    task: str | None,
    split: str | None,
    data_dir: Path | None,
    options: dict[str, Any],
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
    from ..training.prompt_predictor import PromptPredictor

    predictor = PromptPredictor(directory, **options)
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
    else:
        spec = prompt(task or "")
        rows = prompt_rows(spec, split or TEST, data_dir)
        questions = (read_question(spec, row, number) for number, row in enumerate(rows))
    for each in predictor.stream(described, questions):
        yield answer_line(described, *each)
