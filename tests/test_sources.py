"""Every source against its published layout, and against what people have instead."""

import io
import sys
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medgan.data import ingest
from medgan.data.sources import SOURCES, Options, Raw, Record, SourceError
from medgan.data.sources.base import balanced, limited
from medgan.data.sources.nih import FINDINGS
from medgan.pixels import encode_png

PNG = encode_png(np.zeros((1, 32, 32), np.uint8))
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]\n"
)


def put(raw: Path, *names: str, content: bytes = PNG) -> Path:
    for name in names:
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(content)
    return raw


def listing(source: str, raw: Path, **options):
    return SOURCES[source].listing(Raw(str(raw)), Options(**options))


def found(source: str, raw: Path, **options) -> list[tuple]:
    result = listing(source, raw, **options)
    return [(r.name, *(result.classes[label] for label in r.labels), r.patient) for r in result.records]


# -- Kermany ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("person100_bacteria_475.jpeg", "person100_bacteria"),
        ("person100_virus_184.jpeg", "person100_virus"),
        ("person447_virus_921_1.jpeg", "person447_virus"),
        ("IM-0011-0001-0002.jpeg", "IM-0011"),
        ("IM-0115-0001.jpeg", "IM-0115"),
        ("NORMAL2-IM-0115-0001.jpeg", "NORMAL2-IM-0115"),
        ("BACTERIA-1047522-0001.jpeg", "1047522"),
        ("VIRUS-1047522-0002.jpeg", "1047522"),
        ("NORMAL-28501-0001.jpeg", "28501"),
        ("scan.jpeg", None),
        ("aug_0_person1_virus_6.jpeg", None),
        ("NORMAL-IM-0001.jpeg", None),
        ("CNV-1016042-1.jpeg", None),
    ],
)
def test_kermany_patients_are_read_from_published_names(name, patient):
    assert SOURCES["kermany_cxr"].patient(name) == patient


@given(
    patient=st.integers(0, 10**8),
    first=st.integers(0, 10**4),
    second=st.integers(0, 10**4),
    form=st.sampled_from(
        [
            ("kermany_cxr", "person{}_bacteria_{}.jpeg"),
            ("kermany_cxr", "person{}_virus_{}_1.jpeg"),
            ("kermany_cxr", "IM-{:04d}-{:04d}.jpeg"),
            ("kermany_cxr", "NORMAL2-IM-{:04d}-{:04d}-0002.jpeg"),
            ("kermany_cxr", "BACTERIA-{}-{:04d}.jpeg"),
            ("kermany_cxr", "NORMAL-{}-{:04d}.jpeg"),
            ("kermany_oct", "DRUSEN-{}-{}.jpeg"),
        ]
    ),
)
@settings(derandomize=True, deadline=None, max_examples=50)
def test_a_patients_images_have_one_patient_and_no_one_elses(patient, first, second, form):
    source, name = SOURCES[form[0]], form[1]
    assert source.patient(name.format(patient, first)) == source.patient(name.format(patient, second))
    assert source.patient(name.format(patient, first)) != source.patient(name.format(patient + 1, first))
    assert str(patient) in source.patient(name.format(patient, first))


def test_kermany_films_are_listed_in_a_fixed_order_and_can_be_limited(tmp_path):
    raw = put(tmp_path, "val/NORMAL/IM-0001-0001.jpeg", "train/PNEUMONIA/person2_virus_1.jpeg")
    put(raw, "train/NORMAL/IM-0002-0001.jpeg", "train/NORMAL/.DS_Store", "__MACOSX/train/NORMAL/x.jpeg")
    assert found("kermany_cxr", raw) == [
        ("train/NORMAL/IM-0002-0001.jpeg", "NORMAL", "IM-0002"),
        ("train/PNEUMONIA/person2_virus_1.jpeg", "PNEUMONIA", "person2_virus"),
        ("val/NORMAL/IM-0001-0001.jpeg", "NORMAL", "IM-0001"),
    ]
    assert len(found("kermany_cxr", raw, limit=2)) == 2


