"""The report of a verification: HTML, Markdown or JSON."""
