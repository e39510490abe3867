"""Drawn OCT scans of the retina: the embedded data set with four classes, beside the drawn chest films.

A scan is a section through the macula: dark vitreous above, the layers of the retina, the bright pigment epithelium,
the choroid fading below, speckle over all. What tells the classes apart, as in Kermany et al. 2018:

    CNV      the epithelium is lifted by a broad irregular mound, with dark fluid above it
    DME      dark cysts within a thickened retina around the fovea
    DRUSEN   several small humps of the epithelium
    NORMAL   smooth layers and the dip of the fovea

Scans of one patient share the anatomy and the lesions, and differ in tilt, place, gain and speckle.
"""

from __future__ import annotations

import numpy as np

SIDE = 128
CLASSES = ("CNV", "DME", "DRUSEN", "NORMAL")
LAYERS = (  # of the retina, from the vitreous (0) to the photoreceptors (1): start, end, brightness
    (0.00, 0.16, 0.62),
    (0.16, 0.40, 0.42),
    (0.40, 0.54, 0.27),
    (0.54, 0.62, 0.45),
    (0.62, 0.92, 0.22),
    (0.92, 1.02, 0.55),
)


def oct_scan(seed: int, patient: int, number: int, label: int) -> np.ndarray:
    """One scan, uint8 (128, 128), the same for the same four numbers; label: index into CLASSES."""
    kind = CLASSES[label]
    body = np.random.default_rng((seed, patient, 1))  # what the patient keeps
    pose = np.random.default_rng((seed, patient, 2, number))  # what changes from scan to scan
    x = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1  # to the right, in [-1, 1]; down is v
    u, v = np.meshgrid(x, x)

    # Heights of the surfaces, one value per column.
    floor = pose.normal(0.25, 0.05) + pose.normal(0, 0.06) * x + body.normal(0.1, 0.03) * x**2
    fovea = pose.normal(0, 0.08)
    lift, fluid = _lesion(kind, x, body)
    epithelium = floor - lift
    receptors = epithelium - fluid
    thickness = body.normal(0.5, 0.03) + (kind == "DME") * body.uniform(0.12, 0.2) * _bump(x, fovea, 0.6)
    depth_of_pit = body.normal(0.3, 0.05) * (0.4 if kind == "DME" else 1)
    thickness = thickness * (1 - depth_of_pit * _bump(x, fovea, body.normal(0.2, 0.02)))
    surface = floor - 0.4 * (lift + fluid) - thickness  # the inner retina gives way only in part

    depth = (v - surface) / np.maximum(receptors - surface, 1e-3)
    retina = _inside(v - surface, 0.03) * _inside(receptors - v, 0.02)
    scan = np.full((SIDE, SIDE), 0.05)
    for start, end, brightness in LAYERS:
        scan += brightness * _inside(depth - start, 0.05) * _inside(end - depth, 0.05) * retina
    scan += 0.45 * _line(v - receptors + 0.035, 0.012) + 0.8 * _line(v - epithelium, 0.022)
    scan += 0.25 * _inside(v - epithelium - 0.01, 0.02) * _inside(floor - v, 0.02)  # what lies under the lifted part
    scan += 0.12 * _line(v - floor, 0.012) * (lift > 0.03)
    mottle = 1 + 0.25 * np.sin(u * 31 + body.uniform(0, 6)) * np.sin(v * 27 + body.uniform(0, 6))
    scan += 0.42 * np.exp(-np.maximum(v - floor, 0) / 0.22) * _inside(v - floor - 0.02, 0.03) * mottle
    if kind == "DME":
        for _ in range(int(body.integers(4, 8))):
            across, share = fovea + body.normal(0, 0.3), body.uniform(0.38, 0.66)
            column = int(np.clip((across + 1) / 2 * SIDE, 0, SIDE - 1))
            down = surface[column] + share * (receptors - surface)[column]
            wide, tall = body.uniform(0.06, 0.12), body.uniform(0.05, 0.1)
            cyst = _inside(1 - ((u - across) / wide) ** 2 - ((v - down) / tall) ** 2, 0.5)
            scan = scan * (1 - cyst) + 0.1 * cyst

    speckle = 0.55 + 0.45 * pose.gamma(9, 1 / 9, scan.shape)
    scan = scan * speckle * pose.normal(1, 0.05) + np.abs(pose.normal(0, 0.03, scan.shape))
    pixels: np.ndarray = np.clip(scan * 255 + 0.5, 0, 255).astype(np.uint8)
    return pixels


def _lesion(kind: str, x: np.ndarray, body: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """How far the epithelium is lifted, and how much fluid lies above it, in each column."""
    lift, fluid = np.zeros(SIDE), np.zeros(SIDE)
    if kind == "DRUSEN":
        for _ in range(int(body.integers(4, 8))):
            lift += body.uniform(0.05, 0.09) * _bump(x, body.uniform(-0.8, 0.8), body.uniform(0.05, 0.09))
    if kind == "CNV":
        centre, wide = body.normal(0, 0.2), body.uniform(0.25, 0.38)
        mound = np.exp(-(((x - centre) / wide) ** 4))
        lift += mound * (body.uniform(0.16, 0.24) + 0.015 * np.sin(x * 40 + body.uniform(0, 6)))
        fluid += body.uniform(0.06, 0.12) * np.exp(-(((x - centre - 0.1) / (wide * 1.5)) ** 4))
    return lift, fluid


def _bump(x: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.exp(-(((x - centre) / width) ** 2))


def _line(distance: np.ndarray, width: float) -> np.ndarray:
    return np.exp(-((distance / width) ** 2))


def _inside(distance: np.ndarray, softness: float) -> np.ndarray:
    """A soft mask: 1 where distance is well above 0, 0 where it is well below."""
    return 1 / (1 + np.exp(np.clip(-4 * distance / softness, -60, 60)))
