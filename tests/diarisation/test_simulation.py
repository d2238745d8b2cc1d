import math
import sys

import numpy as np
import pytest

from asrkit.diarisation.geometry import ArrayGeometry
from asrkit.diarisation.simulation import (
    CLEARANCE,
    EARLY,
    SEAT_ANGLE,
    SPEED,
    STEP,
    Room,
    SimulationConfig,
    Speech,
    _Acoustics,
    _draw_paths,
    _draw_room,
    _draw_seats,
    _render,
    _Voice,
    _windows,
    simulate,
)
from asrkit.diarisation.turns import Turn, TurnTaking, sample_turns
from asrkit.errors import InputError
from asrkit.types import Word

pytest.importorskip("pyroomacoustics")

RATE = 16000
SHORT = {"speakers": 2, "duration": 20.0, "turns": (1.0, 3.0), "rt60": (0.15, 0.2)}
ROOM = Room((5.0, 4.5, 2.6), (2.5, 2.2, 0.8), 0.2)


def bursts(seed, seconds=40.0, pauses=(0.0, 0.1, 0.2, 0.8)):
    """Noise in place of words, with pauses of these lengths between them."""
    rng = np.random.default_rng(seed)
    samples, words, time = 1e-4 * rng.standard_normal(round(seconds * RATE)), [], 0.3
    while time < seconds - 1:
        end = round(time + rng.uniform(0.3, 0.6), 3)
        place = slice(round(time * RATE), round(end * RATE))
        samples[place] += 0.1 * rng.standard_normal(place.stop - place.start)
        words.append(Word(f"w{len(words)}", time, end))
        time = round(end + rng.choice(pauses), 3)
    return Speech(samples, words)


@pytest.fixture(scope="module")
def sources():
    return {name: [bursts(seed), bursts(seed + 10)] for seed, name in enumerate(("ann", "bob", "eve"))}


def meet(sources, seed=0, **options):
    return simulate(sources, SimulationConfig(**SHORT | options), ArrayGeometry(), np.random.default_rng(seed))


AZIMUTHS = np.linspace(-np.pi, np.pi, 120, endpoint=False)
FREQUENCIES = np.arange(400, 4000, 20)


@pytest.fixture(scope="module")
def steering():
    """Phases (A, C, F) that bring sound from each azimuth together."""
    directions = np.stack([np.cos(AZIMUTHS), np.sin(AZIMUTHS)], axis=1)  # (A, 2)
    delays = directions @ ArrayGeometry().positions[:, :2].T / 343  # (A, C)
    return np.exp(-2j * np.pi * delays[..., None] * FREQUENCIES)


