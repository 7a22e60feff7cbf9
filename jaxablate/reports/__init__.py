"""Results on disk and how people read them: JSON, terminal tables, Markdown, CSV, LaTeX and one HTML page.

This room sees results only (plain dataclasses): no model, no parameters, no data. A suite of
``jaxablate.suites`` describes what it found as `Figure`s and panels; everything here is drawn from those,
so a new suite needs no new line in a report.
"""
