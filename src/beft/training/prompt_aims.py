"""Aims of a language model: choosing among candidates, or learning the text to write."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.bank import Bank
from ..objectives.choose import Names, Reduction, Scorer, choice_losses
from ..objectives.generate import generate_answers, generation_config
from ..objectives.prompt_tokens import (
    UNLIMITED,
    EncodedQuestions,
    context_limit,
    encode_answers,
    encode_prompts,
    encode_questions,
    join_questions,
)
from ..tasks.chat import as_chat
from ..tasks.metrics import measure_answers, measure_choices
from ..tasks.question import PromptTask, Question
from .aims import Judgement, Part, Share, best
from .infer import EVALUATION_FACTOR, Watch
from .machine import Choices

TAUGHT = ("copa", "record")
"""Tasks with candidates whose right one is learned as a text, as in the paper's protocol (section on decoders)."""
WRITING_FACTOR, WRITING_TOKENS = 4, 4096
"""Texts are written in batches of this many times an evaluation's, up to as many tokens: each new token reads all
weights, for however many rows (SmolLM2-135M on squad, two cores: 1.25 rows/s at 4,096 tokens, .85 at 1,024)."""


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
        self.generation = generation_config(task.generation)
        self.reduction = reduction
        self.learner = Scorer(bank.model, bank=bank)
        self.scorer = Scorer(bank.model, bank=bank, reduction=reduction)
        self.teaches = task.generates or task.name in TAUGHT

    def part(self, questions: Sequence[Question], *, to_learn: bool = False) -> Part:
        """Questions with their tokens. Raises DataError for what cannot be tokenised, see `encode_questions`."""
        if self.task.chat:
            questions = [as_chat(question, self.tokenizer) for question in questions]
        if self.task.generates:
            encoded = encode_prompts(self.tokenizer, questions, self.room)
        else:
            blanks = self.reduction == "calibrated"
            encoded = encode_questions(self.tokenizer, questions, self.limit, blanks=blanks)
        learned = self._answers(questions) if self.teaches and to_learn else None
        return Part(list(questions), encoded, learned)

    @property
    def room(self) -> int:
        """Most tokens of a prompt that an answer is written to: the new tokens need the rest."""
        return self.limit if self.limit == UNLIMITED else max(1, self.limit - self.generation.max_new_tokens)

    def _answers(self, questions: Sequence[Question]) -> EncodedQuestions:
        """Prompts, as they are, with the texts to learn."""
        return encode_answers(self.tokenizer, questions, self.limit, stop=(*self.task.stop, "")[0])

    def fit(self, part: Part) -> None:
        """See `Aim.fit`: nothing to learn beforehand."""

    def lengths(self, part: Part) -> list[int]:
        """See `Aim.lengths`: tokens of the prompt and all of its candidates, the prompt counted once where shared."""
        return self.learner.lengths(part.encoded if part.learned is None else part.learned)

    def weight(self, part: Part, rows: Sequence[int]) -> float:
        """See `Aim.weight`."""
        return float(len(rows))

    def measure(self, examples: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        """See `Aim.measure`: of texts that were written, or of candidates' numbers."""
        measured = measure_answers if self.task.generates else measure_choices
        return measured(self.metrics, examples, predictions)

    def judge(self, part: Part, watch: Watch | None = None) -> Judgement:
        """See `Aim.judge`. Predictions are candidates' numbers with all scores, or texts."""
        return self.judged([Share.whole(self, part)], watch)[0]

    @staticmethod
    def summed(shares: Sequence[Share]) -> list[Tensor]:
        """See `Aim.summed`. Whether each learns to choose or to write does not matter: both read scores."""
        encoded = join_questions([(_to_learn(share.part), share.rows) for share in shares])
        names = [share.aim.name for share in shares for _ in share.rows]
        scores = shares[0].aim.learner.scores(encoded, range(len(names)), names)
        sums = []
        for share, own in zip(shares, scores.split([len(share.rows) for share in shares]), strict=True):
            if share.part.learned is not None:
                sums.append(-own[:, 0].sum())
            else:
                gold = [share.part.examples[row].gold for row in share.rows]
                sums.append(choice_losses(own, gold).sum())
        return sums

    @staticmethod
    def judged(shares: Sequence[Share], watch: Watch | None = None) -> list[Judgement]:
        """See `Aim.judged`: choosers by their candidates' scores, writers by their texts, those alike together."""
        found: dict[int, Judgement] = {}
        groups: dict[Any, list[int]] = {}
        for number, share in enumerate(shares):
            aim: PromptAim = share.aim
            how = (aim.limit, aim.task.stop, repr(aim.task.generation)) if aim.task.generates else aim.reduction
            groups.setdefault((aim.task.generates, how), []).append(number)
        for (writes, _), numbers in groups.items():
            judge = _judge_texts if writes else _judge_choices
            found.update(zip(numbers, judge([shares[number] for number in numbers], watch), strict=True))
        return [found[number] for number in range(len(shares))]


def _to_learn(part: Part) -> EncodedQuestions:
    return part.encoded if part.learned is None else part.learned


def _answered(shares: Sequence[Share], values: Sequence[Any]) -> Iterator[tuple[PromptAim, list[Question], list[Any]]]:
    """Each share's aim and questions with its own of the values, one for every row of all shares."""
    rest = iter(values)
    for share in shares:
        questions = [share.part.examples[row] for row in share.rows]
        yield share.aim, questions, list(itertools.islice(rest, len(questions)))


def _judge_choices(shares: Sequence[Share], watch: Watch | None) -> list[Judgement]:
    first: PromptAim = shares[0].aim
    encoded = join_questions([(share.part.encoded, share.rows) for share in shares])
    names = [share.aim.name for share in shares for _ in share.rows]
    budget = first.choices.token_budget * EVALUATION_FACTOR
    every = first.scorer.evaluate(encoded, name=_names(first, names), token_budget=budget, watch=watch)
    found = []
    for aim, questions, scores in _answered(shares, every):
        chosen = [best(row) for row in scores]
        if not all(question.gold for question in questions):
            found.append(Judgement(float("nan"), {}, chosen, scores))
            continue
        padded = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row) for row in scores], batch_first=True, padding_value=-torch.inf
        )
        loss = float(choice_losses(padded, [question.gold for question in questions]).mean())
        found.append(Judgement(loss, aim.measure(questions, chosen), chosen, scores, float(len(chosen))))
    return found


