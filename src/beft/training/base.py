"""Loading a base model and its tokenizer, and giving an adapter its head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from ..core.adapter import LinearHead, ModelHead, Pooling, head_features, real_device
from ..core.bank import Bank
from ..core.checkpointing import recompute_layers
from ..core.heads import bidirectional, state_width
from ..core.hub import PACKAGED, resolve_model
from ..core.probe import quiet_transformers
from ..core.sites import available_terms
from ..core.store import PEFT_CONFIG
from ..errors import RecipeError, StoreError, nearest
from ..objectives.encode import usable_length
from .machine import Choices
from .quantize import DeviceMap, clean_up, loading_keywords
from .shard import own_loading, settle_sharded, sharding_keywords


@dataclass
class Base:
    """A loaded model, its tokenizer, and the modules of its head whose weights the checkpoint did not have."""

    model: Any
    tokenizer: Any
    name: str
    new_modules: tuple[str, ...]
    pooling: Pooling

    @property
    def hidden_size(self) -> int:
        """Features of the base model's last states.

        Raises:
            StoreError: a model whose config does not say.
        """
        width = state_width(self.model)
        if width is None:
            raise StoreError(
                f"model {self.name!r}", expected="a model of texts", found=f"a {type(self.model).__name__}"
            )
        return width

    def reads(self, recipe: Any) -> Pooling:
        """What a linear head of a recipe reads of the states.

        Raises:
            RecipeError: texts read apart by a model that is no encoder.
        """
        if recipe.pairs != "apart":
            return self.pooling
        if self.pooling != "mean":
            raise RecipeError("pairs 'apart'", expected="an encoder", found="a causal model", remedy="leave pairs out")
        return "pair"


def base_folder(name: str) -> Path:
    """The folder of a base model: a local one, a packaged one, or the Hub's snapshot (fetched if it is not here).

    Raises:
        StoreError: no such folder or repository.
    """
    where = Path(resolve_model(name)).expanduser()
    if where.is_dir():
        return where
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise StoreError(
            f"model {name!r}",
            expected="a folder or a Hub repository",
            found=_first_line(error),
            remedy=_nearest_model(name),
        ) from error


def load_base(
    name: str,
    choices: Choices,
    *,
    head: str = "linear",
    outputs: int = 2,
    labels: Sequence[str] | None = None,
    trust_remote_code: bool = False,
    quantize: str | None = None,
    device_map: DeviceMap | None = None,
    shard: bool = False,
    tokenizer: bool = True,
) -> Base:
    """Load a base for classification: the bare model for a linear head, the headed class for the model's own head.

    `quantize` and `device_map` say how it is held in memory, see `quantize`; the device of the inputs goes into
    `choices`. `shard` spreads it over the ranks, see `shard`. Without `tokenizer` the model is looked at and reads no
    text: its folder need have none.

    Raises:
        StoreError: no such model, a folder that is none, or an architecture without a classification head.
        RecipeError: a quantisation or a device map that cannot be had here.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    where = resolve_model(name)
    if where.startswith(("/", ".", "~")) and not Path(where).expanduser().is_dir():
        raise StoreError(
            f"model {name!r}", expected="a model folder", found="no such folder", remedy=_nearest_model(name)
        )
    changes: dict[str, Any] = {}
    if head == "model":
        changes["num_labels"] = outputs
        if labels is not None:
            changes["id2label"] = dict(enumerate(labels))
            changes["label2id"] = {label: number for number, label in enumerate(labels)}
        else:
            changes["problem_type"] = "regression"
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(where, trust_remote_code=trust_remote_code, **changes)
            reader = AutoTokenizer.from_pretrained(where, trust_remote_code=trust_remote_code) if tokenizer else None
            kind = AutoModelForSequenceClassification if head == "model" else AutoModel
            already = (getattr(config, "quantization_config", None) or {}).get("quant_method")
            keep = _heads(kind, config, trust_remote_code) if quantize and head == "model" else ()
            keywords = loading_keywords(quantize, device_map, choices, quantized_already=already, keep=keep)
            pieces = sharding_keywords(kind, config, trust_remote_code, already) if shard else {}
            model, report = load_with_kernel(kind, where, config, choices, trust_remote_code, **keywords, **pieces)
        except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
            raise StoreError(
                f"model {name!r}",
                expected="a transformers model" + (" with a classification head" if head == "model" else ""),
                found=_first_line(error),
                remedy=_remedy(error, name, "try --head linear" if head == "model" and Path(where).is_dir() else ""),
            ) from error
    model.config._name_or_path = name
    if reader is not None:
        _agree_on_padding(model, reader)
    missing = {key.rpartition(".")[0] for key in report}
    causal = not bidirectional(config.model_type)
    model = settle(model, keywords, choices, shard)
    return Base(model, reader, name, tuple(sorted(missing)), "last" if causal else "mean")


def settle(model: Any, keywords: dict[str, Any], choices: Choices, shard: bool) -> Any:
    """A model that was just loaded (with these keywords for how it is held) on its device, ready to be attached to."""
    if shard:
        settle_sharded(model)
    elif keywords:
        clean_up(model, keywords)
        choices.device = str(real_device(model))
    else:
        model = model.to(choices.device)
    if choices.gradient_checkpointing:
        recompute_layers(model)
    return model.eval()


def _heads(kind: Any, config: Any, trust_remote_code: bool) -> list[str]:
    """Modules that an adapter may have copies of: the head's, and poolers."""
    with torch.device("meta"):
        skeleton = kind.from_config(config, trust_remote_code=trust_remote_code)
    poolers = [path for path, _ in skeleton.named_modules() if path.rpartition(".")[2] == "pooler"]
    return head_paths(skeleton) + poolers


