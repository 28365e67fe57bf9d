"""Output of a command: progress lines, tables, and standard output that may fail."""
