"""Sizes and licences that may join a bank."""

import pytest

from kshot.bank import Limits, read_size
from kshot.bank.limits import listed
from kshot.errors import AdapterError, ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [("200MB", 200_000_000), ("1.5 GB", 1_500_000_000), ("1kB", 1000), ("7b", 7), ("2MiB", 2_097_152)],
)
def test_sizes(text: str, size: int) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "200", "MB", "-1MB", "0MB", "1TB", "1e3MB", "nanMB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a size such as 200MB or 1.5GB, got"):
        read_size(text)


def test_limits() -> None:
    limits = Limits(max_bytes=1_000_000, licences=("MIT", "Apache-2.0"))
    limits.check_size("a", 1_000_000)
    limits.check_licence("a", "apache-2.0")
    Limits().check_licence("a", "unknown")
    with pytest.raises(AdapterError, match=r"a: expected at most 1.0 MB, got 1.5 MB"):
        limits.check_size("a", 1_500_000)
    with pytest.raises(AdapterError, match=r"a: expected the licence MIT or Apache-2.0, got llama2"):
        limits.check_licence("a", "llama2")


def test_fields_of_a_card() -> None:
    assert listed("x") == "x"
    assert listed(["x", 1, "y"]) == "x, y"
    assert [listed(one) for one in (None, "", [], 3)] == [None] * 4
