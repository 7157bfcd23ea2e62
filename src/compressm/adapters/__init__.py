"""How layers are read as systems and written back."""
