"""`beft inspect` shows a model's sites with their proof, and what an adapter holds."""

import json
from pathlib import Path

from cli.conftest import Cli


def test_a_model(cli: Cli, bert: Path) -> None:
    done = cli("inspect", bert)
    assert done.code == 0
    for words in ("BertModel", "b_v", "attention.self.value", "proven", "inert"):
        assert words in done.err


def test_a_model_as_json(cli: Cli, llama: Path) -> None:
    done = cli("inspect", llama, "--terms", "value", "--json")
    assert done.err == ""
    record = json.loads(done.out)
    assert [site["layer"] for site in record["sites"]] == [0, 1]
    assert all(site["proven"] for site in record["sites"])
    assert record["terms"]["value"] == 2 * 16  # two heads of keys and values, eight features each


def test_an_adapter(cli: Cli, adapter: Path) -> None:
    done = cli("inspect", adapter)
    assert done.code == 0
    for words in ("labels: blue, green, red", "encoder.layer.1.attention.self.value", "evaluation: accuracy"):
        assert words in done.err
    record = json.loads(cli("inspect", adapter, "--json").out)
    assert len(record["vectors"]) == 2
    assert record["metrics"]["trainable_parameters"] == 163
