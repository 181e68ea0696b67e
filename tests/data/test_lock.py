"""File locks: one holder at a time, the second is told who, and a holder that dies leaves nothing locked."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tenfold.data.lock import held
from tenfold.errors import LockHeld, StorageError, UsageError

HOLDER = """
import sys, time
from pathlib import Path
from tenfold.data.lock import held
with held(Path(sys.argv[1]), "run folder"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_holder_is_told_process_host_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "deep/run/.lock"  # the folder is made
    with held(path, "run folder"):
        assert str(os.getpid()) in path.read_text()
        with pytest.raises(LockHeld) as caught, held(path, "run folder"):
            pytest.fail("two processes hold one lock")
        said = rf"the run folder {re.escape(str(path.parent))} is in use by process {os.getpid()} on {socket.gethostname()}"
        assert re.match(said, str(caught.value))
        assert "choose another folder" in str(caught.value)
    assert isinstance(caught.value, UsageError)


def test_leaving_the_block_frees_the_lock_also_by_an_error(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with pytest.raises(KeyError), held(path, "cache"):
        raise KeyError
    for _ in range(2):
        with held(path, "cache"):
            assert path.read_text().count("\n") == 1  # the last holder's line is replaced


def test_different_files_do_not_exclude_each_other(tmp_path: Path) -> None:
    with held(tmp_path / "a", "cache"), held(tmp_path / "b", "cache"):
        assert all(f"process {os.getpid()} " in (tmp_path / name).read_text() for name in "ab")


def test_a_killed_holder_leaves_nothing_locked(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockHeld, match=f"process {holder.pid} "), held(path, "run folder"):
            pytest.fail("two processes hold one lock")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait(30)
    with held(path, "run folder"):
        assert f"process {os.getpid()} " in path.read_text()


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(StorageError, match="could not write"), held(tmp_path / "file/.lock", "cache"):
        pytest.fail("locked below a file")
    assert (tmp_path / "file").read_text() == "here"
