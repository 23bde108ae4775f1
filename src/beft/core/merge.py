"""Folding an adapter into plain weights: a stock transformers model with the outputs of the attached one.

How a vector gets into a model depends on what its architecture offers, tried in this order:

1. **bias**: the site's module has a bias; the vector is added to it, on the term's rows.
2. **switch**: the architecture's config can give its projections biases (`attention_bias` and its kin). Which option
   does is found by building the model with the option off and on and comparing parameter names: some configs accept an
   option that does nothing. All other new biases are zero.
3. **fold** (value terms): rows of softmax sum to one, so a value bias is the constant `W_o repeat_kv(b_v)` behind the
   output projection. It goes into that projection's bias, own or switched on; or, where attention and feed-forward part
   run side by side and are summed (GPT-J, CodeGen), into the bias of the feed-forward part's output.

4. **sibling** (`siblings`, on request): the same weights as another architecture that has the biases.

Where none of them exists (T5, MPT, Mixtral) the error says so. Weights that do not change are shared, not copied.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import BankError
from ..files import new_folder, part_folder
from .adapter import Adapter, LinearHead, ModelHead, compares, real_device
from .bank import Bank, attach
from .compare import allowed, outputs, real_inputs, relative_difference
from .dense import write_sentence_transformer
from .families import PARALLEL_OUTPUT
from .quantized import refuse_quantized
from .siblings import as_sibling
from .sites import Site, get_module
from .verify import repeat_heads

AnyAdapter = str | Path | Mapping[str, float] | Mapping[Path, float]
"""An adapter folder, or several with weights."""
SWITCHES = ("attention_bias", "use_qkv_bias", "qkv_bias", "use_bias", "bias", "enable_bias")
"""Config options that switch biases on somewhere; each is tried on the architecture at hand before it is believed."""


@dataclass(frozen=True)
class Merge:
    """A merged model, the way each module took, and the largest difference of outputs from the attached model's.

    `error` is relative to the largest output, measured on tokens without padding. `head` is a linear head that has no
    place in the architecture and stays beside the model.
    """

    model: nn.Module
    ways: Mapping[str, str]
    error: float
    switched: str = ""
    head: LinearHead | None = None

    @property
    def way(self) -> str:
        """The ways in one word or two."""
        return " and ".join(dict.fromkeys(self.ways.values())) or "no vectors"


def merge(model: nn.Module, adapter: AnyAdapter, architecture: str | None = None) -> nn.Module:
    """A plain copy of `model` with an adapter folded in: no hooks, no beft needed to load what it saves.

    `model` itself does not change, and shares every weight that is the same (train a deep copy, not the merged model);
    `unmerge` gives it back.
    `adapter` is an adapter folder, or several with weights, `{"out/a": 0.5, "out/b": 0.5}`. `architecture` asks for a
    sibling ("qwen2" for Mistral, see `siblings`). See `merged` for a report.

    Raises:
        BankError: the architecture has no place for a vector, the model is attached or was merged before, or the merged
            outputs differ.
        StoreError: see `Bank.load`.
    """
    return merged(model, adapter, architecture=architecture).model


_BASES: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
"""The base of each model that was merged in this process."""


def unmerge(plain: nn.Module) -> nn.Module:
    """The model that a merged one was made of, bit for bit: its values were kept, nothing is subtracted.

    A checkpoint on disk is taken back by `unmerge_checkpoint`.

    Raises:
        BankError: not a model that `merge` gave in this process.
    """
    if plain not in _BASES:
        raise BankError(
            type(plain).__name__,
            expected="a model that beft.merge gave in this process",
            found="another",
            remedy="a folder that `beft merge` wrote goes back with `beft unmerge`",
        )
    return _BASES[plain]


def merged(
    model: nn.Module,
    adapter: AnyAdapter,
    tokenizer: Any = None,
    architecture: str | None = None,
) -> Merge:
    """`merge` with its report, checked on real sentences if a tokenizer is given; see `siblings` for `architecture`.

    Raises as `merge` does.
    """
    if getattr(model, "beft_merged", None):
        raise BankError(
            type(model).__name__,
            expected="a base model",
            found=f"one with {model.beft_merged} merged in already",
            remedy="merge into the base; several adapters merge at once with weights",
        )
    refuse_quantized(model, f"merge into {type(model).__name__}")
    bank = attach(model, "none", names=[])  # refuses a model that has a bank
    try:
        one = load_weighted(bank, adapter)
        bank.active = one.name
        inputs = real_inputs(model, tokenizer)
        expected = outputs(model, inputs)
    finally:
        bank.detach()
    if architecture is None:
        result = fold(model, one)
    else:
        result = fold(*as_sibling(model, one, architecture))
    plain: Any = result.model
    plain.beft_merged = one.name
    _BASES[plain] = model
    error = relative_difference(outputs(plain, inputs), expected)
    if not error <= allowed(_dtype(plain)) and _dtype(plain) == torch.float32:
        error = _in_double(model, plain, adapter, inputs)
    refuse_difference(type(plain).__name__, error, _dtype(plain))
    return replace(result, error=error)


def _in_double(model: nn.Module, plain: nn.Module, adapter: AnyAdapter, inputs: dict[str, Any]) -> float:
    """The difference without fp32's own rounding, which thirty layers can raise above 1e-5: copies in fp64."""
    twin, merged_twin = copy.deepcopy(model).double(), copy.deepcopy(plain).double()
    bank = attach(twin, "none", names=[])
    bank.active = load_weighted(bank, adapter).name
    return relative_difference(outputs(merged_twin, inputs), outputs(twin, inputs))


