"""Linear recurrences over time: one signature, several forms, one oracle."""

from compressm.ops.bank import bank_lti as bank_lti
from compressm.ops.bank import bank_reference as bank_reference
from compressm.ops.bank import bank_step as bank_step
from compressm.ops.cost import CostTable as CostTable
from compressm.ops.cost import Form as Form
from compressm.ops.cost import Machine as Machine
from compressm.ops.cost import Shape as Shape
from compressm.ops.cost import choose_form as choose_form
from compressm.ops.cost import cost_table as cost_table
from compressm.ops.cost import explain_cost as explain_cost
from compressm.ops.cost import use_cost_table as use_cost_table
from compressm.ops.dense import dense_lti as dense_lti
from compressm.ops.dense_bank import dense_bank_response as dense_bank_response
from compressm.ops.diagonal import diagonal_lti as diagonal_lti
from compressm.ops.diagonal import diagonal_step as diagonal_step
from compressm.ops.kernels import kernels_missing as kernels_missing
from compressm.ops.kernels import kernels_run as kernels_run
from compressm.ops.kernels import use_kernels as use_kernels
from compressm.ops.low_rank import low_rank_response as low_rank_response
from compressm.ops.memory import keep_freed_memory as keep_freed_memory
from compressm.ops.reference import dense_reference as dense_reference
from compressm.ops.reference import diagonal_reference as diagonal_reference
from compressm.ops.sampling import Sampling as Sampling
