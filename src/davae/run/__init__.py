"""A recipe on disk: its folder, its data, what it builds, and the running of its stages."""
