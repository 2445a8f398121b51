"""Bytes and durations as people read them."""

import pytest

from retain.units import human, human_time


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1.5 * 2**20, "1.5 MiB"),
        (3 * 2**30, "3.0 GiB"),
        (2**42, "4096.0 GiB"),
    ],
)
def test_bytes_as_people_read_them(size: float, text: str) -> None:
    assert human(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "<0.1 s"), (59.94, "59.9 s"), (90, "1.5 min"), (5400, "1.5 h"), (129600, "1.5 days")]
)
def test_durations_as_people_read_them(seconds: float, text: str) -> None:
    assert human_time(seconds) == text
