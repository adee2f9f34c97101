"""What several kinds of transfer share."""
