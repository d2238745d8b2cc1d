import numpy as np
import pytest
import soundfile
from lhotse.supervision import AlignmentItem

from asrkit.cli.main import main
from asrkit.config import read_config
from asrkit.data.formats import read_rttm, read_tracks
from asrkit.data.manifests import load_cuts, save_cuts
from asrkit.data.utterances import read_recording, utterance_cut
from asrkit.diarisation.geometry import ArrayGeometry

pytest.importorskip("pyroomacoustics")

RATE = 8000
OPTIONS = {
    "--meetings": 2,
    "--seed": 7,
    "--jobs": 1,
    "--simulation.speakers": 2,
    "--simulation.duration": 12,
    "--simulation.turns": "[1,2]",
    "--simulation.rt60": "[0.15,0.2]",
    "--simulation.sampling_rate": RATE,
}


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """A manifest of three speakers who say "one two" again and again, for ever shorter."""
    folder = tmp_path_factory.mktemp("speech")
    rng, cuts = np.random.default_rng(0), []
    for speaker in ("ann", "bob", "eve"):
        for number in range(20):
            samples = 0.1 * rng.standard_normal(round(1.5 * RATE))
            samples[:800] = samples[5600:6400] = samples[-800:] = 0
            file = folder / f"{speaker}-{number}.wav"
            soundfile.write(file, samples, RATE)
            words = [AlignmentItem("one", 0.1, 0.6), AlignmentItem("two", 0.8, 0.6)]
            cuts.append(utterance_cut(read_recording(file), file.stem, "one two", speaker, words=words))
    save_cuts(cuts, folder / "speech.jsonl.gz")
    return folder / "speech.jsonl.gz"


def simulate(out, speech, *words, **options):
    given = OPTIONS | {f"--{name.replace('__', '.')}": value for name, value in options.items()}
    return main(list(map(str, ["data", "simulate", out, "--speech", speech, *words, *sum(given.items(), ())])))


@pytest.fixture(scope="module")
def meetings(speech, tmp_path_factory):
    out = tmp_path_factory.mktemp("meetings")
    assert simulate(out, speech, simulation__motion="walk") == 0
    return out


def test_set_is_complete_and_consistent(meetings):
    cuts = list(load_cuts(meetings / "meetings.jsonl.gz"))
    assert [cut.id for cut in cuts] == ["meeting-0007", "meeting-0008"]
    assert len({tuple(cut.custom["size"]) for cut in cuts}) == 2
    segments, tracks = read_rttm(meetings / "ref.rttm"), read_tracks(meetings / "tracks.jsonl")
    for cut in cuts:
        assert cut.load_audio().shape == (7, 12 * RATE)
        assert soundfile.info(meetings / "audio" / f"{cut.id}.flac").subtype == "PCM_16"
        assert cut.custom["motion"] == "walk" and cut.custom["snr"] == 20 and 0.15 <= cut.custom["rt60"] <= 0.2
        own = [segment for segment in segments if segment.recording == cut.id]
        assert [(s.start, s.duration, s.speaker) for s in cut.supervisions] == [
            (pytest.approx(s.start, abs=1e-3), pytest.approx(s.end - s.start, abs=2e-3), s.speaker) for s in own
        ]
        assert set(tracks[cut.id].azimuths) == {segment.speaker for segment in own}
        assert all(len(azimuths) * tracks[cut.id].step >= 12 for azimuths in tracks[cut.id].azimuths.values())
        for supervision in cut.supervisions:
            words = supervision.alignment["word"]
            assert supervision.text == " ".join(word.symbol for word in words)
            assert supervision.start <= words[0].start and words[-1].end <= supervision.end + 1e-3
    assert len(read_config(ArrayGeometry, [meetings / "array.yaml"])) == 7
    assert not (meetings / "unfinished").exists()


def test_nothing_is_done_again_and_other_options_are_another_set(meetings, speech):
    audio = meetings / "audio" / "meeting-0008.flac"
    before = audio.stat().st_mtime_ns
    assert simulate(meetings, speech, simulation__motion="walk") == 0
    assert audio.stat().st_mtime_ns == before
    assert simulate(meetings, speech, simulation__motion="walk", simulation__snr=10) == 0
    assert next(iter(load_cuts(meetings / "meetings.jsonl.gz"))).custom["snr"] == 10
    assert simulate(meetings, speech, simulation__motion="walk") == 0


