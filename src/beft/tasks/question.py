"""How a task reads to a language model: a prompt with candidates to choose from, or with answers to write."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

Id = int | str
NEW_TOKENS = 50
"""Most tokens of an answer that is written, where nothing else is said: the protocol's number for squad and drop."""


@dataclass(frozen=True)
class Question:
    """One row as a prompt.

    `candidates` are continuations to choose from, exactly as they follow the prompt (spaces and line ends included);
    `gold` are the numbers of the right ones (several in ReCoRD, none where the truth is unknown). A question to be
    answered in free text has no candidates but `answers`, any of which is right; the first is the one to learn.
    `blank` is the prompt without the input, for calibration. `names` say what the candidates stand for where that is
    not their text and differs by question (ReCoRD's entities). `shots` counts the demonstrations in the prompt.
    """

    id: Id
    prompt: str
    candidates: tuple[str, ...] = ()
    gold: tuple[int, ...] = ()
    answers: tuple[str, ...] = ()
    blank: str = ""
    names: tuple[str, ...] = ()
    shots: int = 0

    @property
    def label(self) -> int:
        """Number of the right candidate, the first of several; 0 where the truth is unknown."""
        return self.gold[0] if self.gold else 0


@dataclass
class PromptTask:
    """Questions to learn from and to judge on, beside `Task` for classifiers.

    `labels` name the candidates where every question has the same ones, else None. `metrics` are names of
    `beft.tasks.metrics`, the first is the one that selects. `stop` are strings that end a generated answer.
    """

    name: str
    train: list[Question]
    evaluation: dict[str, list[Question]] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    metrics: tuple[str, ...] = ("accuracy",)
    stop: tuple[str, ...] = ("\n",)
    notices: list[str] = field(default_factory=list)
    benchmark: bool = False
    fields: tuple[str, ...] = ()
    label_field: str = ""
    asked: dict[str, Any] | None = None
    """How own rows become questions: the arguments of `beft.tasks.ask.own_questions`; None for a benchmark."""
    chat: bool = False
    """Whether prompts are put into the tokenizer's chat template."""
    writes: bool | None = None
    """Whether answers are written; None where the training rows tell."""
    generation: dict[str, Any] = field(default_factory=dict)
    """How they are written: settings of transformers' GenerationConfig (`num_beams`, `do_sample`, `temperature` ...).
    Greedy where nothing is said; `max_new_tokens` of what was learned is then the longest answer's, at least 50."""

    @property
    def generates(self) -> bool:
        """Whether answers are written, not chosen."""
        if self.writes is not None:
            return self.writes
        return not any(question.candidates for question in self.train) and any(q.answers for q in self.train)

    def fingerprint(self) -> str:
        """Hex digest over every question, in order."""
        digest = hashlib.sha256()
        for part in (self.train, *self.evaluation.values()):
            for q in part:
                digest.update(repr((q.prompt, q.candidates, q.gold, q.answers)).encode())
            digest.update(b"|")
        return digest.hexdigest()[:32]
