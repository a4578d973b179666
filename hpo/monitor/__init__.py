"""What the database says: status, watch, export; no torch."""
