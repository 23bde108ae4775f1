"""`beft show` prints prompts as a model gets them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import real
from beft.cli.show import show, visible
from beft.errors import BeftError
from beft.objectives.choose import score_candidates
from beft.tasks.reading import prompt_task
from cli.conftest import Done
from toys import save_base

Show = Callable[..., Done]


@pytest.fixture
def run() -> Show:
    """Run the command; errors that the command line would print come out."""
    app = typer.Typer()
    app.command()(show)

    def call(*arguments: object) -> Done:
        found = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        return Done(found.exit_code, found.stdout, found.stderr)

    return call


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """Rows of a user's own."""
    file = tmp_path / "reviews.csv"
    file.write_text("text,liked,why\n" + "".join(f"w{n} [b]x[/],{'no' if n % 2 else 'yes'},w{n}\n" for n in range(10)))
    return file


OWN = ["--template", r"{text}\nIt was", "--candidates", "no= bad,yes= good", "--label", "liked"]


def test_a_benchmark(run: Show) -> None:
    done = run("copa", "--data-dir", real.data(), "--split", "eval", "--rows", 1)
    assert (done.code, done.out) == (0, "")
    assert done.err.splitlines() == [
        "copa  candidates to choose from; 400 training questions, 100 in validation",
        "",
        "── eval 1 of 100, id 0",
        "The man turned on the faucet so·",
        "    the toilet filled with water.",
        "  → water flowed from the spout.",
        "  blank so·",
        "note: copa has 400 training rows at hand, not 1,000",
    ]


def test_own_rows_with_visible_line_ends_and_their_own_markup(run: Show, reviews: Path) -> None:
    done = run("--data", reviews, *OWN, "--rows", 2)
    assert done.err.splitlines() == [
        "reviews  candidates to choose from; 10 training questions",
        "",
        "── train 1 of 10, id 2",
        "w0 [b]x[/]⏎",
        "It was",
        "    ·bad  no",
        "  → ·good  yes",
        "",
        "── train 2 of 10, id 3",
        "w1 [b]x[/]⏎",
        "It was",
        "  → ·bad  no",
        "    ·good  yes",
    ]


def test_answers_to_write(run: Show, reviews: Path) -> None:
    done = run("--data", reviews, "--template", "{text}:", "--answer", "why", "-n", 1)
    assert done.err.splitlines()[-2:] == ["w0 [b]x[/]:", "  → w0"]
    assert "answers to write" in done.err


def test_demonstrations_and_json(run: Show, reviews: Path) -> None:
    options = ["--data", reviews, *OWN, "--k", 3, "-n", 2, "--json"]
    first, second = json.loads(run(*options).out)
    assert first["shots"] == 3
    assert first["prompt"].endswith("\n\nw0 [b]x[/]\nIt was")
    assert first["prompt"].count("\n\n") == 3
    assert (first["candidates"], first["gold"], first["number"], first["of"]) == ([" bad", " good"], [1], 1, 10)
    fixed = [record["prompt"].split("\n\n")[:-1] for record in json.loads(run(*options, "--fixed").out)]
    assert set(fixed[0]) - {"w1 [b]x[/]\nIt was bad"} <= set(fixed[1])
    assert json.loads(run(*options).out) == [first, second] != json.loads(run(*options, "--seed", 4).out)


def test_a_model_counts_tokens_and_scores_candidates(run: Show, llama: Path) -> None:
    where = real.model("stories260k-llama")
    (record,) = json.loads(run("sst2", "--data-dir", real.data(), "-m", where, "-n", 1, "--json").out)
    question = prompt_task("sst2", real.data()).train[0]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(where)
    scores = score_candidates(AutoModelForCausalLM.from_pretrained(where), tokenizer, [question])[0]
    assert record["scores"] == pytest.approx(scores, rel=2e-2)
    assert record["tokens"] == len(tokenizer(question.prompt)["input_ids"])
    done = run("sst2", "--data-dir", real.data(), "-m", where, "-n", 1)
    assert f"{record['tokens']} tokens" in done.err
    best = scores.index(max(scores))
    assert f"{record['scores'][best]:.3f} best" in done.err


