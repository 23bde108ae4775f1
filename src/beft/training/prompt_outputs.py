"""The files that tell how questions were answered: predictions, errors, the confusion of labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..files import Writer, to_csv
from ..report import plots
from ..tasks.metrics import CLASS_TABLE, class_table, token_f1
from ..tasks.question import PromptTask, Question


def judged_files(
    task: PromptTask,
    questions: Sequence[Question],
    predicted: Sequence[Any],
    scores: Sequence[Sequence[float]],
    tail: str,
    title: str,
) -> dict[str, str | Writer]:
    """predictions.jsonl, errors.csv (most confident mistakes first) and, with labels, per_class.csv and a confusion
    matrix."""
    lines = [answer_line(task, *each) for each in zip(questions, predicted, scores, strict=True)]
    files: dict[str, str | Writer] = {
        f"predictions{tail}.jsonl": "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    }
    known = all(question.gold or question.answers for question in questions)
    if not known:
        return files
    files[f"errors{tail}.csv"] = _errors(questions, predicted, scores, lines)
    if task.labels is None:
        return files
    gold = [question.gold[0] for question in questions]
    chosen, labels = [int(number) for number in predicted], task.labels
    files[f"per_class{tail}.csv"] = to_csv(CLASS_TABLE, class_table(labels, gold, chosen))
    if plots.available():
        files[f"confusion_matrix{tail}.png"] = lambda path: plots.confusion_matrix(gold, chosen, labels, path, title)
    return files


def answer_line(task: PromptTask, question: Question, predicted: Any, scores: Sequence[float]) -> dict[str, Any]:
    """One line of predictions.jsonl: id, gold (if known), prediction, and the candidates' scores."""
    line: dict[str, Any] = {"id": question.id}
    if not question.candidates:
        if question.answers:
            line["gold"] = list(question.answers)
        return {**line, "prediction": predicted}
    names = answer_names(task.labels, question)
    if question.gold:
        right = [names[number] for number in question.gold]
        line["gold"] = right[0] if len(right) == 1 else right
    rounded = [round(score, 6) for score in scores]
    return {**line, "prediction": names[int(predicted)], "scores": dict(zip(names, rounded, strict=False))}


def answer_names(labels: Sequence[str] | None, question: Question) -> Sequence[str]:
    """What a question's candidates are called; nothing of one that is answered in writing."""
    return (labels or question.names or [each.strip() for each in question.candidates]) if question.candidates else ()


def _errors(
    questions: Sequence[Question],
    predicted: Sequence[Any],
    scores: Sequence[Sequence[float]],
    lines: Sequence[dict[str, Any]],
) -> str:
    """Wrong rows: largest lead over the best right candidate first; for texts the least word overlap first."""
    rows: list[tuple[float, dict[str, Any]]] = []
    for question, answer, row, line in zip(questions, predicted, scores, lines, strict=True):
        shown = {"id": question.id, "gold": line["gold"], "prediction": line["prediction"], "prompt": question.prompt}
        if not question.candidates:
            overlap = token_f1(answer, question.answers)
            if overlap < 1:
                rows.append((-overlap, {**shown, "lead": round(1 - overlap, 4)}))
        elif int(answer) not in question.gold:
            lead = row[int(answer)] - max(row[number] for number in question.gold)
            rows.append((lead, {**shown, "lead": round(lead, 4)}))
    rows.sort(key=lambda each: -each[0])
    return to_csv(["id", "gold", "prediction", "lead", "prompt"], [row for _, row in rows])
