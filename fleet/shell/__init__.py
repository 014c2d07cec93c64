"""Acts for the fleet: broker, store, blobs, HTTP."""
