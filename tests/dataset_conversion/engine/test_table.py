from __future__ import annotations

import pytest

from nnssl.dataset_conversion.engine.table import CONVERTERS, Option, find_converter
from nnssl.errors import UsageError


@pytest.mark.parametrize("name", CONVERTERS)
def test_every_converter_says_where_its_data_come_from(name: str) -> None:
    entry = CONVERTERS[name]
    assert callable(entry.load())
    assert entry.name == name
    assert all((entry.title, entry.owner, entry.licence, entry.citation))


def test_converters_are_found_by_name() -> None:
    assert find_converter("acdc").title.startswith("ACDC")
    with pytest.raises(UsageError, match="unknown converter 'xyz'") as caught:
        find_converter("xyz")
    assert "acdc, la" in caught.value.why
    assert caught.value.run == "nnssl_convert --help"


@pytest.mark.parametrize("name", CONVERTERS)
def test_options_have_names_of_their_own(name: str) -> None:
    options = CONVERTERS[name].options
    assert len({option.name for option in options}) == len(options)
    assert all(option.flag.startswith("--") == (option.kind is bool) for option in options)


def test_the_name_of_an_option_has_no_dashes() -> None:
    assert Option("--cine", "", bool).name == Option("-cine", "").name == "cine"