def azimuth_errors(meeting, steering):
    """Degrees between where parts of the turns are heard (steered response power with phase transform) and are."""
    errors = []
    for segment in meeting.segments:
        for start in np.arange(segment.start + 0.1, segment.end - 0.3, 0.3):
            samples = meeting.audio[:, round(start * RATE) :][:, : RATE // 5]
            spectrum = np.fft.rfft(samples * np.hanning(RATE // 5))[:, FREQUENCIES // 5]  # (C, F)
            power = np.square(np.abs(np.einsum("cf,acf->af", spectrum / np.abs(spectrum), steering))).sum(1)
            track = meeting.tracks.azimuths[segment.speaker]
            error = AZIMUTHS[power.argmax()] - track[round((start + 0.1) / meeting.tracks.step)]
            errors.append(abs(math.degrees((error + np.pi) % (2 * np.pi) - np.pi)))
    return np.array(errors)


@pytest.mark.parametrize("motion", ["still", "walk_all", "reseat"])
def test_sound_comes_from_where_the_tracks_are(sources, steering, motion):
    meeting = meet(sources, motion=motion, duration=30.0)
    if motion == "walk_all":
        assert all(np.ptp(np.unwrap(track)) > math.radians(40) for track in meeting.tracks.azimuths.values())
    errors = azimuth_errors(meeting, steering)
    assert len(errors) > 30 and np.median(errors) < 4 and np.mean(errors > 20) < 0.15


def test_turns_are_heard_when_they_are_said_to_be(sources):
    meeting = meet(sources, snr=60.0)
    level = np.square(meeting.audio[0]).reshape(-1, RATE // 50).mean(1)  # of fiftieths of a second
    loud = level > 1e-3 * np.quantile(level, 0.9)
    for segment in meeting.segments:
        start, end = round(segment.start * 50), round(segment.end * 50)
        assert loud[start : start + 5].any() and loud[end - 5 : end].any()
        assert not loud[max(0, start - 2) : start - 1].any()
    said = np.zeros(len(loud) + 50, bool)
    for segment in meeting.segments:
        said[round(segment.start * 50) : round(segment.end * 50) + 13] = True  # the room rings for a while
    assert not (loud & ~said[: len(loud)]).any()


def test_words_have_their_times(sources):
    config = SimulationConfig(**SHORT | {"turns": (1.5, 3.0)})
    voice = _Voice("ann", sources["ann"], config)
    said = [voice.say(seconds) for seconds in (1.5, 2.0, 3.0, 2.4, 2.0, 1.7, 1.5, 2.9)]
    assert all(1.5 <= len(speech.samples) / RATE <= 3.0 for speech in said)
    names = [word.text for speech in said for word in speech.words]
    assert names == [f"w{number}" for number in range(len(names))]
    for speech in said:
        loud = np.zeros(len(speech.samples), bool)
        for word, true in zip(speech.words, sources["ann"][0].words[int(speech.words[0].text[1:]) :], strict=False):
            assert word.end - word.start == pytest.approx(true.end - true.start)  # no word is cut
            loud[round(word.start * RATE) : round(word.end * RATE)] = True
        power = np.square(speech.samples)
        assert power[loud].mean() > 1e4 * power[~loud].mean()
        assert speech.words[0].start < 0.1 and speech.words[-1].end > len(speech.samples) / RATE - 0.1


def test_speech_without_word_times_is_cut_at_pauses(sources):
    silent_cuts = [Speech(speech.samples) for speech in sources["ann"]]
    config = SimulationConfig(**SHORT | {"turns": (1.0, 4.0)})
    with_words, without = (_Voice("ann", speech, config) for speech in (sources["ann"], silent_cuts))
    for seconds in (1.0, 2.0, 3.0, 2.4, 2.0, 1.7, 1.5):
        ends = np.square(without.say(seconds).samples)
        assert ends[:160].max() < 1e-4 and ends[-160:].max() < 1e-4
        with_words.say(seconds)


def test_breath_hum_and_clicks_are_no_speech(sources):
    rng, speech = np.random.default_rng(0), sources["ann"][0]
    noises = [noise.copy() for noise in np.zeros((3, RATE))]
    noises[0][3000:9000] = 0.01 * rng.standard_normal(6000)
    noises[1][:] = 0.05 * np.sin(2 * np.pi * 50 / RATE * np.arange(RATE))
    noises[2][8000:8016] = 0.02
    first = round(RATE * speech.words[0].start)
    for noise in noises:
        before = Speech(np.concatenate([noise, speech.samples]))
        said = _Voice("ann", [before], SimulationConfig(**SHORT)).say(2.0).samples
        start = round(0.04 * RATE)
        assert np.corrcoef(said[start:][:RATE], speech.samples[first - round(0.01 * RATE) :][:RATE])[0, 1] > 0.99


def test_short_utterances_are_joined_and_long_ones_without_a_pause_are_cut():
    config = SimulationConfig(**SHORT | {"turns": (2.0, 3.0)})
    tone = np.sin(np.arange(RATE))
    voice = _Voice("ann", [Speech(tone[: RATE // 2], [Word(str(n), 0, 0.5)]) for n in range(20)], config)
    assert [word.text for word in voice.say(2.4).words] == ["0", "1", "2", "3", "4"]
    assert len(_Voice("ann", [Speech(np.tile(tone, 20))], config).say(2.4).samples) == round(2.4 * RATE)


def test_overlap_and_words_of_the_meeting(sources):
    meeting = meet(sources, speakers=3, overlap=0.2, duration=40.0)
    count = np.zeros(4000, int)
    for segment, words in zip(meeting.segments, meeting.words, strict=True):
        count[round(100 * segment.start) : round(100 * segment.end)] += 1
        assert segment.text.split() == [word.text for word in words]
        assert segment.start <= words[0].start and words[-1].end <= segment.end + 1e-3
    assert (count > 1).sum() / (count > 0).sum() == pytest.approx(0.2, abs=0.07)
    assert set(meeting.tracks.azimuths) == {segment.speaker for segment in meeting.segments} == set(sources)
    assert {segment.recording for segment in meeting.segments} == {"meeting"} == {meeting.tracks.recording}


def test_audio(sources):
    meeting = meet(sources, snr=10.0)
    assert meeting.audio.shape == (7, 20 * RATE) and meeting.audio.dtype == np.float32
    assert np.abs(meeting.audio).max() == pytest.approx(0.7, rel=1e-4)
    quiet, loud = (np.square(meet(sources, snr=snr).audio[:, : RATE // 10]).mean() for snr in (30.0, 10.0))
    assert 10 * np.log10(loud / quiet) == pytest.approx(20, abs=2)


def test_same_seed_same_bytes_and_the_same_talk_in_every_motion(sources):
    first = meet(sources, motion="walk")
    again = meet(sources, motion="walk")
    assert first.audio.tobytes() == again.audio.tobytes() and first.segments == again.segments
    assert meet(sources, seed=1).segments != first.segments
    for motion in ("still", "walk_all", "reseat"):
        other = meet(sources, motion=motion, snr=3.0)
        assert (other.segments, other.words, other.room) == (first.segments, first.words, first.room)
        seats = [[track[0] for track in meeting.tracks.azimuths.values()] for meeting in (first, other)]
        assert seats[0] == pytest.approx(seats[1], abs=math.radians(1.5))  # the grid is 2 cm


# Where people are


def draw_paths(motion, seed, speakers=4):
    rng = np.random.default_rng(seed)
    config = SimulationConfig(speakers=speakers, duration=120.0, motion=motion)
    room = _draw_room(config, rng)
    seats = _draw_seats(config, room, rng)
    options = {"speakers": speakers, "duration": config.duration, "lengths": config.turns}
    turns = sample_turns(TurnTaking(), rng, **options)
    return room, seats.copy(), turns, _draw_paths(config, room, seats, turns, rng)


@pytest.mark.parametrize("speakers", [2, 5, 8])
def test_seats_are_apart_and_in_the_room(speakers):
    for seed in range(30):
        room, seats, _, paths = draw_paths("still", seed, speakers)
        azimuths = np.sort(np.arctan2(*(seats - room.array)[:, 1::-1].T))
        assert np.diff([*azimuths, azimuths[0] + 2 * np.pi]).min() > SEAT_ANGLE - 1e-6
        assert (seats[:, :2] > CLEARANCE - 1e-6).all()
        assert (seats[:, :2] < np.array(room.size[:2]) - CLEARANCE + 1e-6).all()
        assert np.abs(paths - seats[:, None]).max() < 0.011


@pytest.mark.parametrize(("motion", "walkers"), [("walk", 2), ("walk_all", 4)])
def test_walkers_keep_clear_and_walk_at_their_speed(motion, walkers):
    for seed in range(10):
        room, _, _, paths = draw_paths(motion, seed)
        offsets = paths[..., :2] - room.array[:2]
        assert np.linalg.norm(offsets, axis=2).min() > CLEARANCE - 0.03
        assert (paths[..., :2] > CLEARANCE - 0.02).all()
        assert (paths[..., :2] < np.array(room.size[:2]) - CLEARANCE + 0.02).all()
        speeds = np.linalg.norm(paths[:, 10:] - paths[:, :-10], axis=2) / (10 * STEP)
        assert speeds.max() < SPEED[1] + 0.03
        assert (speeds.max(axis=1) > SPEED[0]).sum() == walkers
        assert (speeds.max(axis=1) > 0).sum() == walkers


def test_seats_are_changed_twice_while_silent_for_those_of_others():
    for seed in range(10):
        _, seats, turns, paths = draw_paths("reseat", seed)
        ends = paths[:, -1]
        for speaker, path in enumerate(paths):
            moves = np.flatnonzero(np.abs(np.diff(path, axis=0)).max(axis=1)) + 1
            assert 1 <= len(moves) <= 2  # one, if the speaker was silent all the time between
            for move in moves:
                gap = (move - 1) * STEP, move * STEP
                assert not any(turn.start < gap[1] and turn.end > gap[0] for turn in turns if turn.speaker == speaker)
            nearest = np.linalg.norm(seats - ends[speaker], axis=1).argmin()
            assert nearest != speaker and np.abs(seats[nearest] - ends[speaker]).max() < 0.011


# What is heard


def render(samples, path):
    config = SimulationConfig(duration=len(samples) / RATE)
    return _render([(Turn(0, 0.0, config.duration), samples)], path[None], ROOM, ArrayGeometry(), config)


@pytest.fixture(scope="module")
def walk():
    """A straight walk past the array, 0.8 m/s, for three seconds."""
    time = STEP * np.arange(33)
    path = np.column_stack([1.2 + 0.8 * time, np.full(len(time), 3.2), np.full(len(time), 1.6)])
    return 0.02 * np.round(path / 0.02)


def test_windows_add_up_to_the_sound(walk):
    samples = np.random.default_rng(0).standard_normal(40_001).astype(np.float32)
    turn, total = Turn(0, 0.137, 0.137 + 40_001 / RATE), np.zeros(50_000)
    windows = list(_windows(turn, samples, walk, RATE))
    assert len(windows) > 20
    for place, start, sound in windows:
        total[start : start + len(sound)] += sound
        assert np.abs(walk[round((start + len(sound) / 2) / RATE / STEP)] - place).max() < 0.09
    start = round(0.137 * RATE)
    assert np.allclose(total[start : start + len(samples)], samples, atol=1e-6) and not total[:start].any()


def test_a_walker_makes_no_clicks(walk):
    frequency = 2 * np.pi * 440 / RATE
    tone = np.sin(frequency * np.arange(3 * RATE)).astype(np.float32)
    heard = render(tone, walk)[:, RATE // 2 : -RATE // 10]
    predicted = 2 * np.cos(frequency) * heard[:, 1:-1] - heard[:, :-2]  # exact for a steady tone
    jumps = np.abs(heard[:, 2:] - predicted).max(axis=1) / np.abs(heard).max(axis=1)
    assert jumps.max() < 2e-3
    assert np.std([np.abs(part).max() for part in np.array_split(heard[0], 20)]) > 0.05 * np.abs(heard).max()


def test_who_sits_is_heard_through_one_response():
    samples = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    place = np.array([1.2, 3.2, 1.2])
    acoustics = _Acoustics(ROOM, ArrayGeometry(), RATE)
    early, late = acoustics.early(place[None])[0], acoustics.late()
    late = np.pad(late, ((0, 0), (0, max(0, early.shape[1] - late.shape[1]))))
    response = late + np.pad(early, ((0, 0), (0, late.shape[1] - early.shape[1])))
    expected = np.stack([np.convolve(samples, channel)[:RATE] for channel in response])
    assert np.allclose(render(samples, np.tile(place, (12, 1))), expected, atol=1e-4)


def test_responses_begin_as_those_of_full_length_and_hold_their_energy():
    import pyroomacoustics

    acoustics = _Acoustics(ROOM, ArrayGeometry(), RATE)
    place = np.array([1.3, 1.5, 1.2])
    early, late = acoustics.early(place[None])[0], acoustics.late()
    material = pyroomacoustics.Material(acoustics.absorption)
    box = pyroomacoustics.ShoeBox(ROOM.size, RATE, materials=material, max_order=acoustics.full_order)
    box.add_microphone_array((ArrayGeometry().positions + ROOM.array).T)
    box.add_source(place)
    pyroomacoustics.constants.set("rir_hpf_enable", False)
    box.compute_rir()
    pyroomacoustics.constants.set("rir_hpf_enable", True)
    for channel in range(7):
        full = box.rir[channel][0][40:].astype(np.float32)
        before = round((EARLY[0] - 0.003) * RATE)
        assert np.allclose(early[channel, :before], full[:before], atol=1e-6)
        energy = np.square(early[channel]).sum() + np.square(late[channel]).sum()
        assert 10 * np.log10(energy / np.square(full).sum()) == pytest.approx(0, abs=0.3)


def test_sound_arrives_after_its_way():
    acoustics = _Acoustics(ROOM, ArrayGeometry(), RATE)
    places = np.array([[2.5, 3.6, 1.2], [1.0, 2.2, 1.6]])
    for place, response in zip(places, acoustics.early(places), strict=True):
        for microphone, heard in zip(ArrayGeometry().positions + ROOM.array, response, strict=True):
            assert heard.argmax() == pytest.approx(np.linalg.norm(place - microphone) / 343 * RATE, abs=1)


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speakers": 1}, "speakers 1: must be from 2 to 8"),
        ({"duration": 0.0}, "duration 0.0: must be positive"),
        ({"duration": math.nan}, "duration nan: must be positive"),
        ({"overlap": 1.0}, "overlap 1.0: must be from 0 to 0.5"),
        ({"turns": (3.0, 1.0)}, "turns .*: expected the shortest"),
        ({"rt60": (0.1, 0.5)}, "rt60 .*: expected a range within 0.15 to 1 s"),
        ({"snr": math.inf}, "snr inf: must be finite"),
        ({"sampling_rate": 100}, "sampling_rate 100: must be at least 8000"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        SimulationConfig(**options)


def test_bad_speech(sources, monkeypatch):
    with pytest.raises(InputError, match="4 speakers are wanted, but there are 3"):
        meet(sources, speakers=4)
    with pytest.raises(InputError, match="3.0 s are too short for turns of all 2 speakers"):
        meet(sources, duration=3.0)
    with pytest.raises(InputError, match="speaker bob: too little speech"):
        meet(sources | {"bob": [bursts(1, 4.0)]}, speakers=3, duration=40.0)
    with pytest.raises(InputError, match="speaker bob: too little speech"):
        meet(sources | {"bob": [Speech(np.zeros(RATE)), Speech(np.zeros(10)), Speech(np.zeros(0))]}, speakers=3)
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)
    with pytest.raises(InputError, match=r"pip install 'asrkit\[meetings\]'"):
        meet(sources)
