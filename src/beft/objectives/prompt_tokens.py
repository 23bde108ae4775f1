"""Prompts and what may follow them as tokens: joint tokenisation, split where the candidates part from the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import DataError
from ..tasks.question import Question
from .encode import usable_length

UNLIMITED = 1_000_000


@dataclass(frozen=True)
class EncodedQuestions:
    """Questions as token ids.

    Attributes:
        prompts: the tokens that all candidates of a question share with its prompt, special tokens included.
        candidates: the tokens of each candidate of each question, never none.
        gold: numbers of the right candidates of each question.
        cut: how many prompts were shortened to fit `limit`.
        limit: most tokens of a prompt with its longest candidate.
        pad_id: a token to fill rows with; no result depends on it.
        blanks: the same questions under their `blank` prompts, where calibration is wanted.
    """

    prompts: list[list[int]]
    candidates: list[list[list[int]]]
    gold: list[tuple[int, ...]]
    cut: int
    limit: int
    pad_id: int
    blanks: EncodedQuestions | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: Sequence[int]) -> EncodedQuestions:
        """Some of the questions; `cut` still counts all."""
        return EncodedQuestions(
            [self.prompts[row] for row in rows],
            [self.candidates[row] for row in rows],
            [self.gold[row] for row in rows],
            self.cut,
            self.limit,
            self.pad_id,
            None if self.blanks is None else self.blanks.take(rows),
        )


def join_questions(parts: Sequence[tuple[EncodedQuestions, Sequence[int]]]) -> EncodedQuestions:
    """Questions of several encodings by one tokenizer, one after the other: (encoding, row numbers), at least one."""
    chosen = [encoded.take(rows) for encoded, rows in parts]
    if len(chosen) == 1:
        return chosen[0]
    blanks = [each.blanks for each in chosen if each.blanks is not None]
    return EncodedQuestions(
        [prompt for each in chosen for prompt in each.prompts],
        [candidates for each in chosen for candidates in each.candidates],
        [gold for each in chosen for gold in each.gold],
        sum(each.cut for each in chosen),
        max(each.limit for each in chosen),
        chosen[0].pad_id,
        join_questions([(each, range(len(each))) for each in blanks]) if len(blanks) == len(chosen) else None,
    )


@dataclass
class _Specials:
    """What a tokenizer puts around a text: so many tokens before and after it."""

    before: int = 0
    after: int = 0
    start: int | None = field(default=None)
    """A token to predict a text's first token from, where nothing stands before it."""


def encode_questions(
    tokenizer: Any, questions: Sequence[Question], max_length: int = UNLIMITED, *, blanks: bool = False
) -> EncodedQuestions:
    """Tokenise prompts with each of their candidates.

    Prompt and candidate are one text to the tokenizer, with its own special tokens in front (those behind are left
    out). What all of a question's candidates have in common with the prompt alone is the prompt; a token that reaches
    over the border belongs to the candidate. Where nothing is in common, the start token (or the end token of a
    tokenizer that has none) stands in front. Too long a prompt loses tokens on its left, but not its special ones.

    Args:
        tokenizer: a transformers tokenizer, with or without special tokens.
        questions: with candidates.
        max_length: most tokens of prompt and candidate together; the tokenizer's own limit holds too.
        blanks: tokenise the `blank` prompts as well, see `EncodedQuestions.blanks`.

    Raises:
        DataError: a question without candidates, a candidate of no tokens, two of the same tokens, one that does not
            fit `max_length`, or nothing to predict its first token from.
    """
    texts = [question.candidates for question in questions]
    encoded = _encode(tokenizer, questions, [question.prompt for question in questions], texts, max_length, True)
    if not blanks:
        return encoded
    without = _encode(tokenizer, questions, [question.blank for question in questions], texts, max_length, False)
    return EncodedQuestions(**{**vars(encoded), "blanks": without})


def encode_answers(
    tokenizer: Any, questions: Sequence[Question], max_length: int = UNLIMITED, *, stop: str = "\n"
) -> EncodedQuestions:
    """Tokenise prompts with the one text to learn: the first right candidate, or the first answer.

    An answer follows the prompt after a space (unless the prompt ends with white space) and ends with `stop`.

    Raises:
        DataError: a question without a right candidate or answer, and as `encode_questions`.
    """
    texts = [(answer_text(question, stop),) for question in questions]
    encoded = _encode(tokenizer, questions, [question.prompt for question in questions], texts, max_length, True)
    return EncodedQuestions(**{**vars(encoded), "gold": [(0,)] * len(encoded)})


def encode_prompts(tokenizer: Any, questions: Sequence[Question], max_length: int = UNLIMITED) -> EncodedQuestions:
    """Tokenise prompts alone, to generate from; `candidates` are empty.

    Raises:
        DataError: a prompt of no tokens where the tokenizer has no start or end token.
    """
    limit = min(max_length, usable_length(tokenizer))
    specials = _specials(tokenizer)
    prompts, cut = [], 0
    for question, ids in zip(questions, _tokenise(tokenizer, [q.prompt for q in questions], specials), strict=True):
        kept, shortened = _fit(question, ids, 0, limit, specials)
        prompts.append(kept)
        cut += shortened
    return EncodedQuestions(prompts, [[] for _ in prompts], [q.gold for q in questions], cut, limit, _pad_id(tokenizer))


