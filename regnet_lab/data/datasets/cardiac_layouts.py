"""Hearts in the layouts in which cine MR is published."""

import json
from dataclasses import dataclass
from pathlib import Path

from regnet_lab.data.case import Case
from regnet_lab.data.splits import file_of, find_subjects
from regnet_lab.errors import UserError


@dataclass(frozen=True)
class Heart:
    """A subject's short-axis volumes, whose last axis counts slices."""

    ed: Case
    es: Case
    cine: Path | None = None  # all phases (x, y, z, t)
    slices: tuple[int, ...] | None = None  # those that both label maps cover; None: all


def heart_files(
    root: str,
    ed: str,
    es: str,
    ed_labels: str | None = None,
    es_labels: str | None = None,
    cine: str | None = None,
) -> dict[str, Heart]:
    """Hearts found by file names, as in the UK Biobank and M&Ms-2.

    Args:
        root: Folder of the data set.
        ed: Path below it of the volume at end-diastole, with ``{}`` for the subject
            (:func:`regnet_lab.data.splits.find_subjects`).
        es: The same at end-systole.
        ed_labels: The same for the label map of end-diastole.
        es_labels: The same for that of end-systole.
        cine: The same for the 4D image of all phases.

    Raises:
        UserError: There is no such volume, or a subject lacks one of the others.
    """

    def case(phase: str, name: str, image: str, labels: str | None) -> Case:
        path = file_of(root, labels, name) if labels else None
        return Case(f"{flat(name)}-{phase}", file_of(root, image, name), path)

    return {
        name: Heart(
            case("ED", name, ed, ed_labels),
            case("ES", name, es, es_labels),
            file_of(root, cine, name) if cine else None,
        )
        for name in find_subjects(root, ed)
    }


def acdc(root: str) -> dict[str, Heart]:
    """Hearts of the ACDC challenge (MICCAI 2017).

    ``patientNNN/`` or ``training/patientNNN/`` holds ``Info.cfg`` with lines ``ED: 1`` and
    ``ES: 12``, the frames ``patientNNN_frame01.nii.gz`` and ``patientNNN_frame01_gt.nii.gz`` that
    it counts from 1, and ``patientNNN_4d.nii.gz``.

    Raises:
        UserError: A file is missing, or ``Info.cfg`` does not name both frames.
    """

    def heart(name: str, info: Path) -> Heart:
        frames = info_frames(info)

        def case(phase: str) -> Case:
            stem = f"{{}}/{{}}_frame{frames[phase]:02d}"
            image, labels = (file_of(root, f"{stem}{end}.nii.gz", name) for end in ("", "_gt"))
            return Case(f"{flat(name)}-{phase}", image, labels)

        cine = info.with_name(f"{info.parent.name}_4d.nii.gz")
        return Heart(case("ED"), case("ES"), cine if cine.is_file() else None)

    return {name: heart(name, info) for name, info in find_subjects(root, "{}/Info.cfg").items()}


def info_frames(info: Path) -> dict[str, int]:
    """The frames ``ED`` and ``ES`` of an ACDC ``Info.cfg``, counted from 1.

    Raises:
        UserError: It does not name both.
    """
    entries = dict(
        line.split(":", 1) for line in info.read_text(encoding="utf-8").splitlines() if ":" in line
    )
    try:
        return {phase: int(entries[phase]) for phase in ("ED", "ES")}
    except (KeyError, ValueError) as error:
        raise UserError(f"{info}: needs the lines 'ED: <frame>' and 'ES: <frame>'.") from error


def sunnybrook(root: str) -> dict[str, Heart]:
    """Hearts of the Sunnybrook Cardiac Data, converted to 4D.

    ``NAME_cine4d.nii.gz`` (x, y, z, t), ``NAME_ed_label.nii.gz`` (1 cavity, 2 myocardium),
    ``NAME_es_label.nii.gz`` (1 cavity) and ``NAME.json`` with the phases ``ed`` and ``es``, counted
    from 0, and ``slices_with_both``. Only these slices are judged: the others were not contoured at
    both phases, so that empty label maps there mean nothing.

    Raises:
        UserError: A file is missing, or the JSON lacks one of the three.
    """

    def heart(name: str, cine: Path) -> Heart:
        notes = cine_notes(file_of(root, "{}.json", name))

        def case(phase: str) -> Case:
            labels = file_of(root, f"{{}}_{phase}_label.nii.gz", name)
            return Case(f"{flat(name)}-{phase.upper()}", cine, labels, phase=notes[phase])

        return Heart(case("ed"), case("es"), cine, tuple(notes["slices_with_both"]))

    return {name: heart(name, c) for name, c in find_subjects(root, "{}_cine4d.nii.gz").items()}


def cine_notes(path: Path) -> dict:
    """The JSON beside a cine.

    Raises:
        UserError: It is damaged, or lacks a phase or the slices that count.
    """
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
        usable = all(isinstance(notes[phase], int) for phase in ("ed", "es"))
        usable &= bool(notes["slices_with_both"])
    except (ValueError, KeyError, TypeError):
        usable = False
    if not usable:
        raise UserError(
            f"{path}: needs the frames 'ed' and 'es', counted from 0, and 'slices_with_both'."
        )
    return notes


def flat(name: str) -> str:
    """A subject's name without folders."""
    return name.replace("/", "-")