def _dtype(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def load_weighted(bank: Bank, adapter: AnyAdapter) -> Adapter:
    """One adapter of a folder, or of several with weights."""
    if isinstance(adapter, (str, Path)):
        return bank.load(adapter)
    parts: dict[Any, float] = dict(adapter)
    if list(parts.values()) == [1.0]:
        return bank.load(next(iter(parts)))
    names = {bank.load(folder, name=f"part {number}").name: w for number, (folder, w) in enumerate(parts.items())}
    return bank.combine("merged", names)


def fold(model: nn.Module, adapter: Adapter, read: Callable[[str], Tensor] | None = None) -> Merge:
    """The merged copy without a check of its outputs.

    `read` gives a parameter by its path where the model has none in memory (the meta device); biases must be there.

    Raises:
        BankError: the architecture has no place for a vector.
    """
    plain = _share(model)
    ways: dict[str, str] = {}
    homeless: list[str] = []
    shifts = {path: _shift(adapter, path) for path in adapter.modules_with_vectors}
    for path, shift in shifts.items():
        if _has_bias(get_module(plain, path)):
            _add_to_bias(get_module(plain, path), shift)
            ways[path] = "bias"
        else:
            homeless.append(path)
    if compares(adapter.head):
        raise BankError(
            f"merge of {adapter.name!r}",
            expected="a head on one input a row",
            found="one that compares two texts read apart, for which stock checkpoints have no place",
            remedy="keep the adapter beside its base, or train it with --pairs joint",
        )
    switched = ""
    if homeless:
        switched, homeless = _switch(plain, model, homeless, shifts, adapter, ways)
    for path in homeless:
        ways[path] = _fold_value(plain, adapter, path, shifts[path], read)
    _place_head(plain, adapter)
    plain.requires_grad_(True)
    return Merge(plain, ways, 0.0, switched, adapter.head if isinstance(adapter.head, LinearHead) else None)


# ---- ways ------------------------------------------------------------------------------------------------------------


def _shift(adapter: Adapter, path: str) -> Tensor:
    shift = adapter.shift(path)
    assert shift is not None
    return shift.detach().float()


def _has_bias(module: nn.Module) -> bool:
    return isinstance(getattr(module, "bias", None), Tensor)


def _add_to_bias(module: nn.Module, shift: Tensor) -> None:
    """A new bias parameter: the old values stay where the original model has them."""
    old: Any = module.bias
    module.bias = nn.Parameter((old.detach().float() + shift.to(old.device)).to(old.dtype))


def _switch(
    plain: nn.Module,
    model: nn.Module,
    homeless: list[str],
    shifts: Mapping[str, Tensor],
    adapter: Adapter,
    ways: dict[str, str],
) -> tuple[str, list[str]]:
    """Switch biases on by the option that helps most; give its name and the modules that still have none."""
    outputs = {site.output for site in adapter.sites if site.module in homeless and site.term.name == "value"}
    best: tuple[int, str, dict[str, torch.Size]] | None = None
    for option in SWITCHES:
        added = _parameters_added(model, option)
        direct = sum(f"{path}.bias" in added for path in homeless)
        indirect = sum(f"{path}.bias" in added for path in outputs)
        gain = 1000 * (direct * 2 + indirect) - len(added)  # prefer biases of the sites, then few others
        if (direct or indirect) and (best is None or gain > best[0]):
            best = (gain, option, added)
    if best is None:
        return "", homeless
    _, option, added = best
    direct_all = [path for path in homeless if f"{path}.bias" in added]
    if not direct_all and all(_has_bias(get_module(plain, path)) for path in outputs):
        return "", homeless  # the output projection has a bias of its own to fold into
    for name, shape in added.items():
        owner = get_module(plain, name.removesuffix(".bias"))
        weight: Any = owner.weight
        owner.bias = nn.Parameter(torch.zeros(shape, dtype=weight.dtype, device=real_device(owner)))
    setattr(plain.config, option, True)
    for path in direct_all:
        _add_to_bias(get_module(plain, path), shifts[path])
        ways[path] = f"switch {option}"
    return option, [path for path in homeless if path not in direct_all]


def _parameters_added(model: nn.Module, option: str) -> dict[str, torch.Size]:
    """Biases that the architecture gets when an option of its config is switched on; empty if that does nothing."""
    config = model.config
    if getattr(config, option, None) is not False:
        return {}
    off, on = copy.deepcopy(config), copy.deepcopy(config)
    setattr(on, option, True)
    try:
        with torch.device("meta"):
            without, having = (dict(type(model)(each).named_parameters()) for each in (off, on))
    except (ValueError, TypeError, NotImplementedError, RuntimeError):
        return {}
    if set(without) - set(having) or any(not name.endswith(".bias") for name in set(having) - set(without)):
        return {}
    return {name: having[name].shape for name in having if name not in without}


def _fold_value(
    plain: nn.Module, adapter: Adapter, path: str, shift: Tensor, read: Callable[[str], Tensor] | None
) -> str:
    """Fold a value vector into a bias behind W_o; gives the way taken."""
    sites = [site for site in adapter.sites if site.module == path]
    if any(site.term.name != "value" or not site.output for site in sites):
        terms = ", ".join(site.term.symbol for site in sites)
        raise _no_place(plain, path, f"{terms} can only be merged as a bias, and {path} can have none")
    site = sites[0]
    if site.shared > 1:
        raise _no_place(plain, path, "a shared layer without a bias")
    projection = get_module(plain, site.output)
    weight = read(f"{site.output}.weight") if read else None
    constant = residual_constant(projection, site, site.narrow(shift), weight)
    if _has_bias(projection):
        _add_to_bias(projection, constant)
        return "fold into " + site.output.rpartition(".")[2]
    parallel = PARALLEL_OUTPUT.get(str(getattr(plain.config, "model_type", "")))
    if parallel is not None:
        layer = site.module[: site.module.rindex(f".{site.layer}.")] + f".{site.layer}"
        _add_to_bias(get_module(plain, f"{layer}.{parallel}"), constant)
        return "fold into " + parallel
    raise _no_place(plain, path, "neither the value projection nor anything behind it can have a bias")


def residual_constant(projection: nn.Module, site: Site, vector: Tensor, weight: Tensor | None = None) -> Tensor:
    """`W_o repeat_kv(b_v)` in fp32, shape (hidden,): what a value vector (site.width,) adds behind W_o everywhere.

    `weight` stands in for the projection's own, laid out like it.
    """
    own: Any = projection.weight if weight is None else weight
    matrix = own.detach().float()
    if not isinstance(projection, nn.Linear) and type(projection).__name__ == "Conv1D":
        matrix = matrix.T
    wide = repeat_heads(vector.to(matrix.device), site.head_width, matrix.shape[1])
    return matrix @ wide


def _no_place(model: nn.Module, path: str, why: str) -> BankError:
    return BankError(
        f"merge into {type(model).__name__}",
        expected=f"a place for the vector of {path}",
        found=why,
        remedy="the adapter works attached, and stock PEFT loads it where its projections are nn.Linear",
    )


# ---- copies, heads, checks -------------------------------------------------------------------------------------------


def _share(model: nn.Module) -> nn.Module:
    """A copy of the module tree whose parameters and buffers are the original's own tensors."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    plain: Any = copy.deepcopy(model, memo)
    for path, module in plain.named_modules():  # parameters of its own, so that flags do not leak into the original
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter is not None and f"{path}.{name}".lstrip(".") in flags:
                module._parameters[name] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    if hasattr(plain, "tie_weights"):
        plain.tie_weights()
    return plain


def _place_head(plain: Any, adapter: Adapter) -> None:
    head = adapter.head
    if not isinstance(head, ModelHead):
        return
    for path in head.paths:
        original = get_module(plain, path)
        like = next(original.parameters())
        plain.set_submodule(path, copy.deepcopy(head.module(path)).to(device=real_device(original), dtype=like.dtype))
    plain.config.num_labels = head.outputs
    if head.labels is None and head.outputs == 1:
        plain.config.problem_type = "regression"
    if head.labels is not None:
        plain.config.id2label = dict(enumerate(head.labels))
        plain.config.label2id = {label: number for number, label in enumerate(head.labels)}
    if hasattr(plain, "num_labels"):
        plain.num_labels = head.outputs


def refuse_difference(architecture: str, error: float, dtype: torch.dtype) -> None:
    """Raises BankError if a merged model's outputs differ by more than the rounding of its dtype (NaN included)."""
    if not error <= allowed(dtype):
        raise BankError(
            f"merge into {architecture}",
            expected=f"the attached model's outputs to {allowed(dtype):g}",
            found=f"a difference of {error:.2g}",
            remedy="use the adapter attached, and report the architecture",
        )


def save_merged(result: Merge, tokenizer: Any, directory: str | Path, max_length: int | None = None) -> Path:
    """Write a merged model (and its tokenizer) as a stock checkpoint into a new or empty folder.

    A linear head is written beside it for sentence-transformers, see `dense`.

    Raises:
        StoreError: the folder is not empty or cannot be written.
    """
    target = new_folder(directory)
    with part_folder(target) as part:
        parts: Sequence[Any] = [result.model, *([tokenizer] if tokenizer is not None else [])]
        for each in parts:
            each.save_pretrained(part)
        if result.head is not None:
            write_sentence_transformer(part, result.head, max_length)
    return target
