"""Methods that put layers of Hugging Face PEFT into the model: LoRA, DoRA, VeRA and IA3.

Sources: LoRA arXiv 2106.09685, DoRA 2402.09353, VeRA 2310.11454, IA3 2205.05638; the layers are PEFT's own. What is
saved is PEFT's own adapter, which stock `PeftModel.from_pretrained` loads; the model's own head is in it as a module
to save. Sites come from beft, so every family that has value sites will do.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..core.adapter import LinearHead, ModelHead
from ..core.bank import Bank
from ..core.restore import read_tensors
from ..core.sites import find_sites
from ..core.store import PEFT_CONFIG, PREFIX, WEIGHTS, adapter_tensors
from ..errors import RecipeError, StoreError
from ..files import Writer
from .method import HEAD_RATE, Method, Options


def targets(model: nn.Module, terms: str, layers: str | None) -> list[str]:
    """Paths of the modules of some terms, each once, in layer order: what PEFT is to put its layers around."""
    return list(dict.fromkeys(site.module for site in find_sites(model, terms, layers)))


@contextmanager
def peft_library(method: str) -> Iterator[Any]:
    """The peft package, its warnings about what we do on purpose kept quiet.

    Raises:
        RecipeError: it is not installed, or it refuses this model.
    """
    try:
        import peft
    except ImportError as error:
        raise RecipeError(
            f"method {method}", expected="the package peft", found="none", remedy="pip install 'beft[peft]'"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield peft
    except (ValueError, TypeError, NotImplementedError) as error:
        found = " ".join(str(error).split())[:160]
        raise RecipeError(f"method {method}", expected="a model that PEFT takes", found=found) from error


def task_type(bank: Bank) -> str:
    """PEFT's name for what the model class does."""
    kind = type(bank.model).__name__
    if "SequenceClassification" in kind:
        return "SEQ_CLS"
    return "CAUSAL_LM" if bank.model.get_output_embeddings() is not None else "FEATURE_EXTRACTION"  # type: ignore[operator]


class PeftMethod(Method):
    """A method whose weights are in a `PeftModel` around the bank's model."""

    uses: ClassVar[tuple[str, ...]] = ("layers",)
    shards = True
    head_prefixes: ClassVar[tuple[str, ...]] = (PREFIX,)

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self.peft_model: Any = None
        self.required: dict[nn.Parameter, bool] = {}
        self.attributes: set[str] = set()

    def config(self, peft: Any, model: nn.Module) -> Any:
        """PEFT's configuration."""
        raise NotImplementedError

    def wrap(self, bank: Bank, name: str) -> dict[str, nn.Parameter]:
        """Make the PeftModel. Gives PEFT's trained parameters by their names in it, without its prefix."""
        self.required = {parameter: parameter.requires_grad for parameter in bank.model.parameters()}
        self.attributes = set(vars(bank.model))
        with peft_library(self.name) as peft, torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.seed)
            self.peft_model = peft.PeftModel(bank.model, self.config(peft, bank.model))
        own = {
            key.removeprefix(PREFIX): parameter
            for key, parameter in self.peft_model.named_parameters()
            if parameter.requires_grad and parameter not in self.required
        }
        for parameter, required in self.required.items():
            parameter.requires_grad_(required)  # PEFT freezes all but its own: the head too
        return own

    def attach(self, bank: Bank, name: str) -> dict[str, nn.Parameter]:
        """See `Method.attach`."""
        leaves = self.begin(bank, name)
        return {**self.wrap(bank, name), **leaves}

    def files(self) -> Mapping[str, Writer | str | None]:
        """See `Method.files`: PEFT's adapter_config.json and adapter_model.safetensors, the model's own head within."""
        assert self.bank is not None
        assert self.adapter is not None
        tensors = {key: value.detach().cpu().contiguous().clone() for key, value in self.state().items()}
        config = copy.copy(self.peft_model.peft_config["default"])
        config.inference_mode = True
        config.task_type = task_type(self.bank)
        config.base_model_name_or_path = str(getattr(self.bank.model.config, "_name_or_path", "") or "") or None
        if isinstance(self.adapter.head, ModelHead):
            heads = tuple(PREFIX + path + "." for path in self.adapter.head.paths)
            for key, value in adapter_tensors(self.adapter, self.bank.model).items():
                if key.startswith(heads):
                    name = key.removeprefix(PREFIX)
                    tensors |= {prefix + name: value.clone() for prefix in self.head_prefixes}
            config.modules_to_save = self.adapter.head.paths
        return {
            WEIGHTS: lambda path: save_file(tensors, path, metadata={"format": "pt"}),
            PEFT_CONFIG: json.dumps(_plain(config.to_dict()), indent=2, sort_keys=True) + "\n",
        }

    def restore(self, bank: Bank, name: str, directory: Path) -> None:
        """See `Method.restore`."""
        self.attach(bank, name)
        tensors = read_tensors(directory / WEIGHTS)
        with torch.no_grad():
            for key, own in self.state().items():
                stored = tensors.get(key)
                if stored is None or stored.shape != own.shape:
                    found = "none" if stored is None else str(tuple(stored.shape))
                    expected = f"{key} of shape {tuple(own.shape)}"
                    raise StoreError(str(directory / WEIGHTS), expected=expected, found=found)
                own.copy_(stored)

    def state(self) -> dict[str, Tensor]:
        """PEFT's weights by their names in its file; they share memory with those in the model."""
        with peft_library(self.name) as peft:
            return peft.get_peft_model_state_dict(self.peft_model)

    def detach(self) -> None:
        """See `Method.detach`: PEFT's layers give their place back to the model's own."""
        if self.peft_model is not None:
            self.unwrap()
            for attribute in set(vars(self.peft_model.get_base_model())) - self.attributes:
                delattr(self.peft_model.get_base_model(), attribute)

    def unwrap(self) -> None:
        """Take PEFT's layers out."""
        self.peft_model.unload()

    def peft_loads(self) -> str:
        """See `Method.peft_loads`."""
        assert self.adapter is not None
        if isinstance(self.adapter.head, LinearHead):
            return "its head is a linear layer of beft's on pooled states (the rest loads)"
        return ""

    def peft_refuses(self) -> str:
        """See `Method.peft_refuses`: the files are PEFT's own."""
        return ""


