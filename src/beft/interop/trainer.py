"""`BeftTrainer`: the Hugging Face `Trainer` on one adapter of a bank.

The stock `Trainer` saves the model, which is the frozen base alone; this one trains, saves, resumes and evaluates the
adapter. Data, schedules, callbacks, logging and metrics are the stock ones.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_optimizer import is_optimizer_factory

from ..core.adapter import LinearHead
from ..core.bank import Bank
from ..core.store import MANIFEST
from ..errors import BankError, DataError, RecipeError, StoreError
from ..training.recipe import Recipe

FULL_TUNING_LR = 5e-5
"""The default of `TrainingArguments`, made for full fine-tuning: biases learn next to nothing at it."""


def warn_of_low_rate(rate: float) -> None:
    """A warning at rates of full fine-tuning, under which biases hardly learn."""
    if rate <= FULL_TUNING_LR:
        warnings.warn(
            f"learning_rate={rate:g} is one of full fine-tuning, at which biases hardly learn; "
            f"beft train uses {Recipe.lr:g}",
            stacklevel=4,
        )


class BeftTrainer(Trainer):
    """Trains one adapter, its vectors and its head, on the frozen model of `bank`.

    Checkpoints hold an adapter folder as `bank.save` writes it, the optimiser, the scheduler, the trainer's state and
    the random states: kilobytes, never the base, and no tokenizer (it is the base's). `save_model` writes the adapter
    folder alone. Every forward of training, `evaluate` and `predict` runs under the route of this adapter, whatever
    `bank.active` is; other adapters of the bank stay as they are.

    A linear head is trained on `labels` of shape (rows,): class numbers, or numbers to predict, whose squared errors
    are in units of `head.spread`. Any other adapter is trained on the model's own loss, which is taken for a mean over
    the labels that are not -100. Either way the gradient of an accumulated step is that of one large batch.

    Weight decay falls on every trained parameter. Dropout is the model's own; `beft train` uses none by default.
    """

    def __init__(
        self,
        bank: Bank,
        name: str = "default",
        args: TrainingArguments | None = None,
        *,
        head_learning_rate: float | None = None,
        **options: Any,
    ) -> None:
        """Take an attached bank in place of a model; `options` are those of `Trainer`.

        Args:
            bank: the bank; its model is the model. Give the adapter its head before.
            name: the adapter to train.
            args: learning rates of biases are 10 to 1,000 times those of full fine-tuning, see `arguments`.
            head_learning_rate: peak learning rate of the head; None for that of the vectors.

        Raises:
            BankError: a detached bank, another model, or an adapter that has no loss to learn from.
            RouteError: no such adapter.
            RecipeError: arguments that an adapter cannot be trained with.
        """
        self.bank, self.name, self._head_learning_rate = bank, name, head_learning_rate
        bank.make_route(name)  # attached, and it holds the name
        if options.pop("model", bank.model) is not bank.model or options.pop("model_init", None) is not None:
            raise BankError(
                "model=", expected="the bank alone", found="a model beside it", remedy="leave it out: it is bank.model"
            )
        _refuse_lossless(bank, name, options)
        if args is not None and args.push_to_hub and args.hub_strategy != "end":  # the parent would create a repository
            raise RecipeError("args", expected="hub_strategy 'end'", found=repr(str(args.hub_strategy)))
        super().__init__(bank.model, args, **options)
        self._refuse_unfit_arguments()
        if isinstance(self._head, LinearHead):
            if self.args.label_names is None:
                self.label_names = ["labels"]
            self._loss_shifts_labels = False
        if not self._loss_shifts_labels:  # _MeanLoss takes the number of labels, whether the model does or not
            self.model_accepts_loss_kwargs = True

    @property
    def _head(self) -> nn.Module | None:
        return self.bank[self.name].head

    def _refuse_unfit_arguments(self) -> None:
        args, linear = self.args, isinstance(self._head, LinearHead)
        half = args.bf16_full_eval or args.fp16_full_eval
        faults = {
            "fsdp or deepspeed, which cut parameters up": self.is_fsdp_enabled or self.is_deepspeed_enabled,
            "several GPUs in one process (start one process a GPU with torchrun)": args.n_gpu > 1,
            "a linear head in several processes (use the model's own head)": linear and args.world_size > 1,
            "bf16_full_eval or fp16_full_eval (load the base in that dtype)": half,
        }
        found = [fault for fault, there in faults.items() if there]
        if found:
            raise RecipeError("args", expected="arguments that fit an adapter", found="; ".join(found))
        warn_of_low_rate(args.learning_rate)

    # ---- loss ------------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch under the adapter's route, and with `return_outputs` what the model gave.

        Raises:
            DataError: labels that the linear head does not have.
        """
        with self.bank.route(self.name):
            runner = model if self._loss_shifts_labels else _MeanLoss(self._runner(model))
            return super().compute_loss(runner, inputs, return_outputs, num_items_in_batch)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Loss, logits and labels of a batch under the adapter's route."""
        with self.bank.route(self.name):
            return super().prediction_step(self._runner(model), inputs, *args, **kwargs)

    def _runner(self, model: nn.Module) -> nn.Module:
        return _LinearHeaded(self) if isinstance(self._head, LinearHead) else model

    # ---- what is trained -------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """An optimiser over the adapter's leaves, vectors and head as two groups.

        Raises:
            RecipeError: an optimiser made for matrices.
            BankError: leaves that do not require gradients.
        """
        if self.optimizer is not None:
            return self.optimizer
        leaves = dict(self.bank[self.name].leaves())
        frozen = [key for key, leaf in leaves.items() if not leaf.requires_grad]
        if frozen:
            raise BankError(
                f"adapter {self.name!r}",
                expected="leaves that require gradients",
                found=f"{len(frozen)} frozen ones, {frozen[0]} the first",
                remedy="call requires_grad_(False) on the model before attaching, not after",
            )
        whole: Any = self.bank.model
        kind, settings = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, whole)
        if is_optimizer_factory(kind) or {"params", "model", "optimizer_dict"} & settings.keys():
            raise RecipeError(f"optim={self.args.optim}", expected="an optimiser of vectors, such as adamw_torch")
        vectors = [leaf for key, leaf in leaves.items() if not key.startswith("head.")]
        head = [leaf for key, leaf in leaves.items() if key.startswith("head.")]
        groups: list[dict[str, Any]] = [{"params": vectors}, {"params": head}]
        if self._head_learning_rate is not None:
            groups[1]["lr"] = self._head_learning_rate
        decay = {"weight_decay": self.args.weight_decay}
        self.optimizer = kind([{**decay, **group} for group in groups if group["params"]], **settings)
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        return self.accelerator.clip_grad_norm_(self.bank.parameters(self.name), self.args.max_grad_norm)

    # ---- files -----------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            self.bank.save(self.name, output_dir or str(self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        read_into(self.bank, self.name, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        read_into(self.bank, self.name, self.state.best_model_checkpoint)


def arguments(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that `TrainingArguments` knows: `TrainingArguments(out, **arguments(recipe))`.

    Learning rate, schedule, epochs, batch size, AdamW's numbers, clipping and seed. The warm-up begins at zero, one
    step later than in `beft train`. What shapes data, model or loss (head, dropout, max_length, class_weight, the dev
    part) is up to the caller.

    Raises:
        RecipeError: a recipe that leaves the number of epochs open.
    """
    if recipe.epochs is None:
        raise RecipeError("epochs", expected="a number", found="None", remedy="give recipe.resolve(rows)")
    return {
        "learning_rate": recipe.lr,
        "num_train_epochs": recipe.epochs,
        "per_device_train_batch_size": recipe.batch_size,
        "lr_scheduler_type": "linear" if recipe.schedule == "linear" else "constant_with_warmup",
        "warmup_steps": recipe.warmup,
        "weight_decay": recipe.weight_decay,
        "adam_beta1": recipe.beta1,
        "adam_beta2": recipe.beta2,
        "adam_epsilon": recipe.eps,
        "max_grad_norm": recipe.clip,
        "seed": recipe.seed,
    }


def read_into(bank: Bank, name: str, directory: str | os.PathLike[str]) -> None:
    """Put the vectors and the head of an adapter folder into an adapter that the bank holds already.

    Files hold vectors times `scale`, so that is divided out again.

    Raises:
        StoreError: no adapter folder, a damaged one, or one of other sites or another head; see `bank.load`.
        RouteError: no such adapter.
    """
    own, folder = bank[name], Path(directory)
    if not (folder / MANIFEST).exists():
        raise StoreError(str(folder), expected="a checkpoint of BeftTrainer", found=f"no {MANIFEST}")
    spare = f"{name} of {folder}"
    stored = bank.load(folder, name=spare)
    try:
        here, there = _shapes(own.leaves()), _shapes(stored.leaves())
        labels = [getattr(each.head, "labels", None) for each in (own, stored)]
        if here != there or labels[0] != labels[1]:
            odd = sorted({key for key, _ in here ^ there}) or [f"labels {labels[1]}"]
            raise StoreError(
                str(folder),
                expected=f"the sites and the head of {name!r}",
                found=f"others ({', '.join(odd[:3])})",
                remedy="attach with the terms, layers and head of the first run",
            )
        with torch.no_grad():
            for site, vector in own.items():
                vector.copy_(stored.vector(site) / own.scale)
        if own.head is not None and stored.head is not None:
            own.head.load_state_dict(stored.head.state_dict())
    finally:
        bank.remove(spare)


def _shapes(leaves: Any) -> set[tuple[str, Sequence[int]]]:
    return {(key, tuple(leaf.shape)) for key, leaf in leaves}


def _refuse_lossless(bank: Bank, name: str, options: dict[str, Any]) -> None:
    """Raises BankError for an adapter that would learn nothing: scaled by zero, or without any loss."""
    if bank[name].scale == 0:
        raise BankError(f"adapter {name!r}", expected="a scale other than 0", found="0, under which nothing learns")
    bare = getattr(bank.model, "base_model", bank.model) is bank.model
    if bare and bank[name].head is None and options.get("compute_loss_func") is None:
        raise BankError(
            f"adapter {name!r} on a {type(bank.model).__name__}",
            expected="a head, or a model class with a loss",
            found="neither",
            remedy="give it one with bank.set_head, or load the model with its head",
        )


class _LinearHeaded(nn.Module):
    """The model with an adapter's linear head: logits (rows, labels), and with labels their mean loss."""

    def __init__(self, trainer: BeftTrainer) -> None:
        super().__init__()
        self.logits, self.autocast = trainer.bank.logits, trainer.accelerator.autocast
        self.head = trainer.bank[trainer.name].head

    def forward(self, labels: Tensor | None = None, **batch: Any) -> dict[str, Tensor]:
        head = self.head
        assert isinstance(head, LinearHead)
        with self.autocast():
            logits = self.logits(**batch)
        if labels is None:
            return {"logits": logits}
        if head.labels is None:
            errors = (logits[:, 0] - labels.float().view(-1)) / head.spread
            return {"loss": errors.square().mean(), "logits": logits}
        wrong = labels[(labels != -100) & ((labels < 0) | (labels >= head.outputs))]
        if len(wrong):
            raise DataError(
                "labels", expected=f"class numbers from 0 to {head.outputs - 1}", found=f"{wrong[0].item():g}"
            )
        return {"loss": nn.functional.cross_entropy(logits, labels.long().view(-1)), "logits": logits}


class _MeanLoss(nn.Module):
    """A model whose loss is a batch's mean, weighted by its share of the labels of an accumulated step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, num_items_in_batch: Tensor | int | None = None, **batch: Any) -> Any:
        outputs, labels = self.model(**batch), batch.get("labels")
        if num_items_in_batch is None or labels is None:
            return outputs
        share = labels.ne(-100).sum() / num_items_in_batch
        if not isinstance(outputs, dict):
            return (outputs[0] * share, *outputs[1:])
        outputs["loss"] = outputs["loss"] * share
        return outputs
