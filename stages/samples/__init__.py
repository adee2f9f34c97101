"""From images to samples: decoding, labels, splits, and the tables and pictures that hold them."""
