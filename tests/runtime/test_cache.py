"""The files of a cache: what is written is read, anything else is dropped and told of."""

import os
import random
import resource
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from backpass.ir.errors import CacheError, CacheWarning
from backpass.runtime.cache import PLANS, Store, opened

BODY = {"choice": [1, 2, {"deep": None}], "text": "ä" * 50}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = opened(tmp_path / "cache")
    found.write("plan-a", "key", BODY)
    return found


def test_an_entry_comes_back_to_its_key_alone(store):
    assert store.read("plan-a", "key") == BODY
    assert store.read("plan-b", "key") is None
    with pytest.warns(CacheWarning, match="belongs to something else"):
        assert store.read("plan-a", "another key") is None
    assert store.read("plan-a", "key") is None


def test_the_folder_and_its_files_are_private(store):
    assert store.directory.stat().st_mode & 0o777 == 0o700
    assert (store.directory / "plan-a.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("seed", range(60))
def test_no_damage_goes_unseen(store, seed):
    rng, path = random.Random(seed), store.directory / "plan-a.json"
    data = bytearray(path.read_bytes())
    if seed % 3:
        at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8)
    else:
        del data[rng.randrange(len(data)) :]
    path.write_bytes(data)
    with pytest.warns(CacheWarning, match="was dropped"):
        assert store.read("plan-a", "key") is None
    assert not path.exists()
    store.write("plan-a", "key", BODY)
    assert store.read("plan-a", "key") == BODY


@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "loop", "huge"])
def test_what_is_no_entry_is_neither_waited_for_nor_followed(store, kind):
    path = store.directory / "plan-a.json"
    path.unlink()
    {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "link": lambda: path.symlink_to("/dev/zero"),
        "loop": lambda: path.symlink_to(path),
        "huge": lambda: (path.touch(), os.truncate(path, PLANS.largest + 1)),
    }[kind]()
    with pytest.warns(CacheWarning):
        assert store.read("plan-a", "key") is None
    assert not path.exists() and not path.is_symlink()


def test_a_full_folder_in_its_place_stays(store):
    path = store.directory / "plan-a.json"
    path.unlink()
    path.mkdir()
    (path / "mine").touch()
    with pytest.warns(CacheWarning, match="could not be removed"):
        assert store.read("plan-a", "key") is None
    with pytest.warns(CacheWarning, match="takes no new entries"):
        store.write("plan-a", "key", BODY)
    assert (path / "mine").exists()


def test_a_disk_that_takes_no_more_is_told_of(store):
    """The limit on a file's size stands for a full disk: writing ends midway, with an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        with pytest.warns(CacheWarning, match="takes no new entries: File too large"):
            store.write("plan-b", "key", BODY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in store.directory.iterdir()] == ["plan-a.json"]


def test_the_entries_used_last_stay(store):
    for i, name in enumerate("bcd"):
        store.write(f"plan-{name}", "key", BODY)
        os.utime(store.directory / f"plan-{name}.json", (i + 1, i + 1))
    store.read("plan-b", "key")  # used now
    size = (store.directory / "plan-a.json").stat().st_size
    store = replace(store, kind=replace(PLANS, limit=3 * size))
    store.write("plan-e", "key", BODY)
    assert store.names("plan-") == ["plan-a", "plan-b", "plan-e"]
    assert store.bytes <= 3 * size


def test_what_a_killed_writer_left_goes(store):
    old, new = store.directory / "x.tmp", store.directory / "y.tmp"
    old.touch()
    new.touch()
    os.utime(old, (1, 1))
    store.write("plan-b", "key", BODY)
    assert new.exists() and not old.exists()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o720])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path, mode):
    tmp_path.chmod(mode)
    with pytest.raises(CacheError, match="others may write to it.*\n.*chmod 700"):
        opened(tmp_path)


def test_a_folder_of_someone_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(CacheError, match="belongs to user"):
        opened(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="give another folder"):
        opened(tmp_path / "file" / "cache")


def test_a_file_that_another_process_removed_first_is_no_trouble(store):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (store.directory / "plan-a.json").unlink()
        assert store.read("plan-a", "key") is None
