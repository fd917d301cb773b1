//! Random numbers of a scenario, derived from its seed.

use injector_common::model::random::{draw, stream};

/// Separates the scenario's own choices from those about packets.
const CHOICES: u64 = 0x7363_656e_6172_696f;

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Random {
    stream: u64,
    index: u64,
}

impl Random {
    /// The stream of one step of the timeline under this seed.
    #[must_use]
    pub const fn new(seed: u64, step: u32) -> Self {
        Self { stream: stream(seed ^ CHOICES, step), index: 0 }
    }

    /// The stream of the `number`-th repetition of the step.
    #[must_use]
    pub const fn time(&self, number: u64) -> Self {
        Self { stream: draw(self.stream, number), index: 0 }
    }

    const fn next(&mut self) -> u64 {
        self.index += 1;
        draw(self.stream, self.index)
    }

    /// A uniform number below `bound`; 0 if `bound` is 0.
    pub const fn below(&mut self, bound: usize) -> usize {
        ((self.next() as u128 * bound as u128) >> 64) as usize
    }

    /// A uniform permutation (Fisher-Yates).
    #[must_use]
    pub fn shuffled<T>(&mut self, mut items: Vec<T>) -> Vec<T> {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
        items
    }
}

/// Seed of a target's packet decisions while the `change`-th state of a scenario is active.
#[must_use]
pub const fn packet_seed(seed: u64, target: u32, change: u64) -> u64 {
    draw(stream(seed, target), change)
}

/// Seed of a part's process faults that begin with the change of this [`packet_seed`].
#[must_use]
pub const fn process_seed(packet_seed: u64, part: u64) -> u64 {
    draw(packet_seed, part)
}
