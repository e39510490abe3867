import numpy as np
import pytest

from medgan.data.sources import SOURCES, SourceError
from medgan.pixels import encode_png

KERMANY = SOURCES["kermany_cxr"]


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("person100_bacteria_475.jpeg", "person100_bacteria"),
        ("person100_virus_184.jpeg", "person100_virus"),
        ("person447_virus_921_1.jpeg", "person447_virus"),
        ("IM-0011-0001-0002.jpeg", "IM-0011"),
        ("IM-0115-0001.jpeg", "IM-0115"),
        ("NORMAL2-IM-0115-0001.jpeg", "NORMAL2-IM-0115"),
        ("scan.jpeg", "scan.jpeg"),
    ],
)
def test_kermany_patients_are_read_from_published_names(name, patient):
    assert KERMANY.patient(name) == patient


def kermany(raw, *names):
    for name in names:
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(encode_png(np.zeros((1, 32, 32), np.uint8)))
    return raw


def test_kermany_pools_the_published_splits_in_a_fixed_order(tmp_path):
    raw = kermany(
        tmp_path,
        "val/NORMAL/IM-0001-0001.jpeg",
        "train/PNEUMONIA/person2_virus_1.jpeg",
        "train/NORMAL/IM-0002-0001.jpeg",
        "train/NORMAL/.DS_Store",
    )
    records = list(KERMANY.records(raw, 0, None))
    assert [(r.name, r.labels, r.patient) for r in records] == [
        ("train/NORMAL/IM-0002-0001.jpeg", (0,), "IM-0002"),
        ("train/PNEUMONIA/person2_virus_1.jpeg", (1,), "person2_virus"),
        ("val/NORMAL/IM-0001-0001.jpeg", (0,), "IM-0001"),
    ]
    assert len(list(KERMANY.records(raw, 0, 2))) == 2


def test_a_folder_that_is_not_kermanys_is_refused_and_says_what_is_expected(tmp_path):
    with pytest.raises(SourceError, match=r"expected \{train,test,val\}"):
        list(KERMANY.records(tmp_path, 0, None))
    kermany(tmp_path, "chest_xray/train/NORMAL/IM-0001-0001.jpeg")
    with pytest.raises(SourceError, match="did you mean .*chest_xray"):
        list(KERMANY.records(tmp_path, 0, None))
    kermany(tmp_path, "train/COVID/a.jpeg")
    with pytest.raises(SourceError, match="COVID: unknown class, expected NORMAL or PNEUMONIA"):
        list(KERMANY.records(tmp_path, 0, None))


def test_phantoms_are_as_many_as_asked_for():
    source = SOURCES["phantom_cxr"]
    records = list(source.records(None, 0, 37))
    assert len(records) == 37
    assert len({record.name for record in records}) == 37
    assert len({record.patient for record in records}) < 37
    assert source.read(None, 0, records[0]) == source.read(None, 0, records[0])
