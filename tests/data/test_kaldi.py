import pytest

from asrkit.data.corpora import kaldi
from asrkit.data.corpora.kaldi import is_kaldi_directory, read_kaldi_directory, write_kaldi_directory
from asrkit.data.manifests import load_cuts
from asrkit.errors import InputError


@pytest.fixture
def make(tmp_path, write_wav):
    """A function that writes a data directory, its tables given as keywords; its audio is `wav/a.wav` and `b.wav`."""
    for name in ("a", "b"):
        write_wav(tmp_path / "corpus" / "wav" / f"{name}.wav", 2.0)

    def directory(**tables):
        folder = tmp_path / "corpus" / "train"
        folder.mkdir(exist_ok=True)
        tables = {"wav_scp": "a wav/a.wav\nb wav/b.wav\n", "text": "a HELLO  WORLD\nb BYE\n", **tables}
        for name, content in tables.items():
            if content is not None:
                (folder / name.replace("_", ".")).write_text(content)
        return folder

    return directory


def test_whole_recordings_with_paths_relative_to_the_parent(make, tmp_path):
    kaldi.prepare(tmp_path / "out", [make(utt2spk="a anna\nb ben\n")], str.lower)
    cuts = load_cuts(tmp_path / "out" / "train.jsonl.gz")
    assert [(cut.id, cut.duration) for cut in cuts] == [("a", 2.0), ("b", 2.0)]
    assert [(cut.supervisions[0].text, cut.supervisions[0].speaker) for cut in cuts] == [
        ("hello  world", "anna"),
        ("bye", "ben"),
    ]
    assert all(cut.load_audio().shape == (1, 16000) for cut in cuts)


def test_segments_and_no_text(make):
    segments = "a-1 a 0.5 1.25\na-2 a 1.25 -1\n"
    folder = make(segments=segments, text=None)
    assert is_kaldi_directory(folder) and not is_kaldi_directory(folder.parent)
    first, second = read_kaldi_directory(folder)
    assert (first.id, first.start, first.end) == ("a-1", 0.5, 1.25)
    assert (second.start, second.end, second.supervisions[0].text) == (1.25, 2.0, "")
    assert first.supervisions[0].speaker == "a-1"


def test_paths_relative_to_the_directory_or_absolute(make, tmp_path):
    folder = make(wav_scp=f"a {tmp_path}/corpus/wav/a.wav\nb ../wav/b.wav\n")
    assert [cut.recording.id for cut in read_kaldi_directory(folder)] == ["a", "b"]


@pytest.mark.parametrize("command", ["touch executed |", "| touch executed", "touch executed|"])
def test_commands_are_refused_and_not_executed(make, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="wav.scp: a: commands are refused"):
        read_kaldi_directory(make(wav_scp=f"a {command}\n"))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "tables, message",
    [
        ({"wav_scp": None}, "wav.scp: No such file"),
        ({"wav_scp": ""}, "wav.scp: no lines"),
        ({"wav_scp": "a\n"}, "wav.scp: line 1: expected '<key> <value>', found 'a'"),
        ({"wav_scp": "a wav/a.wav\n\n"}, "wav.scp: line 2: expected"),
        ({"wav_scp": "a wav/a.wav\na wav/b.wav\n"}, "wav.scp: line 2: a is there twice"),
        ({"wav_scp": "a wav/none.wav\n"}, "wav.scp: a: no such file: wav/none.wav"),
        ({"wav_scp": "a train/text\n"}, "text: not readable as audio"),
        ({"text": None}, "text: no such file"),
        ({"text": "a HELLO\n"}, "text: utterance b is not in it"),
        ({"text": "a HELLO\nb\n"}, "text: utterance b has no words"),
        ({"text": "a HELLO\nb BYE\nc X\n"}, "text: utterance c is in it but not in segments or wav.scp"),
        ({"segments": "a-1 a 0 x\n"}, "segments: a-1: expected '<recording> <start> <end>', found 'a 0 x'"),
        ({"segments": "a-1 c 0 1\n"}, "segments: a-1: recording c is not in wav.scp"),
        ({"segments": "a-1 a 0 9\n", "text": "a-1 X\n"}, "utterance a-1: 0.0 s to 9.0 s is not within"),
        ({"utt2spk": "a anna\n"}, "utt2spk: utterance b is not in it"),
    ],
)
def test_broken_directories_write_nothing(make, tmp_path, tables, message):
    with pytest.raises(InputError, match=message):
        kaldi.prepare(tmp_path / "out", [make(**tables)])
    assert not (tmp_path / "out").exists()


def test_two_directories_of_one_name(make, tmp_path):
    with pytest.raises(InputError, match="two data directories of one name"):
        kaldi.prepare(tmp_path / "out", [make(), make()])


def test_export_reads_back(make, tmp_path):
    cuts = read_kaldi_directory(make(segments="a-1 a 0.5 1.25\na-2 a 1.25 -1\n", text="a-1 HELLO\na-2 BYE\n"))
    write_kaldi_directory(cuts, tmp_path / "export")
    assert read_kaldi_directory(tmp_path / "export") == cuts


def test_real_directory(corpora):
    cuts = read_kaldi_directory(corpora / "speechocean762_subset" / "test")
    assert len(cuts) == 280
    assert len({cut.supervisions[0].speaker for cut in cuts}) == 14
