"""State space models that shrink while they train."""