def test_kermany_pneumonia_can_be_told_apart_by_its_kind(tmp_path):
    raw = put(tmp_path, "train/PNEUMONIA/person1_virus_1.jpeg", "train/PNEUMONIA/person1_bacteria_2.jpeg")
    put(raw, "test/PNEUMONIA/BACTERIA-12-0001.jpeg", "test/PNEUMONIA/VIRUS-12-0001.jpeg")
    put(raw, "train/NORMAL/IM-1-1.jpeg", "train/PNEUMONIA/other.jpeg")
    kinds = found("kermany_cxr", raw, pneumonia_kinds=True, patients_unknown=True)
    assert [row[1] for row in kinds] == ["BACTERIA", "VIRUS", "NORMAL", "BACTERIA", "VIRUS"]
    rejected = listing("kermany_cxr", raw, pneumonia_kinds=True, patients_unknown=True).rejected
    assert rejected == [("train/PNEUMONIA/other.jpeg", "its name says neither bacteria nor virus")]


def test_a_folder_that_is_not_kermanys_is_refused_and_says_what_is_expected(tmp_path):
    with pytest.raises(SourceError, match=r"expected \{train,test,val\}"):
        listing("kermany_cxr", tmp_path)
    put(tmp_path / "flat", "train/IM-0001-0001.jpeg")
    with pytest.raises(SourceError, match="flat: files beside the folders of its classes"):
        listing("kermany_cxr", tmp_path / "flat")
    put(tmp_path / "covid", "chest_xray/train/NORMAL/IM-0001-0001.jpeg", "chest_xray/train/COVID/a.jpeg")
    with pytest.raises(SourceError, match="covid: has folders of other classes than NORMAL and PNEUMONIA"):
        listing("kermany_cxr", tmp_path / "covid")


@pytest.mark.parametrize("source", ["kermany_cxr", "kermany_oct"])
def test_names_of_no_published_version_are_refused_unless_their_patients_are_said_to_be_unknown(tmp_path, source):
    raw = put(tmp_path, "train/NORMAL/anna.jpeg", "test/NORMAL/anna.jpeg", "train/NORMAL/NORMAL-7-1.jpeg")
    with pytest.raises(SourceError, match="2 of 3 file names are of no published version") as refusal:
        listing(source, raw)
    assert "--patients-unknown" in str(refusal.value)
    assert "anna" not in str(refusal.value)
    told = listing(source, raw, patients_unknown=True)
    assert len({record.patient for record in told.records}) == 3
    assert told.notes == ["2 file names tell no patient: each counts as one, as asked for"]
    assert not listing(source, put(tmp_path / "known", "train/NORMAL/NORMAL-7-1.jpeg"), patients_unknown=True).notes


@pytest.mark.parametrize("archive", ["OCT2017", "OCT2017 "])
def test_kermany_scans_with_the_middle_number_as_patient(tmp_path, archive):
    raw = put(tmp_path / archive, "train/CNV/CNV-1016042-2.jpeg", "val/NORMAL/NORMAL-12-1.jpeg")
    rows = [("train/CNV/CNV-1016042-2.jpeg", "CNV", "1016042"), ("val/NORMAL/NORMAL-12-1.jpeg", "NORMAL", "12")]
    assert found("kermany_oct", raw) == rows
    assert found("kermany_oct", tmp_path) == [(f"{archive}/{name}", *rest) for name, *rest in rows]


# -- NIH -------------------------------------------------------------------------------------------------------------


def nih(raw: Path, *rows: str, header: str = HEADER) -> Path:
    (raw / "Data_Entry_2017_v2020.csv").write_text(header + "".join(row + ",0,9,PA,1,2,3,4\n" for row in rows))
    return raw


def test_nih_films_have_several_findings_one_or_none(tmp_path):
    raw = put(tmp_path, "images_001/images/a.png", "images_002/images/b.png", "images_002/images/c.png")
    nih(raw, "a.png,Hernia|Mass,0,1", "b.png,No Finding,0,2", "c.png,Mass,0,2", "d.png,Mass,0,3")
    assert found("nih_cxr14", raw) == [
        ("images_001/images/a.png", "Hernia", "Mass", "1"),
        ("images_002/images/b.png", "2"),
        ("images_002/images/c.png", "Mass", "2"),
    ]
    assert listing("nih_cxr14", raw).classes == FINDINGS
    assert listing("nih_cxr14", raw).notes == ["1 films of the table have no image here"]
    assert [row[1] for row in found("nih_cxr14", raw, classes=("Mass",))] == ["Mass", "Mass"]
    assert found("nih_cxr14", raw, single_label=True) == [("images_002/images/c.png", "Mass", "2")]
    assert [row[1] for row in found("nih_cxr14", raw, classes=("Hernia", "No Finding"))] == ["Hernia", "No Finding"]


