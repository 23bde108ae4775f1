"""Every decoder task as it reads: the first validation row of the real files, and rows written for what is special."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import real
from beft.errors import DataError
from beft.tasks import reading
from beft.tasks.prompts import PROMPTS
from beft.tasks.question import Question
from beft.tasks.reading import prompt, prompt_task, read_question

YES_NO = ("No", "Yes")
FIRST: dict[str, tuple[str, str, tuple[str, ...], tuple[int, ...]]] = {  # start and end of the prompt, candidates, gold
    "sst2": ("it 's a charming and often affecting journey . It was", "", (" terrible", " great"), (1,)),
    "rte": (
        "Dana Reeve, the widow of the actor Christopher Reeve, has died of lung cancer at age 44, according to the "
        'Christopher Reeve Foundation.\nDoes this mean that "Christopher Reeve had an accident." is true? Yes or No?\n',
        "",
        ("Yes", "No"),
        (1,),
    ),
    "cb": (
        "Suppose Valence the void-brain, Valence the virtuous valet. Why couldn't the figger choose his own portion of "
        "titanic anatomy to shaft? Did he think he was helping? Can we infer that "
        '"Valence was helping"? Yes, No, or Maybe?\n',
        "",
        ("Yes", "No", "Maybe"),
        (1,),
    ),
    "boolq": (
        "Ethanol fuel -- All biomass goes through at least some of these steps: it needs to be grown, collected,",
        "concluded that producing ethanol from corn uses much less petroleum than producing gasoline. "
        "Does ethanol take more energy make that produces?\n",
        YES_NO,
        (0,),
    ),
    "wsc": (
        "Bernard , who had not told the government official that he was less than 21 when he filed for a homestead "
        "claim, did not consider that he had done anything dishonest. Still, anyone who knew that he was 19 years old "
        "could take his claim away from him .\nIn the previous sentence, does the pronoun "
        '"him" refer to anyone? Yes or No?\n',
        "",
        YES_NO,
        (0,),
    ),
    "wic": (
        'Does the word "class" have the same meaning in these two sentences? Yes, No?\nAn emerging professional class.'
        "\nApologizing for losing your temper, even though you were badly provoked, showed real class.\n",
        "",
        YES_NO,
        (0,),
    ),
    "multirc": (
        "What causes a change in motion? The application of a force.",
        "This requires only a very small force. \nQuestion: Would the mass of a baseball affect how much force you "
        'have to use to pick it up?\nI found this answer "No". Is that correct? Yes or No?\n',
        YES_NO,
        (0,),
    ),
    "copa": (
        "The man turned on the faucet so ",
        "",
        ("the toilet filled with water.", "water flowed from the spout."),
        (1,),
    ),
    "record": (
        "Police took away a mother's panic alarm in a 'huge catalogue' of failings just months before",
        "at her home in Great Baddow, Essex in December 2008\n- Marc Chivers used a dog lead to murder Maria "
        "Stubbings at her home\n- He had already been convicted of killing another former partner in 1992\n- Police "
        "gave Ms Stubbings panic alarm after she reported assault by Chivers\n- But they took it away from her when "
        "he was arrested the next day and he was later released, inquest told\n- Despite repeated 999 calls after the"
        " release, police did not go to her house for a week\n- Chivers told officers Ms Stubbings had gone away, but"
        " her body was found a day later under a pile of clothes in her bedroom\n- After inquest, family hit out at "
        "Essex Police for 'huge catalogue' of failures\n- Police admit they did not protect Ms Stubbings and "
        "apologised to her family\n- Essex Coroner  is sending a report about the case to the Government\n-",
        tuple(
            f" 'They assessed Maria as being at high risk of death or serious harm from {entity}."
            for entity in (
                "Marc Chivers",
                "Maria Stubbings",
                "Great Baddow",
                "Essex",
                "Essex Police",
                "Stubbings",
                "Chivers",
            )
        ),
        (6, 0),  # in the order of the answers
    ),
    "squad": (
        "Title: Super_Bowl_50\nContext: Super Bowl 50 was an American football game to determine the champion of",
        "could prominently feature the Arabic numerals 50.\n"
        "Question: Which NFL team represented the AFC at Super Bowl 50?\nAnswer:",
        (),
        (),
    ),
    "drop": (
        "Passage: Non-nationals make up more than half of the population of Bahrain, with immigrants making up",
        "45,000 Filipinos, and 8,000 Indonesians.\nQuestion: What two nationalities had the same number of people "
        "living in Bahrain between 2005-2009?\nAnswer:",
        (),
        (),
    ),
}
ANSWERS = {"squad": ("Denver Broncos",), "drop": ("Pakistanis", "Filipinos", "Pakistani", "Filipino")}
BLANKS = {"sst2": " It was", "copa": "so ", "record": "-"}
SIZES = {"cb": (250, 56), "wsc": (554, 104), "copa": (400, 100), "record": (32, 32), "rte": (1000, 277)}
SIZES |= {"sst2": (1000, 872), "wic": (1000, 638)}  # elsewhere 1,000 of both


def test_the_table_here_covers_every_task() -> None:
    assert set(FIRST) == set(PROMPTS)
    assert len(FIRST) == 11


@pytest.mark.parametrize("name", FIRST)
def test_the_first_row_reads_as_the_protocol_says(name: str) -> None:
    task = prompt_task(name, real.data(), size=8)
    question = task.evaluation["validation"][0]
    start, end, candidates, gold = FIRST[name]
    if end:
        assert question.prompt.startswith(start)
        assert question.prompt.endswith(end)
    else:
        assert question.prompt == start
    assert question.candidates == candidates
    assert question.gold == gold
    assert question.answers == ANSWERS.get(name, ())
    assert question.blank == BLANKS.get(name, "")
    assert task.generates == (name in ANSWERS)
    assert task.benchmark


@pytest.mark.parametrize("name", FIRST)
def test_every_row_of_the_real_files_can_be_asked(name: str) -> None:
    task = prompt_task(name, real.data())
    questions = [*task.train, *task.evaluation["validation"]]
    assert (len(task.train), len(task.evaluation["validation"])) == SIZES.get(name, (1000, 1000))
    assert bool(task.notices) == (len(task.train) < 1000)
    for question in questions:
        assert "@highlight" not in question.prompt
        assert not any("@placeholder" in candidate for candidate in question.candidates)
        if task.generates:
            assert all(answer.strip() for answer in question.answers)
            assert question.answers
        else:
            assert question.gold
            assert len({candidate.strip() for candidate in question.candidates}) == len(question.candidates) > 1
            if task.labels:
                assert len(question.candidates) == len(task.labels)
    if task.labels:
        assert {question.gold for question in questions} == {(number,) for number in range(len(task.labels))}


def test_the_metrics_are_the_protocols() -> None:
    assert {name: spec.metrics for name, spec in PROMPTS.items() if spec.metrics != ("accuracy",)} == {
        "cb": ("f1_macro", "accuracy"),
        "record": ("accuracy", "token_f1"),
        "squad": ("token_f1", "em"),
        "drop": ("token_f1", "em"),
    }


def test_candidates_of_a_label_mean_what_the_label_says() -> None:
    pairs = {
        name: dict(zip(spec.labels, spec.candidates, strict=True)) for name, spec in PROMPTS.items() if spec.labels
    }
    assert pairs["sst2"] == {"negative": " terrible", "positive": " great"}
    assert pairs["rte"] == {"entailment": "Yes", "not_entailment": "No"}
    assert pairs["cb"] == {"entailment": "Yes", "contradiction": "No", "neutral": "Maybe"}
    for name in ("boolq", "wsc", "wic", "multirc"):
        assert pairs[name] == {"false": "No", "true": "Yes"}


@pytest.mark.parametrize("seed", [0, 3])
def test_training_rows_are_the_seeded_permutations_first(seed: int) -> None:
    with gzip.open(real.data() / "copa" / "train.jsonl.gz", "rt", encoding="utf-8") as handle:
        rows = [json.loads(line) for line in handle]
    order = np.random.RandomState(seed).permutation(len(rows))[:30]
    assert [q.id for q in prompt_task("Copa", real.data(), size=30, seed=seed).train] == [rows[n]["idx"] for n in order]


def test_multirc_asks_for_every_answer_by_itself() -> None:
    questions = prompt_task("MultiRC", real.data(), size=1, eval_size=None).evaluation["validation"]
    assert len(questions) == 4848
    assert len({question.id for question in questions}) == 4848


# ---- rows written for what is special --------------------------------------------------------------------------------


Folder = Callable[[str, list[dict[str, Any]]], Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Writes rows as both splits of a task."""

    def write(name: str, rows: list[dict[str, Any]]) -> Path:
        (tmp_path / name).mkdir()
        for split in ("train", "validation"):
            (tmp_path / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path

    return write


def read(name: str, **row: Any) -> Question:
    return read_question(prompt(name), row)


def test_copa_joins_cause_and_effect_and_lowers_first_letters_but_i() -> None:
    cause = read("copa", premise="It rained. ", choice1="I slept.", choice2="Iris left. ", question="cause", label=0)
    assert cause.prompt == "It rained because "
    assert cause.candidates == ("I slept.", "iris left.")
    assert cause.blank == "because "
    effect = read("copa", premise="Really?", choice1="A", choice2="b", question="effect", label=1)
    assert effect.prompt + effect.candidates[0] == "Really? so a"
    with pytest.raises(DataError, match="copa, question: expected cause or effect, found 'why'"):
        read("copa", premise="It rained.", choice1="a", choice2="b", question="why", label=0)


@pytest.mark.parametrize("asked", ["is it so", "is it so?", "is it so ? "])
def test_boolq_capitalises_and_ends_with_one_question_mark(asked: str) -> None:
    assert read("boolq", passage="P.", question=asked, label=1).prompt == "P. Is it so?\n"


def test_wsc_lowers_the_pronoun_only() -> None:
    question = read("wsc", text="T.", span1_text="Mr. Bond", span2_text="He", label=1)
    assert question.prompt == 'T.\nIn the previous sentence, does the pronoun "he" refer to Mr. Bond? Yes or No?\n'


def test_record_has_each_entity_once_and_all_right_ones() -> None:
    row = {"passage": "A B.\n@highlight\nC", "query": "x @placeholder y @placeholder", "entities": ["A", "B", "A"]}
    question = read("record", **row, answers=["B", "A", "B"], idx={"passage": 3, "query": 5})
    assert question.prompt == "A B.\n- C\n-"
    assert question.candidates == (" x A y A", " x B y B")
    assert (question.gold, question.names, question.id) == ((1, 0), ("A", "B"), "3-5")
    assert read("record", **row, answers=[]).gold == ()
    with pytest.raises(DataError, match="record, row 0, answers: expected entities of the passage, found 'C'"):
        read("record", **row, answers=["C"])
    with pytest.raises(DataError, match="query: expected '@placeholder', found none"):
        read("record", **{**row, "query": "x"}, answers=["A"])


def test_braces_in_the_data_stay_as_they_are() -> None:
    assert read("sst2", sentence="a {sentence} {{x}} ", label=0).prompt == "a {sentence} {{x}} It was"


def test_rte_reads_glues_and_superglues_files(folder: Folder) -> None:
    glue = folder("rte", [{"sentence1": "P", "sentence2": "H", "label": 0}])
    first = prompt_task("rte", glue).train[0]
    folder("superglue_rte", [{"premise": "P2", "hypothesis": "H2", "label": 1}])
    second = prompt_task("rte", glue).train[0]
    assert first.prompt == 'P\nDoes this mean that "H" is true? Yes or No?\n'
    assert second.prompt == 'P2\nDoes this mean that "H2" is true? Yes or No?\n'
    assert (first.gold, second.gold) == ((0,), (1,))


def test_hidden_labels_are_not_gold_and_others_are_checked() -> None:
    assert read("sst2", sentence="a", label=-1).gold == ()
    assert read("sst2", sentence="a").gold == ()
    for label in (2, "x", [1]):
        with pytest.raises(DataError, match="sst2, row 0, label: expected a class number below 2"):
            read("sst2", sentence="a", label=label)


def test_a_missing_field_is_named(folder: Folder) -> None:
    with pytest.raises(DataError, match="cb, row 0: expected the field 'hypothesis', found premise, label"):
        prompt_task("cb", folder("cb", [{"premise": "a", "label": 0}]))
    with pytest.raises(DataError, match="squad, row 0: expected the field 'answers'"):
        read("squad", title="t", context="c", question="q")


def test_sizes(folder: Folder) -> None:
    where = folder("sst2", [{"sentence": f"w{n}", "label": n % 2} for n in range(6)])
    task = prompt_task("sst2", where, size=4, eval_size=2)
    assert (len(task.train), [q.prompt for q in task.evaluation["validation"]]) == (4, ["w0 It was", "w1 It was"])
    assert task.notices == []
    everything = prompt_task("sst2", where, size="all", eval_size=None)
    assert (len(everything.train), len(everything.evaluation["validation"]), everything.notices) == (6, 6, [])
    assert prompt_task("sst2", where).notices == ["sst2 has 6 training rows at hand, not 1,000"]
    for size, message in ((0, "at least 1 row, found 0"), ("many", "a number of rows or 'all', found 'many'")):
        with pytest.raises(DataError, match=f"sst2, train size: expected {message}"):
            prompt_task("sst2", where, size=size)
    with pytest.raises(DataError, match="sst2, evaluation size"):
        prompt_task("sst2", where, eval_size=0)


def test_unknown_names_suggest_the_nearest(tmp_path: Path) -> None:
    assert prompt("SST-2") is prompt("sst_2") is PROMPTS["sst2"]
    with pytest.raises(
        DataError, match=r"task 'boolqa': expected a known prompt task, found none. Did you mean 'boolq'"
    ):
        prompt_task("boolqa", tmp_path)


def test_data_that_are_not_there(tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="expected a folder of benchmark data"):
        prompt_task("cb", tmp_path / "nowhere")
    monkeypatch.setenv("BEFT_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"cb/train: expected a file such as train\.jsonl\.gz, found no such folder"):
        prompt_task("cb")
    folder("copa", [])
    with pytest.raises(DataError, match=r"copa/train\.jsonl: expected rows, found none"):
        prompt_task("copa")


def test_without_a_folder_rows_come_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def rows(dataset: str, config: str | None, split: str) -> list[dict[str, Any]]:
        asked.append((dataset, config, split))
        return [{"text": "T.", "span1_text": "A", "span2_text": "He", "label": 1}]

    monkeypatch.delenv("BEFT_DATA", raising=False)
    monkeypatch.setattr(reading, "hub_rows", rows)
    assert prompt_task("wsc").train[0].gold == (1,)
    assert asked == [("super_glue", "wsc.fixed", split) for split in ("train", "validation")]
