"""Other libraries behind the same results, as independent opinions."""
