"""Simulated meetings: speech of single speakers, spoken in turns in a room, by people who sit, walk or change seats.

The room is a box whose early reflections are exact for each position of a speaker (image sources); the late
reverberation, which tells little of where its source is, is that of one place for the whole room. That is about twenty
times faster than responses of full length. A walker's sound is cut into windows that overlap by half, and each is heard
through the response of its own place: the source is cross-faded, not the microphones, so that the room rings on.
There is no Doppler shift.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from scipy import fft

from asrkit.diarisation.geometry import ArrayGeometry
from asrkit.diarisation.turns import Turn, TurnTaking, sample_turns
from asrkit.errors import InputError
from asrkit.optional import needed
from asrkit.types import Segment, Tracks, Word

STEP = 0.1  # seconds between two known positions of a speaker
GRID = 0.02  # metres between the positions that are told apart
SMALLEST_ROOM, LARGEST_ROOM = (4.5, 4.0, 2.5), (7.5, 6.5, 3.2)  # metres
TABLE, SEATED, STANDING = 0.8, 1.2, 1.6  # metres of height of the microphones and of mouths
SEAT_DISTANCE = (0.9, 2.0)  # metres from the array
SEAT_ANGLE = math.radians(30)  # at least between two speakers
CLEARANCE = 0.7  # metres that a walker keeps off the walls and the array
SPEED = (0.3, 0.8)  # metres a second
STAY = (0.0, 10.0)  # seconds for which a walker stands where he arrived

EARLY = (0.06, 0.08)  # seconds after the sound in which early reflections pass into late ones
SPEECH_LEVEL = 0.05  # root mean square of speech before the room
PEAK = 0.7  # of a meeting's loudest sample
MARGIN = 0.05  # seconds of quiet that are left at either end of a turn
QUIET = 0.12  # seconds of quiet in which speech may be cut
LONGEST_PAUSE = 0.5  # seconds within a turn; longer pauses are cut out
FRAME = 0.01  # seconds over which the level of speech is measured
FADE = 0.005  # seconds at cuts


@dataclass(frozen=True)
class SimulationConfig:
    """One meeting."""

    speakers: int = 4
    duration: float = 300.0
    """Seconds."""
    motion: Literal["still", "walk", "walk_all", "reseat"] = "still"
    """Everyone sits; half of the speakers walk about, speaking or not; all walk; or everyone takes another's seat,
    twice, unseen, while silent."""
    overlap: float | None = 0.0
    """Share of the time with speech in which two speak; null: that of the turn-taking statistics."""
    turns: tuple[float, float] = (2.0, 6.0)
    """Shortest and longest turn, seconds."""
    rt60: tuple[float, float] = (0.3, 0.5)
    """Range of reverberation times, seconds (of Sabine's formula)."""
    snr: float = 20.0
    """Decibels of speech over the white noise of each microphone."""
    sampling_rate: int = 16000

    def __post_init__(self) -> None:
        if not 2 <= self.speakers <= 8:
            raise ValueError(f"speakers {self.speakers}: must be from 2 to 8")
        if not self.duration > 0 or not math.isfinite(self.duration):
            raise ValueError(f"duration {self.duration}: must be positive")
        if self.overlap is not None and not 0 <= self.overlap <= 0.5:
            raise ValueError(f"overlap {self.overlap}: must be from 0 to 0.5")
        if not 0.5 <= self.turns[0] < self.turns[1]:
            raise ValueError(f"turns {self.turns}: expected the shortest, at least 0.5 s, and a longer longest")
        if not 0.15 <= self.rt60[0] <= self.rt60[1] <= 1.0:
            raise ValueError(f"rt60 {self.rt60}: expected a range within 0.15 to 1 s")
        if not math.isfinite(self.snr):
            raise ValueError(f"snr {self.snr}: must be finite")
        if self.sampling_rate < 8000:
            raise ValueError(f"sampling_rate {self.sampling_rate}: must be at least 8000")


class Speech(NamedTuple):
    """Something that one speaker says: samples (T,) float, and its words with their times where they are known."""

    samples: np.ndarray
    words: Sequence[Word] = ()


class Room(NamedTuple):
    """A box with an array in it: metres, and seconds of reverberation."""

    size: tuple[float, float, float]
    array: tuple[float, float, float]
    rt60: float


@dataclass(frozen=True)
class Meeting:
    """A simulated meeting, and all that is true of it."""

    audio: np.ndarray
    """(C, T) float32."""
    segments: list[Segment]
    """The turns as they are spoken; the sound arrives up to 15 ms later. Text where the words are known."""
    words: list[tuple[Word, ...]]
    """Of each turn."""
    tracks: Tracks
    """Where everyone is, speaking or not, every `STEP` seconds."""
    room: Room


def simulate(
    sources: Mapping[str, Iterable[Speech]],
    config: SimulationConfig,
    geometry: ArrayGeometry,
    rng: np.random.Generator,
    statistics: TurnTaking = TurnTaking(),  # noqa: B008 - frozen
    recording: str = "meeting",
) -> Meeting:
    """Simulate a meeting of `config.speakers` of the speakers in `sources`.

    The same generator gives the same speakers, turns, words, room and first seats in every motion, and with any noise.

    Args:
        sources: speaker -> what the speaker says, read as far as it is needed; at `config.sampling_rate`.
        config: the meeting.
        geometry: the microphones.
        rng: everything that is drawn comes from it.
        statistics: how turns are taken.
        recording: the name of the meeting in its segments and tracks.

    Raises:
        InputError: too few speakers, too little speech, too short a meeting, or pyroomacoustics is not installed.
    """
    if len(sources) < config.speakers:
        raise InputError(f"{config.speakers} speakers are wanted, but there are {len(sources)}")
    draw_turns, draw_room, draw_motion, draw_noise = rng.spawn(4)
    speakers = sorted(draw_turns.choice(sorted(sources), config.speakers, replace=False).tolist())
    voices = [_Voice(name, sources[name], config) for name in speakers]
    turns, speech = _talk(voices, config, statistics, draw_turns)
    words = [_shifted(said.words, turn.start) for turn, said in zip(turns, speech, strict=True)]
    segments = [
        Segment(recording, turn.start, turn.end, speakers[turn.speaker], " ".join(word.text for word in own))
        for turn, own in zip(turns, words, strict=True)
    ]
    room = _draw_room(config, draw_room)
    seats = _draw_seats(config, room, draw_room)
    paths = _draw_paths(config, room, seats, turns, draw_motion)  # (K, steps, 3)
    offsets = paths - room.array
    azimuths = _wrapped(np.arctan2(offsets[..., 1], offsets[..., 0]))  # (K, steps)
    sounds = [(turn, said.samples) for turn, said in zip(turns, speech, strict=True)]
    audio = _add_noise(_render(sounds, paths, room, geometry, config), turns, config, draw_noise)
    tracks = Tracks(recording, STEP, dict(zip(speakers, azimuths, strict=True)))
    return Meeting(audio, segments, words, tracks, room)


# Details: what is said


class _Stretch(NamedTuple):
    """Speech without a long pause. It may be cut from any of `ends` to the one of `resumes` beside it (samples)."""

    samples: np.ndarray
    words: Sequence[Word] = ()
    ends: Sequence[int] = ()
    resumes: Sequence[int] = ()


class _Voice:
    """One speaker's speech, handed out turn by turn; utterances are joined where one is too short."""

    def __init__(self, name: str, speech: Iterable[Speech], config: SimulationConfig) -> None:
        self.name = name
        self.rate = config.sampling_rate
        self.shortest, self.longest = (round(self.rate * seconds) for seconds in config.turns)
        self.stretches = (stretch for said in speech for stretch in _stretches(said, self.rate))
        self.rest = _Stretch(np.zeros(0, np.float32))

    def say(self, seconds: float) -> Speech:
        """Return the next turn, of about so many seconds."""
        while len(self.rest.samples) < self.longest and (stretch := next(self.stretches, None)):
            self.rest = _joined(self.rest, stretch, self.rate)
        if len(self.rest.samples) < self.shortest:
            raise InputError(f"speaker {self.name}: too little speech for a meeting of this length")
        end, resume = self._place_to_cut(round(self.rate * seconds))
        said = _before(self.rest, end, self.rate)
        self.rest = _after(self.rest, resume, self.rate)
        return Speech(_faded(said.samples, self.rate), said.words)

    def _place_to_cut(self, wanted: int) -> tuple[int, int]:
        """Return where the turn ends and where the next begins: at a pause, else between words, else anywhere."""
        rest = self.rest
        pauses = [*zip(rest.ends, rest.resumes, strict=True), (len(rest.samples),) * 2]
        words = [(end, end) for end in (round(self.rate * word.end) for word in rest.words)]
        for places in (pauses, words, [(wanted, wanted)]):
            if allowed := [place for place in places if self.shortest <= place[0] <= self.longest]:
                return min(allowed, key=lambda place: abs(place[0] - wanted))
        return min(pauses + words, key=lambda place: abs(place[0] - wanted))


def _talk(
    voices: Sequence[_Voice], config: SimulationConfig, statistics: TurnTaking, rng: np.random.Generator
) -> tuple[list[Turn], list[Speech]]:
    """Draw the turns, as long as what is said in them."""
    speech: list[Speech] = []

    def speak(speaker: int, seconds: float) -> float:
        speech.append(voices[speaker].say(seconds))
        return len(speech[-1].samples) / config.sampling_rate

    turns = sample_turns(
        statistics,
        rng,
        speakers=len(voices),
        duration=config.duration,
        lengths=config.turns,
        overlap=config.overlap,
        speak=speak,
    )
    return turns, speech[: len(turns)]


def _stretches(speech: Speech, rate: int) -> Iterator[_Stretch]:
    """Divide speech at its long pauses; all of it gets the same level."""
    frame, margin = round(FRAME * rate), round(MARGIN * rate)
    loud = _is_loud(speech, frame, rate)
    heard = np.flatnonzero(loud)
    if not len(heard):
        return
    frames = speech.samples[: len(loud) * frame].reshape(-1, frame)[heard]
    samples = (speech.samples * (SPEECH_LEVEL / np.sqrt(np.square(frames).mean()))).astype(np.float32)
    pauses = np.diff(heard) - 1  # frames
    for run in np.split(np.arange(len(heard)), np.flatnonzero(pauses > LONGEST_PAUSE / FRAME) + 1):
        start = max(heard[run[0]] * frame - margin, 0)
        end = min((heard[run[-1]] + 1) * frame + margin, len(samples))
        cuts = run[:-1][pauses[run[:-1]] >= QUIET / FRAME]
        whole = _Stretch(
            samples[:end], speech.words, (heard[cuts] + 1) * frame + margin, heard[cuts + 1] * frame - margin
        )
        stretch = _after(_before(whole, end, rate), start, rate)
        yield stretch._replace(samples=_faded(stretch.samples, rate))


def _is_loud(speech: Speech, frame: int, rate: int) -> np.ndarray:
    """Tell which frames are speech: those of words, and those well above the noise. Hum and breath are not."""
    samples = np.diff(speech.samples, prepend=0)  # high frequencies are raised
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame)
    if not frames.any():
        return np.zeros(len(frames), bool)
    level = 10 * np.log10(np.square(frames).mean(1) + 1e-12)
    noise, loud = np.percentile(level, [10, 95])
    is_loud = level > np.clip(noise + 8, loud - 26, loud - 15)
    for start, end in np.flatnonzero(np.diff(is_loud, prepend=False, append=False)).reshape(-1, 2):
        is_loud[start:end] &= level[start:end].max() > loud - 10
    for word in speech.words:
        is_loud[math.floor(word.start * rate / frame) : math.ceil(word.end * rate / frame)] = True
    return is_loud


