"""Folders as data sets are published and as people unpack them: what is read of each, or what it is told."""

import re
from pathlib import Path

import numpy as np
import pytest

from medgan.data import ingest
from medgan.data.sources import SOURCES, Options, Raw, SourceError
from medgan.pixels import encode_png

COPY = "the same path and size as in another wrapping folder"
MASK = "a mask of another image, by its name or folder"


def put(raw: Path, *names: str) -> Path:
    """A film at each path: small ones, of other sizes and bytes each."""
    for number, name in enumerate(names):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(number)
        (raw / name).write_bytes(encode_png(random.integers(0, 256, (1, 4, 4 + number)).astype(np.uint8)))
    return raw


def listing(raw: Path, source: str = "image_folder", **options):
    return SOURCES[source].listing(Raw(str(raw)), Options(**options))


def seen(raw: Path, source: str = "image_folder", **options) -> list[str]:
    """SPLIT/CLASS/FILE of every record, a dash where there is no split or class."""
    found = listing(raw, source, **options)
    return [
        f"{r.split or '-'}/{'+'.join(found.classes[label] for label in r.labels) or '-'}/{r.name.rpartition('/')[2]}"
        for r in found.records
    ]


@pytest.mark.parametrize(
    ("files", "right"),
    [
        (["Training/a/1.png", "Testing/b/2.png"], ["test/b/2.png", "train/a/1.png"]),
        (["TRAIN/a/1.png", "valid/a/2.png", "dev_set/b/3.png"], ["train/a/1.png", "val/b/3.png", "val/a/2.png"]),
        (["train_images/a/1.png", "Test Data/a/2.png"], ["test/a/2.png", "train/a/1.png"]),
        (["01_train/a/1.png", "02_holdout/a/2.png", "Validate/a/3.png"],
         ["train/a/1.png", "test/a/2.png", "val/a/3.png"]),
        (["archive/train/a/1.png", "archive/test/b/2.png"], ["test/b/2.png", "train/a/1.png"]),
        (["x/y/a/1.png", "x/y/b/2.png"], ["-/a/1.png", "-/b/2.png"]),
        (["a/1.png", "a/2.png"], ["-/a/1.png", "-/a/2.png"]),
        (["train/1.png", "test/2.png"], ["test/-/2.png", "train/-/1.png"]),
        (["train/images/1.png", "test/images/2.png"], ["test/-/2.png", "train/-/1.png"]),
        (["images/1.png", "images/2.png"], ["-/-/1.png", "-/-/2.png"]),
        (["glioma/train/1.png", "glioma/test/2.png", "pit/train/3.png"],
         ["test/glioma/2.png", "train/glioma/1.png", "train/pit/3.png"]),
        (["train/COVID/1.png", "train/COVID/2.png", "test/Covid/3.png", "val/covid /4.png"],
         ["test/COVID/3.png", "train/COVID/1.png", "train/COVID/2.png", "val/COVID/4.png"]),
        (["train/m\u00e9l/1.png", "test/me\u0301l/2.png"], ["test/m\u00e9l/2.png", "train/m\u00e9l/1.png"]),
        (["control/1.png", "control/2.png", "test/3.png"], ["-/control/1.png", "-/control/2.png", "-/test/3.png"]),
        (["development/control/1.png", "x/a/1.png", "x/b/2.png"], ["-/development/1.png", "-/x/1.png", "-/x/2.png"]),
    ],
)  # fmt: skip
def test_split_and_class_folders_are_told_from_wrapping_ones(tmp_path, files, right):
    assert seen(put(tmp_path, *files)) == right


@pytest.mark.parametrize(
    ("files", "masks"),
    [
        (["A/images/1.png", "A/masks/1.png", "B/images/2.png", "B/masks/2.png"], ["A/masks/1.png", "B/masks/2.png"]),
        (["W/A/images/1.png", "W/A/lung masks/1.png", "W/B/images/2.png"], ["W/A/lung masks/1.png"]),
        (["A/a (1).png", "A/a (1)_mask.png", "A/a (1)_mask_1.png", "B/b.png"],
         ["A/a (1)_mask.png", "A/a (1)_mask_1.png"]),
        (["A/x.jpg", "A/x_seg.png", "B/y.png", "B/y-Segmentation.PNG"], ["A/x_seg.png", "B/y-Segmentation.PNG"]),
        (["images/A/1.png", "images/B/2.png", "masks/A/1.png"], ["masks/A/1.png"]),
        (["A/1.png", "B/2.png", "masks/1_mask.png", "masks/2_mask.png"], ["masks/1_mask.png", "masks/2_mask.png"]),
        (["A/CXR_png/1.png", "A/ManualMask/leftMask/1.png", "B/CXR_png/2.png"], ["A/ManualMask/leftMask/1.png"]),
        (["with_mask/1.png", "without_mask/1.png"], []),
        (["A/lone_mask.png", "B/1.png"], []),
        (["A/1.png", "unmasked/1.png"], []),
    ],
)  # fmt: skip
def test_masks_are_no_films(tmp_path, files, masks):
    found = listing(put(tmp_path, *files))
    assert [name for name, reason in found.rejected if reason == MASK] == masks
    assert len(found.records) == len(files) - len(masks)
    assert len(found.classes) == 2
    assert not masks or any(note.startswith(f"{len(masks)} images are masks of others") for note in found.notes)


def test_masks_beside_films_of_a_split_leave_it_without_classes(tmp_path):
    raw = put(tmp_path, *(f"{split}/{kind}/1.png" for split in ("train", "test") for kind in ("images", "masks")))
    assert seen(raw) == ["test/-/1.png", "train/-/1.png"]
    assert "no class folders: the images have no labels" in listing(raw).notes


