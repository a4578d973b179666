"""Draws the charts of `hpo.reporting.charts`: `matplotlib` for paper and pages, `plotly` for a browser."""
