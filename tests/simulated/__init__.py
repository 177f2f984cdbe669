"""A device of torch in host memory, to run the tests for CUDA devices without one."""
