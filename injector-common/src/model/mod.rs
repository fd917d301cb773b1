//! What happens to a packet: pure functions of a rule and its state.
//!
//! A rule's whole mutable state is one 64-bit word, see [`State`], so that the kernel side can advance
//! it with one atomic operation, and a run can be repeated from its seed.

pub mod chance;
pub mod clock;
pub mod deadline;
pub mod delay;
pub mod loss;
pub mod random;
pub mod rate;

use crate::rule::{RULE_ALTERS, Rule};

/// A rule's mutable state: the packet index in the upper 48 bits, model memory in the lower 16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State(pub u64);

impl State {
    /// What to add to the word to count one packet, leaving the memory alone.
    pub const ONE_PACKET: u64 = 1 << 16;
    const CORRUPT_HIT: u64 = 1 << 8;
    const DUPLICATE_HIT: u64 = 1 << 9;
    const LOSS_MASK: u64 = 0xff;

    /// How many packets the rule has judged before this one.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> u64 {
        self.0 >> 16
    }
}

/// What is to happen to a packet, in netem's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// How many packets the rule has judged before this one.
    pub index: u64,
    /// The packet is to be lost. A packet that is both lost and duplicated arrives once, as with netem.
    pub lost: bool,
    /// The packet is to be doubled.
    pub duplicate: bool,
    /// The packet is to be corrupted.
    pub corrupt: bool,
    /// Random bits from which the corrupted position follows.
    pub position: u32,
}

/// Decides what happens to the packet that finds the rule in `state`, and the state after it.
///
/// A pure function of (rule, state); the rule's stream comes from the seed, so equal seeds give equal
/// decisions for the n-th packet of a rule.
#[inline(always)]
#[must_use]
pub fn decide(rule: &Rule, state: State) -> (Decision, State) {
    let index = state.index();
    // Three draws a packet; what a rule does not need is not drawn.
    let draw = |number| random::draw(rule.stream, index.wrapping_mul(3).wrapping_add(number));

    let (lost, loss_memory) = if rule.loss.kind == loss::NONE {
        (false, 0)
    } else {
        rule.loss.step((state.0 & State::LOSS_MASK) as u32, index, draw(0))
    };
    let (mut duplicate, mut corrupt, mut position) = (false, false, 0);
    if rule.flags & RULE_ALTERS != 0 {
        let random = draw(1);
        duplicate = rule.duplicate.hit(state.0 & State::DUPLICATE_HIT != 0, (random >> 32) as u32);
        corrupt = rule.corrupt.hit(state.0 & State::CORRUPT_HIT != 0, random as u32);
        if corrupt {
            position = draw(2) as u32;
        }
    }

    let mut memory = u64::from(loss_memory) & State::LOSS_MASK;
    if duplicate {
        memory |= State::DUPLICATE_HIT;
    }
    if corrupt {
        memory |= State::CORRUPT_HIT;
    }
    let next = State((index + 1) << 16 | memory);
    (Decision { index, lost, duplicate, corrupt, position }, next)
}
