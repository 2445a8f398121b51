"""What a run comes to, in words."""

import numpy as np

from reported import FAITHFUL, FORGETFUL, told
from retain.report.verdict import comparable, listed, verdict


def test_it_begins_with_what_was_kept() -> None:
    lead, learned, *_ = verdict(told("ewc-lora", FORGETFUL))
    # faq kept 5 of 10, sql all: three quarters
    assert lead.startswith("Kept 75 % (") and "of its accuracy on faq and sql while learning what came after" in lead
    assert "reached 1.000 when it was learned" in learned and "all have 0.833" in learned and "had 0.000" in learned


def test_nothing_forgotten_has_an_interval_of_no_width() -> None:
    assert verdict(told("share", FAITHFUL))[0].startswith("Kept 100 % (100 % to 100 %)")


def test_sequential_training_stands_beside_it() -> None:
    lead, _, difference = verdict(told("ewc-lora", FAITHFUL), [told("sequential", FORGETFUL)])
    assert lead.endswith("; sequential training kept 75 %.")
    assert difference.startswith("sequential ended at 0.833; ewc-lora minus sequential: +16.7 points (+")


def test_equal_runs_are_not_told_apart() -> None:
    assert verdict(told("a", FORGETFUL), [told("b", FORGETFUL)])[-1].endswith("(+0.0 to +0.0): not told apart.")


def test_runs_of_other_rows_are_not_compared() -> None:
    other = told("sequential", [[bits[:9] for bits in stage] for stage in FORGETFUL])
    assert not comparable(told("a", FORGETFUL), other)
    lead, _, refusal = verdict(told("a", FORGETFUL), [other])
    assert "sequential training kept" not in lead and "cannot be compared" in refusal


def test_one_training_on_all_tasks_forgets_nothing_and_says_so() -> None:
    run = told("joint", [FAITHFUL[0], FAITHFUL[3]])
    run.records[1]["learned"] = 3
    assert verdict(run) == ["Learned faq, sql and law at once: accuracy 1.000 in the end."]
    assert np.isnan(run.matrix[1]).all()


def test_many_names_are_counted() -> None:
    assert [listed("abcde"[:n]) for n in (1, 2, 4, 5)] == ["a", "a and b", "a, b, c and d", "5 tasks"]
