"""What a run records in MLflow and Prometheus."""
