"""Spectral clustering of embeddings, a baseline: `spectralcluster`, as in Turn-to-Diarize (Xia et al., 2109.11641)."""

from copy import deepcopy

import numpy as np

from asrkit.diarisation.ahc import relabel
from asrkit.diarisation.vbx import overcluster
from asrkit.optional import needed

FEWEST_NODES = 10
MOST_NODES = 300  # of the graph; more cells are first joined into that many, since the time is cubic


def spectral_clustering(embeddings: np.ndarray, least: int = 1, most: int | None = None) -> np.ndarray:
    """Return the speaker (N,) of each cell, given embeddings (N, D) as they are compared by cosine.

    Args:
        embeddings: raw or projected.
        least, most: number of speakers.

    Raises:
        InputError: spectralcluster is not installed.
    """
    package = needed("spectralcluster", "meetings")
    if len(embeddings) < FEWEST_NODES:
        return relabel(overcluster(embeddings, least))
    published = deepcopy(package.configs.turntodiarize_clusterer)  # it is changed by what it clusters
    clusterer = package.SpectralClusterer(
        min_clusters=least if least > 1 else None,  # 1 would ask for a test of its own, which is drawn at random
        max_clusters=most,
        refinement_options=published.refinement_options,
        autotune=published.autotune,
        laplacian_type=published.laplacian_type,
        row_wise_renorm=True,
        post_eigen_cluster_function=_cluster_rows,
        max_spectral_size=MOST_NODES,
    )
    return relabel(clusterer.predict(np.asarray(embeddings, float)))


# Details


def _cluster_rows(spectral_embeddings: np.ndarray, n_clusters: int, **_) -> np.ndarray:
    """Do what the package's own k-means does, but the same each time."""
    return overcluster(spectral_embeddings, n_clusters)
