"""Every exception class of the packages says whether a user can mend it."""

import importlib
import inspect
import pkgutil

import pytest

import datamodules
import influence_masking
import lightning_app
import modules

PACKAGES = (datamodules, influence_masking, lightning_app, modules)
NO_FAULT = {"Stopped"}
"""Ends the process on a signal."""


def exception_classes() -> set[type[BaseException]]:
    """Those that the packages define."""
    names = [
        info.name for package in PACKAGES for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    defined = [vars(importlib.import_module(name)) for name in names if not name.endswith("__main__")]
    classes = {value for names in defined for value in names.values() if inspect.isclass(value)}
    own = tuple(f"{package.__name__}." for package in PACKAGES)
    return {kind for kind in classes if issubclass(kind, BaseException) and kind.__module__.startswith(own)}


def test_the_exception_classes_are_found():
    assert len(exception_classes()) > 6


@pytest.mark.parametrize("kind", sorted(exception_classes(), key=lambda kind: kind.__name__))
def test_an_error_of_the_packages_is_printed_without_a_traceback(kind):
    assert kind.__name__ in NO_FAULT or kind.is_user_error is True