def test_the_seven_findings_are_of_films_with_one_of_them_alone(tmp_path):
    raw = put(tmp_path, *(f"images/{name}.png" for name in "abcd"))
    nih(raw, "a.png,Mass,0,1", "b.png,Hernia,0,2", "c.png,Mass|Nodule,0,3", "d.png,Effusion,0,4")
    assert found("nih_cgan_7", raw) == [("images/a.png", "Mass", "1"), ("images/d.png", "Effusion", "4")]
    assert len(listing("nih_cgan_7", raw).classes) == 7


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["a.png,Mass,0,1"], HEADER.replace("Patient ID", "Person"), "no column 'Patient ID'"),
        (["a.png,Cough,0,1"], HEADER, "row 2: an unknown label"),
        (["a.png,Mass,0,1", "a.png,Hernia,0,1"], HEADER, "row 3: the same film as in row 2"),
    ],
)
def test_a_table_that_is_wrong_is_refused_with_its_row_or_column(tmp_path, rows, header, message):
    raw = nih(put(tmp_path, "images/a.png"), *rows, header=header)
    with pytest.raises(SourceError, match=message):
        listing("nih_cxr14", raw)


def test_nih_tables_are_read_however_they_were_saved_and_what_is_there_twice_is_taken_once(tmp_path):
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,OriginalImageWidth\n"
    table = f"{header}a.png,Hernia|Mass,0,1,58,10\nb.png,No Finding,0,2,7,10\n"
    raw = put(tmp_path, "sample/images/a.png", "sample/images/b.png", "sample/sample/images/a.png")
    right = [("sample/images/a.png", "Hernia", "Mass", "1"), ("sample/images/b.png", "2")]
    for saved in (table, table.replace(",", ";").replace("\n", "\r\n"), table.replace(",", "\t")):
        for encoding in ("utf-8-sig", "utf-16"):
            for place in ("sample", "sample/sample"):
                (raw / place / "sample_labels.csv").write_bytes(saved.encode(encoding))
            assert found("nih_cxr14", raw) == right
    assert "1 films are there twice, with the same bytes, and were taken once" in listing("nih_cxr14", raw).notes
    film = raw / "sample/sample/images/a.png"
    kept = film.read_bytes()
    film.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))  # as many bytes, and others
    with pytest.raises(SourceError, match="one film is in two folders, with other bytes"):
        listing("nih_cxr14", raw)
    film.write_bytes(kept)
    put(raw, "other/a.png", content=PNG + b"more")
    with pytest.raises(SourceError, match="one film is in two folders, with other bytes; leave one"):
        listing("nih_cxr14", raw)
    (raw / "sample/sample_labels.csv").write_text(table + "c.png,Mass,0,,9,10\n")
    with pytest.raises(SourceError, match="expected one Data_Entry_2017.* found 2 of them"):
        listing("nih_cxr14", raw)
    (raw / "other/a.png").unlink()
    (raw / "sample/sample/sample_labels.csv").unlink()
    with pytest.raises(SourceError, match="row 4: no Patient ID"):
        listing("nih_cxr14", raw)


def test_without_a_table_or_with_a_class_that_is_not_one(tmp_path):
    with pytest.raises(SourceError, match=r"expected one Data_Entry_2017\*\.csv in it, found none"):
        listing("nih_cxr14", tmp_path)
    with pytest.raises(SourceError, match="--classes Cough: ChestX-ray14 has Atelectasis"):
        listing("nih_cxr14", nih(put(tmp_path, "images/a.png"), "a.png,Mass,0,1"), classes=("Cough",))


def test_a_limit_of_nih_is_balanced_over_classes_and_seeded():
    records = [Record(f"{i}", (0,) if i < 90 else (1,) if i < 96 else (), f"p{i}") for i in range(100)]
    some = balanced(records, Options(limit=12))
    counts = [sum(r.labels == labels for r in some) for labels in ((0,), (1,), ())]
    assert counts == [4, 4, 4]
    assert balanced(records, Options(limit=12)) == some
    assert balanced(records, Options(limit=12, seed=1)) != some
    assert len(balanced(records, Options(limit=50))) == 50
    assert balanced(records, Options(limit=1000)) == records


# -- MedMNIST --------------------------------------------------------------------------------------------------------