@pytest.mark.parametrize("source", ["kermany_cxr", "image_folder"])
def test_an_archive_that_holds_itself_once_more_is_read_once(tmp_path, source):
    names = ["train/NORMAL/IM-0001-0001.jpeg", "test/PNEUMONIA/person1_virus_6.jpeg"]
    put(put(tmp_path, *(f"chest_xray/{name}" for name in names)) / "chest_xray/chest_xray", *names)
    put(tmp_path, *(f"chest_xray/__MACOSX/chest_xray/{name}" for name in names))
    right = ["test/PNEUMONIA/person1_virus_6.jpeg", "train/NORMAL/IM-0001-0001.jpeg"]
    assert seen(tmp_path, source) == right
    found = listing(tmp_path, source)
    assert [reason for _, reason in found.rejected] == [COPY, COPY]
    assert "2 files are there twice, in two wrapping folders: taken once" in found.notes
    (tmp_path / "chest_xray/chest_xray/train/NORMAL/IM-0001-0001.jpeg").write_bytes(b"another")
    with pytest.raises(
        SourceError, match=r"split folders in 2 places \(chest_xray/, chest_xray/chest_xray/\); name or"
    ):
        listing(tmp_path, source)


def test_two_sets_of_split_folders_are_one_too_many_unless_the_source_knows_its_own(tmp_path):
    put(tmp_path, "Cell/OCT/train/CNV/CNV-1-1.jpeg", "Cell/OCT/train/NORMAL/NORMAL-2-1.jpeg")
    put(tmp_path, "Cell/chest/train/NORMAL/NORMAL-4-0001.jpeg", "Cell/chest/test/PNEUMONIA/VIRUS-5-0001.jpeg")
    assert seen(tmp_path, "kermany_oct") == ["train/CNV/CNV-1-1.jpeg", "train/NORMAL/NORMAL-2-1.jpeg"]
    assert seen(tmp_path, "kermany_cxr") == ["test/PNEUMONIA/VIRUS-5-0001.jpeg", "train/NORMAL/NORMAL-4-0001.jpeg"]
    assert "2 images in other folders are of another data set: not read" in listing(tmp_path, "kermany_cxr").notes
    with pytest.raises(SourceError, match=r"split folders in 2 places \(Cell/OCT/, Cell/chest/\)"):
        listing(tmp_path)


def test_what_no_layout_explains_is_left_out_with_its_reason_and_said(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/2.png", "test/9.png", "test/c/3.png", "extra/d/4.png", "train/a/deep/5.png")
    (tmp_path / "train/more.zip").write_bytes(b"")
    found = listing(tmp_path)
    assert set(found.rejected) == {
        ("extra/d/4.png", "not in a split folder, as others are"),
        ("test/9.png", "not in a class folder"),
        ("train/more.zip", "an archive in the folder; unpack it"),
    }
    assert "no folder of train has c" in found.notes
    assert "1 class folders hold folders: all images below them are of the class" in found.notes


@pytest.mark.parametrize(
    "files",
    [
        ["seg_train/seg_train/a/1.png", "seg_test/seg_test/a/2.png"],
        ["train/1.png", "more/2.png", "more/3.png"],
        ["trainA/1.png", "trainB/2.png", "Xray_Training/3.png"],
    ],
)
def test_no_class_is_called_train(tmp_path, files):
    raw = put(tmp_path, *files)
    with pytest.raises(SourceError, match="look like splits, not like classes; call them train, val and test"):
        listing(raw)
    assert listing(raw, classes=(files[0].partition("/")[0],)).classes == (files[0].partition("/")[0],)


@pytest.mark.parametrize("each", [2, 12])
def test_a_folder_per_patient_is_not_taken_for_classes_and_not_named(tmp_path, each):
    raw = put(tmp_path, *(f"anna{number:03d}/{film}.png" for number in range(25) for film in range(each)))
    with pytest.raises(SourceError, match=r"25 folders of \d+ images look like patients or series") as refusal:
        listing(raw)
    assert "anna" not in str(refusal.value).replace(str(tmp_path), "")
    assert listing(raw, classes=("anna001", "anna002")).classes == ("anna001", "anna002")


def test_a_class_that_is_asked_for_is_no_wrapping_folder(tmp_path):
    raw = put(tmp_path, "NORMAL/p1/1.png", "NORMAL/p2/2.png")
    assert seen(raw, classes=("NORMAL",)) == ["-/NORMAL/1.png", "-/NORMAL/2.png"]
    assert "all images are in NORMAL/: the folders in it are the classes" in listing(raw).notes


def test_a_folder_of_archives_says_so(tmp_path):
    for number in range(3):
        (tmp_path / f"images_00{number}.tar.gz").write_bytes(b"packed")
    (tmp_path / "Data_Entry_2017.csv").write_text("Image Index,Finding Labels,Patient ID\na.png,Mass,1\n")
    hint = "there are 3 archives in it: unpack them, or name one as --raw"
    for source in ("image_folder", "kermany_cxr", "nih_cxr14"):
        request = ingest.Request(source, str(tmp_path), str(tmp_path / "out"), 32)
        with pytest.raises(SourceError, match=hint):
            ingest.find(request)


def test_classes_are_counted_in_each_split(tmp_path):
    raw = put(tmp_path, "train/a/1.png", "train/a/2.png", "train/b/3.png", "test/b/4.png")
    assert ingest.tally(listing(raw)) == ["found in train: a 2, b 1", "found in test: a 0, b 1"]
    assert ingest.tally(listing(put(tmp_path / "flat", "1.png", "2.png"))) == ["found: without a label 2"]
    drawn = SOURCES["phantom_cxr"].listing(Raw(""), Options(limit=10))
    (line,) = ingest.tally(drawn)
    assert sum(map(int, re.findall(r"\d+", line))) == 10
