"""Drawn chest radiographs: the embedded data set, and what the tests train on.

A film shows a torso with two lung fields, ribs, clavicles, spine, heart (on the right of the picture, the patient's
left) and diaphragm. NORMAL and PNEUMONIA differ in one sign that a person can see: PNEUMONIA films have one or two
bright hazy patches (consolidations) inside the lung fields, NORMAL films have none. Films of one patient share the
anatomy and the place of the patches, and differ in posture, breath, exposure and noise.
"""

from __future__ import annotations

import numpy as np

SIDE = 128
CLASSES = ("NORMAL", "PNEUMONIA")
MAX_FILMS = 5


def patient_films(seed: int, patient: int, classes: int = len(CLASSES)) -> tuple[int, int]:
    """(class index, number of images, 1 to 5) of a patient."""
    random = np.random.default_rng((seed, patient, 0))
    return int(random.integers(classes)), int(random.integers(1, MAX_FILMS + 1))


def chest_film(seed: int, patient: int, number: int, label: int) -> np.ndarray:
    """One film, uint8 (128, 128), the same for the same four numbers; label: index into CLASSES."""
    body = np.random.default_rng((seed, patient, 1))  # what the patient keeps
    pose = np.random.default_rng((seed, patient, 2, number))  # what changes from film to film

    # Film coordinates, u to the right and v down, both in [-1, 1], under a slight turn, shift and zoom.
    axis = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
    across, down = np.meshgrid(axis, axis)
    turn, zoom = pose.normal(0, 0.04), pose.normal(1, 0.03)
    u = (across * np.cos(turn) - down * np.sin(turn)) * zoom + pose.normal(0, 0.03)
    v = (across * np.sin(turn) + down * np.cos(turn)) * zoom + pose.normal(0, 0.03)

    breath = pose.normal(0, 0.04)
    chest = body.normal(0.74, 0.04)
    top, bottom = body.normal(-0.72, 0.04), body.normal(0.52, 0.05) + breath
    torso = _inside(1 - (np.abs(u) / (chest + 0.22)) ** 4 - (np.maximum(-v - 0.55, 0) / 0.55) ** 2, 0.08)
    film = 0.03 + 0.5 * torso

    lungs = np.zeros_like(film)
    for side in (-1, 1):
        centre, half = side * (0.16 + chest / 3.4), body.normal(0.29, 0.02)
        middle, reach = (top + bottom) / 2, (bottom - top) / 2 + 0.12
        taper = 1 - 0.22 * np.clip((middle - v) / reach, 0, 1)  # narrower towards the apex
        shape = 1 - (np.abs(u - centre) / (half * taper)) ** 2.6 - (np.abs(v - middle) / reach) ** 2.6
        lungs = np.maximum(lungs, _inside(shape, 0.12))
    aeration = body.normal(0.36, 0.03)
    film = film - aeration * lungs

    spacing, slope = body.normal(0.17, 0.012), body.normal(0.34, 0.05)
    ribs = np.zeros_like(film)
    for rib in range(9):
        course = top + 0.05 + rib * spacing + slope * (np.abs(u) - 0.35) ** 2 * 2.2 - 0.1 * np.abs(u)
        ribs += np.exp(-(((v - course) / 0.026) ** 2))
    film += body.normal(0.11, 0.015) * np.minimum(ribs, 1) * _inside(chest + 0.08 - np.abs(u), 0.05) * torso
    collar = top - 0.02 - 0.16 * (np.abs(u) - 0.1)
    film += 0.14 * np.exp(-(((v - collar) / 0.03) ** 2)) * _inside(chest - np.abs(u), 0.08)

    vertebrae = 0.06 * np.sin(v * body.normal(30, 1.5))
    film += (0.26 + vertebrae) * np.exp(-((u / body.normal(0.1, 0.008)) ** 2)) * torso
    size = body.normal(0.3, 0.025)
    long, short = (u - 0.14) * 0.8 + (v - bottom + 0.18) * 0.6, (v - bottom + 0.18) * 0.8 - (u - 0.14) * 0.6
    heart = 1 - (long / (size * 1.15)) ** 2 - (short / (size * 0.85)) ** 2
    film += np.maximum(0.66 - film, 0) * _inside(heart, 0.25)

    dome = bottom + 0.08 - 0.1 * np.cos(np.clip((np.abs(u) - 0.42) * 4, -np.pi, np.pi)) - 0.05 * (u < 0)
    film = film + (0.72 - film) * _inside(v - dome, 0.05) * torso

    if CLASSES[label] == "PNEUMONIA":
        field = lungs * _inside(dome - v, 0.04)
        for _ in range(int(body.integers(1, 3))):
            side = body.choice((-1, 1))
            x, y = side * body.normal(0.43, 0.06), body.uniform(-0.3, 0.32)
            wide, tall = body.uniform(0.15, 0.24), body.uniform(0.15, 0.26)
            patch = np.exp(-((((u - x) / wide) ** 2 + ((v - y) / tall) ** 2) ** 1.3))
            mottle = 1 + 0.18 * np.sin(u * 23 + body.uniform(0, 6)) * np.sin(v * 21 + body.uniform(0, 6))
            film += body.uniform(0.34, 0.46) * patch * mottle * field

    exposed = np.clip(film, 0, 1) ** pose.normal(1, 0.06)
    exposed = exposed * pose.normal(1, 0.04) + pose.normal(0, 0.012) + pose.normal(0, 0.012, exposed.shape)
    pixels: np.ndarray = np.clip(exposed * 255 + 0.5, 0, 255).astype(np.uint8)
    return pixels


def _inside(distance: np.ndarray, softness: float) -> np.ndarray:
    """A soft mask: 1 where distance is well above 0, 0 where it is well below."""
    return 1 / (1 + np.exp(np.clip(-4 * distance / softness, -60, 60)))
