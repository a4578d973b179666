from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hpo._files import write_durably, write_whole


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old ", b"content")
    with pytest.raises(TypeError):
        write_durably(path, b"new ", None)  # type: ignore[arg-type]
    assert [left.name for left in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old content"
    write_durably(path, b"new")
    assert path.read_bytes() == b"new"
    assert [left.name for left in tmp_path.iterdir()] == ["file"]


def test_what_a_link_leads_to_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(b"theirs")
    for write in (write_durably, write_whole):
        link = tmp_path / write.__name__
        link.symlink_to(tmp_path / "theirs")
        write(link, b"ours")
        assert link.read_bytes() == b"ours"
    assert (tmp_path / "theirs").read_bytes() == b"theirs"


def test_processes_that_write_one_file_at_once_do_each_other_no_harm(tmp_path: Path) -> None:
    path, contents = tmp_path / "file", [bytes([n]) * 200_000 for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda content: write_durably(path, content), contents * 4):
            assert path.read_bytes() in contents
    assert [left.name for left in tmp_path.iterdir()] == ["file"]
