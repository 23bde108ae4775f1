"""Aims of a language model: choosing among candidates, or learning the text to write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.bank import Bank
from ..objectives.choose import Reduction, Scorer, answer_losses, choice_losses
from ..objectives.generate import generate_answers
from ..objectives.prompt_tokens import context_limit, encode_answers, encode_prompts, encode_questions
from ..tasks.chat import as_chat
from ..tasks.metrics import measure_answers, measure_choices
from ..tasks.question import PromptTask, Question
from .aims import Judgement, Part
from .infer import EVALUATION_FACTOR, Watch
from .machine import Choices

TAUGHT = ("copa", "record")
"""Tasks with candidates whose right one is learned as a text, as in the paper's protocol (section on decoders)."""


class PromptAim:
    """Questions put to a causal language model.

    Those with candidates are judged by the candidates' scores, the others by the texts that the model writes. Learned
    is the choice (cross-entropy over the scores), or the right text, token by token, where there is nothing to choose
    from or the protocol says so.
    """

    def __init__(
        self,
        bank: Bank,
        name: str | None,
        task: PromptTask,
        tokenizer: Any,
        choices: Choices,
        max_length: int,
        reduction: Reduction = "mean",
    ) -> None:
        self.bank, self.name, self.task, self.tokenizer, self.choices = bank, name, task, tokenizer, choices
        self.metrics = task.metrics
        self.limit = context_limit(bank.model.config, max_length)
        self.reduction = reduction
        self.learner = Scorer(bank.model, bank=bank)
        self.scorer = Scorer(bank.model, bank=bank, reduction=reduction)
        self.teaches = task.generates or task.name in TAUGHT

    def part(self, questions: Sequence[Question], *, to_learn: bool = False) -> Part:
        """Questions with their tokens. Raises DataError for what cannot be tokenised, see `encode_questions`."""
        if self.task.chat:
            questions = [as_chat(question, self.tokenizer) for question in questions]
        if self.task.generates:
            encoded = encode_prompts(self.tokenizer, questions, self.limit)
        else:
            blanks = self.reduction == "calibrated"
            encoded = encode_questions(self.tokenizer, questions, self.limit, blanks=blanks)
        learned = None
        if self.teaches and to_learn:
            learned = encode_answers(self.tokenizer, questions, self.limit, stop=(*self.task.stop, "")[0])
        return Part(list(questions), encoded, learned)

    def fit(self, part: Part) -> None:
        """See `Aim.fit`: nothing to learn beforehand."""

    def lengths(self, part: Part) -> list[int]:
        """See `Aim.lengths`: tokens of the prompt and all of its candidates, the prompt counted once where shared."""
        return self.learner.lengths(part.encoded if part.learned is None else part.learned)

    def weight(self, part: Part, rows: Sequence[int]) -> float:
        """See `Aim.weight`."""
        return float(len(rows))

    def summed(self, part: Part, rows: Sequence[int]) -> Tensor:
        """See `Aim.summed`."""
        if part.learned is not None:
            return answer_losses(self.learner, part.learned, rows).sum()
        gold = [part.examples[row].gold for row in rows]
        return choice_losses(self.learner.scores(part.encoded, rows), gold).sum()

    def judge(self, part: Part, watch: Watch | None = None) -> Judgement:
        """See `Aim.judge`. Predictions are candidates' numbers with all scores, or texts."""
        budget = self.choices.token_budget * EVALUATION_FACTOR
        if self.task.generates:
            return self._judge_texts(part, budget, watch)
        scores = self.scorer.evaluate(part.encoded, name=self.name, token_budget=budget, watch=watch)
        chosen = [max(range(len(row)), key=row.__getitem__) for row in scores]
        questions: list[Question] = part.examples
        if not all(question.gold for question in questions):
            return Judgement(float("nan"), {}, chosen, scores)
        padded = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row) for row in scores], batch_first=True, padding_value=-torch.inf
        )
        loss = float(choice_losses(padded, [question.gold for question in questions]).mean())
        return Judgement(loss, measure_choices(self.metrics, questions, chosen), chosen, scores)

    def _judge_texts(self, part: Part, budget: int, watch: Watch | None) -> Judgement:
        texts = generate_answers(
            self.bank.model,
            self.tokenizer,
            part.examples,
            bank=self.bank,
            name=self.name,
            stop=self.task.stop,
            max_length=self.limit,
            token_budget=budget,
            watch=watch,
        )
        empty: list[list[float]] = [[] for _ in texts]
        if not all(question.answers for question in part.examples):
            return Judgement(float("nan"), {}, texts, empty)
        learned = part.learned or self.part(part.examples, to_learn=True).learned
        scored = self.learner.evaluate(learned, name=self.name, token_budget=budget)
        loss = -sum(row[0] for row in scored) / len(scored)
        return Judgement(loss, measure_answers(self.metrics, part.examples, texts), texts, empty)
