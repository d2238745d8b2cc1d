import pytest

from asrkit.data.utterances import read_recording, utterance_cut
from asrkit.errors import InputError


def test_recording_and_its_utterance(tmp_path, write_wav):
    recording = read_recording(write_wav(tmp_path / "a.flac", 1.5, 16000, channels=2))
    assert (recording.id, recording.duration, recording.num_channels) == ("a", 1.5, 2)
    cut = utterance_cut(recording, "a-1", "one", "anna", 0.5)
    assert (cut.start, cut.duration, cut.channel) == (0.5, 1.0, 0)
    assert cut.load_audio().shape == (1, 16000)


@pytest.mark.parametrize(
    "start, end", [(-0.1, 0.5), (0.5, 0.5), (0.6, 0.5), (0.0, 1.1), (2.0, None), (float("nan"), 1)]
)
def test_utterance_outside_its_recording(tmp_path, write_wav, start, end):
    recording = read_recording(write_wav(tmp_path / "a.wav"))
    with pytest.raises(InputError, match="utterance x: .* is not within its 1.000 s"):
        utterance_cut(recording, "x", "one", "anna", start, end)


def test_rounded_end_is_cut_to_the_recording(tmp_path, write_wav):
    recording = read_recording(write_wav(tmp_path / "a.wav"))
    assert utterance_cut(recording, "x", "one", "anna", 0.25, 1.01).end == 1.0


def test_files_that_are_no_audio(tmp_path, write_wav):
    (tmp_path / "text.wav").write_text("hello")
    for path, message in [
        (tmp_path / "none.wav", "no such file"),
        (tmp_path / "text.wav", "not readable as audio"),
        (write_wav(tmp_path / "empty.wav", 0), "no samples"),
    ]:
        with pytest.raises(InputError, match=f"{path.name}: {message}"):
            read_recording(path)
