"""A base in pieces, half in each of two ranks, trains what a whole one trains."""

import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import beft
from beft.core.sharded import held_bytes
from beft.errors import Interrupted, RanksError, RecipeError, StoreError, TrainingError
from beft.objectives.classify import ClassifyLoss
from beft.training.machine import choose
from beft.training.open_ground import open_ground
from beft.training.plan import Plan
from beft.training.ranks import together
from beft.training.recipe import Recipe
from beft.training.shard import layer_paths
from tiny import build
from toys import adapter_files, fast, save_base, toy_task
from training.common import After, learn
from training.pair import Outcome, Pair
from training.test_prompts import choosing, decoder, recipe, writing
from training.test_ranks import BALANCED, a_fault, death, not_finite, same_run, spoil, together_learn, uneven, values

__all__ = ["decoder"]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    found = Pair()
    yield found
    found.end()


def both(pair: Pair, base: Path, task: Any, how: Recipe, out: Path | None, **options: Any) -> list[Outcome]:
    """The run in two ranks, the base in pieces."""
    return pair.run(together_learn, base, task, how, out, {"shard": True, **options})


# ---- what is learned -------------------------------------------------------------------------------------------------


class TestOneRun:
    @pytest.mark.parametrize("head", ["linear", "model"])
    def test_the_weights_are_those_of_one_process(self, bert: Path, tmp_path: Path, pair: Pair, head: str) -> None:
        how = dataclasses.replace(BALANCED, head=head)
        learn(bert, uneven(), how, tmp_path / "one", with_baselines=True)
        values(both(pair, bert, uneven(), how, tmp_path / "two", with_baselines=True))
        same_run(tmp_path / "one", tmp_path / "two")
        one, two = (json.loads((tmp_path / name / "beft.json").read_text()) for name in ("one", "two"))
        assert one["base"] == two["base"]  # the fingerprint among it

    def test_so_it_is_with_prompts_chosen_or_written(self, decoder: Path, tmp_path: Path, pair: Pair) -> None:
        for name, task in (
            ("chosen", choosing(31, 7)),
            ("long", choosing(13, 3, long=True)),
            ("written", writing(21, 5)),
        ):
            how = recipe(batch_size=10)
            learn(decoder, task, how, tmp_path / f"{name}-1", with_baselines=True)
            values(both(pair, decoder, task, how, tmp_path / f"{name}-2", with_baselines=True))
            same_run(tmp_path / f"{name}-1", tmp_path / f"{name}-2")

    def test_so_it_is_where_a_shortcut_fails_within_a_forward(self, tmp_path: Path, pair: Pair) -> None:
        base = save_base(tmp_path / "bloom", "bloom", head="lm", special=False)  # its masks take no trees
        task, how = choosing(9, 3, long=True), recipe(batch_size=5)
        learn(base, task, how, tmp_path / "one")
        values(both(pair, base, task, how, tmp_path / "two"))
        same_run(tmp_path / "one", tmp_path / "two")

    @pytest.mark.parametrize("family", ["albert", "roberta", "gpt2"])
    def test_so_it_is_in_other_families(self, tmp_path: Path, pair: Pair, family: str) -> None:
        base = save_base(tmp_path / family, family)
        learn(base, uneven(), BALANCED, tmp_path / "one")
        values(both(pair, base, uneven(), BALANCED, tmp_path / "two"))
        same_run(tmp_path / "one", tmp_path / "two")

    def test_so_it_is_where_micro_batches_are_not_equally_many(self, bert: Path, tmp_path: Path, pair: Pair) -> None:
        how = dataclasses.replace(BALANCED, batch_size=9)
        learn(bert, uneven(), how, tmp_path / "one")
        values(both(pair, bert, uneven(), how, tmp_path / "two", micro_batch_size=2))
        same_run(tmp_path / "one", tmp_path / "two")

    def test_so_it_is_with_texts_read_apart(self, bert: Path, tmp_path: Path, pair: Pair) -> None:
        """Of more rows than a batch has: at rest over all of them, a head's first gradient is rounding alone."""
        task, how = toy_task(31, 7, pairs=True), dataclasses.replace(BALANCED, pairs="apart")
        learn(bert, task, how, tmp_path / "one")
        values(both(pair, bert, task, how, tmp_path / "two", micro_batch_size=3))
        same_run(tmp_path / "one", tmp_path / "two")

    def test_so_it_is_with_layers_run_again(self, decoder: Path, tmp_path: Path, pair: Pair) -> None:
        task, how = choosing(11, 3), recipe(batch_size=10)
        learn(decoder, task, how, tmp_path / "one")
        values(both(pair, decoder, task, how, tmp_path / "two", gradient_checkpointing=True))
        same_run(tmp_path / "one", tmp_path / "two")

    @pytest.mark.parametrize("method", ["bias-lora", "bias-dora", "probe", "lora", "vera", "ia3"])
    def test_so_it_is_with_other_methods_that_leave_the_base_alone(
        self, bert: Path, tmp_path: Path, pair: Pair, method: str
    ) -> None:
        how = BALANCED.with_method(method)
        learn(bert, uneven(), how, tmp_path / "one")
        values(both(pair, bert, uneven(), how, tmp_path / "two"))
        same_run(tmp_path / "one", tmp_path / "two")

    def test_so_it_is_with_biases_of_norms_which_are_saved_with_their_weights(
        self, bert: Path, tmp_path: Path, pair: Pair
    ) -> None:
        how = dataclasses.replace(BALANCED, terms="value+attention_norm+output_norm+intermediate")
        learn(bert, uneven(), how, tmp_path / "one")
        values(both(pair, bert, uneven(), how, tmp_path / "two"))
        same_run(tmp_path / "one", tmp_path / "two")

    @pytest.mark.parametrize("method", ["lora", "prefix"])
    def test_so_it_is_with_them_on_a_decoder(self, decoder: Path, tmp_path: Path, pair: Pair, method: str) -> None:
        task, how = (
            choosing(11, 3),
            recipe(batch_size=10, lr=3e-3).with_method(method),
        )  # a bias's rate enlarges rounding
        learn(decoder, task, how, tmp_path / "one")
        values(both(pair, decoder, task, how, tmp_path / "two"))
        same_run(tmp_path / "one", tmp_path / "two")


