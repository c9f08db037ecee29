"""Ground floor: the mathematics of the method as pure functions of tensors (torch only)."""
