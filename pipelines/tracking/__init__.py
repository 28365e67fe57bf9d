"""MLflow and Prometheus: what a run records, and where."""
