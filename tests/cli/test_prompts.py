"""Prompts on the command line: own rows and benchmarks, zero-shot and in-context, and bad input in one line."""

import csv
import json
from pathlib import Path

import pytest

from cli.conftest import Cli, call
from registries import new_session
from toys import save_base, write_csv

TEMPLATE = ["--template", "{text} !", "--candidates", "red= red,green= green,blue= blue", "--label", "label"]


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("decoder") / "tiny-llama", "llama", head="lm", special=False)


@pytest.fixture(scope="session")
def answering(decoder: Path, toy_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of an adapter that answers own prompts."""
    out = tmp_path_factory.mktemp("answering") / "out"
    options = ["-m", decoder, "-o", out, "--epochs", 2, "--max-length", 64, "--dtype", "fp32", "-q"]
    assert call("train", "--data", toy_csv, *TEMPLATE, *options) == 0
    return out


@pytest.fixture
def copa(tmp_path: Path) -> Path:
    """A folder of benchmark data with a toy COPA in it."""
    rows = [
        {
            "premise": f"w{n} red.",
            "choice1": "Good w1.",
            "choice2": "Bad w2.",
            "question": "cause",
            "label": n % 2,
            "idx": n,
        }
        for n in range(12)
    ]
    folder = tmp_path / "data" / "copa"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


def test_own_rows_trained_evaluated_and_predicted(cli: Cli, answering: Path, toy_csv: Path, tmp_path: Path) -> None:
    metrics = json.loads((answering / "metrics.json").read_text())
    assert metrics["objective"] == "choose"
    done = cli("evaluate", answering, "--data", toy_csv, "--json")
    assert done.code == 0, done.err
    (scores,) = json.loads(done.out).values()
    assert set(scores) == {"rows", "accuracy", "f1_macro"}
    bare = write_csv(tmp_path / "new.csv", [("w1 red w2", ""), ("w3 blue", "")], ("text", "other"))
    done = cli("predict", answering, "--data", bare, "--out", tmp_path / "p.jsonl")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [set(line["scores"]) for line in lines] == [{"red", "green", "blue"}] * 2
    assert cli("predict", answering, "--data", bare, "--out", tmp_path / "p.csv", "-q").code == 0
    with (tmp_path / "p.csv").open(newline="") as handle:
        assert [row["prediction"] for row in csv.DictReader(handle)] == [line["prediction"] for line in lines]


OWN_TASKS = """
import beft

def questions(count):
    words = ("red", "green", "blue")
    candidates = tuple(f" {word}" for word in words)
    return [beft.Question(n, f"w{n} {words[n % 3]} !", candidates, (n % 3,)) for n in range(count)]

def colours():
    return beft.PromptTask("mine", questions(3), {"new": questions(4)}, ("red", "green", "blue"), ("accuracy",))

def labels():
    return beft.Task("mine", ("a", "b"), ("text",), ("accuracy",), [beft.Example(0, ("w1",), 0)])
"""


def test_an_own_task_of_prompts_is_answered(cli: Cli, answering: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text(OWN_TASKS)
    with new_session():
        done = cli("predict", answering, "--task", f"{own}:colours", "--out", tmp_path / "p.jsonl")
        assert done.code == 0, done.err
        lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
        assert [line["id"] for line in lines] == [0, 1, 2, 3]
        assert [set(line["scores"]) for line in lines] == [{"red", "green", "blue"}] * 4
        done = cli("predict", answering, "--task", f"{own}:labels", "--out", tmp_path / "q.jsonl")
        assert done.code == 2
        assert "expected a beft.PromptTask" in done.err


def test_a_benchmark_zero_shot_in_context_and_trained(cli: Cli, decoder: Path, copa: Path, tmp_path: Path) -> None:
    common = ["--task", "COPA", "--data-dir", copa, "--dtype", "fp32"]
    zero = cli("evaluate", "--method", "zero-shot", "-m", decoder, *common, "--json")
    assert zero.code == 0, zero.err
    few = cli("evaluate", "--method", "icl", "-k", 2, "-m", decoder, *common, "--max-length", 64)
    assert few.code == 0, few.err
    assert "validation (12 rows)" in few.err
    done = cli("train", "-m", decoder, *common, "--epochs", 1, "--max-length", 64, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert "zero-shot" in done.err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["baselines"]["zero_shot"]["accuracy"] == next(iter(json.loads(zero.out).values()))["accuracy"]
    again = cli("evaluate", tmp_path / "out", "--data-dir", copa, "--json")
    assert json.loads(again.out) == {"validation": {"rows": 12, **metrics["evaluation"]}}


def test_written_answers(cli: Cli, decoder: Path, toy_csv: Path, tmp_path: Path) -> None:
    options = ["--template", "{text} !", "--answer", "label", "--epochs", 1, "--max-length", 64, "--dtype", "fp32"]
    done = cli("train", "-m", decoder, "--data", toy_csv, *options, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert set(json.loads(done.out)["evaluation"]) == {"token_f1", "em"}


@pytest.fixture(scope="session")
def writing(decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of an adapter that writes answers of two lines, and the rows it learned beside it."""
    folder = tmp_path_factory.mktemp("writing")
    rows = write_csv(folder / "rows.csv", [(f"w{n} red", f"w{n}\nred") for n in range(12)], ("text", "reply"))
    options = ["--template", "{text} !", "--answer", "reply", "--stop", "w39", "--generation", "max_new_tokens=5"]
    machine = ["--epochs", 1, "--max-length", 64, "--dtype", "fp32", "-q"]
    assert call("train", "-m", decoder, "--data", rows, *options, *machine, "-o", folder / "out") == 0
    return folder / "out"


def test_how_answers_are_written_is_kept_and_can_be_said_anew(cli: Cli, writing: Path, tmp_path: Path) -> None:
    task = json.loads((writing / "beft.json").read_text())["task"]
    assert (task["stop"], task["generation"]) == (["w39"], {"max_new_tokens": 5})
    rows = writing.parent / "rows.csv"
    done = cli("evaluate", writing, "--data", rows, "--json")
    assert done.code == 0, done.err
    lengths = {}
    for name, options in (("kept", []), ("short", ["--generation", "max_new_tokens=1,num_beams=2"])):
        out = tmp_path / f"{name}.jsonl"
        done = cli("predict", writing, "--data", rows, "--out", out, *options, "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out) == {"rows": 12, "out": str(out), "notes": []}
        lengths[name] = max(len(json.loads(line)["prediction"].split()) for line in out.read_text().splitlines())
    assert lengths["short"] <= 1 < lengths["kept"] <= 5


def test_an_adapter_that_writes_is_asked_a_task_that_chooses(
    cli: Cli, writing: Path, answering: Path, copa: Path, tmp_path: Path
) -> None:
    for adapter in (writing, answering):
        options = ["--task", "copa", "--data-dir", copa, "--split", "validation", "--out", tmp_path / "p.jsonl"]
        done = cli("predict", adapter, *options)
        assert done.code == 0, done.err
        lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
        assert {line["prediction"] for line in lines} <= {"good w1.", "bad w2."}
        done = cli("predict", adapter, *options, "--format", "glue")
        assert done.code == 2
        assert "expected an adapter with a head" in done.err


def test_fixed_sets_of_demonstrations_are_scored_each_with_their_mean(cli: Cli, decoder: Path, copa: Path) -> None:
    common = ["--method", "icl", "-k", 2, "-m", decoder, "--task", "copa", "--data-dir", copa, "--dtype", "fp32"]
    done = cli("evaluate", *common, "--fixed", 2, "--score", "calibrated-icl", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    sets = [found[f"validation, set {number}"]["accuracy"] for number in (0, 1)]
    assert found["validation, mean"]["accuracy"] == pytest.approx(sum(sets) / 2)
    assert "validation, sd" in found


@pytest.mark.parametrize("reduction", ["mean", "sum", "calibrated"])
def test_ways_to_score(cli: Cli, decoder: Path, copa: Path, reduction: str) -> None:
    done = cli(
        "evaluate", "--method", "zero-shot", "-m", decoder, "--task", "copa", "--data-dir", copa, "--score", reduction
    )
    assert done.code == 0, done.err


def test_calibrated_by_a_blank_prompt(cli: Cli, decoder: Path, toy_csv: Path, tmp_path: Path) -> None:
    """The blank prompt is the adapter's own afterwards; another one gives other scores."""
    common = ["-m", decoder, "--data", toy_csv, *TEMPLATE, "--dtype", "fp32"]
    shown = cli("show", "-m", decoder, "--data", toy_csv, *TEMPLATE, "--blank", "{label} w1!", "--json", "-n", 2)
    assert [each["blank"] for each in json.loads(shown.out)] == ["red w1!", "green w1!"]
    out = tmp_path / "out"
    done = cli("train", *common, "--blank", "w1 !", "-o", out, "--epochs", 1, "--max-length", 64, "-q")
    assert done.code == 0, done.err
    assert json.loads((out / "beft.json").read_text())["task"]["asked"]["blank"] == "w1 !"
    for options in ([], ["--blank", "w2 good"]):
        done = cli("evaluate", out, "--data", toy_csv, "--score", "calibrated", *options, "--json")
        assert done.code == 0, done.err
    done = cli("evaluate", out, "--data", toy_csv, "--score", "calibrated", "--blank", "{nothing}")
    assert done.code == 2
    assert "nothing" in done.err
    done = cli("evaluate", "--method", "zero-shot", "-m", decoder, "--task", "copa", "--blank", "w1")
    assert done.code == 2
    assert "--blank: expected --data beside it" in done.err


def test_rows_of_one_class_are_judged_all_of_them(
    cli: Cli, decoder: Path, answering: Path, toy_csv: Path, tmp_path: Path
) -> None:
    rows = write_csv(tmp_path / "one.csv", [("w1 red", "red"), ("w2 red", "red"), ("w3 red", "red")])
    zero = ["evaluate", "--method", "zero-shot", "-m", decoder, *TEMPLATE, "--data"]
    for arguments, count in (
        (["evaluate", answering, "--data", rows], 3),
        ([*zero, rows], 3),
        ([*zero, toy_csv], 36),
        ([*zero, toy_csv, "--eval-size", 5], 5),
    ):
        done = cli(*arguments, "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["evaluation"]["rows"] == count


def test_options_of_prompts_without_one_are_refused(
    cli: Cli, bert: Path, adapter: Path, toy_csv: Path, tmp_path: Path
) -> None:
    labels = ["--data", toy_csv, "--text", "text", "--label", "label"]
    for option in (["--blank", "x"], ["--candidates", "a|b"], ["--answer", "label"], ["--chat"]):
        for done in (
            cli("train", "-m", bert, *labels, "-o", tmp_path / "out", *option),
            cli("evaluate", adapter, "--data", toy_csv, *option),
        ):
            assert done.code == 2
            assert f"{option[0]}: expected a prompt, found a task of labels" in done.err


def test_less_memory_by_flags(cli: Cli, decoder: Path, toy_csv: Path, tmp_path: Path) -> None:
    common = ["-m", decoder, "--data", toy_csv, *TEMPLATE, "--epochs", 1, "--max-length", 64, "--dtype", "fp32"]
    assert cli("train", *common, "-o", tmp_path / "plain", "-q").code == 0
    flags = ["--gradient-checkpointing", "--micro-batch-size", 2, "--token-budget", 40]
    done = cli("train", *common, "-o", tmp_path / "small", *flags, "--device-map", '{"": "cpu"}')
    assert done.code == 0, done.err
    assert "use_cache" not in done.err
    one, other = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("plain", "small"))
    assert one["evaluation"] == other["evaluation"]
    machine = json.loads((tmp_path / "small" / "run.json").read_text())["machine"]
    assert (machine["gradient_checkpointing"], machine["micro_batch_size"], machine["token_budget"]) == (True, 2, 40)


BAD = {
    "missing field": (["--template", "{nothing} !", *TEMPLATE[2:]], "nothing"),
    "equal candidates": (["--template", "{text}", "--candidates", " a| a", "--label", "label"], "twice"),
    "no candidates": (["--template", "{text}", "--label", "label"], "candidates"),
    "objective": (["--objective", "dream", *TEMPLATE], "expected classify, choose or generate"),
    "classify": (["--objective", "classify", *TEMPLATE], "expected a task with labels"),
    "head": (["--head", "linear", *TEMPLATE], "--head: expected --objective classify beside it"),
    "chat": (["--chat", *TEMPLATE], "chat template"),
    "quantize": (["--quantize", "3bit", *TEMPLATE], "quantize '3bit': expected 8bit, 4bit or none"),
    "device map": (["--device-map", "mars", *TEMPLATE], "device_map 'mars'"),
    "micro-batch": (["--micro-batch-size", "0", *TEMPLATE], "--micro-batch-size"),
    "blank": (["--blank", "{nothing}", *TEMPLATE], "nothing"),
    "no template": (["--objective", "choose", "--label", "label"], "--template"),
    "generate candidates": (["--objective", "generate", *TEMPLATE], "--objective generate: expected choose"),
    "choose an answer": (
        ["--objective", "choose", "--template", "{text}", "--answer", "label"],
        "--objective choose: expected generate",
    ),
    "stop without answers": (["--stop", "#", *TEMPLATE], "--stop: expected --answer beside it"),
    "unknown setting": (["--generation", "num_beam=2", "--template", "{text}", "--answer", "label"], "num_beams"),
    "no value": (["--generation", "num_beams", "--template", "{text}", "--answer", "label"], "--generation num_beams"),
    "beams": (["--generation", "num_beams=0", "--template", "{text}", "--answer", "label"], "a number above 0"),
    "refused": (["--generation", "temperature=0.7", "--template", "{text}", "--answer", "label"], "do_sample"),
    "refused when it writes": (
        ["--generation", "do_sample=true,top_k=-3", "--template", "{text}", "--answer", "label", "--max-length", "64"],
        "top_k",
    ),
    "both ways to judge": (["--eval", "x.csv", "--no-eval", *TEMPLATE], "--no-eval"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(cli: Cli, decoder: Path, toy_csv: Path, tmp_path: Path, case: str) -> None:
    arguments, message = BAD[case]
    done = cli("train", "-m", decoder, "--data", toy_csv, "-o", tmp_path / "out", *arguments)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate"], "expected a folder that `beft train` wrote, or --method"),
        (["evaluate", "--method", "guess", "-m", "DECODER", "--task", "copa"], "expected zero-shot or icl"),
        (["evaluate", "--method", "icl", "--task", "copa"], "expected --model beside it"),
        (["evaluate", "--method", "icl", "-m", "BERT", "--task", "copa"], "causal language model"),
        (["train", "-m", "BERT", "--task", "copa", "-o", "OUT"], "causal language model"),
        (["train", "-m", "DECODER", "--task", "squad", "--objective", "choose", "-o", "OUT"], "candidates"),
        (["train", "-m", "DECODER", "--task", "rte", "--objective", "generate", "-o", "OUT"], "squad, drop"),
        (["train", "-m", "DECODER", "--task", "copa", "--label", "x", "-o", "OUT"], "--label: expected --data"),
        (["train", "-m", "DECODER", "--task", "copa", "--stop", "x", "-o", "OUT"], "--stop: expected answers to write"),
        (["train", "-m", "BERT", "--task", "stsb", "--regression", "-o", "OUT"], "--regression: expected --data"),
        (["evaluate", "--method", "zero-shot", "-m", "DECODER", "--task", "copa", "--fixed", "2"], "--method icl"),
    ],
)
def test_what_does_not_go_together(
    cli: Cli, decoder: Path, bert: Path, copa: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    names = {"DECODER": decoder, "BERT": bert, "OUT": tmp_path / "out"}
    options = ["--data-dir", copa] if len(arguments) > 1 else []
    done = cli(*[names.get(each, each) for each in arguments], *options)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
