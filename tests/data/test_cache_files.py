"""The files of a cache: who writes which shard, and what a disk without space leaves behind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from davae.data.cache_files import Part, save_shard
from davae.data.errors import DataError


def test_shares_are_counted() -> None:
    ranges = [(0, 4), (4, 4), (8, 2), (10, 3)]
    assert Part().progress(ranges) == (13, {0: 0, 4: 4, 8: 8, 10: 10})
    assert Part(0, 2).progress(ranges) == (6, {0: 0, 8: 4})
    assert Part(1, 2).progress(ranges) == (7, {4: 0, 10: 4})
    assert Part(4, 5).progress(ranges) == (0, {})


@pytest.mark.parametrize(("process", "num_processes"), [(-1, 2), (2, 2), (0, 0)])
def test_a_process_that_there_is_not_is_refused(process: int, num_processes: int) -> None:
    with pytest.raises(ValueError, match=f"got process {process} of {num_processes}"):
        Part(process, num_processes)


def test_a_shard_that_cannot_be_written_leaves_nothing_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_tensors: Any, path: Path, _metadata: Any = None) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("davae.data.cache_files.save_tensors", full)
    with pytest.raises(DataError, match=r"shard\.safetensors: .*No space left.*Free some space"):
        save_shard({"mean": torch.zeros(1)}, tmp_path / "shard.safetensors")
    assert list(tmp_path.iterdir()) == []
