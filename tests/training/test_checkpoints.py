"""Checkpoints: damaged ones are skipped, and those of another run are never used unasked."""

import pytest
import torch

from ddl.training.checkpoints import Checkpoints, Origin
from ddl.training.errors import TrainingError


@pytest.fixture
def said():
    return []


@pytest.fixture
def checkpoints(tmp_path):
    """Checkpoints after saving three states, of which two are kept."""
    made = Checkpoints(tmp_path, Origin({"lr": 1}, {"a.bin": "0"}, {"x.py": "0"}))
    for step in (1, 2, 3):
        made.save(step, {"weights": torch.full((100,), float(step))})
    return made


def names(checkpoints):
    return sorted(path.name[:12] for path in checkpoints.folder.glob("*.pt"))


def test_the_newest_two_are_kept_and_the_newest_is_read(checkpoints, said):
    assert names(checkpoints) == ["step00000002", "step00000003"]
    assert (checkpoints.newest(said.append)["weights"] == 3).all()
    assert said[0].startswith("resumed from step 3 (")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [flip_a_bit, lambda path: path.write_bytes(path.read_bytes()[:300]), lambda path: path.write_bytes(b"")]
)
def test_a_damaged_one_is_named_and_the_one_before_it_read(checkpoints, said, damage):
    newest = max(checkpoints.folder.glob("*.pt"))
    damage(newest)
    assert (checkpoints.newest(said.append)["weights"] == 2).all()
    assert said[0] == f"{newest}: skipped, damaged: the contents do not match the checksum in the name"
    assert said[1].startswith("resumed from step 2 ")


def test_a_damaged_one_makes_room_for_the_same_step_and_not_the_good_one_before_it(checkpoints, said):
    flip_a_bit(max(checkpoints.folder.glob("*.pt")))
    checkpoints.save(3, {"weights": torch.full((100,), 3.5)})
    assert names(checkpoints) == ["step00000002", "step00000003"]
    assert (checkpoints.newest(said.append)["weights"] == 3.5).all()


def test_without_a_whole_one_there_is_none(checkpoints, said):
    for path in checkpoints.folder.glob("*.pt"):
        flip_a_bit(path)
    assert checkpoints.newest(said.append) is None
    assert len(said) == 2


def test_half_written_files_are_not_read_and_removed_at_the_next_start(checkpoints, said):
    newest = max(checkpoints.folder.glob("*.pt"))
    half = newest.with_name(f".{newest.name.replace('3-', '4-')}.123.tmp")
    half.write_bytes(newest.read_bytes()[:300])
    assert (checkpoints.newest(said.append)["weights"] == 3).all()
    checkpoints.tidy()
    assert not half.exists()
    assert names(checkpoints) == ["step00000002", "step00000003"]


def test_origins_differ_in_a_setting_a_file_of_data_or_of_code(checkpoints):
    old = checkpoints.origin
    assert old.differences(old) == []
    new = Origin({"lr": 2, "model": {"width": 3}}, {"b.bin": "0"}, {"x.py": "f" * 64})
    assert new.fingerprint != old.fingerprint
    assert [str(difference) for difference in new.differences(old)] == [
        "settings lr was 1, is 2",
        "settings model.width was not set, is 3",
        "data a.bin was 0, is not set",
        "data b.bin was not set, is 0",
        "code x.py has changed",
    ]
    assert str(new.differences(Origin({}, {}, {"y.py": "0"}))[-1]) == "code y.py was removed"


def test_to_continue_from_checkpoints_that_cannot_be_read_is_refused(checkpoints, tmp_path, said):
    for path in checkpoints.folder.glob("*.pt"):
        path.write_bytes(b"damaged")
    other = Checkpoints(tmp_path, Origin({"lr": 2}, {"a.bin": "0"}, {"x.py": "0"}))
    with pytest.raises(TrainingError, match="none of these checkpoints can be read; start over with --restart"):
        other.find("continue", 5, said.append)