def _joined(first: _Stretch, second: _Stretch, rate: int) -> _Stretch:
    length = len(first.samples)
    return _Stretch(
        np.concatenate([first.samples, second.samples]),
        [*first.words, *_shifted(second.words, length / rate)],
        [*first.ends, *[length] * bool(length), *(end + length for end in second.ends)],
        [*first.resumes, *[length] * bool(length), *(resume + length for resume in second.resumes)],
    )


def _before(stretch: _Stretch, end: int, rate: int) -> _Stretch:
    cuts = [cut for cut in zip(stretch.ends, stretch.resumes, strict=True) if cut[1] < end]
    words = [word for word in stretch.words if word.start + word.end < 2 * end / rate]
    return _Stretch(stretch.samples[:end], words, [end for end, _ in cuts], [resume for _, resume in cuts])


def _after(stretch: _Stretch, start: int, rate: int) -> _Stretch:
    cuts = [cut for cut in zip(stretch.ends, stretch.resumes, strict=True) if cut[0] > start]
    words = [word for word in stretch.words if word.start + word.end >= 2 * start / rate]
    return _Stretch(
        stretch.samples[start:],
        _shifted(words, -start / rate),
        [end - start for end, _ in cuts],
        [resume - start for _, resume in cuts],
    )


def _shifted(words: Iterable[Word], seconds: float) -> tuple[Word, ...]:
    return tuple(replace(word, start=word.start + seconds, end=word.end + seconds) for word in words)


