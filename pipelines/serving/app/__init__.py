"""The page on which images are segmented by words, on Ray Serve."""
