"""`BeftTrainer` against beft's own loop, a loop by hand and the stock `Trainer`; its checkpoints; what is refused."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import BertForSequenceClassification, Trainer, TrainingArguments

import beft
from bases import bert, llama
from beft import Bank, LinearHead, ModelHead
from beft.errors import BankError, BeftError, DataError, RecipeError, RouteError, StoreError
from beft.interop.trainer import BeftTrainer, arguments, read_into
from beft.tasks.task import Task
from beft.training.batches import epoch_batches
from beft.training.loop import Run
from tiny import build
from toys import fast, same_tensors, toy_task
from training.common import leaves_of, new_run

__all__ = ["bert", "llama"]
SHORT = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
    "logging_strategy": "no",
}
PLAIN = {"selection": "none", "group_by_length": False, "dropout": 0.0}
CHECKPOINT = {
    *("adapter_config.json", "adapter_model.safetensors", "beft.json"),
    *("optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"),
}


def args(out: Path, **changes: Any) -> TrainingArguments:
    """Arguments of a run of a fraction of a second, that saves nothing and reports to nobody."""
    return TrainingArguments(str(out), **{**SHORT, **changes})


def rows(count: int = 16, labels: int = 3, length: int = 6, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of token ids of one length with class numbers."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 90, (count, length), generator=generator).tolist()
    return [{"input_ids": each, "labels": number % labels} for number, each in enumerate(ids)]


def text_rows(count: int = 12, length: int = 6) -> list[dict[str, Any]]:
    """Rows of token ids for a language model; the label of a row's first tokens, more in every third, is ignored."""
    return [
        {**row, "labels": [-100] * (number % 3 + 1) + row["input_ids"][number % 3 + 1 :]}
        for number, row in enumerate(rows(count, length=length))
    ]


def headed(kind: str = "model", names: tuple[str, ...] = ("default",), **overrides: Any) -> Bank:
    """A bank on a tiny BERT classifier; its adapters have the model's own head, or a linear one."""
    model = build("bert", "classify", **overrides)
    bank = beft.attach(model, names=names)
    for name in names:
        bank.set_head(name, ModelHead(model, ["classifier"]) if kind == "model" else linear())
    return bank


def linear() -> LinearHead:
    head = LinearHead(32, 3, ["a", "b", "c"])
    with torch.no_grad():
        head.weight.copy_(0.1 * torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(1)))
    return head


def values(bank: Bank, name: str = "default") -> dict[str, Tensor]:
    return {key: leaf.detach().clone() for key, leaf in bank[name].leaves()}


def train(bank: Bank, out: Path, data: list[dict[str, Any]] | None = None, **changes: Any) -> BeftTrainer:
    trainer = BeftTrainer(bank, args=args(out, **changes), train_dataset=data or rows())
    trainer.train()
    return trainer


# ---- the same as beft's own loop -------------------------------------------------------------------------------------


class InOrder(Sampler[int]):
    """The rows in the order of a run's first phase, epoch after epoch."""

    def __init__(self, run: Run) -> None:
        self.run, self.epoch = run, 0

    def __len__(self) -> int:
        return len(self.run.parts["select"].examples)

    def __iter__(self) -> Iterator[int]:
        seed, size = self.run.recipe.seed, self.run.recipe.batch_size
        batches = epoch_batches([1] * len(self), size, [seed, 1, self.epoch], group_by_length=False)
        self.epoch += 1
        return iter([row for batch in batches for row in batch])


class OrderedTrainer(BeftTrainer):
    order: InOrder

    def _get_train_sampler(self, train_dataset: Any = None) -> InOrder:
        return self.order


def begun(base: Path, task: Task, recipe: beft.Recipe) -> Run:
    """A run before its first step, its leaves not zero: gradients near zero are noise, which Adam magnifies."""
    run, generator = new_run(base, task, recipe), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for leaf in run.leaves.values():
            leaf.add_(0.1 * torch.randn(leaf.shape, generator=generator))
    return run


