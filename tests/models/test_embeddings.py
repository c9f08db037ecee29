"""The fixed tables against the reference's numbers."""

import pytest
import torch

from conftest import assert_close
from davae.models.embeddings import rotary_tables, rotate, sincos_position_table, timestep_embedding


@pytest.mark.parametrize(("case", "hidden_size", "grid"), [("pos0", 64, 4), ("pos1", 1152, 16)])
def test_position_table_is_the_references(golden, case: str, hidden_size: int, grid: int) -> None:
    tables = golden("tables")
    got = sincos_position_table(hidden_size, grid)
    assert got.shape == (grid * grid, hidden_size)
    assert got.dtype == torch.float32
    assert_close(got[tables[f"in.{case}_rows"]], tables[f"out.{case}"], 1e-5)


@pytest.mark.parametrize(("case", "head_dim", "grid"), [("rope0", 16, 4), ("rope1", 72, 16)])
def test_rotary_tables_and_rotation_are_the_references(golden, case: str, head_dim: int, grid: int) -> None:
    tables = golden("tables")
    cos, sin = rotary_tables(head_dim, grid)
    assert cos.shape == sin.shape == (grid * grid, head_dim)
    rows, q_rows = tables[f"in.{case}_rows"], tables[f"in.{case}_q_rows"]
    assert_close(cos[rows], tables[f"out.{case}_cos"], 1e-5)
    assert_close(sin[rows], tables[f"out.{case}_sin"], 1e-5)
    turned = rotate(tables[f"in.{case}_q"], cos[q_rows], sin[q_rows])
    assert_close(turned, tables[f"out.{case}_rotated"], 1e-5)


def test_time_embedding_is_the_references(golden) -> None:
    tables = golden("tables")
    assert_close(timestep_embedding(tables["in.t"]), tables["out.timestep_embedding_256"], 1e-5)


def test_rotation_keeps_lengths_and_sees_only_distances() -> None:
    cos, sin = rotary_tables(16, 6)
    q, k = torch.randn(2, 1, 16).expand(2, 36, 16)  # one query and one key at every position
    assert_close(rotate(q, cos, sin).norm(dim=1), q.norm(dim=1), 1e-6)
    scores = rotate(q, cos, sin) @ rotate(k, cos, sin).T
    # Tokens 7 -> 15 and 14 -> 22 are both one row and two columns apart (grid of 6).
    assert_close(scores[7, 15], scores[14, 22], 1e-5)
    assert (scores[7, 15] - scores[7, 14]).abs() > 1e-3


def test_rotation_keeps_the_dtype_of_queries() -> None:
    cos, sin = rotary_tables(8, 2)
    q = torch.randn(1, 2, 4, 8, dtype=torch.bfloat16)
    turned = rotate(q, cos, sin)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(q.float(), cos, sin).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_compiler_sees_the_same_rotation(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    cos, sin = rotary_tables(8, 2)
    q = torch.randn(2, 4, 3, 8, dtype=dtype).transpose(1, 2)  # heads lie inside tokens, as behind a projection
    eager = rotate(q, cos, sin)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    compiled = rotate(q, cos, sin)
    assert eager.dtype == compiled.dtype == dtype
    assert_close(compiled.double(), eager.double(), 1e-6 if dtype != torch.bfloat16 else 1e-2)


def test_sizes_without_whole_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden_size=6"):
        sincos_position_table(6, 4)
    with pytest.raises(ValueError, match="head_dim=10"):
        rotary_tables(10, 4)
    with pytest.raises(ValueError, match="dim=7"):
        timestep_embedding(torch.rand(2), dim=7)
