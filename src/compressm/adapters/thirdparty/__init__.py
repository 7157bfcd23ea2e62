"""Adapters for layers of other packages, none of which is imported: matched by class name, or by what they hold."""

from compressm.adapters.thirdparty import lru as lru
from compressm.adapters.thirdparty import s5 as s5
