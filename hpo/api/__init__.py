"""The command line as functions: a plan is run by a call, and shows itself in a notebook or at a prompt."""

import warnings

with warnings.catch_warnings():
    # in a kernel without ipywidgets tqdm, which Optuna imports, warns that it has no widgets to draw
    warnings.filterwarnings("ignore", "IProgress not found")
    import optuna as optuna
