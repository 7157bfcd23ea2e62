"""Adapters for layers of other packages, none of which is imported: matched by class name, or by what they hold."""

from compressm.adapters.thirdparty import dss as dss
from compressm.adapters.thirdparty import lru as lru
from compressm.adapters.thirdparty import s4 as s4
from compressm.adapters.thirdparty import s4_dplr as s4_dplr
from compressm.adapters.thirdparty import s4d as s4d
from compressm.adapters.thirdparty import s5 as s5
