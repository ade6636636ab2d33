"""What is measured at a minimum."""
