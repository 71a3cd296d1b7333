import pytest

from synfoc3d.duration import readable_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (20 * 60 + 29, "20 min"),
        (3599, "1 h"),
        (2 * 3600 + 5 * 60, "2 h 5 min"),
        (36_000, "10 h"),
        (126_000, "35 h"),
        (48 * 3600, "2 days"),
        (77 * 3600, "3 days 5 h"),
    ],
)
def test_duration_is_readable(seconds, text):
    assert readable_duration(seconds) == text
