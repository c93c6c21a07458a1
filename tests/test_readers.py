import json

import pyarrow
import pytest
from pyarrow import parquet

from dynabert import readers
from dynabert.errors import DataError, StorageError
from dynabert.readers import read_table

COLUMNS = ("text", "label")


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_every_kind_of_file_gives_the_same_columns(tmp_path):
    texts, labels = ["naïve, café", 'a "quote"', "x"], ["0", "1", "1"]
    rows = list(zip(texts, labels, strict=True))
    table = pyarrow.table({"label": labels, "text": texts, "more": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "a.parquet")
    written(tmp_path, "a.tsv", "label\ttext\n" + "".join(f"{label}\t{text}\n" for text, label in rows))
    quoted = "".join('{},"{}"\n'.format(label, text.replace('"', '""')) for text, label in rows)
    written(tmp_path, "a.csv", "label,text\n" + quoted)
    written(tmp_path, "a.jsonl", "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    for suffix in readers.READERS:
        table = read_table(tmp_path / f"a{suffix}", COLUMNS)
        assert table.columns == {"text": texts, "label": labels}, suffix
        assert len(table) == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mark.csv", b"\xef\xbb\xbftext,label\none,0\ntwo,1\n"),
        ("crlf.tsv", b"text\tlabel\r\none\t0\r\n\r\ntwo\t1\r\n"),
        ("crlf.csv", b"text,label\r\none,0\r\n\r\ntwo,1\r\n"),
        ("open.tsv", b"text\tlabel\none\t0\ntwo\t1"),
        ("blank.jsonl", b'{"text": "one", "label": "0"}\n  \n{"text": "two", "label": "1"}\r\n\n'),
    ],
)
def test_line_ends_blank_lines_and_a_byte_order_mark_do_not_matter(tmp_path, name, content):
    assert read_table(written(tmp_path, name, content), COLUMNS).columns == {
        "text": ["one", "two"],
        "label": ["0", "1"],
    }


def test_tsv_takes_quotes_and_strange_line_separators_as_they_are(tmp_path):
    content = 'text\tlabel\n"lone\t0\nhe said "no\t1\nold\u2028separators \x85 stay\t1\n""\t0\n'
    table = read_table(written(tmp_path, "a.tsv", content), COLUMNS)
    assert table.columns["text"] == ['"lone', 'he said "no', "old\u2028separators \x85 stay", '""']


def test_a_csv_field_may_hold_lines_and_the_next_row_is_still_placed(tmp_path):
    path = written(tmp_path, "a.csv", 'text,label\n"two\nlines",0\nlast,1\n')
    table = read_table(path, COLUMNS)
    assert table.columns["text"] == ["two\nlines", "last"]
    assert [table.place(row) for row in (0, 1)] == [f"{path}:2", f"{path}:4"]


def test_a_parquet_row_is_placed_by_its_number(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a"], "label": [0]}), path)
    assert read_table(path, COLUMNS).place(0) == f"{path} row 0"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.tsv", "text\tlabel\nok\t0\ncafé\t1\n".encode("latin-1"), ":3: not UTF-8 (byte 4 of the line)"),
        ("latin.csv", "text,label\ncafé,1\n".encode("latin-1"), ":2: not UTF-8"),
        ("utf16.csv", "text,label\na,1\n".encode("utf-16"), ":1: not UTF-8"),
        ("gzip.tsv", b"\x1f\x8b\x08\x00\x00\x00\x00", ":1: not UTF-8"),
        ("nul.tsv", b"text\tlabel\na\0b\t1\n", ":2: holds a NUL"),
        ("nul.csv", b"text,label\na\0b,1\n", ":2: holds a NUL"),
        ("ragged.tsv", b"text\tlabel\na\t1\nb\n", ":3: 1 fields where the header has 2"),
        ("ragged.csv", b"text,label\na,b,1\n", ":2: 3 fields where the header has 2"),
        ("quote.csv", b'text,label\na,0\n"b,1\nc,0\n', ":3: not CSV (unexpected end of data)"),
        ("inner.csv", b'text,label\n"a" b,0\n', ":2: not CSV"),
        ("return.csv", b"text,label\na\rb,0\n", ":2: not CSV"),
        ("empty.tsv", b"", ": the file is empty"),
        ("empty.csv", b"\n\n", ": the file is empty"),
        ("column.tsv", b"sentence\tlabel\na\t0\n", ": no column 'text'; its columns: sentence, label"),
        ("twice.csv", b"text,text,label\na,b,0\n", ": 2 columns are called 'text'"),
        ("wide.csv", ",".join(map(str, range(99))).encode(), "10, 11, ..."),
        ("comma.jsonl", b'{"text": "a", "label": 0}\n{"text": "b",}\n', ":2: not JSON"),
        ("list.jsonl", b"[1, 2]\n", ":1: list where each line is one JSON object"),
        ("deep.jsonl", b"[" * 100_000 + b"\n", ":1: not JSON"),
        ("digits.jsonl", b'{"text": "a", "label": ' + b"9" * 5000 + b"}\n", ":1: not JSON"),
        ("column.jsonl", b'{"text": "a", "label": 0}\n{"text": "b"}\n', ":2: no column 'label'; its columns: text"),
        ("bad.parquet", b"PAR1 not really PAR1", ": not a readable parquet file"),
        ("empty.parquet", b"", ": not a readable parquet file"),
        ("a.xlsx", b"", ": cannot read .xlsx; known: .parquet, .tsv, .csv, .jsonl"),
        ("train.csv.gz", b"", ": cannot read .gz"),
        ("train", b"", ": cannot read a file without suffix"),
    ],
)
def test_a_bad_file_is_one_line_with_its_place(tmp_path, name, content, message):
    path = written(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        read_table(path, COLUMNS)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_parquet_without_the_column_or_with_broken_text_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    broken = pyarrow.array([b"\xff\xfe"], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": broken, "label": [0]}), path)
    with pytest.raises(DataError, match="not a readable parquet file"):
        read_table(path, COLUMNS)
    with pytest.raises(DataError, match="no column 'sentence'; its columns: text, label"):
        read_table(path, ("sentence",))


@pytest.mark.parametrize("suffix", readers.READERS)
def test_a_file_that_is_not_there_is_named(tmp_path, suffix):
    (tmp_path / f"folder{suffix}").mkdir()
    for name in ("missing", "folder"):
        with pytest.raises(DataError, match=f"{name}{suffix}: no such file"):
            read_table(tmp_path / f"{name}{suffix}", COLUMNS)


def test_a_line_without_end_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 2**20)
    path = written(tmp_path, "a.tsv", b"text\tlabel\n" + b"a" * (2**20 + 1))
    with pytest.raises(DataError, match=":2: longer than 1 MiB"):
        read_table(path, COLUMNS)


def test_a_disk_that_fails_is_a_storage_error(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setitem(readers.READERS, ".tsv", fail)
    with pytest.raises(StorageError, match=r"a.tsv: cannot be read \(Input/output error\)"):
        read_table(tmp_path / "a.tsv", COLUMNS)
