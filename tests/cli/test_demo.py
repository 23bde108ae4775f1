"""The data that comes along, and the demo on a tiny base."""

import csv
import json
from collections import Counter
from importlib import resources
from pathlib import Path

from cli.conftest import Cli

FOLDER = Path(str(resources.files("beft") / "demo"))


def rows(name: str) -> list[tuple[str, str]]:
    with (FOLDER / name).open(newline="", encoding="utf-8") as handle:
        return [(row["text"], row["intent"]) for row in csv.DictReader(handle)]


def test_eight_intents_with_their_shares_in_both_parts() -> None:
    train, test = rows("tickets-train.csv"), rows("tickets-test.csv")
    assert (len(train), len(test)) == (280, 120)
    counts, held = Counter(label for _, label in train), Counter(label for _, label in test)
    assert len(counts) == 8
    assert counts.keys() == held.keys()
    assert min(counts.values()) >= 20
    assert min(held.values()) >= 10


def test_no_message_comes_twice_and_none_is_empty() -> None:
    texts = [
        " ".join(text.lower().split()) for name in ("tickets-train.csv", "tickets-test.csv") for text, _ in rows(name)
    ]
    assert len(set(texts)) == 400
    assert min(len(text.split()) for text in texts) >= 3


def test_the_demo_ends_with_a_table_and_a_next_step(cli: Cli, bert: Path, tmp_path: Path) -> None:
    done = cli("demo", "--model", bert, "--out", tmp_path / "demo")
    assert done.code == 0, done.err
    for words in ("280 support tickets", "120 evaluation rows", "majority", "beft, value bias", "beft predict"):
        assert words in done.err
    assert (tmp_path / "demo" / "metrics.json").exists()
    assert cli("demo", "--model", bert, "--out", tmp_path / "demo").code == 2


def test_the_demo_in_json(cli: Cli, bert: Path, tmp_path: Path) -> None:
    done = cli("demo", "--model", bert, "--out", tmp_path / "demo", "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == json.loads((tmp_path / "demo" / "metrics.json").read_text())