def plans() -> list[Plan]:
    """Adapters that begin at different layers: where gradients end must not matter."""
    return [Plan("top", fast(batch_size=5, layers="last:1")), Plan("all", fast(seed=3, lr=3e-3, terms="query+value"))]


def many(base: Path, out: Path, shard: bool) -> dict[str, Any]:
    """A bank of the plans; its runs' evaluation scores."""
    found = beft.train_many(str(base), uneven(), plans(), out, dtype="fp32", with_baselines=False, shard=shard or None)
    return {name: result.evaluation for name, result in found.results.items()}


def test_a_bank_gives_each_run_what_it_has_in_one_process(bert: Path, tmp_path: Path, pair: Pair) -> None:
    alone = many(bert, tmp_path / "one", False)
    assert values(pair.run(many, bert, tmp_path / "two", True)) == [alone, alone]
    for name in alone:
        same_run(tmp_path / "one" / name, tmp_path / "two" / name)


# ---- what a rank holds -----------------------------------------------------------------------------------------------


def held(base: Path, task: Any, how: Recipe, shard: bool) -> tuple[int, int]:
    """Bytes of the base that this process holds, after it has run; and of its stack's first layer."""
    with together() as ranks:
        plan = Plan("default", how, task).resolve(task, "model")
        ground = open_ground(str(base), plan, choose("cpu", "fp32"), shard=shard)
        bank = ground.bank
        bank.add("default", terms="value")
        if shard:
            assert ranks.lockstep is not None
            ranks.gather(lambda: None)
        path = layer_paths(bank.model)[0]
        return held_bytes(bank.model), held_bytes(bank.model.get_submodule(path))


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_rank_holds_half_of_the_base(bert: Path, decoder: Path, pair: Pair, kind: str) -> None:
    base, task, how = (bert, uneven(), fast()) if kind == "encoder" else (decoder, choosing(4, 0), recipe())
    whole, layer = held(base, task, how, shard=False)
    pieces = values(pair.run(held, base, task, how, True))
    assert sum(total for total, _ in pieces) == whole
    assert sum(own for _, own in pieces) == layer
    for total, own in pieces:
        assert total == pytest.approx(whole / 2, rel=0.02)
        assert own == pytest.approx(layer / 2, rel=0.02)


def test_layers_are_those_of_the_outermost_stacks() -> None:
    assert layer_paths(build("bert")) == ["encoder.layer.0", "encoder.layer.1"]
    assert layer_paths(build("llama", "lm")) == ["model.layers.0", "model.layers.1"]


# ---- stopping --------------------------------------------------------------------------------------------------------


def stop_the_other(base: Path, out: Path, folder: Path) -> None:
    """A run whose second rank gets a signal at its third step."""
    (folder / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))

    def strike() -> None:
        os.kill(int((folder / "pid-1").read_text()), signal.SIGTERM)
        time.sleep(0.5)  # so that it is there when both ask

    learn(base, uneven(), BALANCED, out, shard=True, listener=After(3, strike))


def test_a_signal_to_any_rank_stops_all_and_resume_goes_on(bert: Path, tmp_path: Path, pair: Pair) -> None:
    outcomes = pair.run(stop_the_other, bert, tmp_path / "out", tmp_path)
    assert [type(outcome.error) for outcome in outcomes] == [Interrupted, Interrupted]
    values(both(pair, bert, uneven(), BALANCED, tmp_path / "out", resume=True))
    values(both(pair, bert, uneven(), BALANCED, tmp_path / "whole"))
    assert adapter_files(tmp_path / "out") == adapter_files(tmp_path / "whole")


