"""Tables of labels as spreadsheets write them."""

import csv
import io
import re

import pytest

from medgan.data.sources import SourceError
from medgan.data.sources.table import read_table

WANTED = ["patientid", "label"]
ROWS = [["Patient ID", "Age", "label"], ["p 1", "7,5", "mass|nodule"], ["p;2", "8", ""], ['p"3', "9", "näher"]]


def written(separator: str, encoding: str, ending: str = "\r\n", quoting: int = csv.QUOTE_MINIMAL) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=separator, lineterminator=ending, quoting=quoting).writerows(ROWS)
    return buffer.getvalue().encode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("separator", list(",;\t|"))
def test_separator_and_encoding_are_found(separator, encoding):
    for ending in ("\n", "\r\n", "\r"):
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
            table = read_table(written(separator, encoding, ending, quoting), "labels.csv", WANTED)
            assert [
                [row[table.columns[name]] for name in ("patientid", "age", "label")] for _, row in table.rows
            ] == ROWS[1:]


@pytest.mark.parametrize("encoding", ["cp1252", "shift_jis", "gbk", "cp1251"])
def test_of_another_encoding_only_ascii_is_read_and_the_rest_is_not_guessed(encoding):
    """In Shift-JIS the second byte of a letter may be that of a separator."""
    letters = {"cp1252": "Größe", "shift_jis": "ポリープ", "gbk": "正常", "cp1251": "норма"}[encoding]
    table = read_table(f"PatientID;{letters};label\n1;{letters};a\n".encode(encoding), "labels.csv", WANTED)
    assert [(row[0], row[2]) for _, row in table.rows] == [("1", "a")]
    with pytest.raises(SourceError, match="labels.csv row 2: letters that are in no known encoding; save .* as UTF-8"):
        read_table(f"PatientID;label\n1;{letters}\n".encode(encoding), "labels.csv", WANTED)


@pytest.mark.parametrize(
    ("text", "columns", "rows"),
    [
        ("sep=;\r\nPatient ID;label\r\n1;a\r\n", ["patientid", "label"], [(3, ["1", "a"])]),
        ("PatientID;Size[x,y,z];label\n1;2;a\n", ["patientid", "size[x,y,z]", "label"], [(2, ["1", "2", "a"])]),
        ("patient_id,label,\n1,a,\n\n,,\n2,b\n", ["patientid", "label", ""], [(2, ["1", "a", ""]), (5, ["2", "b"])]),
        ('"Patient ID", "label"\n"1", "a, b"\n', ["patientid", "label"], [(2, ["1", "a, b"])]),
        ("label\na\n", ["label"], [(2, ["a"])]),
        ("\r\nPatientID,label\r\n1,a\r\n", ["patientid", "label"], [(3, ["1", "a"])]),
        ("# labels, as of 2020\n;;\n \nPatientID;label\n1;a\n", ["patientid", "label"], [(5, ["1", "a"])]),
        ("# Patient ID,label\n1,a\n", ["patientid", "label"], [(2, ["1", "a"])]),
        ("#PatientID\tlabel\n1\ta\n", ["patientid", "label"], [(2, ["1", "a"])]),
        ("#,Patient ID,label\n0,1,a\n", ["#", "patientid", "label"], [(2, ["0", "1", "a"])]),
        ("", [], []),
    ],
)
def test_the_header_decides(text, columns, rows):
    table = read_table(text.encode(), "labels.csv", WANTED)
    assert list(table.columns) == columns
    assert list(table.rows) == rows


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PatientID,label\n1,mass,nodule\n", "labels.csv row 2: 3 columns, and 2 in the first row"),
        (b'PatientID,label\n1,"mass\n2,b\n', "labels.csv row 2: not a row of a table (unexpected end of data)"),
        (b"PatientID,label,Label\n1,a,b\n", "labels.csv: its first row names the column label twice"),
        (b"PK\x03\x04xl/workbook.xml", "labels.csv: a workbook, not a table of text; save it as CSV"),
        (b"\xff\xfea\0b", "labels.csv: not text in UTF-16, as it begins"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(content, words):
    with pytest.raises(SourceError, match=f"^{re.escape(words)}$"):
        read_table(content, "labels.csv", WANTED)
