"""Every loader of data and weights takes what it is given, or refuses it in one line, soon and in little memory."""

import pytest

from faults import loaders


@pytest.mark.parametrize("name", loaders.LOADERS)
def test_files_as_they_should_be_are_loaded(name, tmp_path):
    whole = loaders.Case(name, "nothing", loaders.LOADERS[name].files())
    assert loaders.check(whole, tmp_path) is None
    assert loaders._right(name)


@pytest.mark.parametrize("case", loaders.kept(), ids=str)
def test_what_broke_once_does_not_break_again(case, tmp_path):
    assert loaders.check(case, tmp_path) is None


@pytest.mark.parametrize("name", loaders.LOADERS)
def test_damaged_and_hostile_files_are_loaded_or_refused(name, tmp_path):
    for number, case in enumerate(loaders.cases(0, 15 * len(loaders.LOADERS))):
        if case.loader == name:
            assert loaders.check(case, tmp_path / str(number)) is None, case