def medmnist(raw: Path, name: str = "pneumoniamnist", shape=(28, 28)) -> Path:
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 20), ("val", 5), ("test", 6)):
        arrays[f"{split}_images"] = random.integers(0, 256, (count, *shape)).astype(np.uint8)
        arrays[f"{split}_labels"] = random.integers(0, 2, (count, 1)).astype(np.uint8)
    arrays["train_images"][3] = arrays["val_images"][2]
    np.savez(raw / f"{name}.npz", **arrays)
    return raw


def test_medmnist_keeps_its_splits_and_drops_what_train_shares_with_them(tmp_path):
    raw = medmnist(tmp_path)
    result = listing("medmnist", raw)
    assert result.classes == ("normal", "pneumonia")
    assert [sum(r.split == split for r in result.records) for split in ("train", "val", "test")] == [19, 5, 6]
    assert any("1 images of train are in val or test too" in note for note in result.notes)
    source, record = SOURCES["medmnist"], result.records[-1]
    image = source.image(source.read(Raw(str(raw)), record, Options()))
    with np.load(raw / "pneumoniamnist.npz") as file:
        assert np.array_equal(np.asarray(image), file["test_images"][-1])


def test_colour_and_what_is_no_medmnist_file(tmp_path):
    raw = medmnist(tmp_path, "bloodmnist_64", (64, 64, 3))
    source, result = SOURCES["medmnist"], listing("medmnist", raw)
    assert source.image(source.read(Raw(str(raw)), result.records[0], Options())).mode == "RGB"
    (tmp_path / "volume").mkdir()
    with pytest.raises(SourceError, match="expected a two-dimensional set"):
        listing("medmnist", medmnist(tmp_path / "volume", "nodulemnist3d", (28, 28, 28, 1)))
    with pytest.raises(SourceError, match="not a MedMNIST file"):
        listing("medmnist", put(tmp_path / "words", "pneumoniamnist.npz", content=b"words"))


def test_medmnist_sets_are_fetched_by_name_where_its_package_is(tmp_path, monkeypatch):
    source = SOURCES["medmnist"]
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(SourceError, match=r"--download pneumoniamnist: needs the medmnist package: pip install"):
        source.fetch("pneumoniamnist")
    asked = []

    class PneumoniaMNIST:
        def __init__(self, **arguments):
            asked.append(arguments)
            if arguments["size"] == 224:
                raise RuntimeError("Automatic download\n failed!")
            medmnist(Path(arguments["root"]), "pneumoniamnist_64", (64, 64))

    info = {"pneumoniamnist": {"python_class": "PneumoniaMNIST", "MD5_64": "0", "MD5_224": "0"}}
    package = types.SimpleNamespace(INFO=info, PneumoniaMNIST=PneumoniaMNIST)
    monkeypatch.setitem(sys.modules, "medmnist", package)
    folder = source.fetch("pneumoniamnist_64")
    assert (asked[0]["size"], asked[0]["download"]) == (64, True)
    assert len(listing("medmnist", Path(folder)).records) == 30
    with pytest.raises(SourceError, match="--download pneumoniamnist_224: failed .Automatic download failed!"):
        source.fetch("pneumoniamnist_224")
    for name in ("mnist", "pneumoniamnist_99", "pneumoniamnist_x"):
        with pytest.raises(SourceError, match=f"--download {name}: no MedMNIST set"):
            source.fetch(name)
    with pytest.raises(SourceError, match="--source nih_cxr14 downloads nothing"):
        SOURCES["nih_cxr14"].fetch("nih")


# -- folders of images -----------------------------------------------------------------------------------------------


