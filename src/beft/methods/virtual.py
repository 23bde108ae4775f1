"""Methods that put virtual tokens before the text: prefix tuning and prompt tuning, with PEFT's encoders.

Sources: prefix tuning arXiv 2101.00190, its start from real activations as in MeZO's protocol (2305.17333, appendix);
prompt tuning 2104.08691. PEFT holds the weights and makes keys and values of a prefix; hooks on the base model put
them before the text. They stay in place in everything that reads the base: linear heads, the architecture's own head,
scored candidates (in trees and with a cache) and `generate`. The base's last states are those of the text alone, so
virtual tokens are neither pooled nor predicted from; the text's positions start after them.
"""

from __future__ import annotations

import inspect
import threading
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.adapter import ModelHead
from ..core.bank import Bank
from ..core.route import SingleRoute
from ..core.store import PREFIX
from ..errors import RecipeError
from .layers import PeftMethod, peft_library
from .method import Options


def before_mask(mask: Tensor | None, count: int, rows: int, length: int, past: int, device: torch.device) -> Tensor:
    """An attention mask with `count` more columns in front, which all may see.

    A mask of two axes is (rows, tokens), one of four (rows, 1, queries, tokens), bool or additive. Without one all
    tokens are seen.
    """
    if mask is None:
        mask = torch.ones(rows, past + length, dtype=torch.long, device=device)
    seen = mask.new_zeros(()) if mask.ndim == 4 and mask.is_floating_point() else mask.new_ones(())
    return torch.cat([seen.expand(*mask.shape[:-1], count), mask], -1)


def backbone(model: nn.Module) -> Any:
    """The module that every text passes through, from tokens to last states: the base model, or the decoder within it
    that some families' language models call directly (OPT, BART)."""
    base = getattr(model, "base_model", model)
    inner = getattr(base, "decoder", None)
    return inner if hasattr(inner, "get_input_embeddings") else base


class _Begun(threading.local):
    """Whether the forward at hand, of this thread, has virtual tokens among its states."""

    yes: bool = False


