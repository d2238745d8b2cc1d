"""Where the microphones of an array are."""

import math
from dataclasses import dataclass, field

import numpy as np

Position = tuple[float, float, float]

CIRCLE = 0.0425  # metres, the radius of the common table-top array of seven


def circle(microphones: int = 6, radius: float = CIRCLE) -> tuple[Position, ...]:
    """Return a microphone at the centre, and some on a circle round it (metres), the first at azimuth 0."""
    azimuths = [2 * math.pi * m / microphones for m in range(microphones)]
    return *((radius * math.cos(azimuth), radius * math.sin(azimuth), 0.0) for azimuth in azimuths), (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class ArrayGeometry:
    """The microphones of an array, in the order of the recording's channels.

    Azimuths are measured at the centre, counter-clockwise from the x axis as seen from above.
    """

    microphones: tuple[Position, ...] = field(default_factory=circle)
    """(x, y, z) of each in metres from the centre; by default six on a circle of 4.25 cm, then one in its middle."""

    def __post_init__(self) -> None:
        if not self.microphones:
            raise ValueError("microphones: at least one is needed")
        positions = self.positions
        if positions.shape[1:] != (3,) or not np.isfinite(positions).all():
            raise ValueError("microphones: each needs three finite numbers, x, y, z in metres")
        if np.abs(positions).max() > 10:
            raise ValueError("microphones: more than 10 m from the centre; positions are in metres")
        if len(np.unique(positions, axis=0)) < len(positions):
            raise ValueError("microphones: two are at the same place")

    def __len__(self) -> int:
        return len(self.microphones)

    @property
    def positions(self) -> np.ndarray:
        """(C, 3) metres."""
        return np.array(self.microphones, dtype=float)
