"""What is known of voices before a meeting."""

import numpy as np

from asrkit.diarisation.enrolment import DECAYS, WORTH, enrol, enrolled_speakers, in_rooms
from asrkit.diarisation.frontend import FrontendConfig

RATE = 8000


def test_rooms_let_sound_decay_as_long_as_they_should():
    click = np.zeros(RATE, np.float32)
    click[100] = 0.5
    for decay, heard in zip(DECAYS, in_rooms(click, RATE), strict=True):
        assert heard.shape == click.shape and heard.dtype == np.float32
        assert np.abs(heard).argmax() == 100 and np.isclose(np.abs(heard).max(), 0.5)
        power = np.square(heard[140 : 100 + round(decay / 3 * RATE)]).reshape(-1)  # the first 20 dB
        times = np.arange(len(power)) / RATE
        slope = np.polyfit(times, np.log10(power + 1e-9), 1)[0] * 10
        assert np.isclose(slope, -60 / decay, rtol=0.35)


def test_an_enrolment_has_the_speech_and_that_of_each_room_in_the_same_windows():
    class Loudness:
        sampling_rate = RATE

        def __call__(self, samples, starts, ends):
            spans = zip((starts * RATE).astype(int), (ends * RATE).astype(int), strict=True)
            return np.array([[samples[a:b].std(), b - a] for a, b in spans])

    samples = np.random.default_rng(0).normal(0, 0.1, 4 * RATE).astype(np.float32)
    found = enrol(samples, [(0.5, 1.5), (2.0, 3.5)], Loudness(), FrontendConfig())
    parts = np.split(found, 1 + len(DECAYS))
    assert len(parts[0]) == 10  # cells of 0.25 s
    assert all(np.array_equal(part[:, 1], parts[0][:, 1]) for part in parts)
    assert np.allclose(parts[0][:, 0], 0.1, rtol=0.1)
    assert not any(np.allclose(part[:, 0], parts[0][:, 0]) for part in parts[1:])


def test_however_long_an_enrolment_counts_as_a_few_cells():
    long, short = np.ones((400, 3)), np.full((2, 3), 2.0)
    speakers = enrolled_speakers({"anna": long, "ben": short})
    assert speakers.counts.tolist() == [WORTH, 2]
    assert np.array_equal(speakers.sums, [[WORTH] * 3, [4.0] * 3])
