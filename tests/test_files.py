import math
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.numpy import save_file

from beft.errors import StoreError
from beft.files import part_folder, read_json, sha256, to_json, write, write_all


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_write_and_read(tmp_path):
    folder = tmp_path / "a" / "b"
    write_all(folder, {"t.txt": "ä", "b.bin": b"\x00", "w": lambda path: path.write_bytes(b"w")})
    assert contents(folder) == {"t.txt": "ä".encode(), "b.bin": b"\x00", "w": b"w"}
    write(folder / "t.txt", "new")
    assert contents(folder)["t.txt"] == b"new"


def test_what_others_may_read_is_what_the_umask_says(tmp_path):
    def private(path):
        path.unlink()
        path.touch(0o600)

    before = os.umask(0o022)
    try:
        write_all(tmp_path, {"plain": "a", "w": private, "s": lambda path: save_file({}, path)})
        with part_folder(tmp_path / "model") as part:
            save_file({}, part / "model.safetensors")
    finally:
        os.umask(before)
    written = [*tmp_path.glob("*"), *tmp_path.glob("model/*")]
    assert {path.stat().st_mode & 0o777 for path in written if path.is_file()} == {0o644}
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.safetensors"]


def fail(path):
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_a_writer_that_fails_leaves_the_old_files(tmp_path):
    write_all(tmp_path, {"a": "old a", "b": "old b"})
    with pytest.raises(StoreError, match="No space left on device"):
        write_all(tmp_path, {"a": "new a", "b": fail})
    assert contents(tmp_path) == {"a": b"old a", "b": b"old b"}


def test_another_error_leaves_the_old_files_too(tmp_path):
    write_all(tmp_path, {"a": "old a"})

    def broken(path):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_all(tmp_path, {"a": "new", "b": broken})
    assert contents(tmp_path) == {"a": b"old a"}


@pytest.mark.parametrize("which", [1, 2, 3])
def test_a_rename_that_fails_midway_is_taken_back(tmp_path, monkeypatch, which):
    write_all(tmp_path, {"a": "old a", "c": "old c"})
    calls = []
    replace = os.replace

    def failing(source, target):
        calls.append(target)
        if len(calls) == which:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(StoreError, match="Input/output error"):
        write_all(tmp_path, {"a": "new a", "b": "new b", "c": "new c"})
    assert contents(tmp_path) == {"a": b"old a", "c": b"old c"}


def test_one_file_that_cannot_be_renamed_stays(tmp_path, monkeypatch):
    write(tmp_path / "a", "old")

    def failing(source, target):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(StoreError, match="Input/output error"):
        write(tmp_path / "a", "new")
    assert contents(tmp_path) == {"a": b"old"}


@pytest.mark.parametrize("which", ["a", "b", "d"])
def test_a_disk_that_cannot_keep_one_of_several_files(tmp_path, monkeypatch, which):
    write_all(tmp_path, {"a": "old a", "b": "old b"})

    def failing(handle):
        [part] = tmp_path.glob(f".{which}.*.part")
        if os.path.samestat(os.fstat(handle), part.stat()):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StoreError, match=rf"No space left on device \({tmp_path}/{which}\)"):
        write_all(tmp_path, dict.fromkeys("abcd", "new"))
    assert contents(tmp_path) == {"a": b"old a", "b": b"old b"}


def test_a_thread_that_outlives_the_main_one_writes_several_files_too(tmp_path):
    code = """
import sys, threading
from pathlib import Path
from beft.files import write_all
def late():
    threading.main_thread().join()
    write_all(Path(sys.argv[1]), {"a": "new", "b": "new"})
threading.Thread(target=late).start()
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert contents(tmp_path) == {"a": b"new", "b": b"new"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_writes_several_files_too(tmp_path):
    write_all(tmp_path, {"a": "of the parent", "b": "of the parent"})  # its threads are not the child's
    child = os.fork()
    if child == 0:
        write_all(tmp_path, {"a": "of the child", "b": "of the child"})
        os._exit(0)
    deadline = time.monotonic() + 60
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child waits for threads that it does not have")
        time.sleep(0.01)
    assert contents(tmp_path) == {"a": b"of the child", "b": b"of the child"}


def test_an_error_names_the_file_and_not_its_temporary_name(tmp_path):
    for named in (False, True):

        def full(path, named=named):
            raise OSError(28, "No space left on device", *([str(path)] if named else []))

        with pytest.raises(StoreError, match=rf"No space left on device \({tmp_path}/b\)"):
            write_all(tmp_path, {"a": "new", "b": full})
    assert not contents(tmp_path)


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "x").write_text("a file")
    with pytest.raises(StoreError, match="expected a folder that can be written"):
        write_all(tmp_path / "x", {"a": "b"})
    assert contents(tmp_path) == {"x": b"a file"}


def test_a_folder_in_place_of_a_file(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_text("old")
    with pytest.raises(StoreError):
        write_all(tmp_path, {"a": "new", "b": "new"})
    assert (tmp_path / "a").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_json(tmp_path):
    write(tmp_path / "x.json", to_json({"a": 1, "ö": [None, tmp_path]}))
    assert read_json(tmp_path / "x.json") == {"a": 1, "ö": [None, str(tmp_path)]}
    assert (tmp_path / "x.json").read_text(encoding="utf-8").endswith("}\n")
    with pytest.raises(ValueError):
        to_json({"a": math.nan})


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "expected JSON"), ("[1]", "expected a JSON object, found list"), (b"\xff\xfe\x00", "expected JSON")],
)
def test_what_is_no_json_object(tmp_path, content, message):
    write(tmp_path / "x.json", content)
    with pytest.raises(StoreError) as caught:
        read_json(tmp_path / "x.json")
    assert message in str(caught.value)
    assert str(tmp_path / "x.json") in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(StoreError, match="No such file"):
        read_json(tmp_path / "none.json")


def test_sha256(tmp_path):
    write(tmp_path / "x", "abc")
    assert sha256(tmp_path / "x").startswith("ba7816bf8f01cfea")
