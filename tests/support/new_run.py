"""A run in MLflow that nothing is known of yet."""

from mlflow import MlflowClient


def new_run(uri: str) -> str:
    client = MlflowClient(uri)
    return client.create_run(client.search_experiments()[0].experiment_id).info.run_id
