"""The choose objective: candidates scored by their log-probability after the prompt, as cheaply as is exact.

The score of a candidate is the mean log-probability of its tokens, or their sum, or the sum less the same sum under a
prompt without the input (`Question.blank`). A prompt is computed once for all its candidates (see `tree`), and logits
are made only where a candidate's token is predicted (see `logits_at`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.bank import Bank
from ..errors import DataError, RecipeError
from ..tasks.question import Question
from .forwards import sums_by_cache, sums_of_rows
from .packing import ENOUGH, Watch, default_budget, device_of, evaluating, in_pieces, pack
from .prompt_tokens import EncodedQuestions, context_limit, encode_questions
from .sharing import groups, room
from .tree import Tree, plant
from .ways import Ways

Reduction = Literal["mean", "sum", "calibrated"]
Names = str | None | Sequence[str | None]
"""One adapter for all questions, or one a question; None is the plain model."""
MOST_LOGITS = {"cpu": 2**25, "cuda": 2**31}
"""Numbers of logits in one batch without gradients, by kind of device."""


@dataclass(frozen=True)
class _Row:
    """A row of a forward: its candidates in the tree's order, each as the numbers of its question and of itself."""

    pairs: Sequence[tuple[int, int]]
    tree: Tree


def score_candidates(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    bank: Bank | None = None,
    name: Names = None,
    reduction: Reduction = "mean",
    max_length: int | None = None,
    token_budget: int | None = None,
    device: torch.device | str | None = None,
    watch: Watch | None = None,
) -> list[list[float]]:
    """Scores of every question's candidates, in their order; a question's scores do not depend on the others'.

    Args:
        model: a causal language model; left in the mode it is in.
        tokenizer: its tokenizer.
        questions: with candidates.
        bank: the bank attached to the model, if any.
        name: the adapter, or one a question; None for the plain model. Only with a bank.
        reduction: "mean" or "sum" of log-probabilities, or "calibrated": the sum less the sum under `blank`.
        max_length: most tokens of prompt and candidate; longer prompts are cut on the left.
        token_budget: most tokens of one batch, padding included.
        device: where the model is to run; where it is by default.
        watch: called after every batch.

    Raises:
        DataError: see `encode_questions`.
        RecipeError: no causal language model, or an unknown reduction.
        RouteError: an adapter the bank does not have.
    """
    if not questions:
        return []
    if device is not None and torch.device(device) != device_of(model):
        model.to(device)
    scorer = Scorer(model, bank=bank, reduction=reduction)
    limit = context_limit(model.config, max_length)
    encoded = encode_questions(tokenizer, questions, limit, blanks=reduction == "calibrated")
    return scorer.evaluate(encoded, name=name, token_budget=token_budget, watch=watch)


