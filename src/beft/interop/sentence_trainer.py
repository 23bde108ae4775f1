"""`BeftSentenceTransformerTrainer`: sentence-transformers' own trainer and losses, on one adapter of a bank.

The stock trainer saves the whole frozen model with every checkpoint and cannot load an attached one back; this one
saves, resumes and restores the adapter. Data, losses, samplers, evaluators, callbacks and logging are the stock ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..core.restore import read_tensors
from ..errors import BankError, RecipeError, StoreError
from ..files import write_all
from .sentence import SentenceBank, require_sentence_transformers
from .trainer import read_into, warn_of_low_rate

require_sentence_transformers()
from sentence_transformers import SentenceTransformerTrainer  # noqa: E402

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformerTrainingArguments

LOSS = "loss.safetensors"


class BeftSentenceTransformerTrainer(SentenceTransformerTrainer):
    """Trains one adapter of a bank that `beft.attach_sentence_transformer` made.

    Checkpoints hold an adapter folder as `bank.save` writes it, the optimiser, the scheduler, the trainer's state and
    the random states: kilobytes, never the base. `save_model` writes the adapter folder alone. A loss with parameters
    of its own (SoftmaxLoss) trains them too, and they are kept in `loss.safetensors`.

    `train`, `evaluate` and `predict` run with this adapter, in the evaluators' `encode` too, whatever `bank.active` is
    before and after; other adapters of the bank stay as they are. Dropout is the model's own.
    """

    def __init__(
        self,
        bank: SentenceBank,
        name: str = "default",
        args: SentenceTransformerTrainingArguments | None = None,
        **options: Any,
    ) -> None:
        """Take an attached bank in place of a model; `options` are those of `SentenceTransformerTrainer`.

        Args:
            bank: the bank; its `SentenceTransformer` is the model.
            name: the adapter to train.
            args: learning rates of biases are 10 to 1,000 times those of full fine-tuning.

        Raises:
            BankError: a detached bank, one of another kind of model, or another model beside it.
            RouteError: no such adapter.
            RecipeError: arguments that an adapter cannot be trained with.
        """
        self.bank, self.name = bank, name
        if not isinstance(bank, SentenceBank):
            raise BankError(
                "bank",
                expected="one of beft.attach_sentence_transformer",
                found=f"a {type(bank).__name__}",
                remedy="a transformers model is trained with BeftTrainer",
            )
        bank.make_route(name)  # attached, and it holds the name
        st = bank.sentence_transformer
        if options.pop("model", st) is not st or options.pop("model_init", None) is not None:
            raise BankError("model=", expected="the bank alone", found="a model beside it", remedy="leave it out")
        if args is not None and args.push_to_hub:  # before the stock trainer makes a repository
            remedy = "upload the adapter folder when it is trained"
            raise RecipeError("push_to_hub", expected="False", found="True", remedy=remedy)
        super().__init__(model=st, args=args, **options)
        self._refuse_unfit_arguments()

    def _refuse_unfit_arguments(self) -> None:
        args = self.args
        faults = {
            "fsdp or deepspeed (an adapter is too small to be cut up)": self.is_fsdp_enabled
            or self.is_deepspeed_enabled,
            "several GPUs in one process (start one process a GPU with torchrun)": args.n_gpu > 1,
        }
        found = [fault for fault, there in faults.items() if there]
        if found:
            raise RecipeError("args", expected="arguments that fit an adapter", found="; ".join(found))
        warn_of_low_rate(args.learning_rate)

    # ---- the adapter in use ------------------------------------------------------------------------------------------

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """The adapter for this thread and all others: losses that cache gradients run the model again in backward."""
        before, self.bank.active = self.bank.active, self.name
        try:
            with self.bank.route(self.name):
                yield
        finally:
            self.bank.active = before

    def train(self, *args: Any, **options: Any) -> Any:
        """As `SentenceTransformerTrainer.train`.

        Raises:
            BankError: leaves that do not require gradients, or parameters of the model that do.
        """
        leaves = [id(leaf) for leaf in self.bank.parameters(self.name) if leaf.requires_grad]
        adapters = {id(leaf) for _, leaf in self.bank.named_parameters()}
        model = self.bank.sentence_transformer
        thawed = [key for key, p in model.named_parameters() if p.requires_grad and id(p) not in adapters]
        if thawed or len(leaves) < len(self.bank.parameters(self.name)):
            raise BankError(
                f"adapter {self.name!r}",
                expected="a frozen model with leaves that require gradients",
                found=f"{thawed[0]} not frozen, which no checkpoint would hold" if thawed else "frozen leaves",
                remedy="call requires_grad_ before attaching, not after",
            )
        with self._in_use():
            return super().train(*args, **options)

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """As `SentenceTransformerTrainer.evaluate`."""
        with self._in_use():
            return super().evaluate(*args, **options)

    def predict(self, *args: Any, **options: Any) -> Any:
        """As `SentenceTransformerTrainer.predict`."""
        with self._in_use():
            return super().predict(*args, **options)

    # ---- what is trained ---------------------------------------------------------------------------------------------

    def get_optimizer_cls_and_kwargs(  # type: ignore[override]  # a static method in transformers
        self, args: Any, model: Any = None
    ) -> tuple[Any, dict[str, Any]]:
        """The stock optimiser and groups, without the leaves of other adapters.

        Raises:
            RecipeError: an optimiser made for matrices.
        """
        kind, settings = super().get_optimizer_cls_and_kwargs(args, model)
        if "optimizer_dict" not in settings:
            raise RecipeError(f"optim={args.optim}", expected="an optimiser of vectors, such as adamw_torch")
        others = {id(leaf) for _, leaf in self.bank.named_parameters()}
        others -= {id(leaf) for leaf in self.bank.parameters(self.name)}
        for group in settings["optimizer_dict"]:
            group["params"] = [leaf for leaf in group["params"] if id(leaf) not in others]
        return kind, settings

    def _loss_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the loss that are none of the model's."""
        losses = nn.ModuleDict(self.loss) if isinstance(self.loss, dict) else self.loss
        own = self.bank.own_parameters()
        return {key: each for key, each in losses.named_parameters() if id(each) not in own}

    # ---- files -------------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        self.bank.save(self.name, folder)
        own = {key: each.detach().cpu().contiguous() for key, each in self._loss_parameters().items()}
        if own:
            write_all(folder, {LOSS: lambda path: save_file(own, path, metadata={"format": "pt"})})

    def _load_from_checkpoint(self, checkpoint_path: str | os.PathLike[str], model: Any = None) -> None:
        read_into(self.bank, self.name, checkpoint_path)
        own = self._loss_parameters()
        if own:
            file = Path(checkpoint_path) / LOSS
            stored = read_tensors(file)
            _refuse_others(file, own, stored)
            with torch.no_grad():
                for key, each in own.items():
                    each.copy_(stored[key])

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        assert best is not None
        self.bank.sentence_transformer.model_card_data.set_best_model_step(int(best.rsplit("-", 1)[-1]))
        self._load_from_checkpoint(best)


def _refuse_others(file: Path, own: dict[str, nn.Parameter], stored: dict[str, Tensor]) -> None:
    here, there = ({key: tuple(each.shape) for key, each in group.items()} for group in (own, stored))
    if here != there:
        raise StoreError(
            str(file), expected=f"{here} of the loss", found=f"{there}", remedy="resume with the loss of the first run"
        )
