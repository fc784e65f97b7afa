"""Words of a command line: names as typed, images by position, mistakes with a correction."""

import shlex

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from regnet_lab.config.overrides import (
    TEXT_KEYS,
    list_overrides,
    list_run_folders,
    prepare_overrides,
    quote_override,
)
from regnet_lab.errors import UserError
from tests.helpers import CONF

FILE_NAMES = [
    "a b.nii.gz",
    "sub=1.nii.gz",
    "scan (2).nii.gz",
    "a,b.nii.gz",
    "[a].nii.gz",
    "[a,b]",
    "{a: b}.nii",
    "#1.nii.gz",
    "Schädel_頭.nii.gz",
    "-a.nii.gz",
    ".hidden.nii.gz",
    "it's.nii.gz",
    'say "a".nii.gz',
    "a:b;c.nii.gz",
    "back\\slash\\",
    "2019_01_02",
    "1e3",
    "1.50",
    "2024",
    "true",
    "a&b!c^d.nii.gz",
    "choice(a).nii.gz",
    "0x10",
]


def parse(word):
    return OverridesParser.create().parse_override(word)


@pytest.mark.parametrize("name", FILE_NAMES)
@pytest.mark.parametrize("key", ["fixed", "output_dir", "+run", "data.dataset.root"])
def test_names_are_taken_as_typed(key, name):
    assert parse(quote_override(f"{key}={name}")).value() == name


@pytest.mark.parametrize("name", [name for name in FILE_NAMES if "," not in name])
def test_each_item_of_a_list_or_sweep_is_taken_as_typed(name):
    assert parse(quote_override(f"init_from=[x,{name}]")).value() == ["x", name]
    sweep = parse(quote_override(f"run=x,{name}", is_sweep=True))
    assert len(list(sweep.sweep_string_iterator())) == 2


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("run=null", None),
        ("fixed=", ""),
        ("fixed='a b.nii'", "a b.nii"),
        ('fixed="a b.nii"', "a b.nii"),
        ("trainer.max_epochs=3", 3),
        ("grid.spacing=[1,2]", [1, 2]),
        ("init_from=outputs/a", "outputs/a"),
    ],
)
def test_other_values_keep_their_meaning(word, value):
    assert parse(quote_override(word)).value() == value


def test_sweep_functions_keep_their_meaning():
    assert quote_override("run=glob(*)", is_sweep=True) == "run=glob(*)"
    assert prepare_overrides(["-m", "run=a,b"]) == ["-m", "run='a','b'"]


def test_images_are_named_by_position():
    words = ["a (1).nii.gz", "--cfg", "job", "b.nii.gz", "align=rigid"]
    assert prepare_overrides(words, positional=True) == [
        "fixed='a (1).nii.gz'",
        "--cfg",
        "job",
        "moving='b.nii.gz'",
        "align=rigid",
    ]


def test_an_existing_file_with_an_equals_sign_is_an_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub=1.nii.gz").touch()
    assert prepare_overrides(["sub=1.nii.gz"], positional=True) == ["fixed='sub=1.nii.gz'"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.nii", "b.nii", "c.nii"], "c.nii.*third image"),
        (["a.nii", "fixed=b.nii"], "fixed image is given twice"),
    ],
)
def test_ambiguous_images_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        prepare_overrides(words, positional=True)


def test_text_that_hydra_cannot_read_is_refused_with_a_correction():
    with pytest.raises(UserError, match=r"write .*") as error:
        prepare_overrides(["model.note=a (b"])
    (corrected,) = shlex.split(str(error.value).split("write ")[1].removesuffix("."))
    assert parse(corrected).value() == "a (b"
    with pytest.raises(UserError, match="'word' is not of the form key=value"):
        prepare_overrides(["word"])


def test_every_text_key_is_a_key_of_the_configuration():
    def iterate_keys(node):
        if isinstance(node, dict):
            for key, value in node.items():
                yield key
                yield from iterate_keys(value)

    files = CONF.rglob("*.yaml")
    keys = {key for f in files for key in iterate_keys(yaml.safe_load(f.read_text("utf-8")))}
    assert keys >= TEXT_KEYS


@pytest.mark.parametrize(
    ("words", "folders"),
    [
        (["run=outputs/a b"], ["outputs/a b"]),
        (["-m", "run=a,b c"], ["a", "b c"]),
        (["resume=2019_01_02", "seed=1"], ["2019_01_02"]),
        (["run=null"], []),
        (["-m", "run=glob(*)"], []),
    ],
)
def test_run_folders_are_found(words, folders):
    assert list_run_folders(list_overrides(prepare_overrides(words))) == folders


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse(quote_override("fixed=~/a b.nii")).value() == f"{tmp_path}/a b.nii"


@pytest.mark.parametrize("value", ["'a b.nii", '"a b.nii'])
def test_a_quote_without_end_is_refused_with_a_correction(value):
    with pytest.raises(UserError, match=r"does not end; write 'a b\.nii'"):
        quote_override(f"fixed={value}")


def test_blanks_around_the_items_of_a_list_are_left_out():
    word = "apply_transform=[a.h5, 'b, c.h5' ,d.h5]"
    assert parse(quote_override(word)).value() == ["a.h5", "b, c.h5", "d.h5"]


def test_an_existing_image_may_begin_with_a_dash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-a.nii").touch()
    assert prepare_overrides(["-a.nii", "b.nii"], positional=True) == [
        "fixed='-a.nii'",
        "moving='b.nii'",
    ]
