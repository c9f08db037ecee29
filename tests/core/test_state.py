"""State files: written whole or not at all, checked on reading, and named where they are damaged."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from davae.core.state import StateError, found_json, read_json, write_json


@dataclass(frozen=True)
class Contents:
    name: str
    rows: tuple[tuple[str, int], ...] = ()
    more: dict[str, float] = field(default_factory=dict)


WHOLE = Contents("a", (("x", 1), ("y", 2)), {"z": 0.5})


def test_json_is_written_whole_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"b": 1, "a": [None, "\u00e9", 0.1]})
    assert path.read_text() == '{"b": 1, "a": [null, "\\u00e9", 0.1]}\n'
    write_json(path, {"b": 1, "a": 2}, indent=1, sort_keys=True)
    assert path.read_text() == '{\n "a": 2,\n "b": 1\n}\n'
    for value, error in ((math.nan, ValueError), ({1, 2}, TypeError)):
        with pytest.raises(error):
            write_json(path, {"a": value})
    assert json.loads(path.read_text()) == {"a": 2, "b": 1}
    assert [left.name for left in tmp_path.iterdir()] == ["run.json"]


def test_what_was_written_is_read_in_its_types(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "a", "rows": [["x", 1], ["y", 2]], "more": {"z": 0.5}, "later": None})
    assert read_json(tmp_path / "a.json", Contents, "") == found_json(tmp_path / "a.json", Contents) == WHOLE


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ('{"name": "a", "ro', "Unterminated string"),
        ("null", "got 'None'"),
        ("[]", r"got '\[\]'"),
        ("{}", "name: Field required"),
        ('{"name": 3}', "name: .* string; got '3'"),
        ('{"name": "a", "rows": [["x"]]}', "rows.0.1: Field required"),
        ("[" * 100_000, "recursion"),
        (b"\xff\xfe\x00", "codec"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, text: str | bytes, reason: str) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StateError, match=rf"state\.json is damaged: .*{reason}.*\. Do that\.$"):
        read_json(path, Contents, "Do that.")
    assert found_json(path, Contents) is None


def test_names_that_are_no_text_come_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "caf\udce9"})
    assert read_json(tmp_path / "a.json", Contents, "").name == "caf\udce9"


def test_a_file_that_is_not_there_is_no_damage(tmp_path: Path) -> None:
    assert found_json(tmp_path / "none.json", Contents) is None
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json", Contents, "")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 60), st.integers(0, 60))
@example(b"\x00", 3, 1)
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int, cut: int
) -> None:
    whole = b'{"name": "a", "rows": [["x", 1]], "more": {"z": 0.5}}'
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_bytes(whole[:at] + noise + whole[at + cut :])
    try:
        assert isinstance(read_json(path, Contents, ""), Contents)
    except StateError as error:
        assert str(path) in str(error)  # noqa: PT017
