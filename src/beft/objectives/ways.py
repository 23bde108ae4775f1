"""Which shortcuts a model allows: measured on random tokens against one full forward per candidate, and remembered.

A family may ignore position ids or masks, look back by place instead of position, or change with the length of its
input; so the tree, the shared cache and left padding are each tried at the length at hand (in powers of two) before
they are used. Where one does not give the plain way's scores, the next is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor

from ..core.bank import Bank
from ..core.quantized import rounds_inputs
from ..errors import RecipeError
from .forwards import left_inputs, sums_by_cache, sums_of_rows
from .logits_at import logits_at
from .packing import device_of, evaluating, out_of_memory
from .prompt_tokens import context_limit
from .tree import plant

Way = Literal["causal", "tree", "cache", "left"]
SHORTEST = 32
"""Tokens of the shortest trial."""
EXACT = 3e-5
"""Largest difference of a log-probability, fp32, in units of the logits' spread or 1. Noise is a tenth of it."""
CAUSAL = 1e-3
"""What earlier logits may move when later tokens change, as a share of what those tokens' own logits move."""
ROUNDINGS = 1
"""In half precision: mean difference of a log-probability, in units of its precision times the logits' spread."""

COARSE = 2**-4
"""Where layers round their inputs to 8 bits: mean difference in units of the logits' spread. A wrong way exceeds it."""

_KNOWN: WeakKeyDictionary[Any, dict[tuple[Any, ...], bool]] = WeakKeyDictionary()
_SETTLED: WeakSet[Any] = WeakSet()
"""Models of which nothing more is tried."""


class Ways:
    """What holds for one model. With a bank, trials run on the plain model, whatever route is in force."""

    def __init__(self, model: Any, bank: Bank | None = None) -> None:
        _refuse_without_head(model)
        self.model, self.bank = model, bank
        self.limit = context_limit(model.config)
        self.alone = _length_dependent(model.config)
        if not self.holds("causal", SHORTEST):
            raise RecipeError(
                type(model).__name__,
                expected="a causal language model",
                found="one whose states depend on later tokens",
                remedy="choose a decoder such as Llama, GPT-2 or OPT",
            )

    def holds(self, way: Way, length: int) -> bool:
        """Whether a way gives the plain way's scores in rows of up to `length` tokens.

        What holds in longer rows holds in these: ask for the longest first.
        """
        size = SHORTEST
        while size < length:
            size *= 2
        model = self.model
        kernel = getattr(model.config, "_attn_implementation", None)
        key = (way, size, kernel, model.dtype, str(device_of(model)))
        known = _KNOWN.setdefault(model, {})
        if any(held and (each[0], *each[2:]) == (key[0], *key[2:]) and each[1] > size for each, held in known.items()):
            return True
        if key not in known and model in _SETTLED:
            return False
        if key not in known:
            with nullcontext() if self.bank is None else self.bank.route(None), evaluating(model):
                known[key] = _TRIALS[way](model, min(size, self.limit))
        return known[key]

    def settle(self, length: int) -> None:
        """Try everything up to a length now. Afterwards what is not known to hold is taken not to.

        For a model that several processes run together: a trial of one alone would have no company.
        """
        _SETTLED.discard(self.model)
        self.holds("causal", SHORTEST)
        for way in ("tree", "cache", "left"):
            size = length
            while not self.holds(way, size) and size > SHORTEST:
                size //= 2
        _SETTLED.add(self.model)

    def tree(self, length: int) -> bool:
        """Whether prompt and candidates can share one row of `length` tokens."""
        return (self.alone is None or length <= self.alone) and self.holds("tree", length)

    def cache(self, length: int) -> bool:
        """Whether a prompt's keys and values can be shared, prompt and candidate `length` tokens long; no gradients."""
        return (self.alone is None or length <= self.alone) and self.holds("cache", length)