def like_the_loop(base: Path, task: Task, recipe: beft.Recipe, out: Path, pieces: int, **changes: Any) -> Run:
    """A run's start, trained by `BeftTrainer` on the same batches, each in so many pieces."""
    run = begun(base, task, recipe)
    part = run.parts["select"]

    def collate(chosen: list[int]) -> dict[str, Any]:
        return {**part.encoded.batch(chosen), "labels": torch.tensor([part.examples[row].label for row in chosen])}

    given = {**arguments(recipe), "gradient_accumulation_steps": pieces, "remove_unused_columns": False, **changes}
    given["per_device_train_batch_size"] = recipe.batch_size // pieces
    given["max_steps"] = -1
    trainer = OrderedTrainer(
        run.bank,
        args=args(out, **given),
        train_dataset=range(len(part.examples)),
        data_collator=collate,
        head_learning_rate=recipe.head_lr,
    )
    trainer.order = InOrder(run)
    for module in run.bank.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    trainer.train()
    return run


@pytest.mark.parametrize(
    ("family", "head", "pieces", "checkpointing"),
    [
        ("bert", "linear", 1, False),
        ("bert", "model", 1, False),
        ("llama", "linear", 1, True),
        ("bert", "linear", 3, True),  # 35 rows in steps of 9 and pieces of 3: the last step is 3 + 3 + 2
        ("bert", "model", 3, False),
        ("llama", "model", 3, False),
    ],
)
def test_equals_beft_train_on_the_same_batches(
    request: pytest.FixtureRequest, tmp_path: Path, family: str, head: str, pieces: int, checkpointing: bool
) -> None:
    base, task = request.getfixturevalue(family), toy_task(35)
    recipe = fast(head=head, batch_size=9, weight_decay=0.01, clip=0.5, head_lr=3e-3, **PLAIN)
    ours = begun(base, task, recipe)
    start = leaves_of(ours)
    ours.learn()
    theirs = like_the_loop(base, task, recipe, tmp_path, pieces, activation_checkpointing=checkpointing)
    assert all((value != start[key]).any() for key, value in leaves_of(theirs).items())
    same_tensors(leaves_of(theirs), leaves_of(ours), 1e-6)


def test_squared_errors_are_in_units_of_the_heads_spread(bert: Path, tmp_path: Path) -> None:
    run = begun(bert, toy_task(regression=True), fast())
    head = run.bank["default"].head
    assert isinstance(head, LinearHead)
    head.spread.fill_(2.5)
    batch = run.parts["select"].encoded.batch([0, 1, 2])
    labels = torch.tensor([row.label for row in run.parts["select"].examples[:3]])
    trainer = BeftTrainer(run.bank, args=args(tmp_path))
    with torch.no_grad():
        loss = trainer.compute_loss(run.bank.model, {**batch, "labels": labels})
        errors = run.bank.logits(**batch)[:, 0] - labels
    assert float(loss) == pytest.approx(float((errors / 2.5).square().mean()), rel=1e-6)


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_causal_language_model_learns_as_by_hand(tmp_path: Path, pieces: int) -> None:
    bank = beft.attach(build("llama", "lm"))
    data = text_rows()
    train(
        bank,
        tmp_path,
        data,
        per_device_train_batch_size=6 // pieces,
        gradient_accumulation_steps=pieces,
        train_sampling_strategy="sequential",
        lr_scheduler_type="constant",
    )
    by_hand = beft.attach(build("llama", "lm"))
    leaves = by_hand.parameters("default")
    optimiser = torch.optim.AdamW(leaves, lr=1e-2, eps=1e-8, weight_decay=0)
    for step in range(4):
        chosen = data[:6] if step % 2 == 0 else data[6:]
        ids, labels = (torch.tensor([row[key] for row in chosen]) for key in ("input_ids", "labels"))
        logits = by_hand.model(input_ids=ids).logits[:, :-1]
        nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(leaves, 1.0)
        optimiser.step()
        optimiser.zero_grad()
    assert bank["default"].head is None
    assert all(value.abs().max() > 1e-3 for value in values(bank).values())
    same_tensors(values(bank), values(by_hand), 1e-6)


def test_bf16_autocast_stays_near_fp32_and_keeps_the_leaves_in_fp32(tmp_path: Path) -> None:
    for kind in ("linear", "model"):
        banks = [headed(kind, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0) for _ in range(2)]
        losses = [
            train(bank, tmp_path, bf16=bf16).state.log_history for bank, bf16 in zip(banks, (False, True), strict=True)
        ]
        first, second = (history[-1]["train_loss"] for history in losses)
        assert second == pytest.approx(first, rel=0.02)
        assert second != first
        assert all(value.dtype == torch.float32 for value in values(banks[1]).values())


