"""Agreement of texts, against values worked out by hand and a search of all subsequences."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from retain.wording import exact_match, longest_common, rouge_l, token_f1


@pytest.mark.parametrize(
    ("written", "wanted", "match", "f1"),
    [
        ("The  Eiffel Tower.", "eiffel tower", 1, 1),
        ("Paris", "London", 0, 0),
        ("in Paris, France", "Paris", 0, 0.5),  # precision 1/3, recall 1
        ("cat cat dog", "cat dog dog", 0, 2 / 3),  # each word as often as both have it
        ("the", "a", 1, 1),  # nothing but articles: neither has a word
        ("", "Paris", 0, 0),
        ("don't", "dont", 1, 1),
        ("theory", "ory", 0, 0),  # an article is a word, not a part of one
    ],
)
def test_exact_match_and_f1_by_hand(written: str, wanted: str, match: float, f1: float) -> None:
    assert exact_match(written, wanted) == match
    assert token_f1(written, wanted) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("written", "wanted", "value"),
    [
        ("police killed the gunman", "police kill the gunman", 0.75),  # Lin 2004, section 3.1
        ("the gunman kill police", "police kill the gunman", 0.5),
        ("The cat, sat.", "the cat sat", 1),
        ("", "a", 0),
        ("a b c d", "b d", 2 * (2 / 4) * 1 / (2 / 4 + 1)),
        ("Кошка спит", "кошка не спит", 0.8),
    ],
)
def test_rouge_l_by_hand(written: str, wanted: str, value: float) -> None:
    assert rouge_l(written, wanted) == pytest.approx(value)


def subsequences(items: str) -> set[tuple[str, ...]]:
    return {part for n in range(len(items) + 1) for part in combinations(items, n)}


def test_the_longest_common_subsequence_is_that_of_a_search() -> None:
    draw = random.Random(0)
    for _ in range(40):
        one, other = ("".join(draw.choices("abc", k=draw.randrange(8))) for _ in range(2))
        assert longest_common(one, other) == max(map(len, subsequences(one) & subsequences(other)))
