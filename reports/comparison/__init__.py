"""Minima side by side: tables, figures, caveats and the page of a comparison."""

DESCRIPTION = "comparison.json"
"""What the records do not say, in a comparison's folder."""
