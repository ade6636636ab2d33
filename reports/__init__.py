"""Figures, tables and pages drawn from records."""
