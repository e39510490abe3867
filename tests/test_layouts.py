"""Folders as data sets are published and as people unpack them: what is read of each, or what it is told."""

import re
from pathlib import Path

import numpy as np
import pytest

from medgan.data import ingest
from medgan.data.sources import SOURCES, Options, Raw, SourceError
from medgan.pixels import encode_png

COPY = "the same path and bytes as in another wrapping folder"
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
        (["train/images/A/1.png", "train/images/B/2.png", "train/masks/A/1.png", "train/masks/B/2.png"],
         ["train/A/1.png", "train/B/2.png"]),
        (["images_001/A/1.png", "images_002/A/2.png", "images_002/B/3.png"], ["-/A/1.png", "-/A/2.png", "-/B/3.png"]),
        (["images_001/images/1.png", "images_002/images/2.png"], ["-/-/1.png", "-/-/2.png"]),
        (["A/p1/1.png", "A/p2/2.png", "B/p3/3.png"], ["-/A/1.png", "-/A/2.png", "-/B/3.png"]),
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


@pytest.mark.parametrize("names", [("mask", "nonmask"), ("Mask", "Normal"), ("Contour", "Normal")])
@pytest.mark.parametrize("above", ["", "W/", "train/"])
def test_a_folder_called_like_masks_beside_one_class_may_be_a_class(tmp_path, names, above):
    raw = put(tmp_path, *(f"{above}{name}/{film}.png" for name in names for film in (1, 2)))
    with pytest.raises(SourceError, match="one class folder, and beside it 1 called like masks; name the class or the"):
        listing(raw)
    assert len(listing(raw, classes=names).records) == 4
    assert len(listing(raw, classes=names[1:]).records) == 2


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
    (tmp_path / "chest_xray/chest_xray/train/NORMAL/IM-0001-0001.jpeg").write_bytes(b"another")
    with pytest.raises(SourceError, match="split folders in 2 places; name or keep one"):
        listing(tmp_path, source)


@pytest.mark.parametrize("names", [["train/a/1.bmp", "test/b/2.bmp"], ["a/1.bmp", "b/2.bmp"]])
def test_files_of_one_size_are_copies_only_if_their_bytes_are(tmp_path, names):
    for place, name in [(place, name) for place in ("", "W") for name in names]:
        (tmp_path / place / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place / name).write_bytes(b"one film")
    found = listing(tmp_path)
    assert ([record.name for record in found.records], found.classes) == (sorted(names), ("a", "b"))
    (tmp_path / "W" / names[0]).write_bytes(b"a second")
    with pytest.raises(SourceError, match="keep one"):
        listing(tmp_path)


@pytest.mark.parametrize("above", ["", "cell_images/", "train/"])
def test_class_folders_that_lie_once_more_in_a_folder_beside_them_are_read_once(tmp_path, above):
    names = [f"{above}no/1.png", f"{above}yes/2.png"]
    copies = [f"{above}W/no/1.png", f"{above}W/yes/2.png"]
    put(tmp_path, *names)
    for name, copy in zip(names, copies, strict=True):
        (tmp_path / copy).parent.mkdir(parents=True)
        (tmp_path / copy).write_bytes((tmp_path / name).read_bytes())
    found = listing(tmp_path)
    assert (found.classes, [record.name for record in found.records]) == (("no", "yes"), names)
    assert found.rejected == [(copy, COPY) for copy in copies]
    (tmp_path / copies[1]).write_bytes(b"another")
    with pytest.raises(SourceError, match="folders of their names and other files; name or keep one, or name classes"):
        listing(tmp_path)
    assert len(listing(tmp_path, classes=("no", "yes")).records) == 2


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("Test cases", ["W/W/Benign cases/1.png", "W/W/Normal cases/2.png", "W/Test cases/3.png"]),
        ("Original", ["Original/A/1.png", "Original/B/2.png", "Augmented/A/3.png", "Augmented/B/4.png"]),
        ("data", ["train/data/A/1.png", "train/data/B/2.png", "test/data/A/3.png"]),
    ],
)
def test_folders_of_class_folders_are_no_classes(tmp_path, name, files):
    raw = put(tmp_path, *files)
    with pytest.raises(SourceError, match="class folders hold only folders, which may be the classes; name one of"):
        listing(raw)
    assert listing(raw, classes=(name,)).classes == (name,)


