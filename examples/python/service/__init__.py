"""A service that tells the weather of nowhere."""
