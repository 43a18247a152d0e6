"""Compiled graphs that are kept between starts: the same mask, and nothing that others could have written."""

import os
import time

import numpy as np
import pytest
from helpers.packages import make_scan

from samkd.deploy.runtime import compiled_cache, engine_openvino
from samkd.deploy.runtime.compiled_cache import CompiledCache, entry_name
from samkd.deploy.runtime.package import Package
from samkd.errors import BadInputError, UsageError


@pytest.fixture
def cache(tmp_path):
    return CompiledCache(tmp_path / "cache")


@pytest.fixture
def imports(monkeypatch):
    """How often a compiled graph was imported, and how often one was compiled."""
    calls = []
    core = engine_openvino.core()

    class Counted:
        def __getattr__(self, name):
            def call(*arguments, **options):
                calls.append(name)
                return getattr(core, name)(*arguments, **options)

            return call

    monkeypatch.setattr(engine_openvino, "core", Counted)
    return lambda: tuple(calls.count(name) for name in ("import_model", "compile_model"))


def entries(cache):
    return sorted(cache.folder.glob("*.compiled"))


def mask(built, cache, *, threads=1):
    return Package.open(built, threads=threads, cache=cache).segment(make_scan(0))


def test_a_second_start_compiles_nothing_and_gives_the_same_mask(built, cache, imports):
    expected = mask(built, None)
    assert imports() == (0, 1) and not entries(cache)
    np.testing.assert_array_equal(mask(built, cache), expected)
    assert imports() == (0, 2) and len(entries(cache)) == 1
    np.testing.assert_array_equal(mask(built, cache), expected)
    assert imports() == (1, 2) and len(entries(cache)) == 1
    engine = Package.open(built, threads=1, cache=cache).engine
    assert (engine.precision, engine.threads) == ("f32", 1)
    assert isinstance(engine, engine_openvino.Engine) and engine.input_shapes == [(1, 1, 16, 16, 16)]


def test_an_entry_is_for_one_model_engine_processor_and_setting(built, cache, imports, monkeypatch):
    mask(built, cache)
    mask(built, cache, threads=2)
    assert imports() == (0, 2)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    mask(built, cache)
    assert imports() == (0, 3) and len(entries(cache)) == 3
    names = {entry_name(facts) for facts in ({"cores": 1}, {"cores": 2}, {"cores": 1, "options": {}})}
    assert len(names) == 3


def test_what_is_damaged_is_compiled_anew(built, cache, imports):
    """Cut anywhere, flipped anywhere, empty or grown: an entry is not imported, and is mended."""
    expected = mask(built, cache)
    (entry,) = entries(cache)
    raw = entry.read_bytes()
    rng = np.random.default_rng(0)
    cuts = [raw[:size] for size in (0, 1, 30, 100, 130, len(raw) - 1, *rng.integers(0, len(raw), 4))]
    flips = []
    for place in (0, 40, 100, len(raw) - 1, *rng.integers(0, len(raw), 8)):
        flipped = bytearray(raw)
        flipped[place] ^= 1 << int(rng.integers(8))
        flips.append(bytes(flipped))
    for damaged in (*cuts, *flips, raw + b"\0"):
        entry.write_bytes(damaged)
        assert cache.read(entry.stem) is None
    np.testing.assert_array_equal(mask(built, cache), expected)
    assert imports()[0] == 0 and entry.read_bytes()[:100] == raw[:100]


def test_the_entry_of_another_model_is_not_taken(built, cache, imports):
    """Neither under a new name, nor with a sum that is right."""
    expected = mask(built, cache)
    (entry,) = entries(cache)
    mask(built, cache, threads=2)
    (other,) = (each for each in entries(cache) if each != entry)
    other.replace(entry)
    assert cache.read(entry.stem) is None
    cache.write(entry.stem, b"no graph at all")
    assert cache.read(entry.stem) == b"no graph at all"
    np.testing.assert_array_equal(mask(built, cache), expected)  # OpenVINO refuses it


def test_nothing_is_taken_that_others_could_have_written(cache, tmp_path):
    cache.write("a", b"graph")
    (entry,) = entries(cache)
    entry.chmod(0o620)
    assert cache.read("a") is None
    entry.chmod(0o600)
    assert cache.read("a") == b"graph"
    entry.replace(tmp_path / "elsewhere")
    entry.symlink_to(tmp_path / "elsewhere")
    assert cache.read("a") is None
    entry.unlink()
    os.mkfifo(entry)
    assert cache.read("a") is None  # and nobody waits for a writer
    entry.unlink()
    entry.mkdir()
    assert cache.read("a") is None


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_write_is_refused(tmp_path, mode):
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UsageError, match="others could write there"):
        CompiledCache(folder)
    folder.chmod(0o755)
    cache = CompiledCache(folder)
    folder.chmod(mode)
    with pytest.raises(UsageError):
        cache.read("a")


def test_a_folder_of_somebody_else_and_what_is_no_folder_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(BadInputError, match="--cache"):
            CompiledCache(path)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(UsageError, match="others could write there"):
        CompiledCache(tmp_path / "cache")


def test_a_new_folder_is_for_its_user_alone(cache):
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    cache.write("a", b"graph")
    assert entries(cache)[0].stat().st_mode & 0o777 == 0o600


def test_only_the_latest_entries_are_kept(cache):
    (cache.folder / "notes.txt").write_text("of the user")
    for index in range(compiled_cache.KEPT + 3):
        cache.write(f"{index:02}", b"graph")
        stamp = time.time() - 1000 + index
        os.utime(cache.folder / f"{index:02}.compiled", (stamp, stamp))
    cache.write("last", b"graph")
    names = [each.stem for each in entries(cache)]
    assert names == [*(f"{index:02}" for index in range(4, compiled_cache.KEPT + 3)), "last"]
    assert sorted(path.name for path in cache.folder.iterdir() if path.suffix != ".compiled") == ["notes.txt"]


def test_what_cannot_be_kept_is_told_and_leaves_nothing(built, cache, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    expected = mask(built, None)
    np.testing.assert_array_equal(mask(built, cache), expected)
    assert "nothing is kept (No space left on device)" in capsys.readouterr().err
    assert not list(cache.folder.iterdir())