def test_only_the_named_adapter_learns(tmp_path: Path) -> None:
    bank = headed(names=("a", "b"))
    base = {key: value.clone() for key, value in bank.model.state_dict().items() if not key.startswith("beft.")}
    others = values(bank, "b")
    start = values(bank, "a")
    trainer = BeftTrainer(bank, "a", args(tmp_path, weight_decay=0.1), train_dataset=rows())
    trainer.train()
    assert bank.active is None
    assert all((value != start[key]).any() for key, value in values(bank, "a").items())
    same_tensors(values(bank, "b"), others, 0)
    for key, value in base.items():
        assert torch.equal(bank.model.state_dict()[key], value), key
    trained = [leaf for group in trainer.optimizer.param_groups for leaf in group["params"]]
    assert {id(leaf) for leaf in trained} == {id(leaf) for leaf in bank.parameters("a")}


def test_the_norm_that_is_clipped_is_the_adapters(tmp_path: Path) -> None:
    bank = headed()
    trainer = BeftTrainer(bank, args=args(tmp_path, max_grad_norm=0.01), train_dataset=rows())
    for leaf in bank.parameters("default"):
        leaf.grad = torch.ones_like(leaf)
    stranger = next(iter(bank.model.bert.parameters()))
    stranger.grad = torch.full_like(stranger, 1e6)
    norm = trainer._clip_grad_norm(bank.model)
    assert float(norm) == pytest.approx(sum(leaf.numel() for leaf in bank.parameters("default")) ** 0.5)
    grads = [leaf.grad for leaf in bank.parameters("default") if leaf.grad is not None]
    assert float(nn.utils.get_total_norm(grads)) == pytest.approx(0.01, rel=1e-3)


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "model"])
def test_resumes_to_the_weights_of_a_run_that_was_never_stopped(tmp_path: Path, kind: str) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "max_steps": 10}
    whole = headed(kind)
    start = values(whole)
    train(whole, tmp_path / "whole", **saving)
    checkpoint = tmp_path / "whole" / "checkpoint-6"  # in the middle of the second epoch, with dropout
    names = {path.name for path in checkpoint.iterdir()}
    assert names == CHECKPOINT | ({"head.safetensors"} if kind == "linear" else set())
    assert sum(path.stat().st_size for path in checkpoint.iterdir()) < 48 * 1024

    again = headed(kind)
    trainer = BeftTrainer(again, args=args(tmp_path / "whole", **saving), train_dataset=rows())
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step == 10
    assert all((value != start[key]).any() for key, value in values(again).items())
    same_tensors(values(again), values(whole), 0)
    assert again.names == ["default"]


def test_the_scale_is_not_counted_twice_on_resume(tmp_path: Path) -> None:
    bank = beft.attach(build("bert"), names=[])
    bank.add("default", scale=3.0, head=linear())
    for leaf in bank.parameters("default"):
        nn.init.normal_(leaf)
    before = values(bank)
    bank.save("default", tmp_path)
    for leaf in bank.parameters("default"):
        nn.init.zeros_(leaf)
    read_into(bank, "default", tmp_path)
    same_tensors(values(bank), before, 1e-6)


