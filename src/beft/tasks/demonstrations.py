"""In-context learning: prompts preceded by answered questions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from ..errors import DataError, RecipeError
from .question import Question


def with_demonstrations(
    questions: Sequence[Question],
    pool: Sequence[Question],
    k: int,
    seed: int = 0,
    *,
    mode: Literal["per_example", "fixed"] = "per_example",
    joiner: str = "\n\n",
    fits: Callable[[str], bool] | None = None,
    blank: Literal["drop", "keep"] = "drop",
) -> list[Question]:
    """The questions, each after up to `k` demonstrations; `Question.shots` counts them.

    A demonstration is a question of the pool with its first right candidate, or its first answer, spaces around it
    taken off. A question is never a demonstration for itself. Where not all of `k` fit, those farthest from the
    question are dropped.

    Args:
        questions: to be asked.
        pool: questions whose answers are known.
        k: demonstrations a question; 0 changes nothing.
        seed: of the draw. A question's demonstrations depend on the seed, its own text and the pool alone.
        mode: draw for each question, or one set for all.
        joiner: what stands between demonstrations and before the prompt.
        fits: whether a text (prompt with demonstrations and longest candidate) is short enough; more text never fits
            better. By default everything fits. Room for a written answer is left by the function.
        blank: whether the prompt for calibration has the demonstrations too ("keep": icl_sfc; "drop": sfc).

    Raises:
        RecipeError: a negative `k`, or an unknown mode.
        DataError: a pool smaller than `k`, or a question in it whose answer is not known.
    """
    if k < 0:
        raise RecipeError("demonstrations", expected="0 or more", found=str(k))
    if mode not in ("per_example", "fixed") or blank not in ("drop", "keep"):
        raise RecipeError(
            "demonstrations", expected="mode per_example or fixed, blank drop or keep", found=f"{mode!r}, {blank!r}"
        )
    if k == 0:
        return list(questions)
    if len(pool) < k:
        raise DataError("demonstrations", expected=f"a pool of at least {k} questions", found=str(len(pool)))
    texts = [demonstration(each) for each in pool]
    shared = _order(seed, len(pool))
    shown = []
    for question in questions:
        order = shared if mode == "fixed" else _order(seed, len(pool), question)
        others = (number for number in order if not _same(pool[number], question))
        chosen = [texts[number] for number, _ in zip(others, range(k), strict=False)]
        shown.append(_shown(question, chosen, joiner, fits, blank == "keep"))
    return shown


def demonstration(question: Question) -> str:
    """A question with its answer: the prompt and its first right candidate or first answer, without spaces around.

    Raises:
        DataError: the answer is not known.
    """
    if question.candidates and question.gold:
        return (question.prompt + question.candidates[question.gold[0]]).strip()
    if question.candidates or not question.answers:
        raise DataError(f"demonstration {question.id}", expected="a question whose answer is known", found="none")
    space = "" if not question.prompt or question.prompt[-1].isspace() else " "
    return (question.prompt + space + question.answers[0].strip()).strip()


def _shown(
    question: Question, chosen: list[str], joiner: str, fits: Callable[[str], bool] | None, keep_blank: bool
) -> Question:
    def before(prompt: str, count: int) -> str:
        return joiner.join([*chosen[len(chosen) - count :], prompt])

    count = len(chosen)
    if fits is not None:
        longest = max(question.candidates, key=len, default="")
        least, most = 0, count  # `least` fits, as far as any does
        while least < most:
            middle = (least + most + 1) // 2
            if fits(before(question.prompt, middle) + longest):
                least = middle
            else:
                most = middle - 1
        count = least
    blank = before(question.blank, count) if keep_blank else question.blank
    return replace(question, prompt=before(question.prompt, count), blank=blank, shots=count)


def _same(first: Question, second: Question) -> bool:
    return first.prompt == second.prompt and first.candidates == second.candidates


def _order(seed: int, count: int, question: Question | None = None) -> list[int]:
    """The pool's numbers in the order in which they are drawn, for one question or for all."""
    key = repr((seed, question and (question.prompt, question.candidates)))
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16]))
    order: list[int] = random.permutation(count).tolist()
    return order
