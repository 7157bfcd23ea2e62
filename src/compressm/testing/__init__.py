"""Public checks for adapters, and hypothesis strategies for systems (in `compressm.testing.strategies`)."""

from compressm.testing.adapter_laws import check_adapter as check_adapter