def test_any_folder_with_a_folder_per_class(tmp_path):
    raw = put(tmp_path, "b/p7_1.png", "a/p7_2.jpg", "a/p8_1.PNG", "a/notes.txt", "readme.md", "ä ö/p9_日本.png")
    result = listing("image_folder", raw, patient_regex=r"p(\d+)_")
    assert result.classes == ("a", "b", "ä ö")
    assert [(r.name, r.patient) for r in result.records] == [
        ("a/p7_2.jpg", "7"),
        ("a/p8_1.PNG", "8"),
        ("b/p7_1.png", "7"),
        ("ä ö/p9_日本.png", "9"),
    ]
    assert {name for name, _ in result.rejected} == {"a/notes.txt", "readme.md"}
    plain = listing("image_folder", raw)
    assert len({record.patient for record in plain.records}) == 4
    assert "every file counts as a patient of its own" in plain.notes[0]
    assert listing("image_folder", raw, patients_unknown=True).notes == [
        "4 images without a patient: each counts as one, as asked for"
    ]
    some = listing("image_folder", raw, patient_regex=r"p(7)_")
    assert [reason for _, reason in some.rejected].count("--patient-regex p(7)_ finds no patient in it") == 2
    both = listing("image_folder", raw, patient_regex=r"p(7)_", patients_unknown=True)
    assert [record.patient for record in both.records] == ["7", "a/p8_1.PNG", "7", "ä ö/p9_日本.png"]
    assert both.notes == ["2 images without a patient: each counts as one, as asked for"]
    assert [row[1] for row in found("image_folder", raw, classes=("b", "a"))] == ["a", "a", "b"]
    with pytest.raises(SourceError, match="--classes z: .* has a, b"):
        listing("image_folder", raw, classes=("z",))
    with pytest.raises(SourceError, match="not a regular expression"):
        listing("image_folder", raw, patient_regex="p(")


def test_split_folders_are_published_splits(tmp_path):
    raw = put(tmp_path, "train/a/1.png", "valid/b/2.png", "test/a/3.png", "extra/a/4.png")
    assert [record.split for record in listing("image_folder", raw).records] == ["test", "train", "val"]
    assert listing("image_folder", raw).rejected == [("extra/a/4.png", "not in a split folder, as others are")]


def test_with_multi_frame_every_page_and_frame_is_an_image_of_its_patient(tmp_path):
    films = [Image.fromarray(np.full((32, 32), value, np.uint8)) for value in (10, 200)]
    for name in ("a/p1_stack.tif", "b/p2_loop.gif"):
        put(tmp_path, name, content=b"")
        films[0].save(tmp_path / name, save_all=True, append_images=films[1:])
    put(tmp_path, "a/p3.png", "b/p4_damaged.tif")
    result = listing("image_folder", tmp_path, allow=("multi-frame",), patient_regex=r"p(\d)")
    frames = [("a/p1_stack.tif", "1"), ("b/p2_loop.gif", "2")]
    each = [(f"{name}#frame{frame}", patient) for name, patient in frames for frame in (0, 1)]
    assert [(r.name, r.patient) for r in result.records] == sorted(
        [*each, ("a/p3.png", "3"), ("b/p4_damaged.tif", "4")]
    )
    unnamed = listing("image_folder", tmp_path, allow=("multi-frame",))
    assert len({r.patient for r in unnamed.records}) == 4  # a file is a patient, whatever it holds
    source, raw, options = SOURCES["image_folder"], Raw(str(tmp_path)), Options(allow=("multi-frame",))
    contents = [source.read(raw, record, options) for record in result.records if "#" in record.name]
    assert len(set(contents)) == 4
    assert [source.image(content).convert("L").getpixel((5, 5)) for content in contents] == [10, 200, 10, 200]
    with pytest.raises(ValueError, match="2 frames; --allow multi-frame takes each as an image"):
        source.image((tmp_path / "a/p1_stack.tif").read_bytes())
    with pytest.raises(SourceError, match="--allow colour: must be multi-frame"):
        listing("image_folder", tmp_path, allow=("colour",))


def test_a_folder_of_nothing_that_can_be_used_is_refused_with_the_true_reason(tmp_path):
    films = [Image.fromarray(np.full((32, 32), value, np.uint8)) for value in (10, 200)]
    put(tmp_path / "raw", "a/stack.tif", content=b"")
    films[0].save(tmp_path / "raw/a/stack.tif", save_all=True, append_images=films[1:])
    with pytest.raises(SourceError, match="none of its 1 files .*; mostly: 2 frames; --allow multi-frame takes each"):
        plan("image_folder", tmp_path / "raw")


def test_a_folder_linked_into_itself_ends(tmp_path):
    raw = put(tmp_path / "raw", "a/1.png", "b/2.png")
    (raw / "a/loop").symlink_to(raw)
    assert [row[0] for row in found("image_folder", raw)] == ["a/1.png", "b/2.png"]


# -- drawn -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "classes"), [("phantom_cxr", 2), ("phantom_oct", 4)])
def test_phantoms_are_as_many_as_asked_for(name, classes):
    source, nothing, options = SOURCES[name], Raw(""), Options(limit=37)
    records = source.listing(nothing, options).records
    assert len(records) == len({record.name for record in records}) == 37
    assert len({record.patient for record in records}) < 37
    assert len({record.labels for record in records}) == classes
    assert source.read(nothing, records[0], options) == source.read(nothing, records[0], options)


