import numpy as np
import pytest

from medgan.data import phantom
from medgan.data.phantom_oct import CLASSES, oct_scan


def film(patient: int, number: int = 0, seed: int = 0) -> np.ndarray:
    label, _ = phantom.patient_films(seed, patient)
    return phantom.chest_film(seed, patient, number, label).astype(float)


def films(count: int):
    for patient in range(count):
        yield phantom.patient_films(0, patient)[0], film(patient)


@pytest.mark.parametrize("draw", [phantom.chest_film, oct_scan])
def test_an_image_depends_on_its_four_numbers_alone(draw):
    assert np.array_equal(draw(1, 2, 0, 1), draw(1, 2, 0, 1))
    assert draw(1, 2, 0, 1).shape == (128, 128)
    for other in ((2, 2, 0, 1), (1, 3, 0, 1), (1, 2, 1, 1), (1, 2, 0, 0)):
        assert not np.array_equal(draw(1, 2, 0, 1), draw(*other))


def test_patients_own_one_to_five_films_of_one_class():
    owned = [phantom.patient_films(0, patient) for patient in range(200)]
    assert {count for _, count in owned} == {1, 2, 3, 4, 5}
    assert 60 < sum(label for label, _ in owned) < 140


def test_films_of_one_patient_look_more_alike_than_those_of_two():
    def distance(a, b):
        return np.abs(film(*a) - film(*b)).mean()

    same = np.mean([distance((p, 0), (p, 1)) for p in range(20)])
    unlike = np.mean([distance((p, 0), (p + 1, 0)) for p in range(20)])
    assert same < unlike


def test_the_heart_is_on_the_right_of_the_picture():
    mean = np.mean([film for _, film in films(40)], 0)
    low = mean[70:85]  # the height of the heart
    assert low[:, 72:90].mean() > low[:, 38:56].mean() + 15


def test_pneumonia_shows_as_brighter_patches_inside_the_lungs():
    brightest = {0: [], 1: []}
    for label, film in films(120):
        # The brightest 9x9 spot of the two lung fields above the heart, against the film's median.
        spots = [
            film[y : y + 9, x : x + 9].mean() - np.median(film)
            for y in range(36, 62, 3)
            for x in (*range(24, 42, 3), *range(80, 96, 3))
        ]
        brightest[label].append(max(spots))
    assert np.mean(brightest[1]) > np.mean(brightest[0]) + 10


def scans(kind: str, count: int = 40) -> np.ndarray:
    return np.stack([oct_scan(0, patient, 0, CLASSES.index(kind)) for patient in range(count)]).astype(float)


def epithelium(scan: np.ndarray) -> np.ndarray:
    """Row of the brightest line in each column, of a scan averaged over 5 columns and 3 rows."""
    wide = sum(np.roll(np.roll(scan, across, 1), down, 0) for across in range(-2, 3) for down in (-1, 0, 1))
    return wide.argmax(0)[4:-4].astype(float)


def unevenness(scan: np.ndarray) -> float:
    """How far the line is from a smooth curve, in pixels."""
    rows = epithelium(scan)
    x = np.linspace(-1, 1, len(rows))
    return float(np.abs(rows - np.polyval(np.polyfit(x, rows, 2), x)).mean())


def test_drusen_and_neovascular_mounds_lift_the_epithelium():
    healthy = np.mean([unevenness(scan) for scan in scans("NORMAL")])
    assert np.mean([unevenness(scan) for scan in scans("DRUSEN")]) > 2 * healthy
    assert np.mean([unevenness(scan) for scan in scans("CNV")]) > 4 * healthy
    assert np.mean([unevenness(scan) for scan in scans("DME")]) < 1.5 * healthy


def test_oedema_shows_as_dark_cysts_within_the_retina():
    def dark(scan):
        """Share of dark pixels between 8 and 24 rows above the epithelium, in the middle third."""
        rows = epithelium(scan).astype(int)
        strips = [scan[rows[column] - 24 : rows[column] - 8, column + 4] for column in range(38, 82)]
        return (np.stack(strips) < 40).mean()

    assert np.mean([dark(s) for s in scans("DME")]) > np.mean([dark(s) for s in scans("NORMAL")]) + 0.05
