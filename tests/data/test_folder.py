import pytest

from asrkit.data.corpora import folder
from asrkit.data.manifests import load_cuts
from asrkit.errors import InputError


@pytest.fixture
def table(tmp_path, write_wav):
    for name in ("a", "b", "x/b"):
        write_wav(tmp_path / "own" / f"{name}.wav", 2.0)

    def write(content):
        (tmp_path / "own" / "train.tsv").write_text(content, encoding="utf-8")
        return tmp_path / "own" / "train.tsv"

    return write


def test_all_columns_in_any_order(table, tmp_path):
    rows = (
        'start\tend\tpath\ttext\tspeaker\n\t\ta.wav\tHello\tanna\n0.5\t1\tb.wav\tone\t\n1\t\tb.wav\tsaid "two"\tben\n'
    )
    folder.prepare(tmp_path / "out", [table(rows)], str.lower)
    cuts = load_cuts(tmp_path / "out" / "train.jsonl.gz")
    assert [(cut.id, cut.start, cut.end) for cut in cuts] == [("a", 0, 2.0), ("b-0001", 0.5, 1.0), ("b-0002", 1.0, 2.0)]
    assert [cut.supervisions[0].text for cut in cuts] == ["hello", "one", 'said "two"']
    assert [cut.supervisions[0].speaker for cut in cuts] == ["anna", "unknown", "ben"]


def test_files_of_one_name_and_a_byte_order_mark(table):
    cuts = folder.read_table(table("\ufeffpath\ttext\nb.wav\tone\nx/b.wav\ttwo\n"))
    assert [cut.id for cut in cuts] == ["b.wav", "x-b.wav"]


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "line 1: the header has path, text"),
        ("a.wav\thello\n", "line 1: the header has path, text .*found: a.wav, hello"),
        ("path\ttext\tage\na.wav\tone\t5\n", "line 1: the header has"),
        ("path\ttext\ttext\na.wav\tone\ttwo\n", "line 1: the header has"),
        ("path\ttext\n", "no rows"),
        ("path\ttext\na.wav\n", "line 2: 1 columns, but 2 in the header"),
        ("path\ttext\na.wav\tone\nb.wav\t \n", "line 3: no text"),
        ("path\ttext\nnone.wav\tone\n", "none.wav: no such file"),
        ("path\ttext\ntrain.tsv\tone\n", "train.tsv: not readable as audio"),
        ("path\ttext\tstart\na.wav\tone\tsoon\n", "line 2: start is not a number of seconds: 'soon'"),
        ("path\ttext\tend\na.wav\tone\t2.5\n", "line 2: utterance a: 0.0 s to 2.5 s is not within"),
    ],
)
def test_broken_tables_write_nothing(table, tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        folder.prepare(tmp_path / "out", [table(content)])
    assert not (tmp_path / "out").exists()


def test_table_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="none.tsv: No such file"):
        folder.read_table(tmp_path / "none.tsv")
    with pytest.raises(InputError, match="two tables of one name"):
        folder.prepare(tmp_path / "out", [tmp_path / "a" / "t.tsv", tmp_path / "b" / "t.tsv"])
