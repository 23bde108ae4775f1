"""Prompts in a chat template: what stands around them, and that start tokens stand once."""

from typing import Any

import pytest
from transformers import AutoTokenizer

import real
from beft.errors import DataError
from beft.objectives.prompt_tokens import encode_questions
from beft.tasks.chat import as_chat
from beft.tasks.question import Question
from toys import tokenizer

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SPACED = (  # as Llama 2's: a space between the call and the answer, a start token in front, no system message
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system\nrole') }}"
    "{% elif m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}"
    "{% endfor %}"
)
QUESTION = Question(7, "w1 w2 It was\n", (" bad", " good"), (1,), blank=" It was")


def toy(template: str | None = CHATML) -> Any:
    made = tokenizer(special=False)
    made.chat_template = template
    return made


def test_the_prompt_is_the_users_and_the_assistant_is_about_to_speak() -> None:
    asked = as_chat(QUESTION, toy())
    assert asked == Question(
        7,
        "<|user|>\nw1 w2 It was</s>\n<|assistant|>\n",
        ("bad", "good"),
        (1,),
        blank="<|user|>\nIt was</s>\n<|assistant|>\n",
    )


def test_a_system_message_comes_first() -> None:
    assert as_chat(QUESTION, toy(), "Be brief.").prompt.startswith("<|system|>\nBe brief.</s>\n<|user|>\n")


def test_answers_stay_as_they_are() -> None:
    written = as_chat(Question(1, "Who?", answers=("you", "I")), toy(SPACED))
    assert (written.prompt, written.answers) == ("[INST] Who? [/INST]", ("you", "I"))


def test_candidates_follow_as_the_template_would_have_them() -> None:
    made = toy(SPACED)
    asked = as_chat(QUESTION, made)
    assert asked.candidates == (" bad", " good")
    for candidate in asked.candidates:
        turns = [{"role": "user", "content": "w1 w2 It was"}, {"role": "assistant", "content": candidate.strip()}]
        whole = made.apply_chat_template(turns, tokenize=False)
        assert whole.startswith(asked.prompt + candidate)


def test_the_start_token_stands_once_whether_the_tokenizer_adds_it_or_not() -> None:
    made = AutoTokenizer.from_pretrained(real.model("stories260k-llama"))
    made.chat_template = SPACED
    assert made("x")["input_ids"][0] == made.bos_token_id
    asked = as_chat(QUESTION, made)
    assert asked.prompt == "[INST] w1 w2 It was [/INST]"
    ids = encode_questions(made, [asked]).prompts[0]
    assert ids.count(made.bos_token_id) == 1
    assert ids[0] == made.bos_token_id

    bare = toy(SPACED)
    bare.bos_token = "[CLS]"  # known, but not put in front
    assert bare("x")["input_ids"][0] != bare.bos_token_id
    assert as_chat(QUESTION, bare).prompt.startswith("[CLS][INST]")


def test_a_tokenizer_without_a_template_is_refused() -> None:
    with pytest.raises(DataError, match="chat: expected a tokenizer with a chat template, found none in"):
        as_chat(QUESTION, toy(None))


def test_what_a_template_refuses_is_told_in_one_line() -> None:
    with pytest.raises(
        DataError, match=r"expected a template that takes system, user, found no system role\. Leave"
    ) as e:
        as_chat(QUESTION, toy(SPACED), "Be brief.")
    assert "\n" not in str(e.value)
    with pytest.raises(DataError, match="chat template: expected a template that takes user"):
        as_chat(QUESTION, toy("{{ messages[0].content + 1 }}"))
