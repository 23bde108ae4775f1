"""The generate objective: answers written by transformers' own `generate`, many prompts at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from ..core.bank import Bank
from ..core.probe import quiet_transformers
from ..errors import RecipeError, nearest
from ..tasks.question import NEW_TOKENS, Question
from .choose import Names, Scorer
from .forwards import left_inputs
from .packing import Watch, default_budget, device_of, evaluating, in_pieces, pack
from .prompt_tokens import UNLIMITED, context_limit, encode_prompts


def generate_answers(model: Any, tokenizer: Any, questions: Sequence[Question], **options: Any) -> list[str]:
    """One text a question: the first of `generate_texts`, which takes the same options."""
    return [texts[0] for texts in generate_texts(model, tokenizer, questions, **options)]


def generate_texts(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    bank: Bank | None = None,
    name: Names = None,
    config: GenerationConfig | None = None,
    stop: Sequence[str] = ("\n",),
    max_length: int | None = None,
    token_budget: int | None = None,
    watch: Watch | None = None,
) -> list[list[str]]:
    """Generate after every question's prompt; texts end before the first stop string and are stripped.

    A greedy or beam-searched text does not depend on the other questions; a sampled one does, through the order of the
    draws. Prompts too long for `max_length` with the new tokens are cut on the left.

    Args:
        model: a causal language model; left in the mode it is in.
        tokenizer: its tokenizer, with or without a padding, start or end token.
        questions: their prompts are read.
        bank: the bank attached to the model, if any.
        name: the adapter, or one a question; None for the plain model. Only with a bank.
        config: how to generate (beams, sampling, returned sequences, new tokens). By default greedy, whatever the
            model's own configuration says, and at most 50 new tokens.
        stop: strings that end a text; none to go on to the end token or the last new token.
        max_length: most tokens of prompt and text.
        token_budget: most tokens of one batch, beams and new tokens included.
        watch: called after every batch.

    Returns:
        For each question as many texts as `config.num_return_sequences`.

    Raises:
        DataError: see `encode_prompts`.
        RecipeError: no causal language model, or no room for a prompt before the new tokens.
        RouteError: an adapter the bank does not have.
    """
    if not questions:
        return []
    scorer = Scorer(model, bank=bank)
    names = scorer.names(name, len(questions))
    settings = _settings(model, tokenizer, config)
    limit = context_limit(model.config, max_length)
    if limit <= settings.max_new_tokens:
        raise RecipeError(
            f"max_new_tokens {settings.max_new_tokens}",
            expected=f"fewer than the {limit} tokens of prompt and text",
            remedy="lower it, or raise max_length",
        )
    encoded = encode_prompts(tokenizer, questions, limit if limit == UNLIMITED else limit - settings.max_new_tokens)
    texts: list[list[str]] = [[] for _ in questions]
    beams = max(settings.num_beams or 1, settings.num_return_sequences or 1)

    def compute(piece: Sequence[int]) -> None:
        prompts = [encoded.prompts[number] for number in piece]
        inputs, _ = left_inputs(model, prompts, encoded.pad_id)
        inputs.pop("position_ids", None)  # `generate` makes its own
        length = inputs["input_ids"].shape[1]
        criteria = StoppingCriteriaList([StopAtText(tokenizer, stop, length)] if stop else [])
        with scorer.route([names[number] for number in piece]), _told() if config else nullcontext():
            ids = model.generate(**inputs, generation_config=settings, stopping_criteria=criteria)
        ids = getattr(ids, "sequences", ids)[:, length:].tolist()
        each = len(ids) // len(piece)
        for place, number in enumerate(piece):
            rows = ids[place * each : (place + 1) * each]
            texts[number] = [read_text(tokenizer, row, _ends(settings), stop) for row in rows]

    lengths = [len(prompt) + settings.max_new_tokens for prompt in encoded.prompts]
    budget = max(1, (token_budget or default_budget(device_of(model))) // beams)
    pieces = pack(lengths, budget, alone=scorer.ways.alone)
    if not scorer.ways.holds("left", min(max(lengths), limit)):
        pieces = [own for piece in pieces for own in _alike(piece, lengths)]
    with evaluating(model):
        in_pieces(pieces, compute, watch)
    return texts


def generation_config(settings: Mapping[str, Any]) -> GenerationConfig:
    """Settings of transformers' GenerationConfig by name, over greedy writing of at most 50 tokens.

    Raises:
        RecipeError: a setting that it does not have, or a value that it refuses.
    """
    known = [name for name in vars(GenerationConfig()) if not name.startswith("_")]
    for name in settings:
        if name not in known:
            raise RecipeError(
                f"generation setting {name!r}",
                expected="one of transformers' GenerationConfig",
                found="none",
                remedy=nearest(name, known),
            )
    greedy = {"do_sample": False, "num_beams": 1, "max_new_tokens": NEW_TOKENS}
    for name in ("num_beams", "temperature"):
        if not isinstance(value := settings.get(name, 1), (int, float)) or value <= 0:
            raise RecipeError(f"generation setting {name}", expected="a number above 0", found=repr(value))
    with quiet_transformers(), _told():
        config = GenerationConfig(**{**greedy, **settings})
        config.validate(strict=True)
    return config


@contextmanager
def _told() -> Iterator[None]:
    """What transformers says of settings that it refuses, as our error."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise RecipeError(
            "generation settings", expected="what transformers takes", found=" ".join(str(error).split())[:200]
        ) from error


class StopAtText(StoppingCriteria):
    """Ends each row whose new text contains a stop string. Reads the last tokens only, those after the prompt."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], prompt: int) -> None:
        """`prompt` is the tokens of the (padded) prompts."""
        self.tokenizer, self.stop, self.prompt = tokenizer, tuple(stop), prompt
        self.tail = 4 + max(len(each.encode()) for each in stop)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Any:
        """Which rows are done: (rows,)."""
        recent = input_ids[:, max(self.prompt, input_ids.shape[1] - self.tail) :].tolist()
        texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in recent]
        done = [any(stop in text for stop in self.stop) for text in texts]
        return torch.tensor(done, device=input_ids.device)


def read_text(tokenizer: Any, ids: list[int], ends: Sequence[int], stop: Sequence[str]) -> str:
    """New tokens as text, up to the first end token and before the first stop string, stripped."""
    end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    text: str = tokenizer.decode(ids[:end], skip_special_tokens=True)
    for each in stop:
        text = text.split(each, 1)[0]
    return text.strip()


def _settings(model: Any, tokenizer: Any, config: GenerationConfig | None) -> GenerationConfig:
    """The configuration in full: end and padding tokens from the model's own, or the tokenizer."""
    own = model.generation_config
    settings = copy.deepcopy(config) if config is not None else GenerationConfig(do_sample=False, num_beams=1)
    if settings.max_new_tokens is None:
        settings.max_new_tokens = NEW_TOKENS
    if settings.eos_token_id is None:
        settings.eos_token_id = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    if settings.pad_token_id is None:
        ends = _ends(settings)
        known = (own.pad_token_id, tokenizer.pad_token_id, ends[0] if ends else None, 0)
        settings.pad_token_id = next(token for token in known if token is not None)
    return settings


def _ends(settings: GenerationConfig) -> list[int]:
    ends = settings.eos_token_id
    return [] if ends is None else list(ends) if isinstance(ends, (list, tuple)) else [int(ends)]


def _alike(piece: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """A batch cut into batches of one length each, for models that padding on the left does harm."""
    groups: dict[int, list[int]] = {}
    for number in piece:
        groups.setdefault(lengths[number], []).append(number)
    return list(groups.values())
