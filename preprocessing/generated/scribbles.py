"""Sparse annotations: pen strokes through the structures of some slices, as a person draws them."""

import numpy as np
from numpy.random import Generator
from scipy import ndimage, sparse

_STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))  # to half of a pixel's eight neighbors; the other half follows from symmetry
_UNSTEADINESS = 0.6  # standard deviation of the logarithm of what it costs to lead the pen over a pixel
_PEN = np.ones((2, 2), bool)  # the pixels that it colors at once
_GRAIN = 2.0  # smoothness of that cost, in pixels: the line wavers over so many, instead of trembling at each


def scribble(label: np.ndarray, share: float, rng: Generator) -> np.ndarray:
    """Draw strokes over a label map, slice after slice, until so many voxels are annotated.

    A slice gets one stroke for every class in it, background included. The slices come in random order, but those with
    most classes first. There are as many of them as it takes to annotate the share and every class.

    Args:
        label: (X, Y, Z) integers; slices lie across the last axis.
        share: of all voxels, in (0, 1]. It is exceeded by less than one slice's strokes, unless a class needs more, and
            not reached where the strokes of all slices together are fewer.
        rng: source of all randomness.

    Returns:
        (X, Y, Z) bool, True under a stroke.
    """
    drawn = np.zeros(label.shape, bool)
    classes = set(np.unique(label))
    slices = rng.permutation(label.shape[2])
    for z in sorted(slices, key=lambda z: -len(np.unique(label[..., z]))):
        if drawn.mean() >= share and classes == set(np.unique(label[drawn])):
            break
        for value in np.unique(label[..., z]):
            drawn[..., z] |= _stroke(label[..., z] == value, rng)
    return drawn


def _stroke(structure: np.ndarray, rng: Generator) -> np.ndarray:
    """Return one connected (X, Y) stroke inside the largest piece of a structure, (X, Y) bool, along its middle."""
    pieces, _ = ndimage.label(structure)
    piece = pieces == 1 + np.argmax(np.bincount(pieces[structure])[1:])
    depth = ndimage.distance_transform_edt(np.pad(piece, 1))[1:-1, 1:-1]  # the image's edge is an edge, too
    wavering = ndimage.gaussian_filter(rng.standard_normal(piece.shape), _GRAIN)
    cost = np.exp(_UNSTEADINESS * wavering / wavering.std()) / depth.clip(1)
    middle = np.argwhere(depth >= np.median(depth[piece]))
    start, *others = rng.permutation(middle)[:6]
    end = max(others, key=lambda pixel: np.hypot(*(pixel - start)), default=start)
    path = _cheapest_path(np.where(piece, cost, np.inf), tuple(start), tuple(end))
    return ndimage.binary_dilation(path, _PEN) & piece


def _cheapest_path(cost: np.ndarray, start: tuple[int, int], end: tuple[int, int]) -> np.ndarray:
    """Return the pixels, (X, Y) bool, of the path between two pixels that costs least.

    Args:
        cost: (X, Y) positive, per pixel of length; infinite where no path may lead.
        start: a pixel of finite cost.
        end: another one, connected with it.
    """
    padded = np.pad(cost, 1, constant_values=np.inf)  # so that steps over the edge lead to where no path may
    index = np.arange(padded.size).reshape(padded.shape)
    graph = sparse.csr_array((padded.size, padded.size))
    for step in _STEPS:
        neighbor = np.roll(index, step, (0, 1))
        weight = np.hypot(*step) * (padded + padded.flat[neighbor]) / 2
        valid = np.isfinite(weight)
        graph += sparse.csr_array((weight[valid], (index[valid], neighbor[valid])), graph.shape)
    first, pixel = (index[x + 1, y + 1] for x, y in (start, end))
    before = sparse.csgraph.dijkstra(graph, directed=False, indices=first, return_predecessors=True)[1]
    path = np.zeros(padded.shape, bool)
    while pixel != first:
        path.flat[pixel] = True
        pixel = before[pixel]
    path.flat[first] = True
    return path[1:-1, 1:-1]
