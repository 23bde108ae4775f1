"""What trackers are told of a run, in TensorBoard's own files and in a tracker that remembers; what is refused."""

import signal
from pathlib import Path
from typing import Any

import pytest

import beft
from beft.errors import Interrupted, RecipeError
from beft.training import trackers
from beft.training.progress import Listener
from beft.training.trackers import check_trackers, flat, tracking
from toys import fast, toy_task
from training.common import After, Notes, learn

tracker_classes = pytest.importorskip("accelerate.tracking")


class Memory(tracker_classes.GeneralTracker):  # type: ignore[misc, name-defined]
    """A tracker that keeps what it is given."""

    name = "memory"
    requires_logging_directory = False
    made: list["Memory"] = []  # noqa: RUF012
    fails_at = -1

    def __init__(self, project: str) -> None:
        super().__init__()
        self.project, self.config, self.lines, self.finished = project, {}, [], 0
        Memory.made.append(self)

    @property
    def tracker(self) -> "Memory":
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        if step == Memory.fails_at:
            raise ConnectionError("no route to host")
        self.lines.append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> list[Memory]:
    monkeypatch.setitem(tracker_classes.LOGGER_TYPE_TO_CLASS, "memory", Memory)
    Memory.made, Memory.fails_at = [], -1
    return Memory.made


def test_a_run_is_followed_to_the_end_and_told_as_before(bert: Path, tmp_path: Path, memory: list[Memory]) -> None:
    recipe, inner = fast(warmup=0.1), Notes()
    with tracking("memory", tmp_path / "out", recipe.to_dict(), inner) as listener:
        assert not memory
        result = learn(bert, toy_task(), recipe, tmp_path / "out", listener=listener)
        listener.scores(result.evaluation)
    (tracker,) = memory
    assert tracker.project == "beft"
    assert tracker.config == {key: "None" if value is None else value for key, value in recipe.to_dict().items()}
    assert tracker.finished == 1
    losses = [(step, key) for step, values in tracker.lines for key in values if key.endswith("/loss")]
    selected = [key for _, key in losses].count("select/loss")
    assert [step for step, _ in losses] == list(range(1, inner.steps + 1))
    assert [key for _, key in losses] == ["select/loss"] * selected + ["refit/loss"] * (inner.steps - selected)
    assert selected == 8  # 29 rows less the dev part, in steps of 8, twice
    epochs = [(step, values) for step, values in tracker.lines if "select/dev_accuracy" in values]
    assert [step for step, _ in epochs] == [4, 8]
    for (_, values), row in zip(epochs, result.history, strict=False):
        expected = {f"select/{key}": row[key] for key in ("epoch", "lr", "train_loss", "dev_loss", "dev_accuracy")}
        assert expected.items() <= values.items()
        assert "select/train_seconds" not in values
    assert tracker.lines[-1] == (inner.steps, {f"evaluation/{k}": v for k, v in result.evaluation.items()})
    names = [name for name, _ in inner.stages]
    assert names[0] == "select"
    assert names[-1] == "evaluation"


def test_a_step_is_logged_with_its_own_loss(memory: list[Memory], tmp_path: Path) -> None:
    with tracking(["memory"], tmp_path, {}) as listener:
        listener.stage("frozen", 9)
        listener.step(None, 9)
        assert not memory
        listener.stage("select", 2)
        listener.step(0.5, 8)
        listener.step(0.25, 8)
        listener.stage("evaluation", 4)
        listener.step(None, 4)
    assert memory[0].lines == [(1, {"select/loss": 0.5}), (2, {"select/loss": 0.25})]


