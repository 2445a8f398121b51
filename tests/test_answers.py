"""What a model writes and chooses, against loops without batches, padding or cache."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from answering import check_answers
from models import adapted, bare_llama, filled
from retain.answers import OPTIONS, Asked, answers
from retain.wording import METRICS
from streams import WORDS, chat_tokenizer

TOKENIZER = chat_tokenizer()
LENGTHS = (3, 1, 6, 2, 4, 5, 1)


@pytest.fixture(scope="module")
def model() -> Any:
    """A random model under a random adapter; its checkpoint would punish what it has said before."""
    base = bare_llama(vocab_size=len(TOKENIZER), initializer_range=0.5)
    base.generation_config.update(repetition_penalty=9.0, do_sample=True, temperature=7.0, eos_token_id=[5, 6])
    return filled(adapted(base, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"))


def asked(most: int = 7, **more: Any) -> Asked:
    """Random prompts of several lengths, each with three options of one or two tokens and an end."""
    draw = random.Random(1)
    ids = lambda n: [2, *draw.choices(range(7, len(TOKENIZER)), k=n)]  # noqa: E731
    rows = [
        {
            "prompt": ids(n),
            "answer": draw.choice(WORDS),
            "options": [[*draw.choices(range(7, 20), k=k), 3] for k in (1, 2, 1)],
            "right": draw.randrange(3),
        }
        for n in LENGTHS
    ]
    return Asked(datasets.Dataset.from_list(rows), list(METRICS), TOKENIZER, most, **more)


def greedy(model: Any, prompt: list[int], most: int) -> str:
    """The likeliest token again and again, each from a forward of its own."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(most):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in (3, 5, 6):
                break
    return TOKENIZER.decode(ids[len(prompt) :], skip_special_tokens=True).strip()


def likelihood(model: Any, prompt: list[int], option: list[int]) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *option]])).logits[0].log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(option))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_answers_are_those_of_one_row_at_a_time(model: Any, batch_size: int) -> None:
    questions, done = asked(options=True), list[float]()
    rows = questions.rows.to_list()
    before = model.get_base_model().generation_config.repetition_penalty
    model.train()
    found = answers(model, questions, batch_size=batch_size, advance=done.append)
    assert model.training and model.get_base_model().generation_config.repetition_penalty == before == 9.0
    model.eval()
    check_answers(found, rows, lambda prompt: greedy(model, prompt, 7), partial(likelihood, model))
    assert sum(done) == questions.work == len(rows) * (1 + 7 / 8) + 3 * len(rows)


def test_only_what_is_asked_is_answered(model: Any) -> None:
    questions = asked()
    assert list(answers(model, questions)) == list(METRICS)
    assert list(answers(model, Asked(questions.rows, (), TOKENIZER, 7, options=True))) == [OPTIONS]


def test_what_was_learned_is_written_up_to_its_end_and_chosen(llama: str) -> None:
    model, pairs = AutoModelForCausalLM.from_pretrained(llama), list(zip(WORDS[:4], WORDS[4:], strict=True))
    batch = TOKENIZER([f"{prompt} {answer} <eos>" for prompt, answer in pairs], return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    options = [[int(TOKENIZER.convert_tokens_to_ids(word)), 3] for word in WORDS[4:]]

    def found(shift: int) -> dict[str, Tensor]:
        rows = [
            {
                "prompt": ids[:2].tolist(),
                "answer": pairs[(i + shift) % 4][1],
                "options": options,
                "right": (i + shift) % 4,
            }
            for i, ids in enumerate(batch["input_ids"])
        ]
        return answers(model, Asked(datasets.Dataset.from_list(rows), list(METRICS), TOKENIZER, 5, options=True))

    assert {name: values.tolist() for name, values in found(0).items()} == dict.fromkeys([*METRICS, OPTIONS], [1.0] * 4)
    assert all(not values.any() for values in found(1).values())
