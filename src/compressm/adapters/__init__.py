"""How layers are read as systems and written back."""

from compressm.adapters import dense as dense
from compressm.adapters import lru as lru
