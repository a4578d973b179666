import pytest

from hpo.files import write_durably


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_durably(path, b"old ", b"content")
    with pytest.raises(TypeError):
        write_durably(path, b"new ", None)
    assert path.read_bytes() == b"old content"
    write_durably(path, b"new")
    assert path.read_bytes() == b"new"
    assert [left.name for left in tmp_path.iterdir()] == ["file"]
