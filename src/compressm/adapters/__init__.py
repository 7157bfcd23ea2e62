"""How layers are read as systems and written back."""

from compressm.adapters import dense as dense
from compressm.adapters import dss as dss
from compressm.adapters import lru as lru
from compressm.adapters import lssl as lssl
from compressm.adapters import oscillators as oscillators
from compressm.adapters import rotations as rotations
from compressm.adapters import s4 as s4
from compressm.adapters import s4d as s4d
from compressm.adapters import s5 as s5
from compressm.adapters import thirdparty as thirdparty
