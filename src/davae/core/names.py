"""Names that settings choose from. What they mean stands with their owners; importing these costs nothing."""

from typing import Literal

DtypeName = Literal["float32", "float16", "bfloat16"]
"""Of what is stored, as recipes and manifests write it; see `core.precision`."""
Precision = Literal["fp32", "bf16"]
"""Of computation: bf16 is autocast, so that weights and what is summed up stay float32."""
Objective = Literal["velocity", "data"]
"""Of what flow matching takes the squared error; see `core.flow`."""
Init = Literal["zero", "random", "repeat"]
"""How the new channels of a widened layer start; see `core.widen`."""
