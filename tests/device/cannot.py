"""The tests with a CUDA device that the pretended one cannot run, with the reasons.

A name is the beginning of a test's name in pytest, without ``tests/``.
"""

GRAPHS = "CUDA graphs: a CPU build of torch cannot capture one"
TRITON = "torch.compile for CUDA needs Triton and a driver"
LARGE = "so many numbers take minutes on fibers"
MATMUL = "it keeps the stream busy with products of large matrices or with torch.cuda._sleep"

CANNOT = {
    "test_cuda.py::test_graph_capture_and_replay": GRAPHS,
    "test_cuda_blocks.py::test_a_network_in_a_graph": GRAPHS,
    "test_training_cuda.py::test_digits_are_learnt[CUDA graphs]": GRAPHS,
    "test_training_cuda.py::test_a_run_goes_on_with_the_same_bits[true]": GRAPHS,
    "test_training_cuda.py::test_digits_are_learnt[compiled]": TRITON,
    "test_compile.py::test_inductor_trains_a_network": TRITON,
    "test_cuda.py::test_side_stream": MATMUL,
    "test_training_cuda.py::test_batches_arrive_whole": MATMUL,
    "test_cuda.py::test_the_same_bits_twice": LARGE,
    "test_cuda.py::test_nothing_is_kept_but_x": LARGE,
    "test_cuda.py::test_more_elements_than_32_bits_count": LARGE,
    "test_functional.py::test_results_larger_than_the_cache": LARGE,
}


def reason(name: str) -> str | None:
    """Returns why the test cannot run here; None if it can."""
    name = name.removeprefix("tests/")
    return next((why for begin, why in CANNOT.items() if name.startswith(begin)), None)
