"""Who speaks and where everybody is, at once: a particle filter in a switching state-space model (arXiv:2109.11140).

The hidden state is who speaks in a cell and where each of the speakers is. Given who spoke in every cell, what is known
of a speaker's voice is Gaussian (PLDA) and of their place nearly so (`kalman.observe`), so that a particle need only be
a history of labels, with the statistics of its speakers (Rao-Blackwellisation; the model's details are our reading).
Each particle has one successor for every speaker it knows and one for a speaker who is new. All are weighed, and the
best of them are kept by the optimal resampling of Fearnhead and Clifford (2003): no two particles are the same. Those
that differ only in where a turn begins would soon crowd out all that differ in who speaks, and are merged.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numba
import numpy as np

from asrkit.diarisation.kalman import LOG_UNIFORM, MOST_VARIANCE, MotionConfig, observe
from asrkit.diarisation.observations import Observations

LOCATIONS = ("none", "stationary", "kalman")
UNNAMED = -1
BLOCK = 8  # factors of a determinant that are multiplied before their logarithm is taken


@dataclass(frozen=True)
class ParticleConfig:
    """The switching state-space model, and how finely it is followed."""

    particles: int = 100
    location: str = "kalman"
    """none; stationary: everybody sits still; kalman: they walk and change seats."""
    embedding_weight: float = 0.08
    """How many independent observations of the voice a cell counts as: windows of neighbouring cells overlap."""
    location_weight: float = 0.7
    """The same of its azimuth."""
    turn: float = 3.0
    """Mean seconds until it is drawn who speaks next, which may be the same speaker."""
    birth: float = 0.001
    """Probability that somebody new is drawn."""
    most_speakers: int = 12
    alike: int = 16
    """Particles in which the same have spoken, but for at most so many cells, are merged; 0: none are."""
    motion: MotionConfig = field(default_factory=MotionConfig)
    lag: float | None = None
    """Seconds after which it is decided who speaks in a cell; null: once all has been heard."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.location not in LOCATIONS:
            raise ValueError(f"location must be one of {', '.join(LOCATIONS)}, not '{self.location}'")
        if min(self.particles, self.most_speakers) < 1:
            raise ValueError("particles and most_speakers must be at least 1")
        if min(self.embedding_weight, self.location_weight, self.alike) < 0:
            raise ValueError("embedding_weight, location_weight and alike must not be below 0")
        if self.turn <= 0 or not 0 < self.birth < 1:
            raise ValueError("turn must be above 0, and birth between 0 and 1")
        if self.lag is not None and self.lag < 0:
            raise ValueError("lag must not be below 0")


class Speakers(NamedTuple):
    """What is known of the voices of K speakers, from a first clustering or from enrolment."""

    counts: np.ndarray
    """(K,) windows of speech."""
    sums: np.ndarray
    """(K, d) of their projected embeddings."""


class Decision(NamedTuple):
    """Who speaks in a cell. Cells are numbered from 0 in the order in which they came."""

    cell: int
    speaker: int
    probability: float
    person: int
    """Whom the speaker is taken for by now: index into what was known of people, or above of somebody else."""


