"""The seven stages of the pipeline, one module each, and the rooms that they call."""
