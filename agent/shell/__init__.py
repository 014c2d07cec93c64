"""Acts for the device: broker, disk, processes, sensors. Its modules do not know each other."""
