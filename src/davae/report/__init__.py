"""Results and curves in, pages out."""
