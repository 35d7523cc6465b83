import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from server.power.channel_inversion import plan_static

gains = st.lists(
    st.complex_numbers(max_magnitude=10.0, allow_nan=False, allow_infinity=False),
    min_size=1,
    max_size=12,
)
requests = st.fixed_dictionaries(
    {
        "max_amplitude": st.floats(0.01, 1.0),
        "scalar_bound": st.floats(1e-2, 1e3),
        "required_noise_std": st.floats(0.0, 1e3),
        "min_gain": st.floats(1e-3, 5.0),
    }
)


def plan(values, request):
    return plan_static(gain_estimates=np.asarray(values, dtype=np.complex128), **request)


@settings(max_examples=60, deadline=None)
@given(gains, requests)
def test_no_device_exceeds_its_amplitude(values, request):
    result = plan(values, request)
    for k in result.participants:
        peak = request["scalar_bound"] + 8.0 * result.artificial_noise_std[k]
        assert abs(result.tx_gains[k]) * peak <= request["max_amplitude"] * (1 - 1e-7)


@settings(max_examples=60, deadline=None)
@given(gains, requests)
def test_silent_devices_are_exactly_those_that_cannot_reach(values, request):
    result = plan(values, request)
    assert result.silent == tuple(k for k, h in enumerate(values) if abs(h) < request["min_gain"])
    assert sorted(result.participants + result.silent) == list(range(len(values)))
    assert set(result.tx_gains) == set(result.participants)


@settings(max_examples=60, deadline=None)
@given(gains, requests)
def test_the_noise_is_never_less_than_required(values, request):
    result = plan(values, request)
    if result.participants:
        assert result.sum_noise_std >= request["required_noise_std"]
        assert result.sum_noise_std <= request["required_noise_std"] * (1 + 1e-14) + 1e-300


@settings(max_examples=60, deadline=None)
@given(gains, requests, st.floats(0.0, 1e3))
def test_more_required_noise_never_raises_the_level(values, request, more):
    louder = {**request, "required_noise_std": request["required_noise_std"] + more}
    assert plan(values, louder).receive_scale <= plan(values, request).receive_scale


@settings(max_examples=60, deadline=None)
@given(gains, requests, st.randoms(use_true_random=False))
def test_permuting_the_devices_permutes_the_plan(values, request, random):
    order = list(range(len(values)))
    random.shuffle(order)
    result = plan(values, request)
    permuted = plan([values[k] for k in order], request)
    assert permuted.receive_scale == result.receive_scale
    assert [order[k] in result.tx_gains for k in range(len(order))] == [
        k in permuted.tx_gains for k in range(len(order))
    ]
    for position, device in enumerate(order):
        if device in result.tx_gains:
            assert permuted.tx_gains[position] == result.tx_gains[device]


@settings(max_examples=60, deadline=None)
@given(gains, requests)
def test_all_participants_arrive_at_one_level(values, request):
    result = plan(values, request)
    for k, tx_gain in result.tx_gains.items():
        arrived = tx_gain * values[k]
        assert math.isclose(arrived.real, result.receive_scale, rel_tol=1e-12)
        assert abs(arrived.imag) <= 1e-12 * result.receive_scale
