"""Published file layouts of cardiac cine MR."""

import json
from dataclasses import dataclass
from pathlib import Path

from regnet_lab.data.case import Case
from regnet_lab.data.splits import find_optional_file, find_subject_file, find_subjects
from regnet_lab.errors import UserError


@dataclass(frozen=True)
class CardiacSubject:
    """The short-axis volumes of a subject; their last axis counts slices."""

    ed: Case  # end-diastole
    es: Case  # end-systole
    cine: Path | None = None  # all phases (x, y, z, t)
    slices: tuple[int, ...] | None = None  # slices that both label maps cover; None: all


def find_cardiac_files(
    root: str,
    ed: str,
    es: str,
    ed_labels: str | None = None,
    es_labels: str | None = None,
    cine: str | None = None,
) -> dict[str, CardiacSubject]:
    """Find subjects by file names, as in the UK Biobank and M&Ms-2.

    ``ed`` and ``es`` are paths below ``root`` of the volumes at end-diastole and end-systole, with
    ``{}`` for the subject (:func:`regnet_lab.data.splits.find_subjects`), ``ed_labels`` and
    ``es_labels`` those of their label maps, and ``cine`` that of the 4D image of all phases.
    """

    def make_case(phase: str, name: str, image: str, labels: str | None) -> Case:
        path = find_subject_file(root, image, name)
        return Case(_name_case(name, phase), path, find_optional_file(root, labels, name))

    return {
        name: CardiacSubject(
            make_case("ED", name, ed, ed_labels),
            make_case("ES", name, es, es_labels),
            find_optional_file(root, cine, name),
        )
        for name in find_subjects(root, ed)
    }


def read_acdc(root: str) -> dict[str, CardiacSubject]:
    """Read the subjects of the ACDC challenge (MICCAI 2017).

    ``patientNNN/`` or ``training/patientNNN/`` contains ``Info.cfg`` with lines ``ED: 1`` and
    ``ES: 12``, the frames ``patientNNN_frame01.nii.gz`` and ``patientNNN_frame01_gt.nii.gz``,
    counted from 1, and ``patientNNN_4d.nii.gz``.
    """

    def make_subject(name: str, info: Path) -> CardiacSubject:
        frames = read_acdc_frames(info)

        def make_case(phase: str) -> Case:
            stem = f"{{}}/{{}}_frame{frames[phase]:02d}"
            image = find_subject_file(root, f"{stem}.nii.gz", name)
            labels = find_subject_file(root, f"{stem}_gt.nii.gz", name)
            return Case(_name_case(name, phase), image, labels)

        cine = info.with_name(f"{info.parent.name}_4d.nii.gz")
        return CardiacSubject(make_case("ED"), make_case("ES"), cine if cine.is_file() else None)

    infos = find_subjects(root, "{}/Info.cfg")
    return {name: make_subject(name, info) for name, info in infos.items()}


def read_acdc_frames(info: Path) -> dict[str, int]:
    """Read the frames ``ED`` and ``ES`` of an ACDC ``Info.cfg``, counted from 1."""
    lines = info.read_text(encoding="utf-8").splitlines()
    entries = dict(line.split(":", 1) for line in lines if ":" in line)
    try:
        return {phase: int(entries[phase]) for phase in ("ED", "ES")}
    except (KeyError, ValueError) as error:
        raise UserError(f"{info}: needs the lines 'ED: <frame>' and 'ES: <frame>'.") from error


def read_sunnybrook(root: str) -> dict[str, CardiacSubject]:
    """Read the subjects of the Sunnybrook Cardiac Data, converted to 4D.

    ``NAME_cine4d.nii.gz`` (x, y, z, t), ``NAME_ed_label.nii.gz`` (1 cavity, 2 myocardium),
    ``NAME_es_label.nii.gz`` (1 cavity) and ``NAME.json`` with the phases ``ed`` and ``es``, counted
    from 0, and ``slices_with_both``.  Only these slices are evaluated: the others were not
    contoured at both phases, so that empty label maps there mean nothing.
    """

    def make_subject(name: str, cine: Path) -> CardiacSubject:
        annotations = read_cine_annotations(find_subject_file(root, "{}.json", name))

        def make_case(phase: str) -> Case:
            labels = find_subject_file(root, f"{{}}_{phase}_label.nii.gz", name)
            return Case(_name_case(name, phase.upper()), cine, labels, phase=annotations[phase])

        slices = tuple(annotations["slices_with_both"])
        return CardiacSubject(make_case("ed"), make_case("es"), cine, slices)

    cines = find_subjects(root, "{}_cine4d.nii.gz")
    return {name: make_subject(name, cine) for name, cine in cines.items()}


def read_cine_annotations(path: Path) -> dict:
    """Read the JSON that belongs to a cine."""
    try:
        annotations = json.loads(path.read_text(encoding="utf-8"))
        complete = all(isinstance(annotations[phase], int) for phase in ("ed", "es"))
        complete &= bool(annotations["slices_with_both"])
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise UserError(
            f"{path}: needs the frames 'ed' and 'es', counted from 0, and 'slices_with_both'."
        )
    return annotations


def _name_case(subject: str, phase: str) -> str:
    """Return the name of a phase of a subject, without folders."""
    return f"{subject.replace('/', '-')}-{phase}"
