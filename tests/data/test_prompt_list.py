"""Files of prompts as benchmarks publish them."""

import re
from pathlib import Path

import pytest

from davae.data.errors import DataError
from davae.data.prompt_list import read_prompts


def test_text_has_a_prompt_a_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red cube\n\n  a sphere \n")
    assert read_prompts(tmp_path / "p.txt") == ["a red cube", "a sphere"]


def test_json_lines_have_it_under_a_key(tmp_path: Path) -> None:
    lines = ['{"tag": "counting", "prompt": "two cows"}', "", '{"text": "a cow"}', '{"caption": "cows"}']
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    assert read_prompts(tmp_path / "p.jsonl") == ["two cows", "a cow", "cows"]


def test_a_table_names_its_column(tmp_path: Path) -> None:
    table = 'Category\tPrompt\tNote\nArts\ta robot. The words "Fly" are on it.\t\nArts\t"quoted" cat\tx\n'
    (tmp_path / "p.tsv").write_text(table)
    assert read_prompts(tmp_path / "p.tsv") == ['a robot. The words "Fly" are on it.', '"quoted" cat']


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.doc", "Prompt\na", "got a .doc file; allowed are .txt, .jsonl, .json, .tsv, .csv"),
        ("p.txt", "\n \n", "no prompt in"),
        ("p.tsv", "Name\tNote\na\tb", "its first line names name, note; allowed is a column text, caption, prompt"),
        ("p.tsv", "", "names nothing"),
        ("p.tsv", "Note\tPrompt\nfine\ta\nshort", "no prompt in .* line 3"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": ""}', "no prompt in .* line 2"),
        ("p.jsonl", '{"prompt": 3}', "got prompt 3; allowed is text"),
        ("p.jsonl", "a cow", "line 1: .* allowed is a JSON object"),
        ("p.jsonl", '["a cow"]', "allowed is a JSON object"),
    ],
)
def test_files_that_are_no_list_of_prompts(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_prompts(tmp_path / name)


def test_other_encodings_and_missing_files_are_said(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("Würfel".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        read_prompts(tmp_path / "p.txt")
    with pytest.raises(FileNotFoundError, match=re.escape("no.txt")):
        read_prompts(tmp_path / "no.txt")


def test_a_json_file_has_a_list_or_names_its_prompts(tmp_path: Path) -> None:
    path = tmp_path / "meta_data.json"
    path.write_text('{"a1": {"category": "food", "prompt": "soup"}, "b2": "tea"}')
    assert read_prompts(path) == ["soup", "tea"]
    path.write_text('["soup", {"text": "tea"}]')
    assert read_prompts(path) == ["soup", "tea"]
    path.write_text("3")
    with pytest.raises(DataError, match="allowed is a list of prompts"):
        read_prompts(path)


def test_a_table_with_quotes(tmp_path: Path) -> None:
    path = tmp_path / "p.CSV"
    path.write_text('id,Prompt\n1,"a cup, red"\n2,tea\n')
    assert read_prompts(path) == ["a cup, red", "tea"]
