"""The store's history: one file a version, applied when a store is opened."""