def filter_speakers(
    cells: Observations,
    between: np.ndarray,
    config: ParticleConfig,
    speakers: Speakers | None = None,
    births: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Decide who speaks in each cell of a recording; return labels (N,) and their probabilities (N,).

    Arguments are those of `OnlineFilter`.
    """
    online = OnlineFilter(between, config, speakers, births)
    decisions = online.accept(cells) + online.finish()
    labels = np.array([decision.speaker for decision in decisions], np.int64)
    return labels, np.array([decision.probability for decision in decisions])


def known_speakers(embeddings: np.ndarray, labels: np.ndarray) -> Speakers:
    """Return the statistics of the speakers with labels (N,) 0 .. K-1 in projected embeddings (N, d)."""
    members = labels == np.arange(labels.max(initial=-1) + 1)[:, None]  # (K, N)
    return Speakers(members.sum(axis=1), members @ embeddings)


class OnlineFilter:
    """Follow a recording cell by cell; each cell is decided as soon as it ended `config.lag` seconds ago.

    What is decided does not depend on how the cells are portioned. Speakers are numbered as in `speakers`, then by the
    order in which they are first decided on. If others may speak too, a voice keeps the number of whom it is first
    taken for: of two who sound alike, it may be minutes until it is sure which of them it is.

    Args:
        between: (d,) variance of the speakers (`Plda.between`).
        speakers: who may speak; None: nobody is known yet.
        births: whether others may speak too.
    """

    def __init__(
        self,
        between: np.ndarray,
        config: ParticleConfig,
        speakers: Speakers | None = None,
        births: bool = True,
    ) -> None:
        self._known = 0 if speakers is None else len(speakers.counts)
        if not self._known and not births:
            raise ValueError("without known speakers there must be births")
        self.config = config
        self._lag = math.inf if config.lag is None else config.lag
        slots = max(config.most_speakers, self._known) if births else self._known
        self._model = _model(between, config, speakers, slots)
        self._particles = _first_particle(speakers, self._model)
        self._free = set(range(self._known)) if births else set()  # numbers of `speakers` that no voice has
        if not births:
            self._particles.names[0] = range(self._known)
        self._random = np.random.default_rng(config.seed)
        self._pending: deque[_Step] = deque()  # of the cells that are not decided
        self._decided = 0
        self._time = math.nan  # of the last cell

    def accept(self, cells: Observations) -> list[Decision]:
        """Take the next cells, with projected embeddings (N, d); return those that are decided by now."""
        decisions = []
        embeddings = np.ascontiguousarray(cells.embeddings, np.float32)
        located = self.config.location != "none"
        noises = np.maximum(cells.variances, self.config.motion.noise)
        for n, end in enumerate(cells.ends.tolist()):
            time = (float(cells.starts[n]) + end) / 2
            azimuth = float(cells.azimuths[n]) if located else math.nan
            cell = _Cell(embeddings[n], time, time - self._time, azimuth, float(noises[n]))
            self._particles, *origin = _advance(
                self._particles, cell, self._model, self.config.particles, self._random.random(), self.config.alike
            )
            self._time = time
            self._pending.append(_Step(end, *origin))
            while self._pending and end - self._pending[0].end >= self._lag:
                decisions.append(self._decide(self._histories(1)[0]))
        return decisions

    def finish(self) -> list[Decision]:
        """Decide the cells that are left."""
        return [self._decide(slots) for slots in self._histories(len(self._pending))]

    def _histories(self, cells: int) -> list[np.ndarray]:
        """Return by which slots (P,) today's particles went in each of the first undecided cells."""
        histories = []
        lines = np.arange(len(self._particles.known))
        for n, step in zip(range(len(self._pending))[::-1], reversed(self._pending), strict=True):
            if n < cells:
                histories.append(step.slots[lines])
            lines = step.ancestors[lines]
        return histories[::-1]

    def _decide(self, slots: np.ndarray) -> Decision:
        """Decide the first undecided cell, in which today's particles have their speakers in `slots` (P,).

        Slots are by order of birth in each particle. What particles have in common are the names of speakers who
        have been decided on: a slot gets the name if it has none and the particle has no other slot of that name.
        """
        rows, names = np.arange(len(slots)), self._particles.names
        candidates, weights = names[rows, slots], np.exp(self._particles.log_weights)
        shares = np.bincount(candidates - UNNAMED, weights)
        best = int(shares.argmax())
        chosen = candidates == best + UNNAMED
        person = int(np.bincount(slots[chosen], weights[chosen]).argmax())
        speaker = best + UNNAMED if best else self._new_name(person)
        to_name = (candidates == UNNAMED) & ~(names == speaker).any(axis=1)
        names[rows[to_name], slots[to_name]] = speaker
        self._pending.popleft()
        self._decided += 1
        return Decision(self._decided - 1, speaker, min(float(shares[best]), 1.0), person)

    def _new_name(self, person: int) -> int:
        """Return the number of a speaker who has none: that of the person, if it is free."""
        if person in self._free:
            self._free.remove(person)
            return person
        self._known += 1
        return self._known - 1


# Details


class _Step(NamedTuple):
    """Where the P particles after a cell come from."""

    end: float
    ancestors: np.ndarray  # (P,)
    slots: np.ndarray  # (P,) of who speaks


class _Cell(NamedTuple):
    embedding: np.ndarray  # (d,)
    time: float
    elapsed: float  # since the cell before; NaN in the first
    azimuth: float
    noise: float


class _Model(NamedTuple):
    between: np.ndarray  # (d,)
    before: np.ndarray  # (S,) cells of the speaker of each slot that were known before the first
    embedding_weight: float
    location_weight: float
    turn: float
    birth: float
    diffusion: float
    jump_rate: float
    stray: float


class _Particles(NamedTuple):
    """P histories, with the statistics of the speakers of each in S slots, in order of birth."""

    log_weights: np.ndarray  # (P,)
    known: np.ndarray  # (P,) slots in use
    last: np.ndarray  # (P,) slot of who spoke in the last cell
    names: np.ndarray  # (P, S) numbers of the speakers in what has been decided
    counts: np.ndarray  # (P, S) cells, less those known before
    sums: np.ndarray  # (P, S, d) of the embeddings of all
    voices: np.ndarray  # (P, S) log evidence of those
    means: np.ndarray  # (P, S) of the azimuth
    variances: np.ndarray  # (P, S); below 0: never located
    times: np.ndarray  # (P, S) when last located


def _model(between: np.ndarray, config: ParticleConfig, speakers: Speakers | None, slots: int) -> _Model:
    motion, moving = config.motion, float(config.location == "kalman")
    before = np.zeros(slots)
    if speakers is not None:
        before[: len(speakers.counts)] = speakers.counts
    return _Model(
        np.asarray(between, np.float32),
        before,
        config.embedding_weight,
        config.location_weight,
        config.turn,
        config.birth,
        moving * motion.diffusion,
        moving * motion.jump_rate,
        motion.stray,
    )


def _first_particle(speakers: Speakers | None, model: _Model) -> _Particles:
    """Return the one particle before the first cell."""
    particles = _no_particles(1, len(model.before), len(model.between))
    particles.names[0], particles.variances[0] = UNNAMED, -1
    if speakers is not None:
        known = len(speakers.counts)
        particles.known[0], particles.sums[0, :known] = known, speakers.sums
        nothing = np.zeros_like(model.between)
        for k in range(known):
            particles.voices[0, k] = _voice_evidence(model.before[k], particles.sums[0, k], nothing, model)
    return particles


@numba.njit(cache=True, nogil=True)
def _no_particles(size: int, slots: int, dim: int) -> _Particles:
    return _Particles(
        np.zeros(size),
        np.zeros(size, np.int32),
        np.full(size, -1, np.int32),
        np.zeros((size, slots), np.int32),
        np.zeros((size, slots)),
        np.zeros((size, slots, dim), np.float32),
        np.zeros((size, slots)),
        np.zeros((size, slots)),
        np.zeros((size, slots)),
        np.zeros((size, slots)),
    )


@numba.njit(cache=True, nogil=True)
def _advance(
    particles: _Particles, cell: _Cell, model: _Model, size: int, uniform: float, alike: int
) -> tuple[_Particles, np.ndarray, np.ndarray]:
    """Take in a cell; return at most `size` particles, whose successors they are (P,), and by which slot (P,)."""
    log_weights, voices, means, variances = _successors(particles, cell, model)
    slots = log_weights.shape[1]
    chosen, weights = resample(log_weights.ravel(), size, uniform)
    new = _no_particles(len(chosen), slots, len(model.between))
    for i in range(len(chosen)):
        p, k = divmod(chosen[i], slots)
        _copy(particles, p, new, i)
        new.log_weights[i], new.last[i], new.known[i] = weights[i], k, max(k + 1, particles.known[p])
        new.counts[i, k] += 1
        new.sums[i, k] += cell.embedding
        new.voices[i, k], new.means[i, k], new.variances[i, k] = voices[p, k], means[p, k], variances[p, k]
        if not math.isnan(cell.azimuth):
            new.times[i, k] = cell.time
    if alike:
        kept = _merge(new, alike)
        merged = _no_particles(len(kept), slots, len(model.between))
        for i in range(len(kept)):
            _copy(new, kept[i], merged, i)
        new, chosen = merged, chosen[kept]
    return new, (chosen // slots).astype(np.int32), (chosen % slots).astype(np.int16)


@numba.njit(cache=True, nogil=True)
def _copy(source: _Particles, p: int, target: _Particles, i: int) -> None:
    """Copy particle p to place i of another set, which is empty."""
    known = source.known[p]
    target.log_weights[i], target.known[i], target.last[i] = source.log_weights[p], known, source.last[p]
    target.names[i] = source.names[p]
    target.counts[i, :known] = source.counts[p, :known]
    target.sums[i, :known] = source.sums[p, :known]
    target.voices[i, :known] = source.voices[p, :known]
    target.means[i, :known] = source.means[p, :known]
    target.variances[i, :known] = source.variances[p, :known]
    target.times[i, :known] = source.times[p, :known]


@numba.njit(cache=True, nogil=True)
def _successors(
    particles: _Particles, cell: _Cell, model: _Model
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return for each successor (P, S) its log weight, and of who speaks the voice's evidence, azimuth and variance."""
    shape = particles.counts.shape
    log_weights = np.full(shape, -np.inf)
    voices, means, variances = np.empty(shape), np.empty(shape), np.empty(shape)
    renewal = 1.0 if math.isnan(cell.elapsed) else 1 - math.exp(-cell.elapsed / model.turn)
    new_voice = _voice_evidence(1, np.zeros_like(cell.embedding), cell.embedding, model)
    for p in range(shape[0]):
        known = particles.known[p]
        full = known == shape[1]
        for k in range(known if full else known + 1):
            if k == known:
                prior = renewal * model.birth if known else 1.0
                voice, gain = new_voice, new_voice
            else:
                prior = renewal * (1.0 if full else 1 - model.birth) / known
                count = model.before[k] + particles.counts[p, k] + 1
                voice = _voice_evidence(count, particles.sums[p, k], cell.embedding, model)
                gain = voice - particles.voices[p, k]
            if k == particles.last[p]:
                prior += 1 - renewal
            place, means[p, k], variances[p, k] = _locate(
                particles.means[p, k],
                particles.variances[p, k] if k < known else -1.0,
                cell.time - particles.times[p, k],
                cell.azimuth,
                cell.noise,
                model.diffusion,
                model.jump_rate,
                model.stray,
            )
            if prior > 0:
                voices[p, k] = voice
                log_weights[p, k] = particles.log_weights[p] + math.log(prior) + gain + model.location_weight * place
    return log_weights, voices, means, variances


@numba.njit(cache=True, nogil=True)
def _locate(
    mean: float,
    variance: float,
    elapsed: float,
    azimuth: float,
    noise: float,
    diffusion: float,
    jump_rate: float,
    stray: float,
) -> tuple[float, float, float]:
    """As `observe`; a variance below 0 is of a speaker who has not been located yet, an azimuth of NaN is unseen."""
    if math.isnan(azimuth):
        return 0.0, mean, variance
    if variance < 0:
        return LOG_UNIFORM, azimuth, (1 - stray) * noise + stray * MOST_VARIANCE
    return observe(mean, variance, elapsed, azimuth, noise, diffusion, jump_rate, stray)


@numba.njit(cache=True, nogil=True)
def _merge(particles: _Particles, alike: int) -> np.ndarray:
    """Let each particle take the weight of lighter ones that are alike; return which are left, in order."""
    kept = np.empty(len(particles.known), np.int64)
    count = 0
    for i in np.argsort(-particles.log_weights):
        twin = -1
        for j in kept[:count]:
            if _alike(particles, i, j, alike):
                twin = j
                break
        if twin < 0:
            kept[count] = i
            count += 1
        else:
            ratio = math.exp(particles.log_weights[i] - particles.log_weights[twin])
            particles.log_weights[twin] += math.log1p(ratio)
    return np.sort(kept[:count])


@numba.njit(cache=True, nogil=True)
def _alike(particles: _Particles, i: int, j: int, most: int) -> bool:
    """Whether two particles have heard the same speakers, have the same now, and differ by at most so many cells."""
    known = particles.known[i]
    if known != particles.known[j] or particles.last[i] != particles.last[j]:
        return False
    cells = 0.0
    for k in range(known):
        if (particles.counts[i, k] > 0) != (particles.counts[j, k] > 0):
            return False  # one more voice is never a matter of where a turn begins
        cells += abs(particles.counts[i, k] - particles.counts[j, k])
    return cells <= most


@numba.njit(cache=True, nogil=True)
def resample(log_weights: np.ndarray, size: int, uniform: float) -> tuple[np.ndarray, np.ndarray]:
    """Choose at most `size` of M particles; return their indices in order, and their normalised log weights.

    Those whose weight is above a threshold keep it; of the others, each as probably as its weight, the chosen get the
    threshold as weight. Of all unbiased ways it changes the weights least (Fearnhead and Clifford, 2003).

    Args:
        log_weights: (M,); those of -inf are never chosen.
        uniform: random in [0, 1); the light particles are stratified in their order.
    """
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    alive = np.count_nonzero(weights)
    threshold = 0.0
    if alive > size:
        ordered = np.sort(weights)
        rests = np.cumsum(ordered)  # added from the lightest: 1 less the heavy ones would be nothing but rounding
        for heavy in range(size):
            threshold = rests[-1 - heavy] / (size - heavy)
            if ordered[-1 - heavy] < threshold:
                break
    chosen = np.empty(min(alive, size), np.int64)
    new_weights = np.empty(len(chosen))
    count, mark = 0, uniform * threshold
    for i in range(len(weights)):
        weight = weights[i]
        if 0 < weight < threshold:
            mark -= weight
            if mark >= 0:
                continue
            mark += threshold
            weight = threshold
        if weight > 0 and count < len(chosen):
            chosen[count], new_weights[count] = i, math.log(weight)
            count += 1
    return chosen[:count], new_weights[:count]


@numba.njit(cache=True, nogil=True, fastmath=True)
def _voice_evidence(count: float, total: np.ndarray, more: np.ndarray, model: _Model) -> float:
    """Return `plda.speaker_evidence` of `count` cells of one voice, with sum `total` + `more` (d,) of embeddings."""
    weight, between = np.float32(model.embedding_weight), model.between
    scaled = weight * np.float32(count)
    quadratic, log_det = np.float32(0), 0.0
    for block in range(0, len(between), BLOCK):
        det = np.float32(1)
        for d in range(block, min(block + BLOCK, len(between))):
            growth = 1 + scaled * between[d]
            value = weight * (total[d] + more[d])
            quadratic += between[d] * value * value / growth
            det *= growth
        log_det += math.log(det)
    return 0.5 * (quadratic - log_det)
