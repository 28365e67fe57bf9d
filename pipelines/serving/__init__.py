"""Images segmented by words, at the command line and in the browser."""
