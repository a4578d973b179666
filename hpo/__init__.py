"""Tune a small network study by study with Optuna: resumable, parallel, with verdicts that hold."""
