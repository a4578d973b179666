"""A network of one's own on images."""
