"""The loop against plain PyTorch and against stock PEFT, and what may not change its weights."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification

from beft.errors import TrainingError
from beft.objectives.classify import ClassifyLoss
from beft.tasks.task import Task
from beft.training.aims import ClassifyAim, Judgement, Part
from beft.training.batches import epoch_batches
from beft.training.recipe import Recipe
from beft.training.steps import Step, take
from toys import fast, same_tensors, save_base, toy_task
from training.common import Notes, gradients_of, learn, leaves_of, new_run

PLAIN = {"selection": "none", "schedule": "constant", "epochs": 2}


def batches_of(part: Part, recipe: Recipe) -> list[list[int]]:
    """The rows of every step of a run's first phase."""
    lengths = part.encoded.lengths()
    return [
        rows
        for epoch in range(recipe.epochs)
        for rows in epoch_batches(lengths, recipe.batch_size, [recipe.seed, 1, epoch])
    ]


def pooled(hidden: Tensor, mask: Tensor | None, last: bool) -> Tensor:
    """States of each row by a loop over rows, as slow as it is plain."""
    rows = []
    for number, states in enumerate(hidden):
        kept = states if mask is None else states[mask[number].bool()]
        rows.append(kept[-1] if last else kept.mean(0))
    return torch.stack(rows)


def plain_loop(
    base: Path, task: Task, recipe: Recipe, part: Part, start: dict[str, Tensor], family: str
) -> dict[str, Tensor]:
    """The same training by hand: value biases are nn.Parameters of the stock model, stock AdamW, one batch a step."""
    torch.manual_seed(0)
    kind = AutoModelForSequenceClassification if recipe.head == "model" else AutoModel
    changes = {"num_labels": 3} if recipe.head == "model" else {}
    model = kind.from_pretrained(base, dtype=torch.float32, attn_implementation="eager", **changes).eval()
    model.config.pad_token_id = part.encoded.pad_id
    model.requires_grad_(False)
    trained: dict[str, nn.Parameter] = {}
    modules = dict(model.named_modules())
    frozen: dict[str, Tensor] = {}
    for key in start:
        if key.startswith("head."):
            continue
        module = modules[key]
        assert isinstance(module, nn.Linear)
        before = torch.zeros(module.out_features) if module.bias is None else module.bias.detach().clone()
        module.bias = nn.Parameter(before.clone())
        frozen[key], trained[key] = before, module.bias
    head: dict[str, nn.Parameter] = {}
    for key, value in start.items():
        if not key.startswith("head."):
            continue
        if recipe.head == "linear":
            head[key] = nn.Parameter(value.clone())
        else:
            path, _, name = key.removeprefix("head.").rpartition(".")
            parameter = nn.Parameter(value.clone())
            setattr(modules[path], name, parameter)
            head[key] = parameter
    everything = [*trained.values(), *head.values()]
    optimiser = torch.optim.AdamW(everything, lr=recipe.lr, betas=(0.9, 0.999), eps=recipe.eps, weight_decay=0.0)
    for rows in batches_of(part, recipe):
        batch = part.encoded.batch(rows)
        targets = torch.tensor([part.examples[row].label for row in rows])
        if recipe.head == "model":
            logits = model(**batch).logits
        else:
            hidden = model(**batch).last_hidden_state
            states = pooled(hidden, batch.get("attention_mask"), family == "llama")
            logits = states @ head["head.weight"].T + head["head.bias"]
        optimiser.zero_grad()
        nn.functional.cross_entropy(logits, targets).backward()
        nn.utils.clip_grad_norm_(everything, recipe.clip)
        optimiser.step()
    found = {key: value.detach() - frozen[key] for key, value in trained.items()}
    return {**found, **{key: value.detach() for key, value in head.items()}}


