"""Owner of LightningDiT's fixed tables: position embedding, 2-D rotary embedding, time embedding.

Pure functions. The tables are saved in checkpoints, so their order of channels is part of the format.
"""

import math

import torch
from torch import Tensor


def sincos_position_table(hidden_size: int, grid: int) -> Tensor:
    """Fixed 2-D sine and cosine position embedding.

    The first half of the channels encodes the column, the second half the row (the order that MAE and DiT
    have); each half is [sin(p w_k), cos(p w_k)] with w_k = 10000^(-k / (hidden_size / 4)).

    Args:
        hidden_size: channels per token, a multiple of 4.
        grid: side of the token grid; tokens are in row-major order.

    Returns:
        [grid * grid, hidden_size], float32 (computed in float64).
    """
    _require_multiple_of_4("hidden_size", hidden_size)
    quarter = hidden_size // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies  # [grid, quarter]
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # [grid, hidden / 2]
    column = axis[None, :, :].expand(grid, -1, -1)
    row = axis[:, None, :].expand(-1, grid, -1)
    return torch.cat([column, row], dim=2).reshape(grid * grid, hidden_size).float()


def rotary_tables(head_dim: int, grid: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the 2-D rotary embedding, for `rotate`.

    Channels are [row angles | column angles]; each angle stands twice in a row, once for either member of
    the pair that it turns. Frequencies are 10000^(-2j / (head_dim / 2)), positions 0 .. grid - 1, unscaled.

    Args:
        head_dim: channels per attention head, a multiple of 4.
        grid: side of the token grid; tokens are in row-major order.

    Returns:
        (cos, sin), each [grid * grid, head_dim], float32 (computed in float64).
    """
    _require_multiple_of_4("head_dim", head_dim)
    per_axis = head_dim // 2
    frequencies = 10000.0 ** (-torch.arange(0, per_axis, 2, dtype=torch.float64) / per_axis)
    frequencies = frequencies.repeat_interleave(2)
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies  # [grid, per_axis]
    row = angles[:, None, :].expand(-1, grid, -1)
    column = angles[None, :, :].expand(grid, -1, -1)
    table = torch.cat([row, column], dim=2).reshape(grid * grid, head_dim)
    return table.cos().float(), table.sin().float()


def rotate(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn interleaved pairs of channels: (a, b) becomes (a cos - b sin, b cos + a sin).

    Args:
        q: queries or keys [..., tokens, head_dim].
        cos: [tokens, head_dim], from `rotary_tables`.
        sin: [tokens, head_dim], from `rotary_tables`.

    Returns:
        A tensor like `q`. Half precision is turned in float32.
    """
    exact = torch.promote_types(q.dtype, torch.float32)
    pairs = q.to(exact).unflatten(-1, (-1, 2))
    cos, sin = cos[..., ::2].to(exact), sin[..., ::2].to(exact)  # each angle stands twice in the tables
    if torch.compiler.is_compiling():  # which fuses real arithmetic, and no complex one
        first, second = pairs.unbind(-1)
        turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1)
    else:  # one pass over the tokens where the real form takes five
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    return turned.flatten(-2).to(q.dtype)


def timestep_embedding(t: Tensor, dim: int = 256, max_period: int = 10000) -> Tensor:
    """Sinusoidal embedding of time, [cos(t f_k) | sin(t f_k)] with f_k = max_period^(-k / (dim / 2)).

    Args:
        t: [B], any scale; LightningDiT feeds its native time in [0, 1] unscaled.
        dim: even number of channels.
        max_period: slowest period, in units of 2 pi.

    Returns:
        [B, dim], float32.
    """
    if dim % 2:
        raise ValueError(f"A time embedding has as many cosines as sines; got dim={dim}. Choose an even dim.")
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(steps * (-math.log(max_period) / half))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _require_multiple_of_4(name: str, value: int) -> None:
    if value % 4:
        raise ValueError(f"A 2-D table has a sine and a cosine per axis; got {name}={value}. Choose a multiple of 4.")
