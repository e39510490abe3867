"""Kermany et al. 2018, doi:10.17632/rscbjbr9sj: chest films of children, and OCT scans, as every version names them."""

from __future__ import annotations

import re

from medgan.data.sources.base import Listing, Options, Raw, Record, Source, SourceError, limited
from medgan.data.sources.layout import known_layout


class Kermany(Source):
    """Files in {train,test,val}/CLASS/, also within other folders, whose names hold the patient."""

    takes = frozenset({"patients_unknown", "multi_label"})
    folders: tuple[str, ...]
    names: tuple[re.Pattern[str], ...]
    """The first group of the one that matches is the patient."""

    def patient(self, file_name: str) -> str | None:
        """The patient of a published name; None of any other."""
        return next((match.group(1) for pattern in self.names if (match := pattern.match(file_name))), None)

    def listing(self, raw: Raw, options: Options) -> Listing:
        layout = known_layout(raw, self.folders)
        spelled = {folder.casefold(): index for index, folder in enumerate(self.folders)}
        records, unknown = [], 0
        for split, folder, path in layout.found:
            patient = self.patient(path.rpartition("/")[2])
            unknown += patient is None
            records.append(Record(path, (spelled[folder.casefold()],), patient or path, split))
        if unknown and not options.patients_unknown:
            raise SourceError(
                f"--raw {raw.location}: {unknown:,} of {len(records):,} file names are of no published version and "
                "tell no patient; --patients-unknown takes each such file as a patient of its own"
            )
        notes = [*layout.notes]
        if unknown:
            notes.append(f"{unknown:,} file names tell no patient: each counts as one, as asked for")
        return self.told_apart(Listing(self.folders, records, layout.rejected, notes), options)

    def told_apart(self, found: Listing, options: Options) -> Listing:
        return Listing(found.classes, limited(found.records, options), found.rejected, found.notes)


class KermanyCxr(Kermany):
    """Patients: `personN_bacteria` and `personN_virus` (a bare `personN` recurs for different people), `IM-NNNN` and
    `NORMAL2-IM-NNNN` (two separate series) in versions 1 and 2 and on Kaggle; the middle number of the name in version
    3, whose kind tells of the film and not of the patient."""

    name = "kermany_cxr"
    layout = "{train,test,val}/{NORMAL,PNEUMONIA}/*.jpeg, in any folders"
    takes = Kermany.takes | {"pneumonia_kinds"}
    folders = ("NORMAL", "PNEUMONIA")
    kinds = ("NORMAL", "BACTERIA", "VIRUS")
    names = (
        re.compile(r"(person\d+_(?:bacteria|virus))_\d+"),
        re.compile(r"((?:NORMAL2-)?IM-\d+)-\d+"),
        re.compile(r"(?:NORMAL|BACTERIA|VIRUS)-(\d+)-\d+"),
    )
    kind = re.compile(r"(?:person\d+_)?(bacteria|virus)[-_]\d+", re.IGNORECASE)

    def told_apart(self, found: Listing, options: Options) -> Listing:
        if not options.pneumonia_kinds:
            return super().told_apart(found, options)
        records, rejected = [], list(found.rejected)
        for record in found.records:
            kind = self.kind.match(record.name.rpartition("/")[2])
            if not record.labels[0]:
                records.append(record)
            elif kind:
                label = self.kinds.index(kind.group(1).upper())
                records.append(Record(record.name, (label,), record.patient, record.split))
            else:
                rejected.append((record.name, "its name says neither bacteria nor virus"))
        return super().told_apart(Listing(self.kinds, records, rejected, found.notes), options)


class KermanyOct(Kermany):
    """Patient: the middle number of the name. The archive's own folder, `OCT2017 `, has a trailing blank."""

    name = "kermany_oct"
    mirror = True
    layout = "{train,test,val}/{CNV,DME,DRUSEN,NORMAL}/CLASS-PATIENT-N.jpeg, in any folders"
    folders = ("CNV", "DME", "DRUSEN", "NORMAL")
    names = (re.compile(r"(?:CNV|DME|DRUSEN|NORMAL)-(\d+)-\d+"),)