class Scorer:
    """Scores candidates under one model: with gradients for a micro-batch, without for a whole set."""

    def __init__(self, model: Any, *, bank: Bank | None = None, reduction: Reduction = "mean") -> None:
        """`bank` is the model's bank, if it has one.

        Raises:
            RecipeError: not a causal language model, or an unknown reduction.
        """
        if reduction not in ("mean", "sum", "calibrated"):
            raise RecipeError(f"reduction {reduction!r}", expected="mean, sum or calibrated")
        self.model, self.bank, self.reduction = model, bank, reduction
        self.ways = Ways(model, bank)

    # ---- with gradients ----------------------------------------------------------------------------------------------

    def lengths(self, encoded: EncodedQuestions) -> list[int]:
        """Tokens that each question costs in a forward, for cutting batches into micro-batches."""
        cost = [0] * len(encoded)
        for part in (encoded, _blanks(encoded)) if self.reduction == "calibrated" else (encoded,):
            for row in self._rows(part, range(len(part))):
                cost[row.pairs[0][0]] += len(row.tree)
        return cost

    def scores(
        self, encoded: EncodedQuestions, rows: Sequence[int], names: Sequence[str | None] | None = None
    ) -> Tensor:
        """Differentiable scores (rows, most candidates) of some questions, padded with -inf.

        One forward (two if calibrated). `names` says which adapter each question takes; without it the current route
        holds, which must name one adapter for all (a question may take several rows).

        Raises:
            DataError: calibration without the questions' blanks, see `encode_questions`.
        """
        scores = self._sums(encoded, rows, names)
        if self.reduction == "mean":
            counts = [torch.tensor([len(each) for each in encoded.candidates[row]]) for row in rows]
            scores = [each / count.to(each.device) for each, count in zip(scores, counts, strict=True)]
        if self.reduction == "calibrated":
            blanks = self._sums(_blanks(encoded), rows, names)
            scores = [each - blank for each, blank in zip(scores, blanks, strict=True)]
        return torch.nn.utils.rnn.pad_sequence(scores, batch_first=True, padding_value=-torch.inf)

    def _sums(self, encoded: EncodedQuestions, rows: Sequence[int], names: Sequence[str | None] | None) -> list[Tensor]:
        """Sums of log-probabilities of each question's candidates: one (candidates,) a question."""
        chosen = list(self._rows(encoded, rows))
        lone = [self.ways.alone is not None and len(row.tree) > self.ways.alone for row in chosen]
        together = [row for row, single in zip(chosen, lone, strict=True) if not single]
        pieces = [together] if together else []
        pieces += [[row] for row, single in zip(chosen, lone, strict=True) if single]
        place = {row: number for number, row in enumerate(rows)}
        values: dict[tuple[int, int], Tensor] = {}
        for piece in pieces:
            with nullcontext() if names is None else self.route([names[place[row.pairs[0][0]]] for row in piece]):
                flat = sums_of_rows(self.model, [row.tree for row in piece], encoded.pad_id)
            values.update(zip((pair for row in piece for pair in row.pairs), flat, strict=True))
        return [torch.stack([values[row, each] for each in range(len(encoded.candidates[row]))]) for row in rows]

    def _rows(self, encoded: EncodedQuestions, rows: Sequence[int]) -> Iterator[_Row]:
        """The rows of a forward for some questions, each question in rows of its own."""
        for row in rows:
            prompt, candidates = encoded.prompts[row], encoded.candidates[row]
            whole = plant(prompt, candidates)
            if whole.chain:
                yield _Row([(row, number) for number in range(len(candidates))], whole)
            elif self._takes_tree(prompt, candidates, encoded.limit):
                for numbers in _shares(prompt, candidates, encoded.limit):
                    tree = plant(prompt, [candidates[number] for number in numbers])
                    yield _Row([(row, number) for number in numbers], tree)
            else:
                for number, candidate in enumerate(candidates):
                    yield _Row([(row, number)], plant(prompt, [candidate]))

    def _shared_rows(
        self, encoded: EncodedQuestions, rows: Sequence[int], names: Sequence[str | None], budget: int
    ) -> Iterator[_Row]:
        """The same, but questions of one adapter whose prompts begin alike share a row where that costs less."""
        for name in dict.fromkeys(names[row] for row in rows):
            own = [row for row in rows if names[row] == name]
            prompts = [encoded.prompts[row] for row in own]
            branches = [sum(map(len, encoded.candidates[row])) for row in own]
            for numbers, shared in groups(prompts, branches, min(budget, encoded.limit)):
                members = [own[number] for number in numbers]
                if len(members) > 1:
                    pairs = [(row, each) for row in members for each in range(len(encoded.candidates[row]))]
                    leads = [encoded.prompts[row][shared:] for row, _ in pairs]
                    candidates = [encoded.candidates[row][each] for row, each in pairs]
                    tree = plant(encoded.prompts[members[0]][:shared], candidates, leads)
                    if self.ways.tree(len(tree)):
                        yield _Row(pairs, tree)
                        continue
                yield from self._rows(encoded, members)

    def _takes_tree(self, prompt: list[int], candidates: list[list[int]], limit: int) -> bool:
        branches = sum(map(len, candidates))
        most = min(limit, len(prompt) + room(len(prompt)))
        return self.ways.tree(min(len(prompt) + branches, max(most, len(prompt) + max(map(len, candidates)))))

    # ---- without gradients -------------------------------------------------------------------------------------------

    def evaluate(
        self,
        encoded: EncodedQuestions,
        *,
        name: Names = None,
        token_budget: int | None = None,
        watch: Watch | None = None,
    ) -> list[list[float]]:
        """Scores of all candidates of all questions, longest rows first, in their own order.

        Raises:
            DataError: calibration without the questions' blanks, see `encode_questions`.
            RecipeError: a name without a bank, or not one a question.
            RouteError: an adapter the bank does not have.
        """
        names = self.names(name, len(encoded))
        budget = token_budget or default_budget(device_of(self.model))
        with evaluating(self.model):
            scores = self._evaluate(encoded, names, budget, watch)
            if self.reduction == "calibrated":
                blanks, places = _distinct(_blanks(encoded), names)
                own = self._evaluate(blanks, [names[places.index(n)] for n in range(len(blanks))], budget, watch)
                for sums, place in zip(scores, places, strict=True):
                    sums[:] = [value - blank for value, blank in zip(sums, own[place], strict=True)]
        if self.reduction == "mean":
            for sums, candidates in zip(scores, encoded.candidates, strict=True):
                sums[:] = [value / len(each) for value, each in zip(sums, candidates, strict=True)]
        return scores

    def _evaluate(
        self, encoded: EncodedQuestions, names: list[str | None], budget: int, watch: Watch | None
    ) -> list[list[float]]:
        sums = [[0.0] * len(candidates) for candidates in encoded.candidates]
        longest = sorted(range(len(encoded)), key=lambda number: -len(encoded.prompts[number]))
        cached = [number for number in longest if self._prefers_cache(encoded, number)]
        others = sorted(set(range(len(encoded))) - set(cached))
        rows = list(self._shared_rows(encoded, others, names, budget))

        def compute_rows(piece: Sequence[int]) -> None:
            with self.route([names[rows[number].pairs[0][0]] for number in piece]):
                flat = sums_of_rows(self.model, [rows[number].tree for number in piece], encoded.pad_id).tolist()
            pairs = [pair for number in piece for pair in rows[number].pairs]
            for (question, candidate), value in zip(pairs, flat, strict=True):
                sums[question][candidate] = value

        def compute_cached(piece: Sequence[int]) -> None:
            candidates = [encoded.candidates[number] for number in piece]
            with self.route([names[piece[0]]]):
                prompts = [encoded.prompts[number] for number in piece]
                flat = sums_by_cache(self.model, prompts, candidates, encoded.pad_id, budget).tolist()
            for number, each in zip(piece, candidates, strict=True):
                sums[number], flat = flat[: len(each)], flat[len(each) :]

        lengths, scored = [len(row.tree) for row in rows], [row.tree.scored for row in rows]
        most = MOST_LOGITS.get(device_of(self.model).type, MOST_LOGITS["cuda"]) // _vocabulary(self.model)
        enough = ENOUGH.get(device_of(self.model).type, ENOUGH["cuda"])
        in_pieces(pack(lengths, budget, scored, max(1, most), self.ways.alone, enough), compute_rows, watch)
        for name in dict.fromkeys(names[number] for number in cached):  # a cache is shared under one adapter
            own = [number for number in cached if names[number] == name]
            pieces = pack([len(encoded.prompts[number]) for number in own], budget)
            shared = [_fitting(encoded, [own[place] for place in piece]) for piece in pieces]
            in_pieces([piece for fitting in shared for piece in fitting], compute_cached, watch)
        return sums

    def _prefers_cache(self, encoded: EncodedQuestions, number: int) -> bool:
        prompt, candidates = encoded.prompts[number], encoded.candidates[number]
        if plant(prompt, candidates).chain or self._takes_tree(prompt, candidates, encoded.limit):
            return False
        return self.ways.cache(len(prompt) + max(map(len, candidates)))

    def names(self, name: Names, count: int) -> list[str | None]:
        """The adapter of each of `count` questions.

        Raises:
            RecipeError: a name without a bank, or not one a question.
        """
        if self.bank is None and name is not None:
            raise RecipeError(f"name={name!r}", expected="a bank that holds it", found="no bank", remedy="pass bank=")
        if name is None or isinstance(name, str):
            return [name] * count
        if len(name) != count:
            raise RecipeError("name", expected=f"one name, or one a question ({count})", found=str(len(name)))
        return list(name)

    def route(self, names: Sequence[str | None]) -> AbstractContextManager[None]:
        """The bank's route of one adapter a row; without a bank, nothing."""
        if self.bank is None:
            return nullcontext()
        return self.bank.route(names[0] if len(set(names)) == 1 else list(names))


