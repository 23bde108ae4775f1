"""The user's own rows: formats, labels, splits, and what is wrong with them."""

import contextlib
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from beft.errors import DataError
from beft.tasks.own import own_examples, own_task, source_name
from beft.tasks.table import read_rows
from toys import texts, write_csv

COLOURS = ("blue", "green", "red")  # sorted, as classes are
ROWS: list[dict[str, Any]] = [{"text": text, "label": ("red", "green", "blue")[c]} for text, c in texts(30)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind == ".parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(rows), path)
        return path
    if kind == ".jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        separator = "\t" if kind == ".tsv" else ","
        text = separator.join(rows[0]) + "\n"
        text += "".join(separator.join(f'"{value}"' for value in row.values()) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.jsonl", "d.csv.gz", "d.jsonl.gz", "d.parquet"])
def test_every_format_gives_the_same_task(tmp_path: Path, name: str) -> None:
    task = own_task(write(tmp_path / name, ROWS), ["text"], "label", hold_out=False)
    assert task.labels == COLOURS
    assert [(row.texts[0], COLOURS[int(row.label or 0)]) for row in task.train] == [
        (row["text"], row["label"]) for row in ROWS
    ]
    assert task.name == "d"
    assert own_task(tmp_path / name, "text", "label", hold_out=False) == task


@pytest.mark.parametrize("separator", [";", "\t"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_a_csv_of_semicolons_or_tabs_is_read_as_what_it_is(tmp_path: Path, separator: str, quote: str) -> None:
    lines = [(f"{quote}text{quote}", f"{quote}label{quote}")]
    lines += [(f"{quote}{row['text']}{quote}", f"{quote}{row['label']}{quote}") for row in ROWS]
    (tmp_path / "d.csv").write_text("".join(separator.join(line) + "\n" for line in lines))
    task = own_task(tmp_path / "d.csv", ["text"], "label", hold_out=False)
    assert [row.texts[0] for row in task.train] == [row["text"] for row in ROWS]
    with (tmp_path / "d.csv").open("a") as file:
        file.write("a\n")
    with pytest.raises(DataError, match=rf"line {len(ROWS) + 2}: expected 2 columns \(text, label\), found 1"):
        own_task(tmp_path / "d.csv", ["text"], "label")


def test_as_many_classes_as_rows_leave_none_to_hold_out(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "d.csv", [(f"text {number}", f"label {number}") for number in range(9)])
    with pytest.raises(
        DataError, match=r"column 'label': expected a class of two texts.*found 9 texts in 9 classes.*--no-eval"
    ):
        own_task(file, ["text"], "label")


def test_held_out_texts_are_not_learned(tmp_path: Path) -> None:
    rows = [(f"text {number}", "xy"[number % 2]) for number in range(20)]
    task = own_task(write_csv(tmp_path / "twice.csv", [*rows, *rows, ("text 3", "x")]), ["text"], "label")
    learned, held = task.train, task.evaluation["held-out"]
    assert len(learned) + len(held) == 41
    assert not {e.texts for e in learned} & {e.texts for e in held}
    assert len({e.texts for e in held}) == 4


def test_one_text_only_leaves_none_to_hold_out(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "d.csv", [("same", "xy"[number % 2]) for number in range(9)])
    with pytest.raises(DataError, match="expected a class of two texts or more, for some are held out"):
        own_task(file, ["text"], "label")


def test_labels_that_are_alike_are_told(tmp_path: Path) -> None:
    names = ("Billing", "billing", "late delivery", "Late-delivery", "c", "C++")
    rows = [(f"text {number}", names[number % 6]) for number in range(60)]
    (note,) = own_task(write_csv(tmp_path / "d.csv", rows), ["text"], "label").notices
    assert note == "the labels 'Billing' and 'billing' are alike, and 2 more such: they count as different classes"
    numbers = [(text, {"c": "-1", "C++": "1"}.get(label, label)) for text, label in rows]
    (note,) = own_task(write_csv(tmp_path / "e.csv", numbers), ["text"], "label").notices
    assert "and 1 more such" in note


def test_classes_that_are_not_judged_are_told(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "a.csv", [(f"text {number}", "xyz"[number % 3]) for number in range(12)])
    held = write_csv(tmp_path / "b.csv", [("new text", "x"), ("another", "z")])
    (note,) = own_task(train, ["text"], "label", eval_data=held).notices
    assert note == "no evaluation row has the label 'y': not judged"


def test_evaluation_rows_without_text_are_told(tmp_path: Path) -> None:
    write_csv(tmp_path / "d.csv")
    (tmp_path / "e.csv").write_text("text,label\na,red\n,red\n ,red\n")
    notices = own_task(tmp_path / "d.csv", ["text"], "label", eval_data=tmp_path / "e.csv").notices
    assert "evaluation rows without text, so that the label means nothing: 2 (the first: row 3)" in notices


def test_a_number_is_its_class_however_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("text,label\na,1\nb,1.0\nc,2\nd,01\n")
    read = list(own_examples(tmp_path / "d.csv", ["text"], "label", ["1.0", "2.0"]))
    assert [row.label for row in read] == [0, 0, 1, 0]
    with pytest.raises(DataError, match="line 2: expected one of the 2 labels of training, found '1'"):
        list(own_examples(tmp_path / "d.csv", ["text"], "label", ["1.0", "1.00"]))  # versions, or the like


def test_a_missing_file_suggests_files_of_rows_alone(tmp_path: Path) -> None:
    (tmp_path / "setup.py").touch()
    with pytest.raises(DataError, match=r"found none of this name\. Check the path\.$"):
        own_task(tmp_path / "sheet.csv", ["text"], "label")
    (tmp_path / "sheets.csv").touch()
    with pytest.raises(DataError, match=r"Did you mean 'sheets\.csv'\?$"):
        own_task(tmp_path / "sheet.csv", ["text"], "label")


def test_line_numbers_are_those_of_an_editor(tmp_path: Path) -> None:
    file = tmp_path / "d.csv"
    file.write_text('text,label\n"two\nlines",a\nplain,b\n')
    rows = own_task(file, ["text"], "label", hold_out=False).train
    assert [(row.id, row.texts) for row in rows] == [(2, ("two\nlines",)), (4, ("plain",))]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    file = tmp_path / "d.csv"
    file.write_bytes(b"\xef\xbb\xbftext,label\na,x\nb,y\n")
    assert own_task(file, ["text"], "label", hold_out=False).labels == ("x", "y")


@pytest.mark.parametrize("name", ["d.csv", "d.jsonl", "d.parquet"])
def test_integer_labels_are_classes_sorted_by_value(tmp_path: Path, name: str) -> None:
    rows = [{"text": f"w{i}", "label": [10, 9, -1][i % 3]} for i in range(9)]
    assert own_task(write(tmp_path / name, rows), ["text"], "label", hold_out=False).labels == ("-1", "9", "10")


@pytest.mark.parametrize("name", ["d.csv", "d.jsonl", "d.parquet"])
def test_labels_with_a_fraction_make_a_regression(tmp_path: Path, name: str) -> None:
    rows = [{"text": f"w{i}", "label": i / 2} for i in range(9)]
    task = own_task(write(tmp_path / name, rows), ["text"], "label", hold_out=False)
    assert task.labels is None
    assert task.metrics == ("spearman", "pearson")
    assert [row.label for row in task.train] == [i / 2 for i in range(9)]


def test_whole_numbers_are_classes_unless_regression_is_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path / "d.csv", [{"text": f"w{i}", "label": i % 4} for i in range(12)])
    assert own_task(file, ["text"], "label").labels == ("0", "1", "2", "3")
    assert own_task(file, ["text"], "label", regression=True).labels is None


def test_none_is_a_class_where_a_data_set_says_so(tmp_path: Path) -> None:
    rows = [{"text": f"w{i}", "label": ["favor", "against", "none"][i % 3]} for i in range(9)]
    assert own_task(write(tmp_path / "d.csv", rows), ["text"], "label").labels == ("against", "favor", "none")


def test_booleans_are_two_classes(tmp_path: Path) -> None:
    rows = [{"text": f"w{i}", "label": i % 2 == 0} for i in range(8)]
    assert own_task(write(tmp_path / "d.jsonl", rows), ["text"], "label").labels == ("False", "True")


def test_without_an_evaluation_file_a_stratified_fifth_is_held_out(tmp_path: Path) -> None:
    task = own_task(write(tmp_path / "d.csv", ROWS), ["text"], "label")
    (held,) = task.evaluation.values()
    assert len(held) == 6
    assert Counter(row.label for row in held) == {0: 2, 1: 2, 2: 2}
    assert not {row.id for row in held} & {row.id for row in task.train}
    assert len(task.train) + len(held) == len(ROWS)


def test_no_hold_out_trains_on_every_row(tmp_path: Path) -> None:
    task = own_task(write(tmp_path / "d.csv", ROWS), ["text"], "label", hold_out=False)
    assert len(task.train) == len(ROWS)
    assert task.evaluation == {}


@pytest.mark.parametrize("size", [3, 10, 22, 23, 24])
def test_a_training_size_gives_exactly_that_many_rows(tmp_path: Path, size: int) -> None:
    assert len(own_task(write(tmp_path / "d.csv", ROWS), ["text"], "label", size=size).train) == size


def test_evaluation_rows_that_are_training_rows_are_counted(tmp_path: Path) -> None:
    train, test = write(tmp_path / "a.csv", ROWS), write(tmp_path / "b.csv", ROWS[:4])
    task = own_task(train, ["text"], "label", eval_data=test)
    assert task.notices == ["4 evaluation text(s) stand in the training rows too"]


def test_the_same_text_with_two_labels_is_counted_and_shown(tmp_path: Path) -> None:
    rows = [*ROWS, {"text": ROWS[0]["text"], "label": "blue"}]
    task = own_task(write(tmp_path / "d.csv", rows), ["text"], "label", hold_out=False)
    assert task.notices == [f"1 training text has two labels, e.g. {ROWS[0]['text']!r}"]


def test_the_fingerprint_tells_data_apart(tmp_path: Path) -> None:
    first = own_task(write(tmp_path / "a.csv", ROWS), ["text"], "label")
    again = own_task(write(tmp_path / "b.jsonl", ROWS), ["text"], "label")
    other = own_task(write(tmp_path / "c.csv", ROWS[:-1]), ["text"], "label")
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


BAD: dict[str, tuple[str, str, str]] = {  # name: file, content, message
    "missing file": ("", "", r"d\.csv: expected a file, found none of this name"),
    "no rows": ("d.csv", "text,label\n", r"d\.csv: expected rows, found none"),
    "empty file": ("d.csv", "", r"d\.csv: expected rows, found none"),
    "wrong column": ("d.csv", "txt,label\na,x\n", r"d\.csv, column 'text'.*found txt, label\. Did you mean 'txt'\?"),
    "one class": ("d.csv", "text,label\na,x\nb,x\nc,x\nd,x\ne,x\n", r"d\.csv, column 'label'.*one class only \('x'\)"),
    "few rows": ("d.csv", "text,label\na,x\nb,y\n", r"d\.csv: expected at least 5 rows to hold some out, found 2"),
    "empty text": ("d.csv", "text,label\na,x\n ,y\nc,x\nd,y\ne,x\nf,y\n", r"d\.csv, line 3: expected text in text"),
    "empty label": ("d.csv", "text,label\na,x\nb,\n", r"d\.csv, line 3: expected a label, found ''"),
    "nan label": ("d.csv", "text,label\na,x\nb,nan\n", r"d\.csv, line 3: expected a label, found 'nan'"),
    "nan number": ("d.csv", "text,label\na,0.5\nb,nan\n", r"d\.csv, line 3: expected a label, found 'nan'"),
    "null label": ("d.jsonl", '{"text":"a","label":"x"}\n{"text":"b","label":null}\n', r"line 2: expected a label"),
    "json nan": ("d.jsonl", '{"text":"a","label":0.5}\n{"text":"b","label":NaN}\n', r"line 2: expected a label"),
    "infinite": ("d.csv", "text,label\na,0.5\nb,inf\n", r"line 3: expected a finite number as label, found 'inf'"),
    "broken json": ("d.jsonl", '{"text":"a","label":"x"}\n\n{"text": "b", \n', r"d\.jsonl, line 3: expected one JSON"),
    "json list": ("d.jsonl", '["a", "b"]\n', r"d\.jsonl, line 1: expected a JSON object, found list"),
    "multi-label": ("d.jsonl", '{"text":"a","label":["x","y"]}\n', r"line 1: expected one label a row.*Multi-label"),
    "width": ("d.csv", "text,label\na,x\nb,y,z\n", r"d\.csv, line 3: expected 2 columns \(text, label\), found 3"),
    "open quote": ("d.csv", 'label,text\nx,"a\ny,b\nx,c\n', r'd\.csv, line 2: expected a closing ".*Close it'),
    "open quote, narrow": ("d.csv", 'text,label\na,x\n"b,y\nc,x\n', r'd\.csv, line 3: expected a closing "'),
    "open quote, tabs": ("d.tsv", 'label\ttext\nx\ta\ny\t"b\nx\tc\n', r'd\.tsv, line 3: expected a closing "'),
    "open quote, semicolons": ("d.csv", 'label;text\nx;a\ny;"b\nx;c\n', r'd\.csv, line 3: expected a closing "'),
    "twice": ("d.csv", "text,label,text\na,x,b\n", r"d\.csv, line 1: expected every column once, found 'text' twice"),
    "ending": ("d.xlsx", "PK", r"d\.xlsx: expected a file ending in \.csv.*found \.xlsx"),
    "not gzip": ("d.csv.gz", "text,label\n", r"d\.csv\.gz: expected a file that can be read"),
    "not parquet": ("d.parquet", "text,label\n", r"d\.parquet: expected a Parquet file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_named(tmp_path: Path, case: str) -> None:
    name, content, message = BAD[case]
    if name:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        own_task(tmp_path / (name or "d.csv"), ["text"], "label")
    assert "\n" not in str(caught.value)


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    write_csv(tmp_path / "tickets.csv")
    with pytest.raises(DataError, match=r"ticket\.csv.*Did you mean 'tickets\.csv'\?"):
        own_task(tmp_path / "ticket.csv", ["text"], "label")


def test_in_a_full_folder_some_neighbours_are_named(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number}.csv").touch()
    (tmp_path / "f.csv").mkdir()
    with pytest.raises(DataError, match=r"Known: 0\.csv, 1\.csv, .*\.\.\. \(80 more\)\.") as caught:
        own_task(tmp_path / "ticket.csv", ["text"], "label")
    assert " f.csv" not in str(caught.value)


def test_quotes_in_their_places_are_read(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text('text,label\n"a ""b"",\nc",x\nd "e,y\n"f",x\ng,y\nh,"x"')
    rows = [row for _, row in read_rows(tmp_path / "d.csv")]
    assert [row["text"] for row in rows] == ['a "b",\nc', 'd "e', "f", "g", "h"]
    assert [row["label"] for row in rows] == ["x", "y", "x", "y", "x"]


def test_bytes_that_are_no_utf8_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes("text,label\ncafé,x\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"d\.csv: expected UTF-8 text.*[Ss]ave it as UTF-8"):
        own_task(tmp_path / "d.csv", ["text"], "label")


@pytest.mark.parametrize("cut", [0.5, 0.9])
def test_a_gzip_file_cut_short_or_damaged_names_the_file(tmp_path: Path, cut: float) -> None:
    file = write(tmp_path / "d.csv.gz", ROWS)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * cut)])
    with pytest.raises(DataError, match=r"d\.csv\.gz: expected a file that can be read"):
        own_task(file, ["text"], "label")
    file.write_bytes(whole[:40] + bytes(20) + whole[60:])
    with pytest.raises(DataError, match=r"d\.csv\.gz"):
        own_task(file, ["text"], "label")


def test_text_and_label_must_be_two_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column 'text': expected text and label in two columns"):
        own_task(write(tmp_path / "d.csv", ROWS), ["text"], "text")


def test_fewer_rows_than_classes_are_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "a.csv", ROWS)
    with pytest.raises(DataError, match=r"at least one row for each of 3 classes, found 2 rows"):
        own_task(train, ["text"], "label", size=2)


def test_a_label_unseen_in_training_is_named_with_the_nearest(tmp_path: Path) -> None:
    train, test = (
        write(tmp_path / "a.csv", ROWS),
        write(tmp_path / "b.csv", [*ROWS[:2], {"text": "x", "label": "gren"}]),
    )
    with pytest.raises(
        DataError, match=r"b\.csv, line 4: expected one of the 3 labels.*'gren'.*[Dd]id you mean 'green'"
    ):
        own_task(train, ["text"], "label", eval_data=test)
    with pytest.raises(DataError, match=r"b\.csv, line 4"):
        list(own_examples(test, ["text"], "label", COLOURS))


def test_a_word_among_numbers_is_named_as_no_number(tmp_path: Path) -> None:
    file = write(tmp_path / "d.csv", [{"text": "a", "label": 0.5}, {"text": "b", "label": "high"}])
    with pytest.raises(DataError, match=r"d\.csv, line 3: expected a number as label, found 'high'"):
        own_task(file, ["text"], "label", regression=True)


def test_rows_to_predict_are_a_stream(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"text": "a"}\n{"text": "b"}\nbroken\n')
    stream = iter(own_examples(file, ["text"], None, COLOURS))
    assert [next(stream).texts, next(stream).texts] == [("a",), ("b",)]
    with pytest.raises(DataError, match="line 3"):
        next(stream)


# ---- the Hub ---------------------------------------------------------------------------------------------------------

Asked = list[tuple[str, str | None, str]]
NAMED = [{"text": f"w{number}", "label": number % 3, "stars": number % 3} for number in range(9)]
UNNAMED = {"text": "w9", "label": -1, "stars": 0}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What was asked of the Hub, which has one data set under every name: the splits train and test, with classes."""
    datasets = pytest.importorskip("datasets")
    stars = datasets.ClassLabel(names=["one", "two", "three"])
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=[*COLOURS]), "stars": stars}
    splits = {
        name: datasets.Dataset.from_list(rows, features=datasets.Features(features))
        for name, rows in (("train", NAMED), ("test", [*NAMED[:3], UNNAMED]))
    }
    calls: Asked = []

    def load_dataset(dataset: str, config: str | None, split: str) -> Any:
        calls.append((dataset, config, split))
        if split not in splits:  # in the words of datasets
            raise ValueError(f'Unknown split "{split}". Should be one of {list(splits)}.')
        return splits[split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_classes_of_a_hub_data_set_go_by_their_names(asked: Asked) -> None:
    task = own_task("owner/name", ["text"], "label", hold_out=False)
    assert (task.name, task.labels) == ("name", COLOURS)
    assert [COLOURS[int(row.label or 0)] for row in task.train] == [COLOURS[row["label"]] for row in NAMED]
    assert own_task("owner/name", ["stars"], "label", hold_out=False).train[1].texts == ("two",)
    assert asked == [("owner/name", None, "train")] * 2
    told = own_examples("owner/name@train", ["text"], "label", COLOURS)
    assert [row.label for row in told] == [row["label"] for row in NAMED]


def test_a_class_number_below_zero_is_no_label(asked: Asked) -> None:
    with pytest.raises(DataError, match="owner/name@test, line 4: expected a label, found None"):
        own_task("owner/name", ["text"], "label", eval_data="owner/name@test")
    assert len(list(own_examples("owner/name@test", ["text"], None, COLOURS))) == 4


def test_class_numbers_to_predict_stay_numbers(asked: Asked) -> None:
    task = own_task("owner/name", ["text", "label"], "stars", hold_out=False, regression=True)
    assert [(row.texts[1], row.label) for row in task.train[:3]] == [("blue", 0.0), ("green", 1.0), ("red", 2.0)]
    told = own_examples("owner/name@train", ["text"], "stars", None)
    assert [row.label for row in told][:3] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("source", "place", "name"),
    [
        ("owner/name:small", ("owner/name", "small", "train"), "name-small"),
        ("owner/name@test[:3]", ("owner/name", None, "test[:3]"), "name"),
        ("owner/name:a-b.c@test", ("owner/name", "a-b.c", "test"), "name-a-b.c"),
        ("owner/data-v1.0", ("owner/data-v1.0", None, "train"), "data-v1.0"),
        ("owner/data.v2:all@test", ("owner/data.v2", "all", "test"), "data.v2-all"),
    ],
)
def test_a_hub_data_set_by_configuration_and_split(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, source: str, place: tuple[str, str | None, str], name: str
) -> None:
    with contextlib.suppress(DataError):  # no such split, or a row without a label
        own_task(source, ["text"], "label", hold_out=False)
    assert (asked, source_name(source)) == ([place], name)


def test_a_split_that_is_not_there_is_answered_with_those_that_are(asked: Asked) -> None:
    message = (
        r"Hub data set owner/name:all, split validation: expected one of its splits \(train, test\), found none of this"
    )
    with pytest.raises(DataError, match=message):
        own_task("owner/name", ["text"], "label", eval_data="owner/name:all")


def test_a_missing_file_is_no_hub_data_set(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    write_csv(tmp_path / "folder" / "missed.csv")
    with pytest.raises(DataError, match=r"expected a file, found none of this name\. Did you mean 'missed\.csv'"):
        own_task("folder/missing.csv", ["text"], "label")
    for name in (
        "folder/missing.xlsx",
        "nowhere/d.csv",
        "nowhere/d.jsonl.gz",
        "nowhere/d.csv@test",
        "./d",
        "a/b/c",
        "d.v1",
    ):
        with pytest.raises(DataError, match="expected a file, found none of this name"):
            own_task(name, ["text"], "label")
    write(tmp_path / "folder" / "d.csv", ROWS).rename(tmp_path / "folder" / "d@test.csv")
    assert own_task("folder/d@test.csv", ["text"], "label").labels == COLOURS
    assert asked == []
