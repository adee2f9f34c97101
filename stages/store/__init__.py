"""Activations and trained models on disk: each file holds the writer of something and its reader."""
