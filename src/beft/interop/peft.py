"""A stock PEFT configuration that trains exactly the vectors beft would train, for the HF Trainer and TRL.

Stock PEFT's BEFT tuner adds one vector to the whole output of an `nn.Linear`. It matches targets and modules to save by
the endings of their names; everything that would make it train something else than the sites asked for is refused here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from ..core.attentions import stock_modules
from ..core.sites import Layers, Site, find_sites, get_module
from ..errors import BankError, BeftError, SiteError

if TYPE_CHECKING:
    from peft import BeftConfig

HEADED = ("ForSequenceClassification", "ForTokenClassification", "ForImageClassification", "ForQuestionAnswering")
"""Classes whose head is new with each task, and is trained and saved beside the vectors."""
OWN_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
"""Modules to save that PEFT's model of a task type adds by itself."""
INSTEAD = "train it with beft.train, or beft.attach in a loop of your own"


def peft_config(
    model: nn.Module,
    terms: str | Iterable[str] = "value",
    layers: Layers = None,
    task_type: str | None = None,
    modules_to_save: Sequence[str] | None = None,
) -> BeftConfig:
    """A `peft.BeftConfig` for `peft.get_peft_model`, the HF Trainer and TRL: full paths of the sites as targets.

    What stock PEFT saves after training is an adapter folder for `Bank.load`, `beft.merge` and `beft merge`.

    Args:
        model: the transformers model that will be given to `get_peft_model` with this config; it is not changed.
        terms, layers: the sites, see `beft.find_sites`.
        task_type: PEFT's, such as "SEQ_CLS" or "CAUSAL_LM". None is "SEQ_CLS" for a sequence classifier whose head is
            saved, so that the adapter folder says which class loads it, and else PEFT's plain model.
        modules_to_save: modules to train and save whole, by path. None takes the head of a classification class
            (`classifier`, `score`, ...), whose weights are new with every task; an empty list takes none.

    Raises:
        BeftError: peft is not installed.
        TermError, SiteError: see `beft.find_sites`; SiteError too if stock PEFT cannot train exactly these sites: fused
            projections (it would train query and key features too), modules other than `nn.Linear`, norms.
        BankError: the model has a bank, an unknown task type, or modules to save that are not there or by whose name
            PEFT would take others too.
    """
    try:
        from peft import BeftConfig, PeftModel, TaskType
    except ImportError as error:
        raise BeftError(
            "peft_config", expected="the package peft", found="none", remedy="install it: pip install 'beft[peft]'"
        ) from error
    if isinstance(model, PeftModel) or isinstance(getattr(model, "beft", None), nn.ModuleDict):
        raise BankError(
            type(model).__name__,
            expected="a plain transformers model",
            found="a PeftModel" if isinstance(model, PeftModel) else "one that has a bank",
            remedy="give the base model, without adapters",
        )
    if task_type is not None and task_type not in TaskType.__members__:
        raise BankError(f"task_type {task_type!r}", expected="None or one of " + ", ".join(TaskType.__members__))
    sites = find_sites(model, terms, layers)
    for site in sites:
        _refuse_untrainable(site, get_module(model, site.module))
    saved = _head_modules(model) if modules_to_save is None else list(modules_to_save)
    if task_type is None and saved and type(model).__name__.endswith("ForSequenceClassification"):
        task_type = None if _implied(model, "SEQ_CLS", saved) else "SEQ_CLS"
    implied = _implied(model, task_type, saved)
    _check_saved(model, saved, implied)
    targets = [site.module for site in sites]
    config = BeftConfig(task_type=task_type, target_modules=targets, modules_to_save=[*saved] or None)
    _check_targets(model, config, targets, [*saved, *implied])
    return config


def _refuse_untrainable(site: Site, module: nn.Module) -> None:
    """Raises SiteError where stock PEFT has no vector for this site alone."""
    kind = type(module).__name__
    if not site.whole:
        fault = f"a fused projection: {site.term.symbol} is {site.width} of its {site.features} features"
        fault += ", and stock PEFT would train them all"
    elif "norm" in site.term.name or "norm" in kind.lower():
        fault = f"a {kind}: stock PEFT can only train it whole, its weight too"
    elif not isinstance(module, nn.Linear):
        fault = f"a {kind}, which stock PEFT refuses"
    else:
        return
    raise SiteError(
        f"peft_config: {site.module}",
        expected="an nn.Linear whose every output feature belongs to the term",
        found=fault,
        remedy=INSTEAD + ("; stock PEFT can load what it saves" if isinstance(module, nn.Linear) else ""),
    )


def _head_modules(model: nn.Module) -> list[str]:
    """Modules of a classification class that are not of its base model and have parameters."""
    base = getattr(model, "base_model", model)
    if base is model or not type(model).__name__.endswith(HEADED):
        return []
    return [
        name for name, child in model.named_children() if child is not base and any(True for _ in child.parameters())
    ]


def _implied(model: nn.Module, task_type: str | None, saved: Sequence[str]) -> list[str]:
    """Names that a task type adds to the modules to save and that name something in this model."""
    names = (name for name in OWN_HEADS.get(task_type or "", ()) if name not in saved)
    return [name for name in names if any(path.endswith(name) for path in stock_modules(model))]


def _check_saved(model: nn.Module, saved: Sequence[str], implied: Sequence[str]) -> None:
    """Raises BankError unless PEFT would save exactly the modules asked for, and those the task type implies."""
    modules = stock_modules(model)
    unknown = [name for name in saved if name not in modules]
    if unknown:
        top = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
        raise BankError(
            f"modules_to_save {unknown[0]!r}",
            expected=f"the path of a module of {type(model).__name__}",
            found="none of this path",
            remedy="at the top of the model are " + ", ".join(top),
        )
    for path in modules:
        ending = next((name for name in [*saved, *implied] if path.endswith(name)), None)
        if ending is None or path in saved or path == ending:
            continue
        raise BankError(
            f"modules_to_save {ending!r}" + ("" if ending in saved else " (which the task type brings)"),
            expected="a name that no other module's ends with",
            found=f"{path}, which PEFT would train and save too",
            remedy=f"list {path!r} in modules_to_save too" + ("" if ending in saved else ", or leave task_type out"),
        )


def _check_targets(model: nn.Module, config: Any, targets: Sequence[str], saved: Sequence[str]) -> None:
    """Raises SiteError unless PEFT's own rule, applied to every module, picks the targets and nothing else."""
    from peft.tuners.tuners_utils import check_target_module_exists

    probe = type(config)(target_modules=list(targets), modules_to_save=list(saved) or None)
    taken = [path for path in stock_modules(model) if path and check_target_module_exists(probe, path)]
    lost = [path for path in targets if path not in taken]
    if lost:
        raise SiteError(
            f"peft_config: {lost[0]}",
            expected="sites outside of the modules to save",
            found=f"one inside of {', '.join(saved)}, which PEFT trains whole",
            remedy="leave out the term, or name modules_to_save yourself",
        )
    others = [path for path in taken if path not in targets]
    if others:
        raise SiteError(
            f"peft_config: {others[0]}",
            expected="sites whose paths end no other module's path",
            found="one that PEFT would take for a target too",
            remedy=INSTEAD,
        )
