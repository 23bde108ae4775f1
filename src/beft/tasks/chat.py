"""Prompts as a chat: the question is the user's message, candidates and answers are the assistant's words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import DataError
from .question import Question

_PROBE = "beft"


def as_chat(question: Question, tokenizer: Any, system: str | None = None) -> Question:
    """The question in the tokenizer's chat template, up to where the assistant speaks.

    Spaces and line ends around the prompt and in front of the candidates give way to the template's own. `blank`
    becomes a chat as well. A start token that the tokenizer itself puts in front of every text is left out of the
    prompt, so that it stands there once. Demonstrations that precede the prompt become part of the user's message.

    Args:
        question: any question.
        tokenizer: a transformers tokenizer with a chat template.
        system: the system's message, where the template knows one.

    Raises:
        DataError: a tokenizer without a chat template, or one that does not take these messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "chat",
            expected="a tokenizer with a chat template",
            found=f"none in {getattr(tokenizer, 'name_or_path', '') or type(tokenizer).__name__}",
            remedy="leave the chat form out, or take a model tuned for chat",
        )
    messages = [{"role": "system", "content": system}] if system is not None else []
    prompt = _render(tokenizer, [*messages, {"role": "user", "content": question.prompt.strip()}])
    blank = _render(tokenizer, [*messages, {"role": "user", "content": question.blank.strip()}])
    lead = _lead(tokenizer, messages) if question.candidates else ""
    candidates = tuple(lead + candidate.lstrip() for candidate in question.candidates)
    return replace(question, prompt=prompt, blank=blank, candidates=candidates)


def _render(tokenizer: Any, messages: list[dict[str, str]], ask: bool = True) -> str:
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    except Exception as error:  # a template is a program and may raise anything
        raise DataError(
            "chat template",
            expected="a template that takes " + ", ".join(message["role"] for message in messages),
            found=" ".join(str(error).split())[:160] or type(error).__name__,
            remedy="leave the system message out" if messages[0]["role"] == "system" else "check the tokenizer",
        ) from error
    start = tokenizer.bos_token
    if start and text.startswith(start) and tokenizer(_PROBE)["input_ids"][0] == tokenizer.bos_token_id:
        return text.removeprefix(start)
    return text


def _lead(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """White space that the template puts between its call to the assistant and the assistant's words."""
    asked = [*messages, {"role": "user", "content": _PROBE}]
    before = _render(tokenizer, asked)
    whole = _render(tokenizer, [*asked, {"role": "assistant", "content": _PROBE}], ask=False)
    lead = whole.removeprefix(before).split(_PROBE)[0] if whole.startswith(before) else ""
    return lead if lead.isspace() else ""
