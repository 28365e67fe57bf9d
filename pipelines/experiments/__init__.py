"""What can be trained: the config of a run, its validation, and the named experiments."""