def answer_text(question: Question, stop: str = "\n") -> str:
    """The text to learn after a question's prompt.

    Raises:
        DataError: the question has neither a right candidate nor an answer.
    """
    if question.candidates and question.gold:
        return question.candidates[question.gold[0]]
    if question.candidates or not question.answers:
        raise DataError(f"question {question.id}", expected="a right candidate or an answer", found="neither")
    space = "" if not question.prompt or question.prompt[-1].isspace() else " "
    return space + question.answers[0].strip() + stop


def context_limit(config: Any, max_length: int | None = None) -> int:
    """Most tokens a model reads: the least of `max_length` and the positions its configuration names."""
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    known = [getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    return min([length for length in (max_length, *known) if isinstance(length, int) and length > 0], default=UNLIMITED)


def _encode(
    tokenizer: Any,
    questions: Sequence[Question],
    prompts: Sequence[str],
    texts: Sequence[Sequence[str]],
    max_length: int,
    strict: bool,
) -> EncodedQuestions:
    limit = min(max_length, usable_length(tokenizer))
    specials = _specials(tokenizer)
    alone = _tokenise(tokenizer, prompts, specials)
    joined = _tokenise(tokenizer, [prompts[n] + text for n, each in enumerate(texts) for text in each], specials)
    fitted: list[list[int]] = []
    candidates: list[list[list[int]]] = []
    cut, place = 0, 0
    for question, prompt, each in zip(questions, alone, texts, strict=True):
        if not each:
            raise DataError(f"question {question.id}", expected="candidates", found="none")
        whole = joined[place : place + len(each)]
        place += len(each)
        shared = _common(prompt, whole)
        own = [ids[shared:] for ids in whole]
        for text, ids, rest in zip(each, whole, own, strict=True):
            if not rest or ids == prompt:
                raise DataError(
                    f"question {question.id}, candidate {text!r}", expected="at least one token", found="none"
                )
        if strict and len({tuple(ids) for ids in own}) < len(own):
            first = next(n for n, ids in enumerate(own) if ids in own[:n])
            raise DataError(
                f"question {question.id}, candidate {each[first]!r}",
                expected="candidates of different tokens",
                found=f"those of {each[own.index(own[first])]!r}",
                remedy="leave one of the two out",
            )
        kept, shortened = _fit(question, prompt[:shared], max(map(len, own)), limit, specials)
        fitted.append(kept)
        candidates.append(own)
        cut += shortened
    gold = [question.gold for question in questions]
    return EncodedQuestions(fitted, candidates, gold, cut, limit, _pad_id(tokenizer))


def _common(prompt: list[int], whole: list[list[int]]) -> int:
    """How many tokens a prompt and all texts that begin with it have in common."""
    shared = len(prompt)
    for ids in whole:
        if ids[:shared] != prompt[:shared]:
            shared = next(n for n in range(shared) if n >= len(ids) or ids[n] != prompt[n])
    return shared


def _fit(question: Question, prompt: list[int], answer: int, limit: int, specials: _Specials) -> tuple[list[int], bool]:
    """A prompt with something to predict from and room for the answer; and whether it had to be shortened."""
    before = min(specials.before, len(prompt))
    if not prompt:
        if specials.start is None:
            raise DataError(
                f"question {question.id}",
                expected="a prompt of at least one token",
                found="none, and a tokenizer without a start or end token",
                remedy="put a word in front",
            )
        prompt, before = [specials.start], 1
    room = limit - answer
    if room < max(before, 1):
        raise DataError(
            f"question {question.id}",
            expected=f"an answer that fits {limit} tokens with a prompt",
            found=f"one of {answer}",
            remedy="raise --max-length if the model reads more, or leave the question out",
        )
    excess = len(prompt) - room
    return (prompt[:before] + prompt[before + excess :], True) if excess > 0 else (prompt, False)


def _tokenise(tokenizer: Any, texts: Sequence[str], specials: _Specials) -> list[list[int]]:
    if not texts:
        return []
    rows = tokenizer(list(texts), add_special_tokens=True, truncation=False, padding=False, verbose=False)["input_ids"]
    return [list(row[: len(row) - specials.after]) for row in rows]


def _specials(tokenizer: Any) -> _Specials:
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    text = "a"
    full = list(tokenizer(text, add_special_tokens=True, verbose=False)["input_ids"])
    bare = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    for before in range(len(full) - len(bare) + 1):
        if full[before : before + len(bare)] == bare:
            return _Specials(before, len(full) - len(bare) - before, start)
    return _Specials(0, 0, start)


def _pad_id(tokenizer: Any) -> int:
    return int(tokenizer.pad_token_id or 0)