def test_an_interrupted_set_goes_on_in_several_processes(meetings, speech, tmp_path, monkeypatch):
    written = []

    def interrupted(file, *args, **options):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(file)
        return soundfile_write(file, *args, **options)

    soundfile_write = soundfile.write
    monkeypatch.setattr(soundfile, "write", interrupted)
    assert simulate(tmp_path, speech, simulation__motion="walk") == 130
    assert not (tmp_path / "meetings.jsonl.gz").exists()
    first = (tmp_path / "audio" / "meeting-0007.flac").stat().st_mtime_ns
    monkeypatch.setattr(soundfile, "write", soundfile_write)
    assert simulate(tmp_path, speech, simulation__motion="walk", jobs=2) == 0
    assert (tmp_path / "audio" / "meeting-0007.flac").stat().st_mtime_ns == first
    for file in ("audio/meeting-0007.flac", "audio/meeting-0008.flac", "ref.rttm", "tracks.jsonl", "array.yaml"):
        assert (tmp_path / file).read_bytes() == (meetings / file).read_bytes()


def test_own_array_speakers_and_turns(meetings, speech, tmp_path):
    (tmp_path / "pair.yaml").write_text("microphones: [[0.05, 0, 0], [-0.05, 0, 0]]\n")
    options = {"array": tmp_path / "pair.yaml", "rttm": meetings / "ref.rttm", "meetings": 1}
    turns = [(4 * n, 4 * n + 3.5 + n % 2, "xyz"[n % 3]) for n in range(30)]
    lines = [f"SPEAKER m 1 {start} {end - start} <NA> <NA> {speaker} <NA> <NA>\n" for start, end, speaker in turns]
    (tmp_path / "turns.rttm").write_text("".join(lines))
    options["rttm"] = tmp_path / "turns.rttm"
    assert simulate(tmp_path / "out", speech, "--speakers", "eve", "ann", **options) == 0
    (cut,) = load_cuts(tmp_path / "out" / "meetings.jsonl.gz")
    assert cut.num_channels == 2 and {s.speaker for s in cut.supervisions} == {"ann", "eve"}
    gaps = np.diff([(s.start, s.end) for s in cut.supervisions], axis=0)
    assert len(gaps) and (tmp_path / "out" / "array.yaml").exists()


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (["--speakers", "joe"], {}, "--speakers: no speaker joe; there are ann, bob, eve"),
        (["--speakers", "ann"], {}, "2 speakers are wanted, but 1 have enough speech"),
        ([], {"meetings": 0}, "--meetings must be at least 1"),
        ([], {"rttm": "none.rttm"}, "none.rttm: No such file"),
        ([], {"array": "none.yaml"}, "none.yaml: No such file"),
        ([], {"simulation__duration": 100}, "2 speakers are wanted, but 0 have enough speech"),
        ([], {"simulation__duration": 2}, "2.0 s are too short for turns of all 2 speakers"),
    ],
)
def test_bad_input_is_one_line(speech, tmp_path, capsys, words, options, message):
    assert simulate(tmp_path, speech, *words, **options) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("asrkit data: ") and message in error
    assert not (tmp_path / "meetings.jsonl.gz").exists()


def test_bad_option(speech, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        simulate(tmp_path, speech, simulation__duration=0)
    assert "duration 0.0: must be positive" in capsys.readouterr().err


def test_damaged_speech_is_named(damage, tmp_path, capsys):
    file = tmp_path / "a.wav"
    soundfile.write(file, 0.1 * np.random.default_rng(0).standard_normal(20 * RATE), RATE)
    cuts = [utterance_cut(read_recording(file), f"a-{name}", "", name) for name in ("ann", "bob")]
    save_cuts(cuts, tmp_path / "speech.jsonl.gz")
    damage(file)
    assert simulate(tmp_path / "out", tmp_path / "speech.jsonl.gz") == 1
    assert f"cut a-ann: {file}: " in capsys.readouterr().err.splitlines()[-1]


def test_each_cut_has_one_speaker(tmp_path, capsys):
    file = tmp_path / "a.wav"
    soundfile.write(file, np.ones(RATE), RATE)
    save_cuts([utterance_cut(read_recording(file), "a", "", "")], tmp_path / "speech.jsonl.gz")
    assert simulate(tmp_path / "out", tmp_path / "speech.jsonl.gz") == 1
    assert "speech.jsonl.gz: cut a: expected one supervision, with a speaker" in capsys.readouterr().err