class Virtual(PeftMethod):
    """`count` virtual tokens in front of the text, for the base model under every route but the plain one."""

    uses: ClassVar[tuple[str, ...]] = ("virtual_tokens",)
    usual: ClassVar[int] = 5
    head_prefixes = (PREFIX, "base_model.")  # where our loader looks, and where PEFT does

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self.count = self.options.virtual_tokens or self.usual
        self.begun = _Begun()
        self.handles: list[Any] = []

    @property
    def reserved(self) -> int:
        """See `Method.reserved`."""
        return self.count

    def attach(self, bank: Bank, name: str) -> dict[str, nn.Parameter]:
        """See `Method.attach`."""
        self.refuse_unfit(bank.model)
        leaves = super().attach(bank, name)
        self.handles.append(backbone(bank.model).register_forward_pre_hook(self.put_before, with_kwargs=True))
        return leaves

    def refuse_unfit(self, model: Any) -> None:
        """Raises RecipeError for a model that cannot read virtual tokens."""
        if getattr(model.config, "is_encoder_decoder", False):
            found = type(model).__name__
            raise RecipeError(f"method {self.name}", expected="an encoder or a causal model", found=found)

    def state(self) -> dict[str, Tensor]:
        """See `PeftMethod.state`."""
        return {"prompt_embeddings": self.peft_model.prompt_encoder["default"].embedding.weight.data}

    def unwrap(self) -> None:
        """See `PeftMethod.unwrap`: the model itself was not changed."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def put_before(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """The base's inputs with the virtual tokens before them."""
        if self.plain_route():
            return None
        names = list(inspect.signature(module.forward).parameters)
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
        inputs = next(each for each in (kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if each is not None)
        rows, length = inputs.shape[:2]
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        seen = max(0, past - self.count)  # a cache that is not empty holds the virtual tokens already
        mask = kwargs.get("attention_mask")
        kwargs["attention_mask"] = before_mask(mask, self.count, rows, length, seen, inputs.device)
        for name in ("position_ids", "cache_position"):
            if kwargs.get(name) is not None:
                kwargs[name] = kwargs[name] + self.count
        if not past:
            self.first(module, kwargs, rows)
        return (), kwargs

    def plain_route(self) -> bool:
        """Whether the plain model is asked for."""
        assert self.bank is not None
        route = self.bank.current_route()
        return isinstance(route, SingleRoute) and route.adapter is None

    def first(self, module: nn.Module, kwargs: dict[str, Any], rows: int) -> None:
        """Put the virtual tokens themselves into the inputs of a forward that begins a text."""
        raise NotImplementedError


class Prefix(Virtual):
    """Keys and values of virtual tokens in every layer."""

    name = "prefix"
    summary = "keys and values of virtual tokens in every layer (--virtual-tokens 5), from real activations"
    lr = 1e-2
    grid = (3e-3, 1e-2, 3e-2)

    def config(self, peft: Any, model: nn.Module) -> Any:
        """See `PeftMethod.config`."""
        return peft.PrefixTuningConfig(num_virtual_tokens=self.count)

    def refuse_unfit(self, model: Any) -> None:
        """See `Virtual.refuse_unfit`: keys and values must have a way in."""
        super().refuse_unfit(model)
        if "past_key_values" not in inspect.signature(backbone(model).forward).parameters:
            raise RecipeError(
                "method prefix",
                expected="a model that takes past keys and values",
                found=type(model).__name__,
                remedy="use --method prompt, or lora",
            )

    def attach(self, bank: Bank, name: str) -> dict[str, nn.Parameter]:
        """See `Method.attach`: the start is the keys and values of random tokens of the vocabulary."""
        leaves = super().attach(bank, name)
        base = backbone(bank.model)
        vocabulary = base.get_input_embeddings().weight
        draw = torch.Generator().manual_seed(self.options.seed)
        ids = torch.randint(len(vocabulary), (1, self.count), generator=draw).to(vocabulary.device)
        from transformers import DynamicCache

        self.handles.append(base.register_forward_hook(self.give_no_cache, with_kwargs=True))
        cache: Any = DynamicCache()
        with bank.route(None), torch.no_grad():
            base(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache)
        with peft_library(self.name) as peft:
            pairs = [(layer.keys.float(), layer.values.float()) for layer in cache.layers]
            peft.initialize_kv_prefix_from_past_key_values(self.peft_model, past_key_values=pairs)
        return leaves

    def first(self, module: nn.Module, kwargs: dict[str, Any], rows: int) -> None:
        """See `Virtual.first`: a cache that holds the prefix, or the caller's own with the prefix put in."""
        prefix = self.peft_model.get_prompt(rows)
        own = kwargs.get("past_key_values")
        if own is None:
            kwargs["past_key_values"] = prefix
            return
        for number, layer in enumerate(prefix.layers):
            own.update(layer.keys, layer.values, number)

    def give_no_cache(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """Without `use_cache` nobody gets the cache that holds the prefix: `generate` would go on with it."""
        if kwargs.get("use_cache") is not False or self.plain_route():
            return None
        output.past_key_values = None
        return output


class Prompt(Virtual):
    """Embeddings of virtual tokens."""

    name = "prompt"
    summary = "embeddings of virtual tokens before the text (--virtual-tokens 20)"
    lr = 1e-2
    grid = (3e-3, 1e-2, 3e-2, 1e-1)
    usual = 20
    shards = False  # PEFT starts it from embeddings, read where no model runs

    def config(self, peft: Any, model: nn.Module) -> Any:
        """See `PeftMethod.config`: tokens start as embeddings of random tokens of the vocabulary."""
        embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
        sizes = {"num_layers": getattr(model.config, "num_hidden_layers", 1), "num_attention_heads": 1}  # of no effect
        return peft.PromptTuningConfig(
            num_virtual_tokens=self.count,
            prompt_tuning_init=peft.PromptTuningInit.SAMPLE_VOCAB,
            token_dim=embeddings.weight.shape[1],
            **sizes,
        )

    def attach(self, bank: Bank, name: str) -> dict[str, nn.Parameter]:
        """See `Method.attach`."""
        leaves = super().attach(bank, name)
        self.handles.append(backbone(bank.model).register_forward_hook(self.take_off))
        return leaves

    def first(self, module: nn.Module, kwargs: dict[str, Any], rows: int) -> None:
        """See `Virtual.first`: embeddings in place of token ids, and rows of the other inputs to match."""
        own = kwargs.get("inputs_embeds")
        texts = module.get_input_embeddings()(kwargs.pop("input_ids")) if own is None else own  # type: ignore[operator]
        tokens = self.peft_model.get_prompt(rows).to(texts)
        kwargs["inputs_embeds"] = torch.cat([tokens, texts], 1)
        if kwargs.get("token_type_ids") is not None:
            kinds = kwargs["token_type_ids"]
            kwargs["token_type_ids"] = torch.cat([kinds.new_zeros(len(kinds), self.count), kinds], 1)
        for name in ("position_ids", "cache_position"):
            if kwargs.get(name) is not None:
                places = kwargs[name]
                start = torch.arange(self.count, device=places.device)
                kwargs[name] = torch.cat([start.expand(*places.shape[:-1], -1), places], -1)
        if kwargs["attention_mask"].ndim == 4:
            kwargs["attention_mask"] = above_mask(kwargs["attention_mask"], self.count)
        self.begun.yes = True

    def take_off(self, module: Any, args: Any, output: Any) -> Any:
        """The base's output without the states of virtual tokens; a pooler reads the text's first state."""
        begun, self.begun.yes = self.begun.yes, False
        if not begun:
            return None
        output.last_hidden_state = output.last_hidden_state[:, self.count :]
        if getattr(output, "pooler_output", None) is not None:
            output.pooler_output = module.pooler(output.last_hidden_state)
        return output

    def peft_loads(self) -> str:
        """See `PeftMethod.peft_loads`."""
        assert self.adapter is not None
        if isinstance(self.adapter.head, ModelHead):
            return "PEFT's classifiers read the first virtual token, ours the text (the prompt itself loads)"
        return super().peft_loads()


def above_mask(mask: Tensor, count: int) -> Tensor:
    """A mask (rows, 1, queries, count + tokens) with `count` more queries above, each seeing those up to itself."""
    rows, heads, _, columns = mask.shape
    seen = torch.ones(count, columns, dtype=torch.bool, device=mask.device).tril()
    if mask.is_floating_point():
        top = torch.zeros(count, columns, dtype=mask.dtype, device=mask.device)
        top = top.masked_fill(~seen, torch.finfo(mask.dtype).min)
    else:
        top = seen.to(mask.dtype)
    return torch.cat([top.expand(rows, heads, -1, -1), mask], 2)
