import numpy as np
import pytest

from asrkit.data.formats import read_rttm
from asrkit.diarisation.turns import LEVELS, TurnTaking, fit_turns, sample_turns
from asrkit.errors import InputError
from asrkit.types import Segment


def draw(seed=0, speakers=4, duration=300.0, lengths=(2.0, 6.0), **options):
    rng = np.random.default_rng(seed)
    return sample_turns(TurnTaking(), rng, speakers=speakers, duration=duration, lengths=lengths, **options)


def speaking(turns, duration):
    """How many speak at each hundredth of a second."""
    count = np.zeros(round(100 * duration), int)
    for turn in turns:
        count[round(100 * turn.start) : round(100 * turn.end)] += 1
    return count


def test_statistics_of_an_example_by_hand():
    turns = [("a", 0, 4), ("b", 5, 9), ("a", 8, 11), ("c", 9.5, 10), ("a", 11.5, 12), ("d", 12, 13)]
    found = fit_turns(Segment("m", start, end, speaker) for speaker, start, end in reversed(turns))
    assert found.gaps == pytest.approx(np.quantile([1, 0.5], LEVELS), abs=0.01)
    assert found.overlaps == pytest.approx(np.quantile([1, 1.5, 0], LEVELS), abs=0.01)
    assert found.durations == pytest.approx(np.quantile([4, 4, 3, 0.5, 0.5, 1], LEVELS), abs=0.01)
    assert found.returns == (0, 1)  # twice could the last speaker go on, and "a" was the one before
    assert found.overlap == round(1.5 / 11.5, 3)


def test_recordings_are_apart():
    turns = [("a", 0, 4), ("b", 3, 6), ("b", 8, 9)]
    two = [Segment(name, start, end, speaker) for speaker, start, end in turns for name in ("m1", "m2")]
    one, both = fit_turns(two[::2]), fit_turns(two)
    assert (both.overlap, both.returns, both.gaps) == (one.overlap, one.returns, one.gaps)


def test_defaults_are_those_of_ami(corpora):
    files = sorted((corpora / "ami_rttm" / "only_words").rglob("*.rttm"))
    assert fit_turns(segment for file in files for segment in read_rttm(file)) == TurnTaking()


@pytest.mark.parametrize("speakers", [2, 4, 8])
@pytest.mark.parametrize("overlap", [0.0, 0.2])
def test_everyone_speaks_and_two_at_most_at_once(speakers, overlap):
    for seed in range(10):
        turns = draw(seed, speakers, 100.0, (1.0, 4.0), overlap=overlap)
        assert {turn.speaker for turn in turns} == set(range(speakers))
        assert speaking(turns, 100).max() == (2 if overlap else 1)
        assert 0 <= turns[0].start and turns[-1].end <= 100
        assert all(1 - 1e-6 <= turn.end - turn.start <= 4 + 1e-6 for turn in turns)
        assert turns == sorted(turns, key=lambda turn: turn.start)
        for speaker in range(speakers):
            own = [turn for turn in turns if turn.speaker == speaker]
            assert all(before.end < after.start for before, after in zip(own, own[1:], strict=False))


@pytest.mark.parametrize("overlap", [0.05, 0.1, 0.2, None])
def test_overlap_is_near_the_target(overlap):
    counts = np.concatenate([speaking(draw(seed, overlap=overlap), 300) for seed in range(10)])
    wanted = TurnTaking().overlap if overlap is None else overlap
    assert (counts > 1).sum() / (counts > 0).sum() == pytest.approx(wanted, rel=0.15)


def test_drawn_turns_have_the_statistics_that_they_were_drawn_from():
    turns = draw(duration=20_000.0, lengths=(0.5, 15.0), overlap=0.0)
    ends = np.array([turn.end for turn in turns[:-1]])
    gaps = np.array([turn.start for turn in turns[1:]]) - ends
    assert np.median(gaps) == pytest.approx(np.median(TurnTaking().gaps), rel=0.1)
    found = fit_turns([Segment("m", t.start, t.end + 1e-3, str(t.speaker)) for t in [*turns, turns[0]]])
    assert found.returns == pytest.approx(np.array(TurnTaking().returns[:4]) / sum(TurnTaking().returns[:4]), abs=0.03)


def test_turns_are_as_long_as_what_is_said():
    turns = draw(overlap=0.1, speak=lambda speaker, wanted: 2.5 + speaker)
    assert all(turn.end - turn.start == pytest.approx(2.5 + turn.speaker, abs=2e-4) for turn in turns)


def test_same_seed_same_turns():
    assert draw(3, overlap=0.1) == draw(3, overlap=0.1) != draw(4, overlap=0.1)


def test_bad_input():
    with pytest.raises(InputError, match="10.0 s are too short for turns of all 4 speakers"):
        draw(duration=10.0)
    with pytest.raises(InputError, match="too few turns to measure turn-taking"):
        fit_turns([Segment("m", 0, 1, "a")])
