import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebox.runtime import format_size, parse_size
from firebox.runtime.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512KiB", 524_288),
        ("1MiB", 1_048_576),
        ("1.5MiB", 1_572_864),
        ("0.25KiB", 256),
        ("2 GiB", 2_147_483_648),
        ("300000", 300_000),
        (" 300000 ", 300_000),
        ("1B", 1),
        (4096, 4096),
    ],
)
def test_valid_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("512kb", r"unknown unit 'kb'; did you mean 512KiB\?"),
        ("512KB", r"did you mean 512KiB\?"),
        ("1mib", r"did you mean 1MiB\?"),
        ("3parsecs", "unknown unit 'parsecs'"),
        ("0", "not between 1 byte"),
        ("0KiB", "not between 1 byte"),
        ("-1", "not a positive number"),
        ("", "not a positive number"),
        ("KiB", "not a positive number"),
        ("1e6", "unknown unit 'e6'|not a positive number"),
        ("0x10", "not a positive number|unknown unit"),
        ("1,000", "not a positive number"),
        ("0.3B", "not a whole number"),
        ("0.0001KiB", "not a whole number"),
        ("9" * 30, "not"),
        ("9000000000GiB", "8 EiB"),
        ("nan", "not a positive number"),
        ("1KiB\n2", "not a positive number"),
    ],
)
def test_invalid_sizes_are_usage_errors(text, said):
    with pytest.raises(UsageError, match=said) as error:
        parse_size(text)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_usage_error(text):
    with contextlib.suppress(UsageError):
        assert parse_size(text) >= 1


@given(st.integers(1, 2**62))
def test_whole_numbers_are_bytes(size):
    assert parse_size(size) == parse_size(str(size)) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (982_144, "959.1 KiB"), (20 * 1024**2, "20.0 MiB")],
)
def test_sizes_as_text(size, text):
    assert format_size(size) == text
