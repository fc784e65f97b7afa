"""CSV tables as spreadsheets of any country write them."""

import pytest

from regnet_lab.data.io.tables import parse_whole_number, read_table
from regnet_lab.errors import UserError

ROWS = [
    {"fixed": "größe 1.nii", "moving": "b.nii", "phase": "3.0"},
    {"fixed": "c, d.nii", "moving": "e.nii", "phase": ""},
]
TEXT = 'fixed,moving,phase\ngröße 1.nii,b.nii,3.0\n"c, d.nii",e.nii,\n'
SEMICOLONS = "fixed;moving;phase\ngröße 1.nii;b.nii;3.0\nc, d.nii;e.nii;\n"
FORMS = {
    "plain": TEXT.encode(),
    "byte order mark": TEXT.encode("utf-8-sig"),
    "Latin-1": TEXT.encode("latin-1"),
    "Windows lines": TEXT.replace("\n", "\r\n").encode(),
    "semicolons": SEMICOLONS.encode(),
    "tabs": SEMICOLONS.replace(";", "\t").encode(),
    "blanks about cells": TEXT.replace("b.nii", "  b.nii  ").encode(),
    "empty last lines": (TEXT + "\n\n").encode(),
    "empty last rows": (SEMICOLONS + ";;\n;;\n").encode(),
    "an empty last column": SEMICOLONS.replace("\n", ";\n").encode(),
    "a short row": TEXT.replace("e.nii,", "e.nii").encode(),
    "Excel's first line": ("sep=;\n" + SEMICOLONS).encode("latin-1"),
    "empty first lines": ("\n\n" + TEXT).encode(),
    "a missing last line break": TEXT.rstrip("\n").encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_table_gives_the_same_rows(tmp_path, form):
    (tmp_path / "t.csv").write_bytes(FORMS[form])
    assert read_table(tmp_path / "t.csv", ("fixed", "moving")) == ROWS


FAULTS = {
    "a row that is too long": (b"a,b\n1,2\n\n1,2,3\n", "t.csv, line 4: has 3 cells, .* only 2"),
    "a text with a delimiter": (b"a,b\nx, y,2\n", "line 2: has 3 cells"),
    "a row after a text of two lines": (b'a,b\n"x\ny",1\n1,2,3\n', "line 4: has 3 cells"),
    "a missing column": (b"a,c\n1,2\n", "has no column 'b'"),
    "a column twice": (b"a,b,a\n1,2,3\n", "two columns 'a'"),
    "no text": (b"\x89PNG\x00\x01", "cannot be read as text"),
    "an open quote": (b'a,b\n1,"2\n', "line 2: cannot be read as a CSV"),
    "nothing": (b"", "is empty"),
    "empty lines": (b"\n,,\n", "is empty"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_table_is_named_with_its_line(tmp_path, fault):
    content, reason = FAULTS[fault]
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        read_table(tmp_path / "t.csv", ("a", "b"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [3, 3.0, "3", "3.0", "3,0", " 3 "])
def test_a_whole_number_may_have_a_decimal_point(value):
    assert parse_whole_number(value, "row 1") == 3


@pytest.mark.parametrize("value", ["3.5", 3.5, "", "x", "nan", "inf", None])
def test_other_values_are_no_whole_numbers(value):
    with pytest.raises(UserError, match=r"row 1: .* must be a whole number"):
        parse_whole_number(value, "row 1")
