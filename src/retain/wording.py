"""How far a text that was written agrees with the one that was wanted; each measure is 0 to 1, higher is better.

Exact match and F1 are those of SQuAD: Rajpurkar et al. 2016 (arXiv 1606.05250), section 5. ROUGE-L is that of Lin 2004
("ROUGE: A Package for Automatic Evaluation of Summaries"), equations 2 to 4, with beta = 1.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

Metric = Literal["exact_match", "token_f1", "rouge_l"]

ARTICLES = {"a", "an", "the"}
PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(written: str, wanted: str) -> float:
    """1 if both have the same words, but for case, punctuation and articles."""
    return float(words(written) == words(wanted))


def token_f1(written: str, wanted: str) -> float:
    """F1 of the words that both have, each as often as both have it; where one has none, 1 if neither does."""
    mine, theirs = words(written), words(wanted)
    if not mine or not theirs:
        return float(mine == theirs)
    return _f1((Counter(mine) & Counter(theirs)).total(), len(mine), len(theirs))


def rouge_l(written: str, wanted: str) -> float:
    """F1 of the longest common subsequence of words; 0 where one has none.

    Words are runs of letters and digits of any script, in lower case, not stemmed; punctuation counts nothing.
    """
    mine, theirs = (re.findall(r"[^\W_]+", text.lower()) for text in (written, wanted))
    return _f1(longest_common(mine, theirs), len(mine), len(theirs))


def words(text: str) -> list[str]:
    """The words of ``text`` as SQuAD has them: lower case, without punctuation and articles."""
    return [word for word in text.lower().translate(PUNCTUATION).split() if word not in ARTICLES]


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest subsequence of both."""
    row = [0] * (len(other) + 1)
    for item in one:
        corner = 0
        for j, there in enumerate(other, 1):
            above = row[j]
            row[j] = corner + 1 if item == there else max(above, row[j - 1])
            corner = above
    return row[-1]


def _f1(common: int, mine: int, theirs: int) -> float:
    return 2 * common / (mine + theirs) if common else 0.0


METRICS: dict[Metric, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
}
