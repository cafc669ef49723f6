"""Data sets known by name: downloaded, exported, put there by hand; and the messages without a network."""

from __future__ import annotations

import inspect
import os
import sys
import urllib.error
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loaders.known import KNOWN_SETS
from loaders.opening import DataError
from tests.folders import make_classes, opened


@pytest.fixture
def offline(monkeypatch):
    import torchvision.datasets.utils as utils

    def refuse(*_args, **_keywords):
        raise urllib.error.URLError("Network is unreachable")

    for name in ("_urlretrieve", "_get_redirect_url"):
        monkeypatch.setattr(utils, name, refuse)


@pytest.mark.parametrize("name", sorted(KNOWN_SETS))
def test_known_set_offline_says_what_to_put_where(tmp_path, offline, name):
    with pytest.raises(DataError) as caught:
        opened(name, tmp_path)
    message = str(caught.value)
    for url in KNOWN_SETS[name].urls:
        assert url in message
    assert str(tmp_path / "cache/datasets" / name / "download" / KNOWN_SETS[name].folder) in message
    assert str(tmp_path / "cache/datasets" / name / "train") in message


@pytest.mark.parametrize("name", sorted(KNOWN_SETS))
def test_known_set_names_the_files_that_torchvision_takes(name):
    import torchvision

    known = KNOWN_SETS[name]
    source = inspect.getsource(sys.modules[getattr(torchvision.datasets, known.dataset).__module__])
    for url in known.urls:
        assert os.path.basename(url) in source
    assert known.folder.split("/")[0].lower() in source.lower()


@pytest.mark.parametrize("val_name", ["val", "test"])
def test_known_set_put_there_by_hand(tmp_path, offline, val_name):
    home = tmp_path / "cache/datasets/cifar10"
    make_classes(home / "train", {"cat": 3, "dog": 3})
    make_classes(home / val_name, {"cat": 1, "dog": 2})
    data = opened("cifar10", tmp_path)
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.val), data.val.name) == (6, 3, "cifar10/val")


def test_known_set_of_arrays_is_exported_once(tmp_path, monkeypatch):
    import torchvision

    made = []

    class Arrays:
        classes = ("0 - zero", "T-shirt/top")

        def __init__(self, root, train, download):
            made.append(train)
            self.images = np.random.default_rng(train).integers(0, 256, (30 if train else 10, 8, 8), np.uint8)

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            return Image.fromarray(self.images[index]), index % 2

    monkeypatch.setattr(torchvision.datasets, "MNIST", Arrays)
    data = opened("mnist", tmp_path)
    assert data.classes == ("0", "T-shirt-top")
    assert Counter(made) == {True: 1, False: 1}
    expected = Arrays("", True, True)
    for index, path in enumerate(data.train.paths):
        image, label = expected[int(Path(path).stem)]
        assert (np.asarray(Image.open(path)) == np.asarray(image)).all()
        assert data.train.labels[index] == label
    made.clear()
    assert len(opened("mnist", tmp_path).val) == 10
    assert not made


def test_known_set_of_files_is_used_in_place(tmp_path, monkeypatch):
    import torchvision

    make_classes(tmp_path / "unpacked", {"soup": 4})

    class Files:
        classes = ("soup", "salad")

        def __init__(self, root, split, download, loader):
            self.loader = loader
            self.paths = [tmp_path / f"unpacked/soup/{index}.png" for index in range(3 if split == "train" else 4)]

        def __len__(self):
            return len(self.paths)

        def __getitem__(self, index):
            return self.loader(self.paths[index]), 0

    monkeypatch.setattr(torchvision.datasets, "Food101", Files)
    data = opened("food101", tmp_path)
    assert data.classes == ("soup", "salad")
    assert (len(data.train), len(data.val)) == (3, 4)
    assert data.train.paths[0] == str(tmp_path / "unpacked/soup/0.png")
    (tmp_path / "unpacked/soup/3.png").unlink()
    with pytest.raises(DataError, match="1 of the 4 files"):
        opened("food101", tmp_path)