def _faded(samples: np.ndarray, rate: int) -> np.ndarray:
    size = min(round(FADE * rate), len(samples) // 2)
    ramp = np.linspace(0, 1, size, dtype=np.float32)
    faded = samples.copy()
    faded[:size] *= ramp
    faded[len(faded) - size :] *= ramp[::-1]
    return faded


# Details: where people are


def _draw_room(config: SimulationConfig, rng: np.random.Generator) -> Room:
    size = rng.uniform(SMALLEST_ROOM, LARGEST_ROOM)
    array = np.array([*(size[:2] / 2 + rng.uniform(-0.2, 0.2, 2)), TABLE])
    return Room(tuple(size.tolist()), tuple(array.tolist()), float(rng.uniform(*config.rt60)))


def _draw_seats(config: SimulationConfig, room: Room, rng: np.random.Generator) -> np.ndarray:
    """Return a seat for each speaker, (K, 3) metres, no two of them closer than `SEAT_ANGLE`."""
    spare = 2 * math.pi - config.speakers * SEAT_ANGLE
    steps = SEAT_ANGLE + spare * rng.dirichlet(np.ones(config.speakers))
    azimuths = rng.permutation(rng.uniform(0, 2 * math.pi) + np.cumsum(steps))
    directions = np.stack([np.cos(azimuths), np.sin(azimuths)], axis=1)
    array, size = np.array(room.array[:2]), np.array(room.size[:2])
    space = np.where(directions > 0, size - array, array) - CLEARANCE
    farthest = np.minimum((space / np.abs(directions)).min(1), SEAT_DISTANCE[1])
    distances = rng.uniform(SEAT_DISTANCE[0], farthest)
    return np.column_stack([array + distances[:, None] * directions, np.full(config.speakers, SEATED)])


def _draw_paths(
    config: SimulationConfig, room: Room, seats: np.ndarray, turns: Sequence[Turn], rng: np.random.Generator
) -> np.ndarray:
    """Return where each speaker's mouth is every `STEP` seconds, (K, steps, 3) metres, on the grid."""
    speakers, steps = len(seats), math.ceil(config.duration / STEP) + 2
    paths = np.repeat(seats[:, None], steps, axis=1)
    if config.motion == "reseat":
        order = rng.permutation(speakers)
        for moment in config.duration * rng.uniform([0.25, 0.58], [0.42, 0.75]):
            seats[order] = seats[np.roll(order, 1)]
            for speaker in range(speakers):
                paths[speaker, _silent_step(moment, speaker, turns, config.duration) :] = seats[speaker]
    elif config.motion != "still":
        walking = speakers if config.motion == "walk_all" else speakers // 2
        for speaker in rng.permutation(speakers)[:walking]:
            paths[speaker, :, :2] = list(itertools.islice(_walk(seats[speaker, :2], room, rng), steps))
            paths[speaker, :, 2] = STANDING
    return GRID * np.round(paths / GRID)


def _silent_step(moment: float, speaker: int, turns: Sequence[Turn], duration: float) -> int:
    """Return the step nearest to a moment at which a speaker may vanish and appear elsewhere unheard."""
    own = [turn for turn in turns if turn.speaker == speaker]
    starts = [0.0, *(turn.end for turn in own)]
    ends = [*(turn.start for turn in own), duration + 2 * STEP]
    gaps = [(start + 1.5 * STEP, end - 1.5 * STEP) for start, end in zip(starts, ends, strict=True)]
    times = [float(np.clip(moment, *gap)) for gap in gaps if gap[0] <= gap[1]]
    return math.ceil(min(times, key=lambda time: abs(time - moment)) / STEP)


def _walk(position: np.ndarray, room: Room, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield where a walker is, (2,) metres, step by step: stands, then walks straight to another place, and so on."""
    low, high = np.full(2, CLEARANCE), np.array(room.size[:2]) - CLEARANCE
    while True:
        yield from itertools.repeat(position, round(rng.uniform(*STAY) / STEP))
        goal = rng.uniform(low, high)
        while _distance(np.array(room.array[:2]), position, goal) < CLEARANCE:
            goal = rng.uniform(low, high)
        steps = math.ceil(np.linalg.norm(goal - position) / (rng.uniform(*SPEED) * STEP))
        yield from np.linspace(position, goal, steps, endpoint=False)
        position = goal


def _distance(point: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    """Return how far a point (2,) is from the line between two others."""
    along = np.clip((point - start) @ (end - start) / np.square(end - start).sum(), 0, 1)
    return float(np.linalg.norm(start + along * (end - start) - point))


def _wrapped(azimuths: np.ndarray) -> np.ndarray:
    return (azimuths + math.pi) % (2 * math.pi) - math.pi


# Details: what is heard


def _render(
    sounds: Sequence[tuple[Turn, np.ndarray]],
    paths: np.ndarray,
    room: Room,
    geometry: ArrayGeometry,
    config: SimulationConfig,
) -> np.ndarray:
    """Return what the microphones hear of the turns without noise, (C, T)."""
    from scipy.signal import oaconvolve  # slow to import, and nothing else of this module needs it

    rate, length = config.sampling_rate, round(config.duration * config.sampling_rate)
    windows = [window for turn, samples in sounds for window in _windows(turn, samples, paths[turn.speaker], rate)]
    acoustics = _Acoustics(room, geometry, rate)
    places = sorted({place for place, _, _ in windows})
    early = dict(zip(places, acoustics.early(np.array(places)), strict=True))
    late = acoustics.late()
    dry = np.zeros(length, np.float32)
    audio = np.zeros((len(geometry), length), np.float32)
    for place, start, samples in windows:
        dry[start : start + len(samples)] += samples
        heard = _convolved(samples, early[place])[:, : length - start]
        audio[:, start : start + heard.shape[1]] += heard
    for channel, response in zip(audio, late, strict=True):
        channel += oaconvolve(dry, response)[:length]
    return audio


def _windows(turn: Turn, samples: np.ndarray, path: np.ndarray, rate: int) -> Iterator[tuple[tuple, int, np.ndarray]]:
    """Divide the sound of a turn by place; yield the place, the first sample in the meeting, and the samples there.

    Each place has a window that rises from the step before it and falls to the step after it: all add up to one.
    """
    start, step = round(turn.start * rate), STEP * rate
    first, last = math.floor(start / step), math.ceil((start + len(samples)) / step)
    bounds = np.flatnonzero(np.any(np.diff(path[first : last + 1], axis=0), axis=1)) + 1 + first
    for begin, end in itertools.pairwise([first, *bounds, last + 1]):
        corners = step * np.array([begin - 1, begin, end - 1, end])
        inside = slice(max(math.ceil(corners[0]), start), min(math.floor(corners[-1]) + 1, start + len(samples)))
        if inside.start < inside.stop:
            window = np.interp(np.arange(inside.start, inside.stop), corners, [0, 1, 1, 0]).astype(np.float32)
            sound = samples[inside.start - start : inside.stop - start] * window
            yield tuple(path[begin].tolist()), inside.start, sound


def _convolved(samples: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """Return samples (T,) through responses (C, L), (C, T + L - 1)."""
    length = len(samples) + responses.shape[1] - 1
    size = fft.next_fast_len(length, real=True)
    return fft.irfft(fft.rfft(samples, size) * fft.rfft(responses, size), size)[:, :length]


def _add_noise(
    audio: np.ndarray, turns: Sequence[Turn], config: SimulationConfig, rng: np.random.Generator
) -> np.ndarray:
    """Return audio with white noise, and with room for its peaks; the power of speech is that within turns."""
    speaking = np.zeros(audio.shape[1], bool)
    for turn in turns:
        speaking[round(turn.start * config.sampling_rate) : round(turn.end * config.sampling_rate)] = True
    power = np.square(audio[:, speaking]).mean()
    noise = rng.standard_normal(audio.shape, dtype=np.float32)
    noise *= math.sqrt(power) * 10 ** (-config.snr / 20)
    noise += audio
    noise *= PEAK / np.abs(noise).max()
    return noise


class _Acoustics:
    """The responses from places in a room to the microphones, by the image sources of pyroomacoustics."""

    def __init__(self, room: Room, geometry: ArrayGeometry, rate: int) -> None:
        self.room, self.rate = room, rate
        self.microphones = geometry.positions + room.array  # (C, 3)
        pyroomacoustics = needed("pyroomacoustics", "meetings")
        self.pra = pyroomacoustics
        self.absorption, self.full_order = pyroomacoustics.inverse_sabine(room.rt60, room.size)

    def early(self, places: np.ndarray) -> np.ndarray:
        """Return what comes from places (P, 3) directly and soon after, (P, C, L)."""
        order = math.ceil(self.pra.constants.get("c") * EARLY[1] / min(self.room.size))
        responses = self._responses(places, order, EARLY[1])
        time = np.arange(responses.shape[-1]) / self.rate
        return responses * np.cos(0.5 * math.pi * np.clip((time - EARLY[0]) / (EARLY[1] - EARLY[0]), 0, 1))

    def late(self) -> np.ndarray:
        """Return what comes later from anywhere in the room, (C, L)."""
        place = np.array([*(0.3 * np.array(self.room.size[:2])), SEATED])
        responses = self._responses(place[None], self.full_order, self.room.rt60)[0]
        time = np.arange(responses.shape[-1]) / self.rate
        return responses * np.sin(0.5 * math.pi * np.clip((time - EARLY[0]) / (EARLY[1] - EARLY[0]), 0, 1))

    def _responses(self, places: np.ndarray, order: int, seconds: float) -> np.ndarray:
        """Return the responses from places (P, 3) up to some time after the sound, (P, C, L) float32."""
        constants = self.pra.constants
        before = {name: constants.get(name) for name in ("num_threads", "rir_hpf_enable")}
        constants.set("num_threads", 1)
        constants.set("rir_hpf_enable", False)  # of no use to speech, and slower than the rest
        try:
            box = self.pra.ShoeBox(
                self.room.size, fs=self.rate, materials=self.pra.Material(self.absorption), max_order=order
            )
            box.add_microphone_array(self.microphones.T)
            for place in places:
                box.add_source(place)
            box.image_source_model()
            reach = constants.get("c") * seconds
            for source, visible in zip(box.sources, box.visibility, strict=True):
                visible &= np.linalg.norm(source.images.T - self.room.array, axis=1) < reach
            box.compute_rir()
        finally:
            for name, value in before.items():
                constants.set(name, value)
        offset = constants.get("frac_delay_length") // 2  # by which all are late, for their filters
        length = round(seconds * self.rate)
        responses = np.zeros((len(places), len(self.microphones), length), np.float32)
        for channel, row in enumerate(box.rir):
            for place, response in enumerate(row):
                kept = response[offset : offset + length]
                responses[place, channel, : len(kept)] = kept
        return responses
