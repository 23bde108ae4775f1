"""Demonstrations: what they read like, how they are drawn, and how many stay."""

import pytest

from beft.errors import DataError, RecipeError
from beft.tasks.demonstrations import demonstration, with_demonstrations
from beft.tasks.question import Question

POOL = [Question(n, f"p{n} is", (" no", " yes"), (n % 2,), blank="is") for n in range(20)]
ASKED = [Question(n, f"q{n} is", (" no", " yes"), (0,), blank="is") for n in range(6)]
WRITTEN = [Question(n, f"Q{n}:", answers=(f"a{n}", "other")) for n in range(8)]


def drawn(question: Question) -> list[str]:
    """The demonstrations in a question's prompt."""
    return question.prompt.split("\n\n")[:-1]


def test_a_demonstration_is_the_prompt_with_its_first_right_answer() -> None:
    assert demonstration(POOL[1]) == "p1 is yes"
    assert demonstration(Question(0, " line\n", ("No", "Yes"), (1, 0))) == "line\nYes"
    assert demonstration(WRITTEN[3]) == "Q3: a3"
    assert demonstration(Question(0, "Q: x\nA: ", answers=(" b ",))) == "Q: x\nA: b"
    for unknown in (Question(7, "x", ("a", "b")), Question(7, "x")):
        with pytest.raises(DataError, match="demonstration 7: expected a question whose answer is known"):
            demonstration(unknown)


def test_prompts_follow_their_demonstrations() -> None:
    fixed = with_demonstrations([ASKED[0]], POOL, 2, mode="fixed", joiner="\n---\n")
    first, second, last = fixed[0].prompt.split("\n---\n")
    assert {first, second} < {demonstration(each) for each in POOL}
    assert first != second
    assert last == "q0 is"
    assert fixed[0] == Question(0, fixed[0].prompt, (" no", " yes"), (0,), blank="is", shots=2)
    written = with_demonstrations(WRITTEN[:1], WRITTEN[1:], 3)[0]
    assert written.prompt.endswith("\n\nQ0:")
    assert written.answers == ("a0", "other")


def test_a_draw_depends_on_seed_and_question_but_not_on_order_or_company() -> None:
    alone = [with_demonstrations([question], POOL, 4, seed=1)[0] for question in ASKED]
    assert with_demonstrations(ASKED, POOL, 4, seed=1) == alone
    assert with_demonstrations(ASKED[::-1], POOL, 4, seed=1) == alone[::-1]
    assert len({tuple(drawn(question)) for question in alone}) == len(ASKED)
    assert with_demonstrations(ASKED, POOL, 4, seed=2) != alone


def test_one_fixed_set_serves_all() -> None:
    shown = with_demonstrations(ASKED, POOL, 4, seed=1, mode="fixed")
    assert len({tuple(drawn(question)) for question in shown}) == 1
    assert drawn(with_demonstrations(ASKED, POOL, 4, seed=2, mode="fixed")[0]) != drawn(shown[0])


@pytest.mark.parametrize("mode", ["per_example", "fixed"])
def test_no_question_demonstrates_itself(mode: str) -> None:
    shown = with_demonstrations(POOL, POOL, len(POOL) - 1, mode=mode)  # type: ignore[arg-type]
    for question, original in zip(shown, POOL, strict=True):
        assert question.shots == len(POOL) - 1 == len(set(drawn(question)))
        assert demonstration(original) not in drawn(question)
    assert with_demonstrations(POOL, POOL, len(POOL), mode=mode)[0].shots == len(POOL) - 1  # type: ignore[arg-type]


@pytest.mark.parametrize("room", range(0, 90, 7))
def test_as_many_as_fit_and_those_nearest_stay(room: int) -> None:
    everything = with_demonstrations(ASKED, POOL, 6, seed=3)
    short = with_demonstrations(ASKED, POOL, 6, seed=3, fits=lambda text: len(text) <= room)
    for whole, cut in zip(everything, short, strict=True):
        texts = [whole.prompt.split("\n\n", n)[-1] for n in range(7)]  # 6 demonstrations, 5, ... none
        fitting = [n for n in range(7) if len(texts[n] + " yes") <= room]
        dropped = fitting[0] if fitting else 6
        assert cut.prompt == texts[dropped]
        assert cut.shots == 6 - dropped


def test_blank_prompts_drop_or_keep_demonstrations() -> None:
    dropped = with_demonstrations(ASKED[:1], POOL, 3)[0]
    kept = with_demonstrations(ASKED[:1], POOL, 3, blank="keep")[0]
    assert dropped.blank == "is"
    assert kept.prompt == dropped.prompt
    assert kept.blank == kept.prompt.removesuffix("q0 is") + "is"


def test_none_change_nothing() -> None:
    assert with_demonstrations(ASKED, [], 0) == ASKED


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(RecipeError, match="demonstrations: expected 0 or more, found -1"):
        with_demonstrations(ASKED, POOL, -1)
    with pytest.raises(DataError, match="expected a pool of at least 21 questions, found 20"):
        with_demonstrations(ASKED, POOL, 21)
    with pytest.raises(RecipeError, match="mode per_example or fixed, blank drop or keep, found 'each'"):
        with_demonstrations(ASKED, POOL, 2, mode="each")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="demonstration 99"):
        with_demonstrations(ASKED, [*POOL, Question(99, "x", ("a", "b"))], 2)
