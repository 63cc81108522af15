"""Modules say what they export, and what they say exists."""

import importlib
import pkgutil

import pytest

import milterchain

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(milterchain.__path__, "milterchain.")
    if "__main__" not in info.name
)


@pytest.mark.parametrize("name", MODULES)
def test_all_is_true(name: str) -> None:
    module = importlib.import_module(name)
    public = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and getattr(value, "__module__", None) == name
    }
    exported = getattr(module, "__all__", None)
    if exported is None:
        # A package that only holds modules has nothing to export.
        assert hasattr(module, "__path__"), f"{name} has no __all__"
        assert not public, f"{name} has no __all__"
        return
    assert list(exported) == sorted(set(exported), key=exported.index), "a name is there twice"
    missing = [key for key in exported if not hasattr(module, key)]
    assert not missing, f"{name}.__all__ names {missing}"
    assert all(not key.startswith("_") or key == "__version__" for key in exported)
