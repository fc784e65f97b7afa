"""Unknown keys and choices, and words for numbers, are explained by what there is."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from regnet_lab.cli.suggestions import check_numbers, explain_hydra_error
from regnet_lab.config.compose import CONFIG_DIR
from regnet_lab.errors import UserError


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("modl=gradirn", "did you mean model?"),
        ("trainer.max_epoch=3", "did you mean trainer.max_epochs?"),
        ("model.encoder_channel=3", "did you mean model.encoder_channels?"),
        ("model=gradirnn", "did you mean gradirn?"),
        ("loss=[ncc,dicee]", "Choices: "),
        ("xyzzy=1", "there is no key xyzzy. All keys: train.py --help"),
    ],
)
def test_a_misspelt_word_gets_a_suggestion(override, meant):
    words = ["model=shared_pyramid", override]
    with (
        initialize_config_dir(CONFIG_DIR, version_base="1.3"),
        pytest.raises(HydraException) as error,
    ):
        compose("train", words)
    explanation = explain_hydra_error(str(error.value), "train", words)
    assert meant in explanation
    assert "+" not in explanation


def test_other_errors_are_left_alone():
    assert explain_hydra_error("Something else.", "train", []) is None


@pytest.mark.parametrize("override", ["ndim=two", "trainer.max_epochs=many", "seed=a"])
def test_a_word_for_a_number_is_refused(override):
    with pytest.raises(UserError, match=f"{override} must be a number, such as "):
        check_numbers("train", [override])


def test_words_that_are_choices_are_accepted():
    words = ["trainer.devices=auto", "trainer.precision=bf16-mixed", "monitor=val/dice", "seed=3"]
    check_numbers("train", [*words, "model=gradirn", "trainer.max_epochs=1,2"])
