"""A language model that answers questions: with an adapter, or as it is (zero-shot, or shown demonstrations)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from ..core.bank import attach
from ..core.store import MANIFEST
from ..errors import DataError, StoreError
from ..files import read_json
from ..objectives.choose import Reduction
from ..objectives.prompt_tokens import context_limit
from ..tasks.chat import as_chat
from ..tasks.demonstrations import with_demonstrations
from ..tasks.question import PromptTask, Question
from .aims import Judgement, Part
from .ensemble import judged_as_one, load_members, member_folders
from .infer import Watch
from .language import load_language_model
from .machine import choose
from .prompt_aims import PromptAim
from .prompt_outputs import answer_names
from .quantize import DeviceMap, chosen

CHUNK = 512
"""Questions that are tokenised, sorted by length and answered together when a stream is answered."""


class PromptPredictor:
    """A causal language model with an adapter folder's adapter (or ensemble), or without one. Made by `beft.load`.

    `task` says how rows become questions: beft.json's "task". `generation` is how answers are written where that is
    not as in training: settings of transformers' GenerationConfig, such as {"do_sample": True, "temperature": 0.7}.
    """

    def __init__(
        self,
        directory: str | Path | None,
        *,
        model: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        token_budget: int | None = None,
        max_length: int | None = None,
        reduction: Reduction = "mean",
        generation: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
        quantize: str | None = None,
        device_map: DeviceMap | None = None,
    ) -> None:
        self.directory = None if directory is None else Path(directory)
        self.task: dict[str, Any] = {}
        if self.directory is not None:
            folders = member_folders(self.directory)
            manifest = read_json(folders[0] / MANIFEST)
            self.task = manifest.get("task") or {}
            model = model or manifest["base"]["name"]
            if self.task:
                self.task["generation"] = {**(self.task.get("generation") or {}), **(generation or {})}
            if self.task.get("dtype") == "fp32" and dtype == "auto":
                dtype = "fp32"  # trained so: scores come out as they were
        if not model:
            raise StoreError("model", expected="a causal language model", found="none", remedy="give it with --model")
        self.max_length = max_length or self.task.get("max_length") or 2048
        self.reduction = reduction
        self.choices = choose(device, dtype, self.max_length, token_budget)
        self.choices.quantize = chosen(quantize, self.task.get("quantize"))
        base = load_language_model(
            model,
            self.choices,
            trust_remote_code=trust_remote_code,
            quantize=self.choices.quantize,
            device_map=device_map,
        )
        self.model_name, self.tokenizer = model, base.tokenizer
        self.bank = attach(base.model, "none", names=[])
        self.name: str | None = None
        self.names: list[str] = []
        if self.directory is not None:
            self.names, method = load_members(self.bank, folders)
            self.name = self.names[0]
            self.max_length = context_limit(base.model.config, self.max_length + method.reserved) - method.reserved
        self.bank.active = self.name
        self.cut = 0

    @property
    def notices(self) -> list[str]:
        """What is to be said of the questions read so far."""
        return [f"{self.cut} prompts were cut on the left to {self.max_length} tokens"] if self.cut else []

    def judge(self, task: PromptTask, watch: Watch | None = None) -> dict[str, dict[str, float]]:
        """Metrics of each evaluation split of a task.

        Raises:
            DataError: questions without a truth to compare with.
        """
        aim = self._aim(task)
        found: dict[str, dict[str, float]] = {}
        for split, questions in task.evaluation.items():
            part = aim.part(questions)
            self.cut += part.encoded.cut
            judged = self._judge(aim, part, watch)
            if not judged.metrics:
                raise DataError(
                    f"{task.name}, {split}",
                    expected="right answers to compare with",
                    found="rows without one",
                    remedy="use `beft predict` for these",
                )
            found[split] = judged.metrics
        return found

    def stream(
        self, task: PromptTask, questions: Iterable[Question]
    ) -> Iterator[tuple[Question, Any, Sequence[float]]]:
        """Each question with its answer (a candidate's number with all scores, or a text), in order, chunk by chunk."""
        aim, iterator = self._aim(task), iter(questions)
        while chunk := list(islice(iterator, CHUNK)):
            part = aim.part(chunk)
            self.cut += part.encoded.cut
            judged = self._judge(aim, part)
            yield from zip(chunk, judged.predictions, judged.scores, strict=True)

    def predict(self, rows: Sequence[Mapping[str, Any] | Question]) -> list[str]:
        """The answer to each row: the chosen candidate's label (or the candidate), or the text that is written.

        A row is a `Question`, or a mapping of the fields that the task's template names.
        """
        task = self.described()
        questions: list[Question] = []
        for row in rows:
            questions += [row] if isinstance(row, Question) else self.questions([row])
        answers = []
        for question, answer, _ in self.stream(task, questions):
            if question.candidates:
                answer = answer_names(task.labels, question)[int(answer)]
            answers.append(str(answer))
        return answers

    def described(self) -> PromptTask:
        """The task the adapter was trained on, without its rows.

        Raises:
            DataError: no adapter, which knows no task.
        """
        if not self.task:
            raise DataError("task", expected="an adapter that knows its task", found="a plain model")
        return PromptTask(
            self.task["name"],
            [],
            labels=None if self.task["labels"] is None else tuple(self.task["labels"]),
            metrics=tuple(self.task["metrics"]),
            stop=tuple(self.task["stop"]),
            asked=self.task.get("asked"),
            chat=bool(self.task.get("chat")),
            writes=self.task["objective"] == "generate",
            generation=dict(self.task["generation"]),
        )

    def questions(self, rows: Sequence[Mapping[str, Any]]) -> list[Question]:
        """Rows as the questions that the adapter was trained to answer.

        Raises:
            DataError: a row without a field of the template.
        """
        from ..tasks.ask import questions_of
        from ..tasks.reading import prompt, read_question

        if self.task.get("asked"):
            return questions_of([dict(row) for row in rows], **self.task["asked"])
        spec = prompt(self.described().name)
        return [read_question(spec, dict(row), number) for number, row in enumerate(rows)]

    def _judge(self, aim: PromptAim, part: Part, watch: Watch | None = None) -> Judgement:
        return judged_as_one(aim, self.names, part, watch) if len(self.names) > 1 else aim.judge(part, watch)

    def _aim(self, task: PromptTask) -> PromptAim:
        return PromptAim(
            self.bank, self.name, task, self.tokenizer, self.choices, self.max_length, reduction=self.reduction
        )


def shown(
    task: PromptTask,
    predictor: PromptPredictor,
    k: int,
    seed: int = 0,
    fixed: bool = False,
    keep_blank: bool = False,
) -> PromptTask:
    """The task's evaluation questions with `k` demonstrations of its training questions in front, as many as fit.

    `fixed` and `keep_blank` are `with_demonstrations`' modes "fixed" and "keep".
    """
    aim = PromptAim(predictor.bank, None, task, predictor.tokenizer, predictor.choices, predictor.max_length)
    room = aim.room if task.generates else aim.limit

    def fits(text: str) -> bool:
        if task.chat:
            text = as_chat(Question(0, text), predictor.tokenizer).prompt
        return len(predictor.tokenizer(text)["input_ids"]) <= room

    mode: Literal["fixed", "per_example"] = "fixed" if fixed else "per_example"
    blank: Literal["keep", "drop"] = "keep" if keep_blank else "drop"
    evaluation = {
        split: with_demonstrations(questions, task.train, k, seed, mode=mode, fits=fits, blank=blank)
        for split, questions in task.evaluation.items()
    }
    return replace(task, evaluation=evaluation)