class _Trial:
    """Random prompts and candidates of which the longest row has `length` tokens, and their plain scores.

    With `padded`, that is the length of the longest prompt, which others are padded to, with the longest candidate.
    """

    def __init__(self, model: Any, length: int, padded: bool = False) -> None:
        self.model, self.device = model, device_of(model)
        vocabulary = model.get_input_embeddings().weight.shape[0]
        generator = torch.Generator().manual_seed(length)

        def draw(count: int) -> list[int]:
            count = max(1, count)
            return torch.randint(vocabulary // 8, vocabulary, (count,), generator=generator).tolist()

        quarter = length // 4
        self.prompts = [draw(2 * quarter), draw(3 * quarter - 4 if padded else length - 12)]
        self.candidates = [[draw(quarter - 2), draw(quarter), draw(1)], [draw(4), draw(5)]]
        self.spread = 0.0

    def plain(self) -> Tensor:
        """One full forward per candidate."""
        sums = []
        for prompt, candidates in zip(self.prompts, self.candidates, strict=True):
            for candidate in candidates:
                ids = torch.tensor([prompt + candidate], device=self.device)
                logits = self.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
                targets = ids[0, len(prompt) :].to(logits.device)
                sums.append(logits.log_softmax(-1)[torch.arange(len(targets), device=logits.device), targets].mean())
                self.spread = max(self.spread, float(logits.std()))
        return torch.stack(sums)

    def agrees(self, sums: Tensor, slack: float = 1.0) -> bool:
        """Whether the candidates' sums are the plain ones."""
        counts = torch.tensor([len(each) for row in self.candidates for each in row], device=sums.device)
        plain = self.plain()
        return self.close(sums / counts, plain, slack)

    def close(self, values: Tensor, plain: Tensor, slack: float = 1.0) -> bool:
        """Whether values are the plain ones but for rounding."""
        difference = (values.float().cpu() - plain.float().cpu()).abs()
        if rounds_inputs(self.model):
            return bool(difference.mean() <= slack * COARSE * self.spread)
        if self.model.dtype == torch.float32:
            return bool(difference.max() <= slack * EXACT * max(1.0, self.spread))
        return bool(difference.mean() <= slack * ROUNDINGS * torch.finfo(self.model.dtype).eps * self.spread)


def _try_causal(model: Any, length: int) -> bool:
    """Whether logits stay what they are when later tokens change: to the bit in most decoders, in any precision."""
    vocabulary, half = model.get_input_embeddings().weight.shape[0], length // 2
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(vocabulary // 8, vocabulary, (2, length), generator=generator)
    ids[1, :half] = ids[0, :half]
    with torch.no_grad():
        first, second = model(input_ids=ids.to(device_of(model))).logits.float()
    moved = (first - second).abs().mean(-1)
    if rounds_inputs(model):  # a batch's outliers decide how all of its rows are rounded
        return bool(moved[:half].mean() <= COARSE * moved[half:].mean())
    return bool(moved[:half].mean() <= CAUSAL * moved[half:].mean())


def _try_tree(model: Any, length: int) -> bool:
    trial = _Trial(model, length)
    trees = [plant(prompt, each) for prompt, each in zip(trial.prompts, trial.candidates, strict=True)]
    return _runs(lambda: trial.agrees(sums_of_rows(model, trees, 0)))


def _try_cache(model: Any, length: int) -> bool:
    trial = _Trial(model, length, padded=True)
    return _runs(lambda: trial.agrees(sums_by_cache(model, trial.prompts, trial.candidates, 0, 8 * length)))


def _try_left(model: Any, length: int) -> bool:
    """Whether the next token's logits after a prompt are those without padding on its left."""
    trial = _Trial(model, length)

    def run() -> bool:
        inputs, last = left_inputs(model, trial.prompts, 0)
        got = logits_at(model, inputs, last).float().log_softmax(-1)
        plain = [model(input_ids=torch.tensor([p], device=trial.device)).logits[0, -1].float() for p in trial.prompts]
        trial.spread = max(float(each.std()) for each in plain)
        return trial.close(got, torch.stack(plain).log_softmax(-1))

    return _runs(run)


def _runs(trial: Callable[[], bool]) -> bool:
    """A family that cannot take such inputs at all says so with whatever error it comes upon."""
    try:
        return trial()
    except Exception as error:
        if out_of_memory(error):
            raise
        return False


_TRIALS: dict[Way, Callable[[Any, int], bool]] = {
    "causal": _try_causal,
    "tree": _try_tree,
    "cache": _try_cache,
    "left": _try_left,
}


def _refuse_without_head(model: Any) -> None:
    has_head = callable(getattr(model, "get_output_embeddings", None)) and model.get_output_embeddings() is not None
    if model.config.is_encoder_decoder or not has_head:
        raise RecipeError(
            type(model).__name__,
            expected="a causal language model with its head",
            found="an encoder-decoder" if model.config.is_encoder_decoder else "a model without one",
            remedy="load it with AutoModelForCausalLM",
        )


def _length_dependent(config: Any) -> int | None:
    """Tokens beyond which rotary frequencies change with the longest row of a batch; None where they do not."""
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    nested = [each for each in rope.values() if isinstance(each, dict)]
    for each in nested or [rope]:
        if each.get("rope_type") in ("dynamic", "longrope"):
            own = each.get("original_max_position_embeddings")
            length = own or getattr(text, "original_max_position_embeddings", None) or text.max_position_embeddings
            return int(length)
    return None