def test_the_best_adapter_is_loaded_at_the_end(tmp_path: Path) -> None:
    bank, scores = headed("linear"), iter([0.1, 0.9, 0.5, 0.3])
    trainer = BeftTrainer(
        bank,
        args=args(
            tmp_path,
            save_strategy="steps",
            save_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="score",
            greater_is_better=True,
        ),
        train_dataset=rows(),
        eval_dataset=rows(4),
        compute_metrics=lambda prediction: {"score": next(scores)},
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    final = values(bank)
    best, last = headed("linear"), headed("linear")
    read_into(best, "default", tmp_path / "checkpoint-2")
    read_into(last, "default", tmp_path / "checkpoint-4")
    same_tensors(final, values(best), 0)
    assert any((value != values(last)[key]).any() for key, value in final.items())


def test_save_model_writes_what_bank_load_and_stock_peft_read(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = build("bert", "classify")
    model.save_pretrained(tmp_path / "base")
    bank = beft.attach(BertForSequenceClassification.from_pretrained(tmp_path / "base"))
    bank.set_head("default", ModelHead(bank.model, ["classifier"]))
    trainer = train(bank, tmp_path / "run")
    trainer.save_model(str(tmp_path / "adapter"))
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "beft.json"}

    batch = {"input_ids": torch.tensor([row["input_ids"] for row in rows(4)])}
    bank.model.eval()
    with torch.no_grad():
        expected = bank.model(**batch).logits
        loaded = beft.attach(BertForSequenceClassification.from_pretrained(tmp_path / "base"), names=[])
        loaded.load(tmp_path / "adapter", name="x")
        loaded.active = "x"
        assert torch.equal(loaded.model(**batch).logits, expected)
        base = BertForSequenceClassification.from_pretrained(tmp_path / "base")
        plain = base(**batch).logits
        stock = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
        assert (stock(**batch).logits - expected).abs().max() < 1e-6
    assert (plain - expected).abs().max() > 1e-3


# ---- evaluating ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "model"])
def test_predict_and_evaluate_use_the_adapter_whatever_is_active(tmp_path: Path, kind: str) -> None:
    bank = headed(kind, names=("a", "b"))
    for leaf in bank.parameters("a"):
        nn.init.normal_(leaf, std=0.3)
    bank.active = "b"
    trainer = BeftTrainer(bank, "a", args(tmp_path, per_device_eval_batch_size=3))
    data = rows(7)
    ids = torch.tensor([row["input_ids"] for row in data])
    labels = torch.tensor([row["labels"] for row in data])
    with bank.route("a"), torch.no_grad():
        expected = bank.logits(input_ids=ids)
    predicted = trainer.predict(data)
    assert torch.allclose(torch.from_numpy(predicted.predictions), expected, atol=1e-6)
    loss = float(nn.functional.cross_entropy(expected, labels))
    assert predicted.metrics["test_loss"] == pytest.approx(loss, rel=1e-5)
    assert trainer.evaluate(data)["eval_loss"] == pytest.approx(loss, rel=1e-5)
    unlabelled = trainer.predict([{"input_ids": row["input_ids"]} for row in data])
    assert torch.allclose(torch.from_numpy(unlabelled.predictions), expected, atol=1e-6)
    assert unlabelled.label_ids is None


def test_a_loss_of_ones_own_and_label_smoothing_reach_the_linear_head(tmp_path: Path) -> None:
    batch = {key: torch.tensor([row[key] for row in rows(6)]) for key in ("input_ids", "labels")}
    bank = headed("linear")
    smooth = BeftTrainer(bank, args=args(tmp_path, label_smoothing_factor=0.3))
    with torch.no_grad():
        logits, loss = bank.logits(input_ids=batch["input_ids"]), smooth.compute_loss(bank.model, dict(batch))
    expected = nn.functional.cross_entropy(logits, batch["labels"], label_smoothing=0.3)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    own = BeftTrainer(
        bank, args=args(tmp_path), compute_loss_func=lambda out, labels, **_: (out["logits"][:, 0] * labels).sum()
    )
    expected = (logits[:, 0] * batch["labels"]).sum()
    assert own.compute_loss(bank.model, dict(batch)).item() == pytest.approx(float(expected), rel=1e-5)


# ---- refused ---------------------------------------------------------------------------------------------------------


def _detached() -> Bank:
    bank = headed()
    bank.detach()
    return bank


@pytest.mark.parametrize(
    ("make", "options", "error", "words"),
    [
        (lambda: beft.attach(build("bert")), {}, BankError, "neither.*bank.set_head"),
        (headed, {"name": "defualt"}, RouteError, "Did you mean 'default'"),
        (headed, {"model": build("bert", "classify")}, BankError, "a model beside it"),
        (headed, {"model_init": lambda: None}, BankError, "a model beside it"),
        (_detached, {}, BankError, "an attached bank"),
        (lambda: _scaled(0.0), {}, BankError, "a scale other than 0"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    tmp_path: Path, make: Any, options: dict[str, Any], error: type[BeftError], words: str
) -> None:
    with pytest.raises(error, match=words):
        BeftTrainer(make(), args=args(tmp_path), train_dataset=rows(), **options)


def _scaled(scale: float) -> Bank:
    bank = beft.attach(build("bert", "classify"), names=[])
    bank.add("default", scale=scale)
    return bank


def test_evaluation_in_half_precision_is_refused_because_it_casts_the_base(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"bf16_full_eval.*load the base in that dtype"):
        BeftTrainer(headed(), args=args(tmp_path, bf16_full_eval=True))


def test_an_optimiser_of_matrices_is_refused(tmp_path: Path) -> None:
    trainer = BeftTrainer(
        headed(), args=args(tmp_path), optimizer_cls_and_kwargs=(torch.optim.AdamW, {"params": [], "lr": 1e-2})
    )
    with pytest.raises(RecipeError, match="adamw_torch"):
        trainer.create_optimizer()


def test_frozen_leaves_are_refused(tmp_path: Path) -> None:
    bank = headed()
    bank.model.requires_grad_(False)
    with pytest.raises(BankError, match=r"found 4 frozen ones.*before attaching"):
        train(bank, tmp_path)


def test_labels_the_head_does_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="from 0 to 2, found 3"):
        train(headed("linear"), tmp_path, rows(labels=4))


def test_a_learning_rate_of_full_fine_tuning_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="biases hardly learn; beft train uses 0.003"):
        BeftTrainer(headed(), args=args(tmp_path, learning_rate=5e-5))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        BeftTrainer(headed(), args=args(tmp_path, learning_rate=1e-4))


def test_resuming_from_another_run_is_refused_and_leaves_the_adapter_alone(tmp_path: Path) -> None:
    linear_bank, bank = headed("linear"), headed("model")
    linear_bank.save("default", tmp_path / "linear")
    before = values(bank)
    with pytest.raises(StoreError, match="the sites and the head of 'default', found others"):
        read_into(bank, "default", tmp_path / "linear")
    other = headed("linear")
    other["default"].head.labels = ("a", "b", "z")
    with pytest.raises(StoreError, match=r"others \(labels"):
        read_into(other, "default", tmp_path / "linear")
    with pytest.raises(StoreError, match="a checkpoint of BeftTrainer"):
        BeftTrainer(bank, args=args(tmp_path), train_dataset=rows()).train(resume_from_checkpoint=str(tmp_path))
    same_tensors(values(bank), before, 0)
    assert bank.names == ["default"]


def test_a_recipe_becomes_arguments_only_with_its_epochs(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe.resolve\(rows\)"):
        arguments(beft.Recipe())
    made = TrainingArguments(str(tmp_path), **arguments(fast(warmup=0.25, schedule="constant", seed=7)))
    assert (made.get_warmup_steps(100), made.learning_rate, made.adam_epsilon, made.seed) == (25, 0.01, 1e-6, 7)


# ---- the stock Trainer -----------------------------------------------------------------------------------------------


def stock(bank: Bank, out: Path, **changes: Any) -> Trainer:
    trainer = Trainer(bank.model, args(out, **changes), train_dataset=rows())
    trainer.train()
    return trainer


def test_the_stock_trainer_trains_the_same_vectors(tmp_path: Path) -> None:
    ours, theirs, routed = headed(), headed(), headed(names=("default", "b"))
    untouched = values(routed, "b")
    train(ours, tmp_path)
    stock(theirs, tmp_path)
    same_tensors(values(theirs), values(ours), 1e-6)
    with routed.route("default"):
        stock(routed, tmp_path)
    same_tensors(values(routed), values(ours), 1e-6)
    same_tensors(values(routed, "b"), untouched, 0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_stock_trainer_on_the_plain_model_is_refused(tmp_path: Path, checkpointing: bool) -> None:
    bank = headed()
    bank.active = None
    with pytest.raises(RouteError, match=r"an adapter that learns, found the plain model.*bank.active"):
        stock(bank, tmp_path, activation_checkpointing=checkpointing)


def test_the_stock_trainer_on_a_linear_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RouteError, match=r"linear head.*bank.logits"):
        stock(headed("linear"), tmp_path)


def test_a_stock_checkpoint_says_that_it_lacks_the_adapter_and_is_not_resumed_from(tmp_path: Path) -> None:
    bank = headed()
    with pytest.warns(UserWarning, match=r"without the adapters.*default.*bank\.save"):
        stock(bank, tmp_path, save_strategy="steps", save_steps=2)
    again = headed()
    with pytest.raises(BankError, match=r"no adapters.*BeftTrainer"):
        Trainer(again.model, args(tmp_path), train_dataset=rows()).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-2")
        )
