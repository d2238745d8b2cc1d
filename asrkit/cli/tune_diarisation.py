"""`asrkit tune diarisation`: the options of a method that do best over many meetings, and what to expect of them.

Points are those of a Sobol sequence, not chosen by what others gave, so that cross-validation costs nothing: for each
part of the meetings the best point of the others is looked up.
"""

import json
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import qmc

from asrkit.config import read_config, write_config
from asrkit.data.formats import read_rttm, write_lines
from asrkit.diarisation.observations import Observations, load_observations
from asrkit.diarisation.pipeline import DiarisationConfig, diarise
from asrkit.diarisation.plda import Plda, load_plda
from asrkit.errors import InputError
from asrkit.progress import progress
from asrkit.scoring.diarisation import score_meeting
from asrkit.types import Segment

REACHES = (6.0, 2.0)  # rounds: how many times a positive value may grow or shrink, the second round about the best
SPAN = 2.0  # how far an option that is 0 may move for each unit of the reach

Point = dict[str, float]


@dataclass(frozen=True)
class Meeting:
    """A recording with its reference."""

    name: str
    observations: Observations
    refs: list[Segment]


@dataclass(frozen=True)
class Task:
    """What is tuned, apart from the options."""

    conf: list[Path]
    meetings: list[Meeting]
    plda: Plda


def tune_diarisation(
    *,
    observations: list[Path],
    refs: list[Path],
    plda: Path,
    options: list[str],
    out: Path,
    conf: list[Path] = (),  # type: ignore[assignment]
    trials: int = 64,
    folds: int = 4,
    jobs: int = 1,
) -> None:
    """Find the options of a diarisation method with the lowest error rate (no collar, overlap scored) on many meetings.

    An option that is positive moves within a sixth and six times its value, one that is 0 to either side; half of the
    trials then look closer, about the best. Prints the error rate at the start, at the best point, and by
    cross-validation: that of options chosen on other meetings. Sets that have a recording of the same name share its
    fold. Beside `out`, a .jsonl file has every point tried.

    Args:
        observations: folders that `asrkit diarise --observations` has filled, one a set of meetings.
        refs: RTTM file of each set, in the same order.
        plda: file of `asrkit speaker plda`.
        options: which to tune, such as ahc.threshold.
        out: YAML file to write, as `asrkit diarise --conf` reads it.
        conf: YAML files to start from; later ones win.
        trials: points to try.
        folds: of the cross-validation.
        jobs: processes.
    """
    if min(trials, jobs) < 1 or folds < 2:
        raise InputError("--trials and --jobs must be at least 1, --folds at least 2")
    start = read_config(DiarisationConfig, conf)
    origin = {name: value_of(start, name) for name in options}
    meetings = read_meetings(observations, refs)
    task = Task(list(conf), meetings, load_plda(plda))
    points, errors = [origin], []
    with ProcessPoolExecutor(jobs, initializer=hold, initargs=(task,)) as pool:
        for reach in REACHES:
            best = points[np.argmin([e.mean() for e in errors])] if errors else origin
            points += sobol_points(best, reach, max(1, trials // len(REACHES)))
            fresh = pool.map(errors_of, points[len(errors) :])
            errors += progress(fresh, "tuning", len(points) - len(errors), "trial")
    table = np.array(errors)  # (trials, meetings)
    best = points[table.mean(axis=1).argmin()]
    write_config(read_config(DiarisationConfig, conf, best), out)
    write_lines(
        (json.dumps({"der": e.mean(), "options": p}) for p, e in zip(points, table, strict=True)),
        out.with_suffix(".jsonl"),
    )
    expected = cross_validated(table, [meeting.name for meeting in meetings], folds)
    found = ", ".join(f"{name} {value:.4g}" for name, value in best.items())
    figures = (
        f"{table[0].mean():.2f} at the start, {table.mean(axis=1).min():.2f} now, {expected:.2f} on other meetings"
    )
    print(f"{out}: {found}: mean DER {figures}; {len(points)} points, {len(meetings)} meetings")


def cross_validated(errors: np.ndarray, names: Sequence[str], folds: int) -> float:
    """Return the mean error rate of meetings under the point that is best for those of other folds.

    Args:
        errors: (trials, meetings).
        names: those of one name are in one fold.
    """
    groups = {name: number % folds for number, name in enumerate(sorted(set(names)))}
    fold = np.array([groups[name] for name in names])
    if len(set(fold)) < 2:
        raise InputError("cross-validation needs at least two recordings of different names")
    chosen = [errors[:, fold != f].mean(axis=1).argmin() for f in fold]
    return float(errors[chosen, np.arange(len(fold))].mean())


def sobol_points(centre: Point, reach: float, number: int) -> list[Point]:
    """Return points that fill the surroundings of one evenly: the same ones each time."""
    filled = qmc.Sobol(len(centre), seed=0).random_base2(math.ceil(math.log2(number)))  # even only in powers of 2
    units = 2 * filled[:number] - 1  # (number, options) in [-1, 1]
    return [
        {
            name: float(value * reach**unit) if value > 0 else float(value + SPAN * reach * unit)
            for (name, value), unit in zip(centre.items(), row, strict=True)
        }
        for row in units
    ]


def hold(task: Task) -> None:
    """Keep what all trials of a process need, so that it is sent there once."""
    global held
    held = task


def errors_of(point: Point) -> np.ndarray:
    """Return the diarisation error rate (meetings,) in percent at a point of the task that is held."""
    config = read_config(DiarisationConfig, held.conf, point)
    results = (diarise(m.name, m.observations, held.plda, config).segments for m in held.meetings)
    scores = [score_meeting(m.name, m.refs, segments) for m, segments in zip(held.meetings, results, strict=True)]
    return np.array([100 * score.errors / score.speech for score in scores])


def read_meetings(observations: Sequence[Path], refs: Sequence[Path]) -> list[Meeting]:
    """Read all recordings that have observations and a reference.

    Raises:
        InputError: there are not as many folders as references, or none of a folder's recordings is in its reference.
    """
    if len(observations) != len(refs):
        raise InputError(f"--observations has {len(observations)} folders, but --refs {len(refs)} files")
    meetings = []
    for folder, file in zip(observations, refs, strict=True):
        segments: dict[str, list[Segment]] = {}
        for segment in read_rttm(file):
            segments.setdefault(segment.recording, []).append(segment)
        paths = [path for path in sorted(folder.glob("*.npz")) if path.stem in segments]
        if not paths:
            raise InputError(f"{folder}: no observations of a recording of {file}")
        meetings += [Meeting(path.stem, load_observations(path), segments[path.stem]) for path in paths]
    return meetings


def value_of(config: DiarisationConfig, name: str) -> float:
    """Return the number that is option `name` of the configuration."""
    value = asdict(config)
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, float) or not math.isfinite(value):
        raise InputError(f"--options {name}: no option of diarisation that is a number with a fraction")
    return value
