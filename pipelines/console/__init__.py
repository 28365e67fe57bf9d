"""What a command shows: progress lines, tables, and output that may break."""
