"""Elementary functions of 16 floats at once, and random bits that need no memory."""

from __future__ import annotations

from typing import Any

from compressm.ops.kernels.launch import inline
from compressm.ops.kernels.simd import (
    from_bits,
    lane_numbers,
    negate,
    select,
    spread,
    spread_int,
    to_floats,
    to_ints,
)


@inline
def exp(x: Any) -> Any:
    """e^x to 2 units in the last place; 0 below -87, at most e^88."""
    highest, lowest = spread(88.0), spread(-87.0)
    y = select(highest < x, highest, x)
    y = select(y < lowest, lowest, y)
    scaled = y * spread(1.4426950408889634)
    rounded = to_floats(to_ints(scaled + select(scaled < spread(0.0), spread(-0.5), spread(0.5))))
    r = y - rounded * spread(0.693359375)
    r = r + rounded * spread(2.12194440e-4)  # log(2) in two parts
    p = spread(1.9875691500e-4)
    p = p * r + spread(1.3981999507e-3)
    p = p * r + spread(8.3334519073e-3)
    p = p * r + spread(4.1665795894e-2)
    p = p * r + spread(1.6666665459e-1)
    p = p * r + spread(5.0000001201e-1)
    p = p * r * r + r + spread(1.0)
    power = from_bits((to_ints(rounded) + spread_int(127)) << spread_int(23))
    return select(x < lowest, spread(0.0), p * power)


@inline
def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x)."""
    return spread(1.0) / (spread(1.0) + exp(negate(x)))


@inline
def normal(x: Any) -> Any:
    """(Phi(x), phi(x)): the standard normal distribution and its density, to 1e-7.

    Phi(-|x|) = phi(x) sqrt(pi / 2) t (a1 + t (a2 + ...)) with t = 1 / (1 + p |x| / sqrt(2)) (Abramowitz and Stegun
    7.1.26), without the cancellation of 1 - erf.
    """
    size = select(x < spread(0.0), negate(x), x)
    t = spread(1.0) / (spread(1.0) + size * spread(0.3275911 * 0.7071067811865476))
    series = spread(1.061405429)
    series = series * t + spread(-1.453152027)
    series = series * t + spread(1.421413741)
    series = series * t + spread(-0.284496736)
    series = series * t + spread(0.254829592)
    bell = exp(spread(-0.5) * x * x)
    tail = spread(0.5) * series * t * bell
    return select(x < spread(0.0), tail, spread(1.0) - tail), bell * spread(0.3989422804014327)


@inline
def random_bits(index: Any, key: Any, salt: Any) -> Any:
    """16 times 32 random bits, a function of the elements' numbers index .. index + 15 and two 32-bit keys.

    Two rounds of a multiplicative hash; every output bit depends on every bit of the number and of both keys.
    """
    x = (spread_int(index) + lane_numbers()) ^ spread_int(key)
    x = (x ^ (x >> spread_int(16))) * spread_int(0x7FEB352D)
    x = (x ^ (x >> spread_int(15))) * spread_int(-0x7B935975)  # 0x846CA68B
    x = (x ^ (x >> spread_int(16))) + spread_int(salt)
    x = (x ^ (x >> spread_int(16))) * spread_int(0x7FEB352D)
    x = (x ^ (x >> spread_int(15))) * spread_int(-0x7B935975)
    return x ^ (x >> spread_int(16))


@inline
def kept(index: Any, key: Any, salt: Any, dropped: Any, scale: Any) -> Any:
    """`scale` for elements that dropout keeps, 0 for the `dropped` of 2^16; decided by 16 random bits an element."""
    x = random_bits(index, key, salt) >> spread_int(16)
    return select(x < spread_int(dropped), spread(0.0), scale)
