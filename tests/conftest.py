"""Shared by all tests: a cache folder of their own, sets that are made once, and reasons for skipping."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep indexes and the demo set out of the user's cache, and in one place for the whole session."""
    before = os.environ.get("HEADRACE_CACHE")
    os.environ["HEADRACE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["HEADRACE_CACHE"]
    else:
        os.environ["HEADRACE_CACHE"] = before


@pytest.fixture
def photos() -> Path:
    """A folder of real photos in class folders."""
    root = os.environ.get("HEADRACE_DATA")
    if not root or not (Path(root) / "imagenet_sample").is_dir():
        pytest.skip("set HEADRACE_DATA to a folder that holds imagenet_sample/<class>/*.JPEG")
    return Path(root) / "imagenet_sample"


@pytest.fixture(scope="session")
def packed_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed set of photos that nobody changes."""
    from tests.packed_photos import pack_photos  # the loaders take seconds to import, and few tests need this

    return pack_photos(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files of all kinds that nobody changes."""
    from tests.packing import kinds_of_files

    return kinds_of_files(tmp_path_factory.mktemp("source") / "kinds")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
