"""What may be searched: parameters, axes, constraints, and study files."""
