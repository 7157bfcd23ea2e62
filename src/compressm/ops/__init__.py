"""Linear recurrences over time: one signature, several forms, one oracle."""

from compressm.ops.bank import bank_lti as bank_lti
from compressm.ops.bank import bank_reference as bank_reference
from compressm.ops.bank import bank_step as bank_step
from compressm.ops.cost import Form as Form
from compressm.ops.cost import choose_form as choose_form
from compressm.ops.dense import dense_lti as dense_lti
from compressm.ops.dense_bank import dense_bank_response as dense_bank_response
from compressm.ops.diagonal import diagonal_lti as diagonal_lti
from compressm.ops.diagonal import diagonal_step as diagonal_step
from compressm.ops.memory import keep_freed_memory as keep_freed_memory
from compressm.ops.reference import dense_reference as dense_reference
from compressm.ops.reference import diagonal_reference as diagonal_reference
from compressm.ops.sampling import Sampling as Sampling
