"""The web page that segments images by words, on Ray Serve."""
