"""Names from files can neither forge log lines nor leave a folder."""

import logging
from pathlib import Path

import pytest

from regnet_lab.utils.text import (
    EscapingFormatter,
    escape_control_characters,
    make_file_name,
    print_line,
)

HOSTILE = [
    "../../victim",
    "a/b",
    "..",
    ".hidden",
    "",
    "a\nb",
    "a\x00b",
    "a" * 300,
    "é" * 200,
    "%2E",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_name_is_one_visible_part_of_a_path(name, tmp_path):
    path = tmp_path / f"{make_file_name(name)}.nii.gz"
    path.touch()
    assert path.resolve().parent == tmp_path
    assert [file.name for file in Path(tmp_path).glob("[!.]*")] == [path.name]


def test_different_names_have_different_files():
    names = [*HOSTILE, "a%2Fb", "a_b", "a-b", "a" * 301, "%", "%25"]
    assert len({make_file_name(name) for name in names}) == len(names)


@pytest.mark.parametrize("name", ["sub-01_T1w", "Patient 3", "a+b", "é"])
def test_usual_names_are_kept(name):
    assert make_file_name(name) == name


@pytest.mark.parametrize(
    "text", ["a\nb", "a\rb", "\x1b[31mred", "\x9b31m", "a\u2028b", "\u202eabc"]
)
def test_control_characters_become_visible(text, capsys):
    escaped = escape_control_characters(text)
    assert escaped.isprintable()
    assert escaped.encode().decode("unicode_escape") == text
    print_line(text)
    assert capsys.readouterr().out == escaped + "\n"


def test_a_log_message_is_one_line():
    record = logging.LogRecord("name", 20, "path", 1, "case %s", ("x\n[root] forged",), None)
    assert EscapingFormatter("%(message)s").format(record) == "case x\\n[root] forged"


def test_markup_is_printed_as_it_is(capsys):
    print_line("[bold]a[/bold] [/nothing]")
    assert capsys.readouterr().out == "[bold]a[/bold] [/nothing]\n"
