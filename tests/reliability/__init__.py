"""What happens when something outside goes wrong."""
