"""What MLflow is told: where its store is, results on their way there, runs, and the model that it serves."""
