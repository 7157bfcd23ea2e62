"""The only code that changes live parameters and optimizer state."""
