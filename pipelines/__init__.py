"""The system around the method: data, training, evaluation and tracking on Ray."""