@pytest.mark.parametrize("head", ["linear", "model"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_equals_a_hand_written_loop(request: pytest.FixtureRequest, family: str, head: str) -> None:
    base = request.getfixturevalue(family)
    task, recipe = toy_task(), fast(head=head, **PLAIN)
    run = new_run(base, task, recipe)
    start = leaves_of(run)
    run.learn()
    ours = leaves_of(run)
    assert all((ours[key] != start[key]).any() for key in ours)
    theirs = plain_loop(base, task, recipe, run.parts["select"], start, family)
    same_tensors(ours, theirs, 1e-6)


def test_equals_stock_pefts_beft_on_the_same_steps(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = save_base(tmp_path / "headed", head="classify")
    task, recipe = toy_task(), fast(head="model", **PLAIN)
    run = new_run(base, task, recipe)
    part, vectors = run.parts["select"], [key for key in run.leaves if not key.startswith("head.")]
    run.learn()

    torch.manual_seed(0)
    stock = AutoModelForSequenceClassification.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager", num_labels=3
    )
    config = peft.BeftConfig(target_modules=vectors, modules_to_save=["classifier"])
    model = peft.get_peft_model(stock, config).eval()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimiser = torch.optim.AdamW(parameters.values(), lr=recipe.lr, eps=recipe.eps, weight_decay=0.0)
    for rows in batches_of(part, recipe):
        optimiser.zero_grad()
        targets = torch.tensor([part.examples[row].label for row in rows])
        nn.functional.cross_entropy(model(**part.encoded.batch(rows)).logits, targets).backward()
        nn.utils.clip_grad_norm_(parameters.values(), recipe.clip)
        optimiser.step()
    assert len(parameters) == len(vectors) + 2
    for name, value in parameters.items():
        assert (value != before[name]).any(), name
    for key, ours in leaves_of(run).items():
        wanted = key.removeprefix("head.") if key.startswith("head.") else key
        plain = {name.replace("modules_to_save.default.", "") + ".": p for name, p in parameters.items()}
        (theirs,) = [p for name, p in plain.items() if f".{wanted}." in name]
        assert (ours.flatten() - theirs.detach().flatten()).abs().max() <= 1e-6, key


@pytest.mark.parametrize("head", ["linear", "model"])
def test_the_token_budget_changes_no_weight(bert: Path, head: str) -> None:
    def weights(budget: int) -> dict[str, Tensor]:
        run = new_run(bert, toy_task(), fast(head=head, schedule="linear"), token_budget=budget, dev=8)
        run.learn()
        return leaves_of(run)

    whole = weights(8192)
    for budget in (64, 1):
        same_tensors(weights(budget), whole, 1e-6)


def test_the_learning_rate_warms_up_and_falls_to_zero(bert: Path) -> None:
    run = new_run(bert, toy_task(), fast(warmup=0.2, schedule="linear"))
    rates = [run._rate(step, 10) for step in range(10)]
    assert rates == pytest.approx([0.5, 1.0, *(n / 8 for n in range(8, 0, -1))])
    assert new_run(bert, toy_task(), fast(schedule="constant"))._rate(7, 10) == 1.0


def test_the_head_may_have_its_own_learning_rate(bert: Path) -> None:
    run = new_run(bert, toy_task(), fast(lr=1e-2, head_lr=1e-9, **PLAIN))
    run.learn()
    moved = {key: float(leaf.detach().abs().max()) for key, leaf in run.leaves.items()}
    assert all((value < 1e-6) == key.startswith("head.") for key, value in moved.items())


def test_clipping_bounds_the_gradient_and_zero_leaves_it(bert: Path) -> None:
    def norm_after(clip: float) -> tuple[float, float]:
        run = new_run(bert, toy_task(), fast(clip=clip))
        gradients_of(run, 16)
        before = take([Step(run.optimiser, 0.0)])[0]
        return before, float(torch.nn.utils.get_total_norm([p.grad for p in run.leaves.values() if p.grad is not None]))

    before, after = norm_after(0.01)
    assert before > 0.01
    assert after == pytest.approx(0.01, rel=1e-3)
    assert norm_after(0.0)[1] == pytest.approx(before)


@pytest.mark.parametrize("dropout", [0.3, "model"])
def test_dropout_changes_the_weights_the_same_way_every_time(bert: Path, dropout: float | str) -> None:
    first, second, none = (learn(bert, toy_task(), fast(dropout=d)) for d in (dropout, dropout, 0.0))
    losses = [[row["train_loss"] for row in result.history] for result in (first, second, none)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_a_run_leaves_the_model_in_eval_mode_and_the_base_as_it_was(bert: Path) -> None:
    run = new_run(bert, toy_task(), fast(dropout="model"))
    before = {key: value.clone() for key, value in run.bank.model.state_dict().items() if "beft." not in key}
    run.learn()
    assert not run.bank.model.training
    for key, value in run.bank.model.state_dict().items():
        if "beft." not in key:
            assert torch.equal(value, before[key]), key


def test_memory_that_runs_short_halves_the_budget_and_changes_nothing(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = new_run(bert, toy_task(), fast(**PLAIN), token_budget=64)
    whole.learn()
    calls, summed = [0], ClassifyLoss.summed

    def short(self: ClassifyLoss, logits: Tensor, targets: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] == 2:  # in the middle of a step: the first piece's gradient must not count twice
            raise torch.OutOfMemoryError("no more")
        return summed(self, logits, targets)

    monkeypatch.setattr(ClassifyLoss, "summed", short)
    run = new_run(bert, toy_task(), fast(**PLAIN), token_budget=64)
    run.listener = notes = Notes()
    run.learn()
    same_tensors(leaves_of(run), leaves_of(whole), 1e-6)
    assert run.choices.token_budget == 32
    (note,) = notes.notes
    assert "32 tokens a micro-batch" in note
    assert "--token-budget" in note


def test_memory_for_not_one_row_stops_with_the_knob_named(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: ClassifyLoss, logits: Tensor, targets: Tensor) -> Tensor:
        raise MemoryError

    monkeypatch.setattr(ClassifyLoss, "summed", never)
    with pytest.raises(TrainingError, match=r"memory: expected room for one row of .* tokens.*Lower --max-length"):
        new_run(bert, toy_task(), fast()).learn()


def test_another_error_is_not_taken_for_memory(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: ClassifyLoss, logits: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(ClassifyLoss, "summed", wrong)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        new_run(bert, toy_task(), fast()).learn()


def test_patience_ends_the_first_phase(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = iter([0.5, 0.6, 0.6, 0.55, 0.9])
    judged = staticmethod(lambda shares, watch: [Judgement(1.0, {"accuracy": next(scored)})])
    monkeypatch.setattr(ClassifyAim, "judged", judged)
    run = new_run(bert, toy_task(), fast(epochs=9, patience=2, refit=False), dev=8)
    assert [row["epoch"] for row in run.learn().history] == [1, 2, 3, 4]


def test_a_rate_of_dropout_is_the_models_own_again_afterwards(bert: Path) -> None:
    run = new_run(bert, toy_task(), fast(**PLAIN, dropout=0.3))
    before = {name: module.p for name, module in run.bank.model.named_modules() if isinstance(module, nn.Dropout)}
    seen = set()
    run.listener.step = lambda loss, examples: seen.update(  # type: ignore[method-assign]
        module.p for module in run.bank.model.modules() if isinstance(module, nn.Dropout)
    )
    run.learn()
    assert seen == {0.3}
    after = {name: module.p for name, module in run.bank.model.named_modules() if isinstance(module, nn.Dropout)}
    assert after == before
    assert 0.3 not in set(before.values())
