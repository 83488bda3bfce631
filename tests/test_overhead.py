"""The limits of benchmarks.overhead."""

from benchmarks.overhead import LIMITS_US, RELU_US, judge


def times(forward, both, relu):
    ours = {("forward", "sewsnn.x"): forward, ("forward_backward", "sewsnn.x"): both}
    return ours | {("forward", "torch.relu"): 1.0, ("forward_backward", "torch.relu"): relu}


def test_limits_are_of_a_machine_and_grow_with_slower_ones():
    forward, both = LIMITS_US["forward"], LIMITS_US["forward_backward"]
    assert not judge(times(forward, both, RELU_US))
    assert not judge(times(forward, both, RELU_US / 2))  # a faster one has to keep to the same
    assert judge(times(forward + 1, both + 1, RELU_US)) == [
        "forward of sewsnn.x: 21.0 us, the limit here is 20",
        "forward_backward of sewsnn.x: 101.0 us, the limit here is 100",
    ]
    assert not judge(times(2 * forward, 2 * both, 2 * RELU_US))
    assert len(judge(times(2 * forward + 1, 2 * both + 1, 2 * RELU_US))) == 2