def _remedy(error: BaseException, name: str, otherwise: str) -> str:
    if "trust_remote_code" in str(error):
        return "read that code, then allow it with --trust-remote-code (trust_remote_code=True)"
    if isinstance(error, ImportError):
        return "install the package that it names"
    return otherwise or _nearest_model(name)


def _nearest_model(name: str) -> str:
    path = Path(name).expanduser()
    if (path / PEFT_CONFIG).is_file():
        return "that is an adapter: give the model that it was trained on"
    if path.is_dir():
        return "give a folder with a model's config.json and weights"
    folders = [each.name for each in path.parent.glob("*") if each.is_dir()] if "/" in name else []
    close = nearest(path.name, folders) if path.parent.is_dir() and folders else nearest(name, PACKAGED)
    return close if close.endswith("?") else "give a folder or a Hub id; check the spelling"


def _agree_on_padding(model: Any, tokenizer: Any) -> None:
    """One pad token for both: causal classification heads look for the last token that is not it."""
    if tokenizer.pad_token_id is None:
        known = (getattr(model.config, "pad_token_id", None), tokenizer.eos_token_id, 0)
        tokenizer.pad_token_id = next(number for number in known if number is not None and number >= 0)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def position_limit(model: nn.Module) -> int | None:
    """Tokens that a model's positions suffice for, if they are bounded.

    Positions may start after the pad token's, as in RoBERTa: 514 of them serve 512 tokens.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return int(module.num_embeddings - module.padding_idx - 1)
    return limit


def token_limit(base: Base, max_length: int, reserved: int = 0) -> int:
    """Tokens an example may have: as asked, and as positions (less `reserved` ones) and the tokenizer allow."""
    positions = position_limit(base.model)
    return min(max_length, max_length if positions is None else positions - reserved, usable_length(base.tokenizer))


def load_with_kernel(
    kind: Any, where: str, config: Any, choices: Choices, trust_remote_code: bool, **keywords: Any
) -> tuple[Any, list[str]]:
    """A model with the chosen attention kernel, else the next that it has; and the keys its checkpoint lacked."""
    for attention in dict.fromkeys((choices.attention, "sdpa", "eager")):
        try:
            with own_loading():
                model, info = kind.from_pretrained(
                    where,
                    config=config,
                    dtype=choices.torch_dtype,
                    attn_implementation=attention,
                    trust_remote_code=trust_remote_code,
                    output_loading_info=True,
                    **keywords,
                )
        except ValueError as error:
            if "attention" in str(error).lower() and attention != "eager":
                continue
            raise
        choices.attention = attention
        return model, list(info["missing_keys"])
    raise ValueError("no attention kernel of this model could be chosen")


def head_paths(model: nn.Module, new_modules: Sequence[str] = ()) -> list[str]:
    """Modules of a headed class that are not of its base model, and modules of the base that the checkpoint lacked."""
    base = getattr(model, "base_model", model)
    if base is model:
        return []
    own = [
        name
        for name, child in model.named_children()
        if child is not base and name != "beft" and any(True for _ in child.parameters())
    ]
    prefix = getattr(model, "base_model_prefix", "")
    lacking = [
        path for path in new_modules if path.startswith(prefix + ".") and not any(p.isdigit() for p in path.split("."))
    ]
    return own + lacking


def add_adapter(
    bank: Bank, base: Base, name: str, recipe: Any, outputs: int = 0, labels: Sequence[str] | None = None
) -> None:
    """Add an adapter with the recipe's head and the terms of its method; with the model's own head, if the method says
    so, the pooler's bias too.

    Raises:
        RecipeError: the model's own head lies on disk, or texts read apart by a model that is no encoder.
    """
    method = recipe.new_method()
    terms = method.terms(base.model, recipe.head)
    layers = None if terms == "none" else recipe.layers
    torch.manual_seed(recipe.seed)
    if recipe.head == "none":
        bank.add(name, terms=terms, layers=layers)
        return
    if recipe.head == "linear":
        bank.add(name, terms=terms, layers=layers)  # a model without attention is refused here
        pooling = base.reads(recipe)
        bank.set_head(name, LinearHead(head_features(base.hidden_size, pooling), outputs, labels, pooling))
        return
    paths = head_paths(base.model, base.new_modules)
    offloaded = [path for path in paths if any(p.is_meta for p in base.model.get_submodule(path).parameters())]
    if offloaded:
        raise RecipeError(
            "device_map",
            expected="the modules of the head on devices: they are trained",
            found=f"{', '.join(offloaded)} on disk",
            remedy="give them a device, or use --head linear",
        )
    head = ModelHead(base.model, paths, labels)
    for path in paths:
        for below, module in head.module(path).named_modules():
            if f"{path}.{below}".rstrip(".") in base.new_modules:
                _initialise(module, getattr(base.model.config, "initializer_range", 0.02))
    own_pooler = any("pooler" in path for path in paths)  # the head's copy holds its bias
    if own_pooler:
        terms = "+".join(term for term in terms.split("+") if term != "pooler") or "none"
    elif method.pooler and any(term.name == "pooler" for term in available_terms(base.model)):
        terms += "+pooler"
    bank.add(name, terms=terms, layers=layers, head=head)


def _initialise(module: nn.Module, spread: float) -> None:
    """Seeded weights for a new head: it must not depend on what else drew random numbers before."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=spread)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _first_line(error: BaseException) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError

    text = " ".join(str(error).split())
    if "couldn't connect to" in text or isinstance(error, LocalEntryNotFoundError):
        return "no folder of this name, and none in the Hub's cache, which could not be asked"
    return text[:160].rstrip(".") or type(error).__name__
