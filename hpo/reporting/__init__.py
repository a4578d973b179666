"""The report of a plan: one page that opens from disk, with its tables and figures beside it.

    from hpo.reporting import write_report

    write_report(plan, Path("hpo-out"))   # hpo-out/report/report.html

Everything shown comes from the database and from what the final stage stored; nothing here trains, imports
torch or opens the test set. `report` reads the database; `tables`, `figures`, `study_figures`, `words`,
`published` and `conclusions` say what it means, in the looks of `style`; `page` writes it.
"""

from hpo.reporting.page import write_report as write_report

__all__ = ["write_report"]
