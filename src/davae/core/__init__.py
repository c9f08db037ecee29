"""Ground floor, torch only: the mathematics of the method, pure, and the owners of pixels, dtypes and files."""
