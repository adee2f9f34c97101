"""Where images and weights come from: one file for each `source` of params.yaml."""