# ---- losses ----------------------------------------------------------------------------------------------------------


def choice_losses(scores: Tensor, gold: Sequence[Sequence[int]]) -> Tensor:
    """Cross-entropy (rows,) over candidates' scores (rows, candidates): minus the log of the right ones' share.

    Raises:
        DataError: a row without a right candidate, or with one it does not have.
    """
    right = torch.zeros(scores.shape, dtype=torch.bool)
    for row, numbers in enumerate(gold):
        found = [number for number in numbers if 0 <= number < scores.shape[1]]
        if not found or len(found) < len(numbers):
            raise DataError(f"row {row}", expected="the numbers of its right candidates", found=f"{list(numbers)}")
        right[row, found] = True
    return -scores.log_softmax(-1).masked_fill(~right.to(scores.device), -torch.inf).logsumexp(-1)


# ---- inside ----------------------------------------------------------------------------------------------------------


def _shares(prompt: list[int], candidates: list[list[int]], limit: int) -> Iterator[list[int]]:
    """Candidates over rows, so that the attention of one to another's tokens, masked in vain, stays small."""
    most = min(room(len(prompt)), limit - len(prompt))
    share: list[int] = []
    used = 0
    for number, candidate in enumerate(candidates):
        if share and used + len(candidate) > most:
            yield share
            share, used = [], 0
        share.append(number)
        used += len(candidate)
    if share:
        yield share


