import numpy as np

from medgan.data import phantom


def films(count: int):
    for patient in range(count):
        label, _ = phantom.patient_films(0, patient)
        yield label, phantom.chest_film(0, patient, 0).astype(float)


def test_a_film_depends_on_its_three_numbers_alone():
    assert np.array_equal(phantom.chest_film(1, 2, 0), phantom.chest_film(1, 2, 0))
    for other in ((2, 2, 0), (1, 3, 0), (1, 2, 1)):
        assert not np.array_equal(phantom.chest_film(1, 2, 0), phantom.chest_film(*other))


def test_patients_own_one_to_five_films_of_one_class():
    owned = [phantom.patient_films(0, patient) for patient in range(200)]
    assert {count for _, count in owned} == {1, 2, 3, 4, 5}
    assert 60 < sum(label for label, _ in owned) < 140


def test_films_of_one_patient_look_more_alike_than_those_of_two():
    def distance(a, b):
        return np.abs(phantom.chest_film(0, *a).astype(float) - phantom.chest_film(0, *b)).mean()

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
