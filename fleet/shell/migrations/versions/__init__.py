"""Each file says which one it follows. They are never edited once released."""
