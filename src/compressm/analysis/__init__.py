"""The analysis of one layer: its system, the Gramians that are wanted or left to fall back on, and the order."""

from compressm.analysis.decision import Decision as Decision
from compressm.analysis.decision import significant_tail as significant_tail
from compressm.analysis.gramians import is_undamped as is_undamped
from compressm.analysis.layer import LayerAnalysis as LayerAnalysis
from compressm.analysis.realization import read_system as read_system
from compressm.analysis.realization import verify_realization as verify_realization
