"""Many cells: audits and tuning."""
