"""Questions of random tokens, and the plain way to score them: one full forward per candidate."""

import random

import torch

from beft.core.bank import Bank
from beft.objectives.prompt_tokens import EncodedQuestions
from beft.tasks.question import Question
from tiny import FIRST_TOKEN, VOCAB

LIMIT = 64


def encoded(count=4, seed=0, single=False, blanks=True, longest=14):
    """Questions with 2 to 4 candidates, some of which begin alike."""
    draw = random.Random(seed)

    def tokens(length):
        return [draw.randrange(FIRST_TOKEN, VOCAB) for _ in range(length)]

    candidates = [
        [tokens(1 if single else draw.randint(1, 6)) for _ in range(draw.randint(2, 4))] for _ in range(count)
    ]
    if not single:
        candidates[0].append(candidates[0][0] + tokens(3))
    gold = [(draw.randrange(len(each)),) for each in candidates]
    without = EncodedQuestions([[2] for _ in candidates], candidates, gold, 0, LIMIT, 0) if blanks else None
    prompts = [tokens(draw.randint(2, longest)) for _ in candidates]
    return EncodedQuestions(prompts, candidates, gold, 0, LIMIT, 0, without)


def log_probabilities(model, prompt, candidate):
    """Of each of a candidate's tokens, by one forward over all of the text."""
    logits = model(input_ids=torch.tensor([prompt + candidate])).logits[0].float()
    return torch.stack(
        [logits[len(prompt) - 1 + place].log_softmax(-1)[token] for place, token in enumerate(candidate)]
    )


def plain_scores(model, questions, reduction="mean"):
    """A tensor of scores for each question."""
    result = []
    for row, (prompt, candidates) in enumerate(zip(questions.prompts, questions.candidates, strict=True)):
        scores = []
        for candidate in candidates:
            values = log_probabilities(model, prompt, candidate)
            score = values.mean() if reduction == "mean" else values.sum()
            if reduction == "calibrated":
                score = score - log_probabilities(model, questions.blanks.prompts[row], candidate).sum()
            scores.append(score)
        result.append(torch.stack(scores))
    return result


def agree(got, want, bound=1e-5):
    """Assert that scores agree, question by question."""
    assert len(got) == len(want)
    for own, other in zip(got, want, strict=True):
        own, other = torch.as_tensor(own), torch.as_tensor(other).detach()
        assert own.shape == other.shape
        assert (own - other).abs().max() <= bound


def fill(bank: Bank, seed=0, scale=0.5):
    """Random vectors in every adapter of a bank."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, leaf in bank.named_parameters():
            leaf.copy_(scale * torch.randn(leaf.shape, generator=generator))
    return bank


def questions(count=6):
    """Texts of the toy tokenizer's words."""
    words = [f"w{number}" for number in range(40)]
    draw = random.Random(1)
    return [
        Question(
            number,
            " ".join(draw.choices(words, k=draw.randint(1, 9))),
            (" red", " green good", " blue bad bad"),
            (number % 3,),
            blank="good",
        )
        for number in range(count)
    ]
