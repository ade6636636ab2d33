"""Minima side by side: tables, figures, caveats and the page of a comparison."""
