"""The `fleet` command: one noun a file."""
