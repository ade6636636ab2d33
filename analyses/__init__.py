"""The audit: studies made of cells, measured into records, judged as claims."""
