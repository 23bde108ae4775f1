"""A recipe: every hyperparameter of a run, in one dataclass; the paper's own are a preset."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..core.terms import parse_terms
from ..errors import RecipeError

if TYPE_CHECKING:
    from ..methods.method import Method, Options
    from ..tasks.question import PromptTask
    from ..tasks.task import Task

HeadKind = Literal["linear", "model", "none"]
HeadStart = Literal["auto", "zero", "means", "regression"]
HeadPenalty = Literal["auto", "none", "regression"]
Pairs = Literal["auto", "joint", "apart"]
MANY_CLASSES, FEW_ROWS = 20, 8
"""From so many classes, and below so many rows of each in the mean, `auto` is the means (docs/results/few.md)."""
Selection = Literal["dev", "evaluation", "none"]


class OwnRate(float):
    """A learning rate that nobody gave: with another method, that one's own takes its place."""


BIAS_RATE = OwnRate(3e-3)
"""The rate of biases, settled by measurement (docs/results/defaults.md)."""
APART_RATE = 1e-3
"""The same where texts are read apart, whose head begins where it shall nearly stay (docs/results/pairs.md)."""


@dataclass(frozen=True)
class Recipe:
    """How one adapter is trained. Defaults were settled by measurement, see docs/results/defaults.md."""

    method: str = "bias"
    """What is trained: bias, bitfit, full, lora ..., see `beft.methods`."""
    terms: str = "value"
    """Which biases to learn: value, query+key, all ..."""
    layers: str | None = None
    """Which layers: "0-3,8", "last:2"; None for all."""
    head: HeadKind = "linear"
    """linear: one layer on pooled states, kilobytes; model: the architecture's own, with the pooler's bias; none: of
    prompts, which are answered by the language model's own head, frozen."""
    head_start: HeadStart = "auto"
    """Where a linear head starts: at zero; at the means of the classes' frozen states; from logistic regression on
    these. auto: from the regression with texts read apart, at the means where classes are many and rows of each few,
    otherwise at zero."""
    head_penalty: HeadPenalty = "auto"
    """L2 penalty of a linear head. regression: that of the logistic regression on frozen states, as strong as this one
    wants it; auto: so with texts read apart, otherwise none."""
    pairs: Pairs = "auto"
    """How a linear head reads rows of two texts. joint: both as one input; apart: each by itself, compared by the head;
    auto: apart where the model is a sentence-transformers one, trained to read them so."""
    lr: float = BIAS_RATE
    """Peak learning rate of all but the head; left out, the method's own. Bias-only tuning wants 10 to 1,000 times that
    of full fine-tuning."""
    head_lr: float | None = None
    """Learning rate of the head; None for the same, or more for a linear head where the method says so."""
    epochs: int | None = None
    """Passes over the training rows at most (fewer if the dev rows say so); None: 10, and more below 320 rows."""
    batch_size: int = 16
    """Rows of one optimiser step."""
    schedule: Literal["constant", "linear"] = "linear"
    """Learning rate over the run: constant, or linear to zero."""
    warmup: float = 0.0
    """Share of all steps over which the learning rate rises from zero."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.999
    """AdamW's decay of the mean squared gradient."""
    eps: float = 1e-6
    """AdamW's epsilon."""
    clip: float = 1.0
    """Largest norm of the gradient over all trained parameters; 0 for no clipping."""
    dropout: float | Literal["model"] = 0.0
    """Dropout in the frozen base while training: a rate, or "model" for what its config says."""
    max_length: int = 128
    """Tokens of an example at most; longer ones are cut, counted and reported."""
    class_weight: Literal["balanced"] | None = None
    """balanced: every class weighs the same in the loss, however rare."""
    group_by_length: bool = True
    """Batches of rows of like length (sorted within shuffled windows), which wastes less padding."""
    selection: Selection = "dev"
    """What chooses the epoch: a dev part of the training rows, the evaluation rows (the paper's way), or nothing."""
    dev_fraction: float = 0.2
    """Share of the training rows that form the dev part."""
    refit: bool = True
    """After selection train again on all training rows for the chosen number of epochs."""
    patience: int = 0
    """Stop when the dev score has not improved for this many epochs; 0 for never. Where the start may be kept it is the
    dev loss that counts, and 0 is 8 (`selection.HELD_PATIENCE`)."""
    rank: int | None = None
    """Rank of low-rank methods; None for the method's own."""
    alpha: float | None = None
    """Low-rank products are multiplied by alpha / rank; None for the method's own."""
    mask_size: int | None = None
    """Parameters of a random mask; None for the paper's number, or 0.1 % of the model's."""
    virtual_tokens: int | None = None
    """Tokens of a prefix or a prompt; None for the method's own."""
    seed: int = 0
    """Seeds the subset, the split, the order, the head and what a method draws."""
    preset: str = "default"
    """Name of the preset this recipe started from."""

    def __post_init__(self) -> None:
        """Check every field; all faults are reported at once.

        Raises:
            RecipeError: one or more values out of range, an unknown method, or options that it does not heed.
            TermError: terms that are none.
        """
        parse_terms(self.terms)
        if isinstance(self.lr, OwnRate):
            object.__setattr__(self, "lr", method_lr(self.method))
        faults = [
            f"{name} = {getattr(self, name)!r} (expected {expected})"
            for name, expected, good in (
                ("lr", "a number above 0 and below 1000", 0 < self.lr < 1e3),
                ("head_lr", "a number above 0 and below 1000", self.head_lr is None or 0 < self.head_lr < 1e3),
                ("epochs", "at least 1", self.epochs is None or self.epochs >= 1),
                ("batch_size", "at least 1", self.batch_size >= 1),
                ("warmup", "between 0 and 1", 0 <= self.warmup < 1),
                ("beta1", "between 0 and 1", 0 <= self.beta1 < 1),
                ("beta2", "between 0 and 1", 0 <= self.beta2 < 1),
                ("eps", "a number above 0", self.eps > 0),
                ("weight_decay", "0 or more", self.weight_decay >= 0),
                ("clip", "0 or more", self.clip >= 0),
                ("dropout", "'model' or between 0 and 1", _is_dropout(self.dropout)),
                ("max_length", "at least 4", self.max_length >= 4),
                ("dev_fraction", "between 0 and 0.5", 0 < self.dev_fraction <= 0.5),
                ("patience", "0 or more", self.patience >= 0),
                ("head", "linear, model or none", self.head in ("linear", "model", "none")),
                ("head_start", "auto, zero, means or regression", self.head_start in get_args(HeadStart)),
                ("head_penalty", "auto, none or regression", self.head_penalty in get_args(HeadPenalty)),
                ("pairs", "auto, joint or apart", self.pairs in get_args(Pairs)),
                ("schedule", "constant or linear", self.schedule in ("constant", "linear")),
                ("selection", "dev, evaluation or none", self.selection in ("dev", "evaluation", "none")),
                ("class_weight", "balanced or none", self.class_weight in ("balanced", None)),
                ("rank", "at least 1", self.rank is None or self.rank >= 1),
                ("alpha", "a number above 0", self.alpha is None or self.alpha > 0),
                ("mask_size", "at least 1", self.mask_size is None or self.mask_size >= 1),
                ("virtual_tokens", "at least 1", self.virtual_tokens is None or self.virtual_tokens >= 1),
                ("seed", "between 0 and 2**32 - 1", 0 <= self.seed < 2**32),
            )
            if not good
        ]
        if faults:
            raise RecipeError("recipe", expected="values in range", found="; ".join(faults))
        given = (self.rank, self.alpha, self.mask_size, self.virtual_tokens)
        if self.method != "bias" or any(each is not None for each in given):
            from ..methods.registry import find_method

            find_method(self.method).check(self.head, self.options())

    def options(self) -> Options:
        """What the method is told."""
        from ..methods.method import Options

        return Options(**{each.name: getattr(self, each.name) for each in fields(Options)})

    def new_method(self) -> Method:
        """The method, ready to be attached to one model."""
        from ..methods.registry import find_method

        return find_method(self.method)(self.options())

    @property
    def head_rate(self) -> float:
        """Peak rate of the head: `head_lr`; without it `lr`, or what the method gives a linear head if that is more."""
        if self.head_lr is not None:
            return self.head_lr
        from ..methods.registry import find_method

        least = find_method(self.method).head_lr if self.head == "linear" else None
        return self.lr if least is None else max(self.lr, least)

    def with_method(self, name: str) -> Recipe:
        """The same for another method: with that one's own learning rate, unless this recipe's was given.

        Raises:
            RecipeError: an unknown method, or options that it does not heed.
        """
        return replace(self, method=name)

    def resolve(self, rows: int, classes: int = 1) -> Recipe:
        """The same with a number of epochs, and a start and a penalty of the head, for so many training rows and
        classes; where texts may be read apart, after `settle_pairs`.

        Epochs are 10, or as many as make about 200 steps of 16 rows, at most 60.
        """
        epochs, start = self.epochs, self.head_start
        if epochs is None:
            epochs = min(60, max(10, math.ceil(3200 / max(1, rows))))
        if start == "auto":
            few = classes >= MANY_CLASSES and rows < FEW_ROWS * classes
            start = "means" if few and self.head == "linear" else "zero"
        return replace(
            self,
            epochs=epochs,
            head_start=start,
            head_penalty="none" if self.head_penalty == "auto" else self.head_penalty,
        )

    def resolve_for(self, task: Task | PromptTask) -> Recipe:
        """`resolve` for all training rows of a task."""
        return self.resolve(len(task.train), len(task.labels or ()))

    def to_dict(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The recipe of a dict as `to_dict` gives; unknown names raise.

        Raises:
            RecipeError: a field that recipes do not have.
        """
        unknown = set(values) - {each.name for each in fields(cls)}
        if unknown:
            raise RecipeError("recipe", expected="known fields", found=", ".join(sorted(unknown)))
        return cls(**values)


def method_lr(name: str) -> OwnRate:
    """A method's own peak learning rate.

    Raises:
        RecipeError: no such method.
    """
    if name == "bias":
        return BIAS_RATE  # without importing torch
    from ..methods.registry import find_method

    return OwnRate(find_method(name).lr)


def _is_dropout(value: float | str) -> bool:
    return value == "model" or (isinstance(value, (int, float)) and 0 <= value < 1)


PAPER_LR: dict[str, float] = {
    "cola": 7e-4,
    "mnli": 1e-4,
    "mrpc": 7e-4,
    "qnli": 1e-4,
    "qqp": 4e-4,
    "rte": 1e-3,
    "sst2": 4e-4,
    "stsb": 1e-4,
    "cb": 1e-3,
    "wic": 1e-3,
}
PAPER_EPOCHS: dict[str, int] = {
    "cola": 16,
    "mnli": 30,
    "mrpc": 60,
    "qnli": 30,
    "qqp": 30,
    "rte": 30,
    "sst2": 16,
    "stsb": 60,
    "cb": 60,
    "wic": 16,
}
PAPER_EPOCHS_LARGE: dict[str, int] = {**PAPER_EPOCHS, "rte": 30, "sst2": 30, "cb": 60, "wic": 30}
"""For bert-large and roberta-base. Learning rates and epochs: arXiv 2509.15974 and its public code."""


def paper_recipe(task: str, model_name: str = "", **changes: Any) -> Recipe:
    """The paper's encoder recipe for a task: constant learning rate, the model's own head and dropout, selection on the
    evaluation rows. A task the paper lacks takes sst2's numbers.

    Raises:
        RecipeError: see `Recipe`.
    """
    large = "large" in model_name.lower() or "roberta" in model_name.lower()
    values: dict[str, Any] = {
        "head": "model",
        "lr": _preset_lr(changes, PAPER_LR.get(task, PAPER_LR["sst2"]), PAPER_FULL_LR),
        "epochs": (PAPER_EPOCHS_LARGE if large else PAPER_EPOCHS).get(task, PAPER_EPOCHS["sst2"]),
        "schedule": "constant",
        "dropout": "model",
        "max_length": 128,
        "group_by_length": False,
        "selection": "evaluation",
        "refit": False,
        "preset": "paper",
    }
    return Recipe(**{**values, **changes})


PAPER_FULL_LR = 1e-5
"""Of full fine-tuning. For masks the paper gives none."""


def _preset_lr(changes: dict[str, Any], biases: float, full: float = BIAS_RATE) -> float:
    """A preset's rate of a method: those of biases and heads share one, others than full have their own."""
    method = changes.get("method", "bias")
    return biases if method in ("bias", "bitfit", "head", "frozen") else full if method == "full" else BIAS_RATE


PROMPT_LR: dict[str, float] = {"cb": 1e-2, "wsc": 1e-2, "copa": 1e-4, "record": 1e-4}
"""Where the paper's decoders do not use 1e-3."""


def prompt_recipe(task: str = "", **changes: Any) -> Recipe:
    """The paper's decoder recipe: 5 epochs of batches of 8, the learning rate falling to zero, only the term trained.

    The epoch is chosen on dev rows as in the default recipe, unless `selection="none"`.

    Raises:
        RecipeError: see `Recipe`.
    """
    values: dict[str, Any] = {
        "head": "none",
        "lr": _preset_lr(changes, PROMPT_LR.get(task, 1e-3)),
        "epochs": 5,
        "batch_size": 8,
        "schedule": "linear",
        "max_length": 2048,
        "preset": "prompts",
    }
    return Recipe(**{**values, **changes})
