"""The page that lists several plans, each with a link to its dashboard."""

from __future__ import annotations

from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined

from hpo._text import age_text, bytes_text, printable
from hpo.monitor.plans import Plans, best_texts


def plans_page(found: Plans, links: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        found: the plans, and what else there is.
        links: to the dashboard of each plan, by its database.
    """
    environment = Environment(
        loader=PackageLoader("hpo.reporting", "templates"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"printable": printable, "age": age_text, "bytes": bytes_text}
    return environment.get_template("plans.html.j2").render(
        found=found, links=links, bests=best_texts(found.plans)
    )
