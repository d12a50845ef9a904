import inspect
from dataclasses import FrozenInstanceError, fields

import pytest

from influence_masking import InfluenceMasking, MaskingOptions


class Subclass(InfluenceMasking):
    """A callback of another project."""


def test_the_callback_takes_the_options_by_name_and_default() -> None:
    parameters = list(inspect.signature(InfluenceMasking.__init__).parameters.values())[1:]
    described = [(field.name, field.default, field.type) for field in fields(MaskingOptions)]
    assert [(p.name, p.default, p.annotation) for p in parameters] == described


def test_a_callback_made_of_options_has_them_and_is_of_the_class_asked() -> None:
    for options in (MaskingOptions(count=3, score="random_matched", matched_score="snip", seed=5), MaskingOptions()):
        callback = Subclass.from_options(options)
        assert type(callback) is Subclass
        assert callback.options == options


def test_options_cannot_be_changed_after_they_are_checked() -> None:
    with pytest.raises(FrozenInstanceError):
        MaskingOptions().fraction = 2.0


def test_the_number_selected_is_the_count_or_the_fraction_rounded_down() -> None:
    assert MaskingOptions(count=3).num_selected(1000) == 3
    assert MaskingOptions(fraction=0.0019).num_selected(1000) == 1