def test_tensorboard_files_hold_the_curves_and_the_recipe(bert: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe, out = fast(epochs=3, refit=False), tmp_path / "out"
    with tracking("tensorboard", out, recipe.to_dict()) as listener:
        result = learn(bert, toy_task(), recipe, out, listener=listener)
    files = EventAccumulator(str(out / "trackers" / "1" / "beft"))
    files.Reload()
    for key in ("lr", "train_loss", "dev_accuracy"):
        events = files.Scalars(f"select/{key}")
        assert [event.value for event in events] == pytest.approx([row[key] for row in result.history], rel=1e-6)
        assert [event.step for event in events] == [4, 8, 12]
    losses = [event.value for event in files.Scalars("select/loss")]
    assert len(losses) == 12
    rows = [8, 8, 8, 5]
    first = sum(loss * count for loss, count in zip(losses, rows, strict=False)) / sum(rows)
    assert first == pytest.approx(result.history[0]["train_loss"], rel=1e-5)
    (settings,) = out.glob("trackers/1/beft/*/hparams.yml")
    assert f"lr: {recipe.lr}" in settings.read_text()

    with tracking("tensorboard", out, recipe.to_dict()) as listener:
        learn(bert, toy_task(), recipe, out, listener=listener, overwrite=True)
    assert sorted(path.name for path in (out / "trackers").iterdir()) == ["1", "2"]


def test_a_resumed_run_goes_on_counting(bert: Path, tmp_path: Path, memory: list[Memory]) -> None:
    recipe, out = fast(), tmp_path / "out"
    with (
        pytest.raises(Interrupted),
        tracking("memory", out, {}, After(10, lambda: signal.raise_signal(signal.SIGTERM))) as listener,
    ):
        learn(bert, toy_task(), recipe, out, listener=listener)
    with tracking("memory", out, {}) as listener:
        learn(bert, toy_task(), recipe, out, listener=listener, resume=True)
    steps = [
        [step for step, values in each.lines if "select/loss" in values or "refit/loss" in values] for each in memory
    ]
    assert steps[0] == list(range(1, 11))
    assert steps[1][0] == 11
    assert memory[0].finished == memory[1].finished == 1


def test_a_resumed_run_writes_where_it_wrote_before(tmp_path: Path, memory: list[Memory]) -> None:
    with tracking([], tmp_path, {}) as listener:
        assert listener._folder().name == "1"
        (tmp_path / "trackers" / "9").mkdir(parents=True)
        (tmp_path / "trackers" / "10").mkdir()
        assert listener._folder().name == "11"
        listener.resumed(5)
        assert listener._folder().name == "10"


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(bert: Path, tmp_path: Path, memory: list[Memory]) -> None:
    Memory.fails_at, inner = 3, Notes()
    with tracking("memory", tmp_path, {}, inner) as listener:
        result = learn(bert, toy_task(), fast(), listener=listener)
    assert result.evaluation
    assert max(step for step, _ in memory[0].lines) == 2
    assert inner.notes == ["tracker 'memory' failed and is left out from here on: no route to host"]


def test_a_tracker_that_does_not_start_stops_the_run_before_it_trains(
    bert: Path, tmp_path: Path, memory: list[Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: Memory) -> None:
        raise ValueError("no API key,\nlog in first")

    monkeypatch.setattr(Memory, "start", start)
    inner = Notes()
    with (
        pytest.raises(RecipeError, match=r"tracker 'memory': .* found no API key, log in first"),
        tracking("memory", tmp_path, {}, inner) as listener,
    ):
        learn(bert, toy_task(), fast(), listener=listener)
    assert inner.steps == 0


def test_no_tracker_passes_events_on_and_needs_nothing(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    inner = Notes()
    with tracking(None, tmp_path, {}, inner) as listener:
        assert isinstance(listener, Listener)
        listener.stage("select", 1)
        listener.step(1.0, 8)
        listener.note("hello")
        listener.scores({"accuracy": 1.0})
    assert (inner.stages, inner.steps, inner.notes) == ([("select", 1)], 1, ["hello"])
    assert not list(tmp_path.iterdir())


def test_unknown_and_missing_trackers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"tracker 'tensorbord': .*Did you mean 'tensorboard'"):
        check_trackers("tensorbord")
    with pytest.raises(RecipeError, match=r"tracker 'nothing-like-it': .*Known: aim, .*wandb"):
        check_trackers(["nothing-like-it"])
    monkeypatch.setattr(tracker_classes, "_available_trackers", ["tensorboard"])
    with pytest.raises(RecipeError, match=r"tracker 'comet_ml': expected comet-ml installed.*Run pip install comet-ml"):
        check_trackers("tensorboard, comet_ml")
    assert check_trackers(" tensorboard,tensorboard, ") == ["tensorboard"]
    assert check_trackers("all") == ["tensorboard"]
    assert check_trackers("") == check_trackers(None) == []
    monkeypatch.setattr(tracker_classes, "_available_trackers", [])
    with pytest.raises(RecipeError, match="Run pip install tensorboard"):
        check_trackers("all")
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"expected accelerate installed.*Run pip install accelerate"):
        check_trackers("tensorboard")


def test_a_configuration_is_flat_and_plain() -> None:
    given = {"a": 1, "b": {"c": None, "d": [1, 2]}, "e": True, "f": 0.5, "g": "x"}
    assert flat(given) == {"a": 1, "b.c": "None", "b.d": "[1, 2]", "e": True, "f": 0.5, "g": "x"}
    assert set(flat(beft.Recipe().to_dict())) == set(beft.Recipe().to_dict())