def test_a_model_writes_answers(run: Show, reviews: Path) -> None:
    where = real.model("stories260k-llama")
    done = run("--data", reviews, "--template", "{text}:", "--answer", "why", "-n", 1, "-m", where)
    assert "the model writes " in done.err


def test_without_scores_only_the_tokenizer_is_loaded(run: Show, tmp_path: Path, reviews: Path) -> None:
    base = save_base(tmp_path / "base", "llama", head="lm", special=False)
    (base / "model.safetensors").unlink()
    (record,) = json.loads(run("--data", reviews, *OWN, "-m", base, "--no-scores", "-n", 1, "--json").out)
    assert record["tokens"] > 4
    assert "scores" not in record
    with pytest.raises(BeftError, match="causal language model"):
        run("--data", reviews, *OWN, "-m", base, "-n", 1)


def test_only_demonstrations_that_fit_the_model_are_shown(run: Show, tmp_path: Path, reviews: Path) -> None:
    base = save_base(tmp_path / "base", "llama", head="lm", special=False, max_position_embeddings=40)
    options = ["--data", reviews, *OWN, "-m", base, "--no-scores", "-n", 1, "--json", "--k", 9]
    (record,) = json.loads(run(*options).out)
    assert 1 <= record["shots"] < 9
    assert record["tokens"] <= 40
    assert not record["cut"]


def test_chat(run: Show, llama: Path, tmp_path: Path, reviews: Path) -> None:
    base = save_base(tmp_path / "base", "llama", head="lm", special=False)
    (base / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    options = ["--data", reviews, *OWN, "-m", base, "--no-scores", "-n", 1, "--json"]
    (record,) = json.loads(run(*options, "--chat", "--system", "Be brief.").out)
    assert record["prompt"] == "<system>Be brief.\n<user>w0 [b]x[/]\nIt was\n<assistant>"
    assert record["candidates"] == ["bad", "good"]
    with pytest.raises(BeftError, match="chat: expected a tokenizer with a chat template"):
        run("--data", reviews, *OWN, "-m", llama, "--no-scores", "--chat")


BAD: dict[str, tuple[list[str], str]] = {
    "neither": ([], "TASK and --data: expected one of them, found neither"),
    "both": (["sst2", "--data", "DATA"], "TASK and --data: expected one of them, found both"),
    "own options with a task": (["sst2", "--label", "x"], "--label: expected --data beside it, found the task sst2"),
    "evaluation rows with a task": (["sst2", "--eval-data", "x"], "--eval-data: expected --data beside it"),
    "no template": (["--data", "DATA"], "--data: expected --template beside it"),
    "chat without a model": (["sst2", "--chat"], "--chat: expected --model, for its chat template"),
    "system without chat": (["sst2", "--system", "x"], "--system: expected --chat beside it"),
    "split": (["sst2", "--split", "test"], "--split test: expected train or eval"),
    "unknown task": (["ss2"], r"task 'ss2'.*Did you mean 'sst2'\?"),
    "missing field": (["--data", "DATA", "--template", "{t}", "--answer", "why"], r"template field \{t\}"),
    "no model": (["--data", "DATA", "--template", "{text}", "--answer", "why", "-m", "./no"], r"model '\./no'"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_named(run: Show, reviews: Path, case: str) -> None:
    arguments, message = BAD[case]
    with pytest.raises(BeftError, match=message):
        run(*[str(reviews) if each == "DATA" else each for each in arguments])


def test_what_is_visible() -> None:
    assert visible(" a  b \n\n  \nc\t[x]") == (
        "[dim]·[/]a  b[dim]·[/][dim]⏎[/]\n[dim]⏎[/]\n[dim]··[/][dim]⏎[/]\nc[dim]⇥[/]\t\\[x]"
    )


def test_prompts_are_shown_without_torch(reviews: Path) -> None:
    code = (
        "import sys; from beft.cli.show import show; from beft.tasks import chat, demonstrations;"
        f"show(data={str(reviews)!r}, template='{{text}}', answer='why', rows=1, k=1);"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "1 demonstration" in done.stderr
