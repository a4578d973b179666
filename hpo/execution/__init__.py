"""Doing it: a trial, the final stage, workers and their backends, run, verify, doctor."""