def test_only_scans_of_the_eye_are_still_of_their_kind_when_mirrored():
    """In a film of the chest the heart is on one side, and of others nobody knows."""
    assert {name for name, source in SOURCES.items() if source.mirror} == {"kermany_oct", "phantom_oct"}


def test_a_limit_takes_whole_patients_but_for_the_last():
    records = [Record(f"{patient}/{film}", (0,), f"p{patient}") for film in range(4) for patient in range(30)]
    some = limited(records, Options(limit=42))
    assert sorted(Counter(record.patient for record in some).values()) == [2] + [4] * 10
    assert some == [record for record in records if record in some]  # in the given order
    assert limited(records, Options(limit=42, seed=1)) != some


# -- what is done with a listing -------------------------------------------------------------------------------------


def plan(source: str, raw: Path, split=None, **options):
    request = ingest.Request(source, str(raw), str(raw.parent / "out"), 32, options=Options(**options), split=split)
    return ingest.plan(request, ingest.find(request), bytes(32))


def test_published_splits_are_kept_and_a_tiny_val_is_made_again_from_train(tmp_path):
    raw = put(tmp_path / "raw", *(f"train/NORMAL/IM-{i:04d}-0001.jpeg" for i in range(100)))
    put(raw, "val/NORMAL/IM-0200-0001.jpeg", *(f"test/NORMAL/IM-{i:04d}-0001.jpeg" for i in range(300, 320)))
    put(raw, "train/PNEUMONIA/person1_virus_1.jpeg")
    splits = plan("kermany_cxr", raw, "published").records
    assert {record.name.split("/")[0] for record in splits["test"]} == {"test"}
    assert len(splits["test"]) == 20
    assert len(splits["val"]) == pytest.approx(11, abs=1)
    assert {r.patient for r in splits["train"]}.isdisjoint(r.patient for r in splits["val"])
    put(raw, "test/NORMAL/IM-0001-0009.jpeg")
    with pytest.raises(SourceError, match="1 patients are in two splits .test and train.; use --split ratio"):
        plan("kermany_cxr", raw, "published")
    put(tmp_path / "flat", "a/1.png")
    with pytest.raises(SourceError, match="--source image_folder publishes none here"):
        plan("image_folder", tmp_path / "flat", "published")


def test_a_class_without_an_image_in_train_is_dropped_or_if_asked_for_refused(tmp_path):
    raw = put(tmp_path / "raw", "images/a.png", "images/b.png")
    nih(raw, "a.png,Mass,0,1", "b.png,Mass|Hernia,0,2")
    made = plan("nih_cxr14", raw)
    assert made.classes == ("Hernia", "Mass") or made.classes == ("Mass",)
    assert any("left out of the classes" in note for note in made.notes)
    assert {label for records in made.records.values() for r in records for label in r.labels} <= {0, 1}
    with pytest.raises(SourceError, match="--classes Edema: no image of it in train"):
        plan("nih_cxr14", raw, classes=("Mass", "Edema"))


@pytest.mark.parametrize(
    ("mode", "format"), [("RGBA", "png"), ("P", "png"), ("CMYK", "jpeg"), ("I;16", "png"), ("1", "png"), ("LA", "png")]
)
def test_every_kind_of_image_file_is_read(tmp_path, mode, format):
    buffer = io.BytesIO()
    ramp = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    image = Image.fromarray(ramp.astype(np.uint16) * 200) if mode == "I;16" else Image.fromarray(ramp).convert(mode)
    image.save(buffer, format)
    source = SOURCES["image_folder"]
    pixels = np.asarray(source.image(buffer.getvalue()).convert("L")).astype(float)
    assert pixels[-8:].mean() > pixels[:8].mean() + 150


@pytest.mark.parametrize("content", [b"", b"text called .png", PNG[:40]])
def test_what_is_no_image_is_a_value_error(content):
    with pytest.raises(ValueError, match="not a readable image"):
        SOURCES["image_folder"].image(content)


def test_a_decompression_bomb_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="^more than 200 pixels: --max-pixels takes more, if it is no bomb$"):
        SOURCES["image_folder"].image(PNG)
