"""`hpo dashboard`: optuna-dashboard on a plan's database, with what the plan knows beside the trials.

    from hpo.reporting.dashboard import serve

    serve("sqlite:///hpo-out/hpo.db", "hpo-out")   # until it is stopped

`notes` says in Markdown what a study asks, starts from and decided; `publish` writes that, the figures and
the pictures of trials into the database, where doing it twice changes nothing; `server` serves, and guards
what the dashboard leaves open.
"""

from hpo.reporting.dashboard.server import is_loopback, serve, serve_many

__all__ = ["is_loopback", "serve", "serve_many"]