def test_two_sets_of_split_folders_are_one_too_many_unless_the_source_knows_its_own(tmp_path):
    put(tmp_path, "Cell/OCT/train/CNV/CNV-1-1.jpeg", "Cell/OCT/train/NORMAL/NORMAL-2-1.jpeg")
    put(tmp_path, "Cell/chest/train/NORMAL/NORMAL-4-0001.jpeg", "Cell/chest/test/PNEUMONIA/VIRUS-5-0001.jpeg")
    assert seen(tmp_path, "kermany_oct") == ["train/CNV/CNV-1-1.jpeg", "train/NORMAL/NORMAL-2-1.jpeg"]
    assert seen(tmp_path, "kermany_cxr") == ["test/PNEUMONIA/VIRUS-5-0001.jpeg", "train/NORMAL/NORMAL-4-0001.jpeg"]
    assert "2 images in other folders are of another data set: not read" in listing(tmp_path, "kermany_cxr").notes
    with pytest.raises(SourceError, match="split folders in 2 places; name or keep one"):
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
    said = "1 class folders hold folders: all images below them are of the class; give one of them as --raw where "
    assert f"{said}the folders in it are the classes" in found.notes


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
@pytest.mark.parametrize("below", [("",), ("train/", "test/")])
def test_a_folder_per_patient_is_not_taken_for_classes_and_not_named(tmp_path, each, below):
    patients = [f"anna{number:03d}/{split}" for number in range(25) for split in below]
    raw = put(tmp_path, *(f"{patient}{film}.png" for patient in patients for film in range(each // len(below))))
    with pytest.raises(SourceError, match="25 classes, more than 20: patients or series, perhaps") as refusal:
        listing(raw)
    assert "anna" not in str(refusal.value).replace(str(tmp_path), "")
    assert listing(raw, classes=("anna001", "anna002")).classes == ("anna001", "anna002")


@pytest.mark.parametrize("files", [["anna/x/train/1.png", "bob/y/train/2.png"], ["train_A/1.png", "anna/2.png"]])
def test_a_refusal_names_no_folder_that_may_be_a_patient(tmp_path, files):
    with pytest.raises(SourceError) as refusal:
        listing(put(tmp_path / "raw", *files))
    assert "anna" not in str(refusal.value).replace(str(tmp_path), "")


def test_a_class_that_is_asked_for_is_no_wrapping_folder(tmp_path):
    raw = put(tmp_path, "NORMAL/p1/1.png", "NORMAL/p2/2.png")
    assert seen(raw, classes=("NORMAL",)) == ["-/NORMAL/1.png", "-/NORMAL/2.png"]
    assert "all images are in NORMAL/: the folders in it are the classes" in listing(raw).notes


def test_a_folder_of_archives_says_so(tmp_path):
    for number in range(3):
        (tmp_path / f"images_00{number}.tar.gz").write_bytes(b"packed")
    (tmp_path / "a.nii.gz").write_bytes(b"volume")
    (tmp_path / "Data_Entry_2017.csv").write_text("Image Index,Finding Labels,Patient ID\na.png,Mass,1\n")
    hint = "there are 3 archives in it: unpack them, or name one as --raw; 1 .nii.gz in it are volumes, which are not"
    for source in ("image_folder", "kermany_cxr", "nih_cxr14"):
        request = ingest.Request(source, str(tmp_path), str(tmp_path / "out"), 32)
        with pytest.raises(SourceError, match=hint):
            ingest.find(request)


def test_what_is_no_archive_to_name_is_not_called_one(tmp_path):
    (tmp_path / "films.tar.bz2").write_bytes(b"packed")
    with pytest.raises(SourceError, match="there are 1 archives in it: unpack them$"):
        listing(tmp_path)
    put(tmp_path, "a/1.png")
    (tmp_path / "a/1.nii.gz").write_bytes(b"volume")
    reasons = dict(listing(tmp_path).rejected)
    assert reasons["films.tar.bz2"] == "an archive in the folder; unpack it"
    assert reasons["a/1.nii.gz"].startswith("not one of .png")


def test_classes_are_counted_in_each_split(tmp_path):
    raw = put(tmp_path, "train/a/1.png", "train/a/2.png", "train/b/3.png", "test/b/4.png")
    assert ingest.tally(listing(raw)) == ["found in train: a 2, b 1", "found in test: a 0, b 1"]
    assert ingest.tally(listing(put(tmp_path / "flat", "1.png", "2.png"))) == ["found: without a label 2"]
    drawn = SOURCES["phantom_cxr"].listing(Raw(""), Options(limit=10))
    (line,) = ingest.tally(drawn)
    assert sum(map(int, re.findall(r"\d+", line))) == 10


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("HAM10000_images_part_1", "HAM10000_images_part_2"), "look like parts of one set"),
        (("images_part_1", "images_part_2"), "look like parts of one set"),
        (("fold1", "fold2", "fold3"), "look like parts of one set"),
        (("batch_1", "batch_2"), "look like parts of one set"),
        (("images", "1st_manual"), "images says what files are"),
        (("CXR_png", "test"), "CXR_png says what files are"),
        (("img", "ann"), "img says what files are"),
        (("trainA", "trainB", "testA", "testB"), "look like splits"),
        (("a. Validation Set", "b. Testing Set"), "look like splits"),
        (("ISIC2018_Task3_Validation_Input", "ISIC2018_Task3_Test_Input"), "look like splits"),
    ],
)
def test_folders_of_published_sets_that_are_no_classes_are_refused_unless_they_are_named(tmp_path, folders, words):
    raw = put(tmp_path, *(f"{folder}/{number}{place}.png" for place, folder in enumerate(folders) for number in "123"))
    with pytest.raises(SourceError, match=words):
        listing(raw)
    assert listing(raw, classes=folders).classes == folders


@pytest.mark.parametrize(
    "folders",
    [("grade1", "grade2"), ("BIRADS 1", "BIRADS 2"), ("0", "1"), ("COVID images", "Normal images"), ("CT", "xray")],
)
def test_classes_that_differ_by_a_number_or_say_what_they_are_stay_classes(tmp_path, folders):
    raw = put(tmp_path, *(f"{folder}/{number}{place}.png" for place, folder in enumerate(folders) for number in "123"))
    assert set(listing(raw).classes) == set(folders)