def _judge_texts(shares: Sequence[Share], watch: Watch | None) -> list[Judgement]:
    first: PromptAim = shares[0].aim
    budget = first.choices.token_budget * EVALUATION_FACTOR
    names = [share.aim.name for share in shares for _ in share.rows]
    texts = generate_answers(
        first.bank.model,
        first.tokenizer,
        [share.part.examples[row] for share in shares for row in share.rows],
        bank=first.bank,
        name=_names(first, names),
        config=first.generation,
        stop=first.task.stop,
        max_length=first.limit,
        token_budget=max(budget, min(WRITING_FACTOR * budget, WRITING_TOKENS)),
        watch=watch,
    )
    found = []
    for share, (aim, questions, own) in zip(shares, _answered(shares, texts), strict=True):
        empty: list[list[float]] = [[] for _ in own]
        if not all(question.answers for question in questions):
            found.append(Judgement(float("nan"), {}, own, empty))
            continue
        learned = share.part.learned or aim._answers(share.part.examples)
        scored = aim.learner.evaluate(learned.take(share.rows), name=aim.name, token_budget=budget)
        loss = -sum(row[0] for row in scored) / len(scored)
        found.append(Judgement(loss, aim.measure(questions, own), own, empty, float(len(own))))
    return found


def _names(aim: PromptAim, names: list[str | None]) -> Names:
    """One name where one serves all: questions of one adapter share more."""
    return names[0] if len(set(names)) == 1 else names
