"""This machine's folders: names, locks, where to keep things, whether they can be written."""
