"""Diarisation: clustering and tracking of an hour, localisation, and the whole from audio to segments.

Usage:
    python tools/bench/diarisation.py --json diarisation.json --markdown diarisation.md
    python tools/bench/diarisation.py --model exp/speaker --recording meeting.flac --refs ref.rttm --array array.yaml

Where a row's peer is "real time", its ratio tells how many times faster than that we are. The hours are synthetic
observations of eight speakers, half of whom walk, in PLDA space; spectral clustering gets their voices alone.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import Row, interleaved, load_peers, one_thread, options, peak_memory, report

from asrkit.cli.der import read_meetings
from asrkit.cli.diarise import Job, Source, read_speech
from asrkit.cli.speaker import load_embedder
from asrkit.config import read_config
from asrkit.data.audio import audio_size
from asrkit.diarisation.geometry import ArrayGeometry
from asrkit.diarisation.localisation import peaks, steered_spectra
from asrkit.diarisation.observations import Observations
from asrkit.diarisation.pipeline import DiarisationConfig, cluster, diarise
from asrkit.diarisation.plda import load_plda
from asrkit.diarisation.spectral import spectral_clustering
from asrkit.scoring.diarisation import score_meeting

CELL = 0.25
SPEAKERS = 8
BETWEEN = 4.0 / (1 + np.arange(24))  # of an embedding as ours, in PLDA space
METHODS = ("ahc", "tracked", "particle_filter")
REAL_TIME = "real time"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", help="speaker embedder, for the whole way from audio to segments")
    parser.add_argument("--plda", type=Path, help="its PLDA; plda.npz in its directory by default")
    parser.add_argument("--recording", type=Path, help="audio of a meeting")
    parser.add_argument("--refs", type=Path, help="RTTM of its speakers")
    parser.add_argument("--array", type=Path, help="YAML of its microphones")
    arguments = parser.parse_args()
    one_thread()
    rows = [*clustering_rows(arguments), *localisation_rows(arguments)]
    if arguments.model:
        rows += pipeline_rows(arguments)
    report("diarisation.py", rows, arguments)


def clustering_rows(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield what each method takes for an hour, beside real time, spectral clustering, and a third of an hour."""
    seconds = 300.0 if arguments.quick else 3600.0
    cells, truth = synthetic_meeting(seconds)
    part = cells[: len(cells) // 3]
    contestants: dict[str, Callable[[], np.ndarray]] = {
        method: partial(cluster, cells, BETWEEN, DiarisationConfig(method)) for method in METHODS
    }
    if load_peers("spectralcluster"):
        contestants["spectralcluster"] = partial(spectral_clustering, cells.embeddings, most=2 * SPEAKERS)
    labels = {name: function() for name, function in contestants.items()}
    times = interleaved(contestants, 0.1 if arguments.quick else 30.0)
    parts = {f"{m}, part": partial(cluster, part, BETWEEN, DiarisationConfig(m)) for m in METHODS}
    part_times = interleaved(parts, 0.1 if arguments.quick else 10.0)
    for method in METHODS:
        work = f"{method}, {seconds / 60:.0f} min, {SPEAKERS} speakers"
        wrong = {name: f"{100 * cell_errors(labels[name], truth):.1f} % of cells wrong" for name in labels}
        yield Row(work, REAL_TIME, times[method] / 1000, seconds, "CPU s", wrong[method])
        if "spectralcluster" in times:
            ours, theirs = (times[name] / 1000 for name in (method, "spectralcluster"))
            yield Row(
                work, "spectralcluster", ours, theirs, "CPU s", f"{wrong[method]}, theirs {wrong['spectralcluster']}"
            )
        yield Row(
            work,
            "a third of it, three times",
            times[method] / 1000,
            3 * part_times[f"{method}, part"] / 1000,
            "CPU s",
            "linear is 1",
        )
        memory = peak_memory(contestants[method]), peak_memory(parts[f"{method}, part"])
        if None not in memory:
            yield Row(
                work, "a third of it, three times", memory[0], 3 * memory[1], "MiB over the inputs", "linear is 1"
            )


def localisation_rows(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield what the azimuths of a minute of seven channels take, ours and pyroomacoustics'."""
    rate, bins, seconds = 16000, 72, 10.0 if arguments.quick else 60.0
    geometry = ArrayGeometry()
    samples, truth = plane_waves(geometry, rate, seconds)
    starts = CELL * np.arange(len(truth))
    work = f"azimuths of {seconds:.0f} s, 7 microphones"
    ours = partial(steered_spectra, samples, rate, geometry, starts, starts + CELL, bins)
    contestants: dict[str, Callable] = {"asrkit": ours}
    if peers := load_peers("pyroomacoustics"):
        contestants["pyroomacoustics"] = partial(
            theirs, peers["pyroomacoustics"], samples, rate, geometry, len(truth), bins
        )
    times = interleaved(contestants, 0.1 if arguments.quick else 20.0)
    errors = {"asrkit": azimuth_error(peaks(ours())[0], truth)}
    result = f"median error {errors['asrkit']:.1f} degrees"
    yield Row(work, REAL_TIME, times["asrkit"] / 1000, seconds, "CPU s", result)
    if "pyroomacoustics" in contestants:
        error = azimuth_error(contestants["pyroomacoustics"](), truth)
        result += f", theirs {error:.1f}"
        yield Row(work, "pyroomacoustics SRP", times["asrkit"] / 1000, times["pyroomacoustics"] / 1000, "CPU s", result)


def pipeline_rows(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield what a recording takes from audio to segments, speech found by us or given."""
    embedder, plda = load_embedder(arguments.model), load_plda(arguments.plda or Path(arguments.model) / "plda.npz")
    geometry, config = read_config(ArrayGeometry, [arguments.array]), DiarisationConfig()
    name, (duration, _) = arguments.recording.stem, audio_size(arguments.recording)
    refs = read_meetings([arguments.refs])[name]
    for work, speech in {"speech found": None, "speech given": read_speech(arguments.refs)}.items():
        job = Job(embedder, geometry, config, speech, None)

        def whole(job: Job = job) -> list:
            return diarise(name, job.observe(Source(name, arguments.recording)), plda, config).segments

        score = score_meeting(name, refs, whole())
        der = 100 * score.errors / score.speech
        took = interleaved({"": whole}, 0.1 if arguments.quick else 30.0)[""] / 1000
        yield Row(f"audio to segments, {work}", REAL_TIME, took, duration, "CPU s", f"DER {der:.2f} %")


def synthetic_meeting(seconds: float, seed: int = 0) -> tuple[Observations, np.ndarray]:
    """Return observations without pauses, and who speaks (N,): turns of 2 to 6 s, half of the speakers walking."""
    rng = np.random.default_rng(seed)
    n = round(seconds / CELL)
    truth = np.concatenate([np.full(rng.integers(8, 25), rng.integers(SPEAKERS)) for _ in range(n // 8)])[:n]
    walk = np.cumsum(rng.normal(0, 0.05, (n, SPEAKERS)), axis=0) * (np.arange(SPEAKERS) % 2)
    seats = 2 * math.pi * np.arange(SPEAKERS) / SPEAKERS
    azimuths = seats[truth] + walk[np.arange(n), truth] + rng.normal(0, 0.05, n)
    stray = rng.random(n) < 0.03
    azimuths = np.where(stray, rng.uniform(0, 2 * math.pi, n), azimuths)
    azimuths = (azimuths + math.pi) % (2 * math.pi) - math.pi
    centres = rng.normal(0, np.sqrt(BETWEEN), (SPEAKERS, len(BETWEEN)))
    noise = rng.normal(0, 1, (n + 6, len(BETWEEN)))
    smooth = np.stack([noise[k : k + n] for k in range(7)]).sum(axis=0) / math.sqrt(7)  # windows overlap
    starts, grid = CELL * np.arange(n), -math.pi + 2 * math.pi * np.arange(72) / 72
    spectra = 0.3 + 0.4 * np.cos(azimuths[:, None] - grid)
    voices = (centres[truth] + smooth).astype(np.float32)
    return Observations(starts, starts + CELL, voices, azimuths, np.full(n, 0.0025), spectra.astype(np.float32)), truth


def cell_errors(labels: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of cells that are wrong under the best one-to-one mapping."""
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((labels.max() + 1, truth.max() + 1))
    np.add.at(counts, (labels, truth), 1)
    return 1 - counts[linear_sum_assignment(counts, maximize=True)].sum() / len(truth)


def plane_waves(geometry: ArrayGeometry, rate: int, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Return noise (C, T) from a new azimuth in each cell, and those azimuths (N,)."""
    rng = np.random.default_rng(0)
    size = round(CELL * rate)
    truth = rng.uniform(-math.pi, math.pi, round(seconds / CELL))
    frequencies = np.fft.rfftfreq(size, 1 / rate)
    pieces = []
    for azimuth in truth:
        delays = -geometry.positions[:, :2] @ [math.cos(azimuth), math.sin(azimuth)] / 343.0
        spectrum = np.fft.rfft(rng.normal(0, 0.1, size))
        pieces.append(np.fft.irfft(spectrum * np.exp(-2j * math.pi * delays[:, None] * frequencies), size))
    samples = np.concatenate(pieces, axis=1)
    return (samples + rng.normal(0, 0.01, samples.shape)).astype(np.float32), truth


def theirs(package, samples: np.ndarray, rate: int, geometry: ArrayGeometry, cells: int, bins: int) -> np.ndarray:
    """Return the azimuths (N,) that pyroomacoustics finds."""
    size, length = round(CELL * rate), 512
    srp = package.doa.SRP(geometry.positions[:, :2].T, rate, length, azimuth=2 * math.pi * np.arange(bins) / bins)
    found = []
    for n in range(cells):
        piece = samples[:, n * size : (n + 1) * size]
        frames = package.transform.stft.analysis(piece.T.astype(float), length, length // 2)  # (T, F, C)
        srp.locate_sources(frames.transpose(2, 1, 0), freq_range=[300.0, 6000.0])
        found.append(float(srp.azimuth_recon[0]))
    return np.array(found)


def azimuth_error(found: np.ndarray, truth: np.ndarray) -> float:
    return math.degrees(np.median(np.abs((found - truth + math.pi) % (2 * math.pi) - math.pi)))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
