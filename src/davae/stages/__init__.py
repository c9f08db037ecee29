"""One file a verb of the command line; which runs, which is skipped."""
