import io
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hpo.training.blobs import FolderBlobs
from hpo.training.checkpoints import Checkpoints, folder_of
from tests.support.checkpoints import signed

IDENTITY = {"config": "{}", "seeds": [0, 1], "data": "abc"}


def state(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "learners": [{"weights": torch.full((100,), float(epoch)), "rate": 0.1}]}


def open_in(folder: Path, **changes: Any) -> Checkpoints:
    options: dict[str, Any] = {"study": "rate", "point": '{"l2":0.1}', "replicate": 0, "identity": IDENTITY}
    options |= changes
    return Checkpoints(FolderBlobs(folder), folder_of(**options), options["identity"])


def latest(checkpoints: Checkpoints) -> dict[str, Any]:
    found = checkpoints.latest(dict)
    assert found is not None
    return found


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return open_in(tmp_path)


def files(folder: Path, suffix: str = "checkpoint") -> list[Path]:
    return sorted(folder.glob(f"**/*.{suffix}"))


def test_a_state_comes_back_as_it_was_saved(tmp_path: Path, checkpoints: Checkpoints) -> None:
    assert checkpoints.latest(dict) is None
    checkpoints.save(0, 1, state(1))
    (learner,) = latest(open_in(tmp_path))["learners"]
    assert torch.equal(learner["weights"], torch.ones(100))
    assert learner["rate"] == 0.1
    assert checkpoints.notes == []


def test_the_newest_epoch_of_any_attempt_wins_and_two_are_kept(
    tmp_path: Path, checkpoints: Checkpoints
) -> None:
    for attempt, epoch in [(0, 8), (0, 9), (0, 10), (1, 9), (1, 10), (1, 11)]:
        checkpoints.save(attempt, epoch, state(epoch))
        assert latest(checkpoints)["epoch"] == max(10 if attempt else 0, epoch)
    assert len(files(tmp_path)) == 2
    assert not files(tmp_path, "unfinished")


@pytest.mark.parametrize("other", [{"study": "size"}, {"point": "#1"}, {"replicate": 1}])
def test_others_do_not_see_it_and_clear_only_their_own(
    tmp_path: Path, checkpoints: Checkpoints, other: dict[str, Any]
) -> None:
    checkpoints.save(0, 1, state(1))
    assert open_in(tmp_path, **other).latest(dict) is None
    open_in(tmp_path, **other).clear()
    assert latest(checkpoints)["epoch"] == 1
    checkpoints.clear()
    assert checkpoints.latest(dict) is None


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def cut_last_byte(content: bytes) -> bytes:
    return content[:-1]


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def empty(content: bytes) -> bytes:
    return b""


def torch_file(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def no_torch_file(content: bytes) -> bytes:
    return signed(b"text")


def no_state(content: bytes) -> bytes:
    return signed(torch_file([1, 2]))


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("code of a checkpoint was run",))


def bomb(content: bytes) -> bytes:
    return signed(torch_file(Bomb()))


@pytest.mark.parametrize("damage", [cut, cut_last_byte, flip_a_bit, empty, no_torch_file, no_state, bomb])
def test_a_damaged_file_is_put_aside_and_the_one_before_it_used(
    tmp_path: Path, checkpoints: Checkpoints, damage: Callable[[bytes], bytes]
) -> None:
    checkpoints.save(0, 1, state(1))
    checkpoints.save(0, 2, state(2))
    newest = files(tmp_path)[-1]
    newest.write_bytes(damage(newest.read_bytes()))
    assert latest(checkpoints)["epoch"] == 1
    (note,) = checkpoints.notes
    assert newest.name in note
    assert [path.stem for path in files(tmp_path, "bad")] == [newest.stem]


def test_plans_that_share_a_folder_do_not_touch_each_other(tmp_path: Path, checkpoints: Checkpoints) -> None:
    other = open_in(tmp_path, identity={**IDENTITY, "data": "xyz"})
    checkpoints.save(0, 1, state(1))
    for epoch in (5, 6, 7):
        other.save(0, epoch, state(epoch))
    assert latest(checkpoints)["epoch"] == 1
    assert latest(other)["epoch"] == 7
    other.clear()
    assert latest(checkpoints)["epoch"] == 1


def test_a_checkpoint_of_something_else_is_put_aside_naming_what_differs(
    tmp_path: Path, checkpoints: Checkpoints
) -> None:
    foreign = open_in(tmp_path, identity={**IDENTITY, "data": "xyz", "precision": "bf16"})
    foreign.save(0, 1, state(1))
    # as by somebody who sorts files by hand
    (tmp_path / foreign.folder).rename(tmp_path / checkpoints.folder)
    assert checkpoints.latest(dict) is None
    (note,) = checkpoints.notes
    assert note.endswith("saved with another data, precision")


def test_a_kill_at_any_moment_leaves_the_last_finished_save(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        import torch
        from hpo.training.checkpoints import Checkpoints
        from hpo.training.blobs import FolderBlobs
        checkpoints = Checkpoints(FolderBlobs(Path(sys.argv[1])), "study/point-0", {})
        start = (checkpoints.latest(dict) or {"epoch": 0})["epoch"]
        for epoch in range(start + 1, 10**6):
            checkpoints.save(0, epoch, {"epoch": epoch, "weights": torch.full((200_000,), float(epoch))})
            print(epoch, flush=True)
    """)
    done = 0
    for saves in (1, 6):
        process = subprocess.Popen(
            [sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True
        )
        for _ in range(saves):
            assert process.stdout is not None
            done = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0].split()
        done = int(rest[-1]) if rest else done
        checkpoints = Checkpoints(FolderBlobs(tmp_path), "study/point-0", {})
        found = latest(checkpoints)
        assert found["epoch"] in (done, done + 1)
        assert torch.equal(found["weights"], torch.full((200_000,), float(found["epoch"])))
        assert checkpoints.notes == []
