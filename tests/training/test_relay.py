"""What is relayed is told again as it was told; a note once, a run that begins anew by a listener of its own."""

import pickle
from typing import Any

from beft.training.progress import BankListener, Listener
from beft.training.relay import RelayedBank, Retelling


class Heard(BankListener):
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.listeners = 0

    def begin(self, steps: Any, done: Any) -> None:
        self.calls.append(("begin", steps, done))

    def of(self, name: str) -> Listener:
        self.listeners += 1
        outer, number = self, self.listeners

        class One(Listener):
            def stage(self, stage: str, steps: int) -> None:
                outer.calls.append((name, number, "stage", stage, steps))

            def resumed(self, steps: int) -> None:
                outer.calls.append((name, number, "resumed", steps))

            def step(self, loss: float | None, examples: int) -> None:
                outer.calls.append((name, number, "step", loss, examples))

            def epoch(self, row: dict[str, Any]) -> None:
                outer.calls.append((name, number, "epoch", row))

            def note(self, text: str) -> None:
                outer.calls.append((name, number, "note", text))

        return One()

    def note(self, text: str) -> None:
        self.calls.append(("note", text))

    def ended(self, name: str, scores: Any, error: Exception | None) -> None:
        self.calls.append(("ended", name, scores, error and str(error)))


def speak(listener: BankListener) -> None:
    listener.begin({"a": 3}, ["b"])
    run = listener.of("a")
    run.stage("select", 3)
    run.resumed(1)
    run.step(0.5, 8)
    run.step(None, 4)
    run.epoch({"epoch": 1, "dev_accuracy": 0.5})
    run.note("odd")
    listener.note("short of memory")
    listener.ended("a", {"accuracy": 1.0}, None)
    listener.ended("c", None, ValueError("not finite"))


def test_told_again_as_it_was_told() -> None:
    direct, again, events = Heard(), Heard(), []
    speak(direct)
    speak(RelayedBank(lambda *event: events.append(event)))
    retelling = Retelling(again)
    for event in pickle.loads(pickle.dumps(events)):
        retelling.tell(*event)
    assert again.calls == direct.calls


def test_a_note_of_two_workers_is_told_once_and_a_lost_run_has_a_new_listener() -> None:
    heard = Heard()
    retelling = Retelling(heard)
    for _ in range(2):
        retelling.tell("", "note", "short of memory")
    retelling.tell("a", "step", 0.5, 8)
    retelling.tell("a", "step", 0.4, 8)
    retelling.forget("a")
    retelling.tell("a", "step", 0.6, 8)
    assert [call[0] for call in heard.calls] == ["note", "a", "a", "a"]
    assert [call[1] for call in heard.calls[1:]] == [1, 1, 2]
