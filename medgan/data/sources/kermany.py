"""Kermany et al. 2018, doi:10.17632/rscbjbr9sj: chest films of children, and OCT scans."""

from __future__ import annotations

import re

from medgan.data.sources.base import Listing, Options, Raw, Record, Source, SourceError, limited

SPLITS = ("train", "test", "val")


def class_folders(raw: Raw, classes: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """(split, class, path) of every file in {train,test,val}/CLASS/. Raises SourceError for another layout."""
    files = [name.split("/") for name in raw.files()]
    here = [parts for parts in files if parts[0] in SPLITS]
    expected = f"{{{','.join(SPLITS)}}}/{{{','.join(classes)}}}/"
    if not here:
        nested = next((parts for parts in files if len(parts) > 2 and parts[1] in SPLITS), None)
        hint = f"; did you mean --raw {raw.location}/{nested[0]}?" if nested else ""
        raise SourceError(f"--raw {raw.location}: expected {expected} in it{hint}")
    for parts in here:
        if len(parts) == 2:
            raise SourceError(f"--raw {raw.location}/{parts[0]}: files in it, where class folders are expected")
        if parts[1] not in classes:
            raise SourceError(
                f"--raw {raw.location}/{parts[0]}/{parts[1]}: unknown class, expected {' or '.join(classes)}"
            )
    return [(parts[0], parts[1], "/".join(parts)) for parts in here]


class KermanyCxr(Source):
    """Patients: `personN_bacteria` and `personN_virus` (a bare `personN` recurs for different people), `IM-NNNN` and
    `NORMAL2-IM-NNNN` (two separate series)."""

    name = "kermany_cxr"
    layout = "{train,test,val}/{NORMAL,PNEUMONIA}/*.jpeg"
    takes = frozenset({"pneumonia_kinds"})
    folders = ("NORMAL", "PNEUMONIA")
    kinds = ("NORMAL", "BACTERIA", "VIRUS")
    patient_of = (
        re.compile(r"(person\d+_(?:bacteria|virus))_\d+"),
        re.compile(r"((?:NORMAL2-)?IM-\d+)-\d+"),
    )

    def listing(self, raw: Raw, options: Options) -> Listing:
        records, rejected = [], []
        for split, folder, path in class_folders(raw, self.folders):
            label = self.folders.index(folder)
            if options.pneumonia_kinds and label:
                kind = re.search(r"_(bacteria|virus)_", path)
                if kind is None:
                    rejected.append((path, "its name says neither bacteria nor virus"))
                    continue
                label = self.kinds.index(kind.group(1).upper())
            records.append(Record(path, (label,), self.patient(path.rpartition("/")[2]), split))
        classes = self.kinds if options.pneumonia_kinds else self.folders
        return Listing(classes, limited(records, options), rejected)

    def patient(self, file_name: str) -> str:
        """The patient key of a published file name; a file named otherwise is a patient of its own."""
        for pattern in self.patient_of:
            match = pattern.match(file_name)
            if match:
                return match.group(1)
        return file_name


class KermanyOct(Source):
    """Patient: the middle number of the name. The archive's own folder, `OCT2017 `, has a trailing blank."""

    name = "kermany_oct"
    mirror = True
    layout = "{train,test,val}/{CNV,DME,DRUSEN,NORMAL}/CLASS-PATIENT-N.jpeg"
    folders = ("CNV", "DME", "DRUSEN", "NORMAL")
    file_name = re.compile(r"[A-Z]+-(\d+)-\d+\.")

    def listing(self, raw: Raw, options: Options) -> Listing:
        records, rejected = [], []
        for split, folder, path in class_folders(raw, self.folders):
            match = self.file_name.match(path.rpartition("/")[2])
            if match:
                records.append(Record(path, (self.folders.index(folder),), match.group(1), split))
            else:
                rejected.append((path, "its name is not CLASS-PATIENT-N, so that its patient is not known"))
        return Listing(self.folders, limited(records, options), rejected)
