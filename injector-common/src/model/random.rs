//! The random stream: a counter-based generator, which yields the n-th number directly.

/// The odd constant of splitmix64: 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The `index`-th 64-bit number of `stream`.
///
/// This is `splitmix64` (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014)
/// started at `stream`. Not for cryptography.
#[inline(always)]
#[must_use]
pub const fn draw(stream: u64, index: u64) -> u64 {
    mix(stream.wrapping_add(index.wrapping_add(1).wrapping_mul(GOLDEN)))
}

/// The stream of rule number `rule` under `seed`: streams of different rules or seeds are independent.
#[must_use]
pub const fn stream(seed: u64, rule: u32) -> u64 {
    draw(mix(seed), rule as u64)
}

#[inline(always)]
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
