"""Logs: one line a record, fields by name, nothing from outside can forge either."""

from __future__ import annotations

import logging

import pytest

from rcm_daemon.io.logs import KeyValueFormatter


def line(message, *, priorities=False, exc_info=None, level=logging.WARNING, **extra):
    record = logging.getLogger("rcm_daemon").makeRecord(
        "rcm_daemon", level, __file__, 1, message, (), exc_info, extra=extra
    )
    return KeyValueFormatter(priorities=priorities).format(record)


def test_fields_stand_by_name():
    assert line("message refused", rule="crc_mismatch", index=3) == (
        'level=warning msg="message refused" index=3 rule=crc_mismatch'
    )


@pytest.mark.parametrize(
    ("level", "priority"), [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3)]
)
def test_the_journal_gets_a_priority(level, priority):
    assert line("x", priorities=True, level=level).startswith(f"<{priority}>level=")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("", 'key=""'),
        ("a b", 'key="a b"'),
        ('a"b', 'key="a\\"b"'),
        ('a\'b "c"', 'key="a\'b \\"c\\""'),
        ("a\nlevel=info", 'key="a\\nlevel=info"'),
        ("a\\b", 'key="a\\\\b"'),
        ("level=info", 'key="level=info"'),
        ("Müller\u2028\x1b[31m", 'key="M\\xfcller\\u2028\\x1b[31m"'),
    ],
)
def test_values_cannot_forge_a_field_or_a_line(value, written):
    assert line("x", key=value) == f"level=warning msg=x {written}"


def test_a_traceback_is_a_field():
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        written = line("died", exc_info=(type(error), error, error.__traceback__))
    assert len(written.splitlines()) == 1
    assert "ValueError: two\\nlines" in written
