"""What the database says: status, results, watch, export; no torch."""
