"""Many runs by Ray Tune: spaces, trials, records."""
