"""The report of a plan: one page that opens from disk, with its tables and figures beside it.

    from hpo.reporting import write_report

    write_report(plan, "hpo-out")   # hpo-out/report/report.html

Everything shown comes from the database and from what the final stage stored; nothing here trains, imports
torch or opens the test set. `data` reads the database; `figures` says what there is to see, in terms of
`charts`, and `render` draws that; `tables`, `prose`, and `published` say the rest; `page`
writes all of it.
"""

from hpo.reporting.page import write_report as write_report

__all__ = ["write_report"]