def _fitting(encoded: EncodedQuestions, numbers: Sequence[int]) -> Iterator[list[int]]:
    """Questions in batches whose longest prompt and longest candidate, of whatever question, fit the model."""
    piece: list[int] = []
    prompt = candidate = 0
    for number in numbers:
        own = len(encoded.prompts[number]), max(map(len, encoded.candidates[number]))
        prompt, candidate = max(prompt, own[0]), max(candidate, own[1])
        if piece and prompt + candidate > encoded.limit:
            yield piece
            piece, (prompt, candidate) = [], own
        piece.append(number)
    if piece:
        yield piece


def _blanks(encoded: EncodedQuestions) -> EncodedQuestions:
    if encoded.blanks is None:
        raise DataError(
            "calibration", expected="blank prompts", found="none", remedy="encode the questions with blanks=True"
        )
    return encoded.blanks


def _distinct(encoded: EncodedQuestions, names: Sequence[str | None]) -> tuple[EncodedQuestions, list[int]]:
    """Questions that differ in tokens or adapter, and of each question the number of its like."""
    numbers: dict[Any, int] = {}
    firsts, places = list[int](), list[int]()
    for row, name in enumerate(names):
        key = (name, tuple(encoded.prompts[row]), tuple(map(tuple, encoded.candidates[row])))
        if key not in numbers:
            numbers[key] = len(numbers)
            firsts.append(row)
        places.append(numbers[key])
    return encoded.take(firsts), places


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])
