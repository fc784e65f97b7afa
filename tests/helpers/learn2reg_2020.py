"""Small data sets in the layout of Learn2Reg 2020."""

import nibabel
import numpy as np

SHAPE = (12, 14, 10)


AFFINE = np.diag([1.75, 1.25, 1.75, 1.0])


MARKS = np.array([[2, 3, 4, 3, 5, 4], [9, 10, 7, 8, 9, 5], [6, 2, 8, 7, 3, 8]], float)


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def volume(seed, shape=SHAPE):
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


def write_pairs(folder, *rows):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{fixed},{moving}" for fixed, moving in rows]
    (folder / "pairs_val.csv").write_text("\n".join(["fixed,moving", *lines]) + "\n")


def write_task01(root, numbers=(1, 2, 3), held_out=(2,), inner="EASY-RESECT"):
    folder = root / "task_01"
    write_pairs(folder, *((n, n) for n in held_out))
    affine = np.array([[0.5, 0, 0, -20], [0, 0.5, 0, 7], [0, 0, 0.5, 3], [0, 0, 0, 1]])
    for n in numbers:
        images = folder / inner / "NIFTI" / f"Case{n}"
        for name in (f"Case{n}-FLAIR-resize.nii", f"Case{n}-US-before-resize.nii"):
            save(images / name, volume(n), affine)
        save(images / f"Case{n}-T1-resize.nii", volume(n), affine)
        tag = folder / inner / "landmarks" / "Coordinates" / f"Case{n}-MRI-beforeUS.tag"
        tag.parent.mkdir(parents=True, exist_ok=True)
        world = MARKS * 0.5 + np.array([-20, 7, 3, -20, 7, 3])
        rows = [" " + " ".join(f"{v:.4f}" for v in row) + ' ""' for row in world]
        head = "MNI Tag Point File\nVolumes = 2;\n%Volume: FLAIR\n%Volume: US\n\nPoints =\n"
        tag.write_text(head + "\n".join(rows) + ";\n")


def write_task02(root, numbers=(1, 2, 3, 4), held_out=(4,)):
    folder = root / "task_02"
    write_pairs(folder, *((n, n) for n in held_out))
    for n in numbers:
        for phase in ("exp", "insp"):
            name = f"case_{n:03d}_{phase}.nii.gz"
            array = volume(n)
            marks = MARKS[:, :3] if phase == "exp" else MARKS[:, 3:]
            array[tuple(marks.astype(int).T)] = 3000
            save(folder / "training" / "scans" / name, array)
            lungs = np.zeros(SHAPE, np.uint8)
            lungs[2:10, 2:12, 3:9] = 1
            save(folder / "training" / "lungMasks" / name, lungs)
        table = folder / "training" / "lms" / f"case_{n:03d}.txt"
        table.parent.mkdir(exist_ok=True)
        np.savetxt(table, MARKS, fmt="%.1f", delimiter=",")


def write_inter_subject(folder, image, label, numbers, held_out, labels):
    write_pairs(folder, *held_out)
    for n in numbers:
        save(folder / "Training" / "img" / image.format(n), volume(n))
        array = np.random.default_rng(n).integers(0, labels + 1, SHAPE).astype(np.uint8)
        save(folder / "Training" / "label" / label.format(n), array)


def write_task03(root, numbers=range(1, 7), held_out=((1, 4), (4, 1))):
    names = "img{:04d}.nii.gz", "label{:04d}.nii.gz"
    write_inter_subject(root / "task_03", *names, numbers, held_out, 13)


def write_task04(root, numbers=(1, 3, 4, 250, 287), held_out=((250, 287),)):
    names = ("hippocampus_{:03d}.nii.gz",) * 2
    write_inter_subject(root / "task_04", *names, numbers, held_out, 2)