def _plain(value: Any) -> Any:
    """The same in JSON's types: sets become sorted lists, enumerations their values."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return getattr(value, "value", value)


class Lora(PeftMethod):
    """A low-rank product beside the query and the value projection."""

    name = "lora"
    summary = "a low-rank product beside the query and value projections (--rank 8, --alpha 16)"
    lr = 3e-4
    grid = (1e-4, 3e-4, 1e-3)
    head_lr = HEAD_RATE
    uses = ("layers", "rank", "alpha")
    extra: ClassVar[dict[str, Any]] = {}

    def config(self, peft: Any, model: nn.Module) -> Any:
        """See `PeftMethod.config`."""
        return peft.LoraConfig(
            r=self.options.rank or 8,
            lora_alpha=self.options.alpha or 16,
            lora_dropout=0.0,
            target_modules=targets(model, "query+value", self.options.layers),
            **self.extra,
        )


class Dora(Lora):
    """LoRA whose weight has a trained norm for every output."""

    name = "dora"
    summary = "LoRA with a trained norm for every output"
    shards = False  # it reads the norms of the weights
    extra: ClassVar[dict[str, Any]] = {"use_dora": True}


class Vera(PeftMethod):
    """Two scaling vectors a projection, around random factors that all projections share."""

    name = "vera"
    summary = "scaling vectors around shared random factors at the query and value projections (--rank 256)"
    lr = 3e-3
    grid = (1e-3, 3e-3, 1e-2)
    uses = ("layers", "rank")

    def config(self, peft: Any, model: nn.Module) -> Any:
        """See `PeftMethod.config`."""
        return peft.VeraConfig(
            r=self.options.rank or 256,
            projection_prng_key=self.options.seed,
            target_modules=targets(model, "query+value", self.options.layers),
        )


class Ia3(PeftMethod):
    """A factor for every key, value and inner feature of the feed-forward part."""

    name = "ia3"
    summary = "factors on keys, values and the feed-forward part's inner features (IA3)"
    lr = 3e-3
    grid = (1e-3, 3e-3, 1e-2)

    def config(self, peft: Any, model: nn.Module) -> Any:
        """See `PeftMethod.config`."""
        inner = targets(model, "output", self.options.layers)
        return peft.IA3Config(
            target_modules=[*targets(model, "key+value", self.options.layers), *inner], feedforward_modules=inner
        )
