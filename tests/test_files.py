"""The cache folder, and files and folders written whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loaders.cache import cache_dir
from loaders.files import atomic_file, atomic_folder


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "chosen"))
    assert cache_dir() == tmp_path / "chosen"
    monkeypatch.delenv("HEADRACE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "headrace"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache/headrace"


def test_atomic_file_keeps_the_old_file_on_an_error(tmp_path):
    target = tmp_path / "deep/file"
    with atomic_file(target) as temporary:
        temporary.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_file(target) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    with atomic_file(target) as temporary:
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"new"
    assert os.listdir(target.parent) == ["file"]
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert target.stat().st_mode == plain.stat().st_mode


def test_atomic_folder(tmp_path):
    target = tmp_path / "folder"
    with pytest.raises(RuntimeError), atomic_folder(target) as temporary:
        (temporary / "half").touch()
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with atomic_folder(target) as late:
        with atomic_folder(target) as early:
            (early / "early").touch()
        (late / "late").touch()
    assert os.listdir(target) == ["early"]
    assert os.listdir(tmp_path) == ["folder"]