def test_early_stopping_is_that_of_one_process(bert: Path, tmp_path: Path, pair: Pair) -> None:
    how = dataclasses.replace(BALANCED, epochs=8, patience=1, lr=1e-6)
    alone = learn(bert, uneven(), how, tmp_path / "one")
    assert len([row for row in alone.history if row["phase"] == "select"]) < 8
    values(both(pair, bert, uneven(), how, tmp_path / "two"))
    same_run(tmp_path / "one", tmp_path / "two")


def spoiled(base: Path, out: Path, how: Callable[[], Any]) -> None:
    """A run whose second rank meets trouble in its third step, after the forward."""
    back = spoil(3, how)
    try:
        learn(base, uneven(), BALANCED, out, shard=True)
    finally:
        back()


def test_a_loss_that_is_not_finite_on_one_rank_stops_all(bert: Path, tmp_path: Path, pair: Pair) -> None:
    outcomes = pair.run(spoiled, bert, tmp_path / "out", not_finite)
    assert [type(outcome.error) for outcome in outcomes] == [TrainingError, TrainingError]
    assert json.loads((tmp_path / "out/run.json").read_text())["status"] == "failed"


def test_an_error_between_forward_and_backward_is_told_to_the_others(bert: Path, tmp_path: Path, pair: Pair) -> None:
    first, second = pair.run(spoiled, bert, tmp_path / "out", a_fault)
    assert isinstance(second.error, ValueError)
    assert isinstance(first.error, RanksError)
    assert "shapes do not fit" in str(first.error)


def read_badly(base: Path, fails: int) -> None:
    """A run in which a rank cannot read the answers to the dev rows, when others still have forwards to run."""
    total = ClassifyLoss.summed

    def wrong(self: ClassifyLoss, logits: Tensor, targets: Tensor) -> Tensor:
        if not logits.requires_grad and os.environ["RANK"] == str(fails):
            raise StoreError("answers", expected="some", found="none")
        return total(self, logits, targets)

    ClassifyLoss.summed = wrong  # type: ignore[method-assign]
    try:
        learn(base, uneven(), BALANCED, None, shard=True)
    finally:
        ClassifyLoss.summed = total  # type: ignore[method-assign]


def test_an_error_in_judging_is_told_to_the_others(bert: Path, pair: Pair) -> None:
    for fails in (0, 1):
        outcomes = pair.run(read_badly, bert, fails)
        assert [str(outcome.error) for outcome in outcomes] == ["answers: expected some, found none."] * 2


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_one_process_has_nobody_to_share_with(bert: Path) -> None:
    with pytest.raises(RecipeError, match="--shard: expected several processes"):
        learn(bert, uneven(), fast(), shard=True)


@pytest.mark.parametrize("method", ["full", "layernorm", "random-mask", "dora", "prompt"])
def test_methods_that_need_the_whole_base_are_refused(bert: Path, pair: Pair, method: str) -> None:
    for outcome in both(pair, bert, uneven(), fast().with_method(method), None):
        assert isinstance(outcome.error, RecipeError)
        assert f"method {method}: expected a base that is whole in every process, found --shard" in str(outcome.error)
        assert "bias, bitfit" in str(outcome.error)


def test_a_base_is_held_in_one_way(bert: Path, pair: Pair) -> None:
    for options in ({"quantize": "8bit"}, {"device_map": "cpu"}):
        for outcome in both(pair, bert, uneven(), fast(), None, **options):
            assert isinstance(outcome.error, RecipeError)
            assert "--shard" in str(outcome.error)


def test_an_encoder_decoder_is_refused(pair: Pair, tmp_path: Path) -> None:
    base = save_base(tmp_path / "t5", "t5")
    for outcome in both(pair, base, uneven(), fast(head="model"), None):
        assert isinstance(outcome.error, StoreError)
        assert "an encoder-decoder" in str(outcome.error)


def test_a_model_that_is_not_there_is_one_error(pair: Pair, tmp_path: Path) -> None:
    for outcome in both(pair, tmp_path / "none", uneven(), fast(), None):
        assert isinstance(outcome.error, StoreError)


# ---- last, for it ends the pair --------------------------------------------------------------------------------------


def test_a_rank_that_dies_ends_the_others(bert: Path, tmp_path: Path, pair: Pair) -> None:
    first, second = pair.run(spoiled, bert, tmp_path / "out", death)
    assert second == Outcome()
    assert isinstance(first.error, RanksError)
    assert "--resume" in str(first.error)
    assert json.loads((tmp_path / "out/run.json").read_text())["status"] == "running"
