"""The database as a queue. Optuna's private parts are touched here and nowhere else; no torch."""
