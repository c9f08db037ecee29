"""One training loop and the tasks it serves."""
