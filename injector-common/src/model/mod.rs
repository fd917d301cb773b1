//! Models of faults: pure functions of a rule and its state.
//!
//! The mutable state of a rule is one 64-bit word, see [`State`], so that the eBPF side can advance
//! it atomically and a run can be repeated from its seed.

pub mod chance;
pub mod clock;
pub mod deadline;
pub mod delay;
pub mod loss;
pub mod random;
pub mod rate;
pub mod trace;

use crate::rule::{RULE_CORRUPTS, RULE_DUPLICATES, Rule};

/// The mutable state of a rule: the packet index in the upper 48 bits, model state in the lower 16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State(pub u64);

impl State {
    /// The increment of the word for one packet.
    pub const ONE_PACKET: u64 = 1 << 16;
    const CORRUPT_HIT: u64 = 1 << 8;
    const DUPLICATE_HIT: u64 = 1 << 9;
    /// The memory of the loss model.
    const LOSS_MASK: u64 = 0xf;
    /// Position of the [`loss::Loss::kind`] to which that memory belongs, 4 bits. Another model
    /// starts without memory.
    const LOSS_KIND_SHIFT: u32 = 4;

    /// The number of packets that the rule matched before this one.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> u64 {
        self.0 >> 16
    }
}

/// The decision on a packet, in netem's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The number of packets that the rule matched before this one.
    pub index: u64,
    /// Drop the packet. A packet selected for both duplication and loss arrives exactly once, as in
    /// netem.
    pub lost: bool,
    /// Duplicate the packet.
    pub duplicate: bool,
    /// Corrupt the packet.
    pub corrupt: bool,
    /// Random bits that select the corrupted position.
    pub position: u32,
}

/// Decides on a packet that the rule matches in `state`. Returns the decision and the next state.
///
/// A pure function of (rule, state); the rule's stream comes from the seed, so equal seeds give equal
/// decisions for the n-th packet of a rule.
#[inline(always)]
#[must_use]
pub fn decide(rule: &Rule, state: State) -> (Decision, State) {
    let index = state.index();
    // At most three draws per packet, as needed.
    let draw = |number| random::draw(rule.stream, index.wrapping_mul(3).wrapping_add(number));

    let (lost, loss_memory) = if rule.loss.kind == loss::NONE {
        (false, 0)
    } else {
        let is_own = (state.0 >> State::LOSS_KIND_SHIFT) as u32 & 0xf == rule.loss.kind;
        let memory = if is_own { (state.0 & State::LOSS_MASK) as u32 } else { 0 };
        rule.loss.step(memory, index, draw(0))
    };
    let (mut duplicate, mut corrupt, mut position) = (false, false, 0);
    if rule.flags & (RULE_CORRUPTS | RULE_DUPLICATES) != 0 {
        let random = draw(1);
        duplicate = rule.duplicate.hit(state.0 & State::DUPLICATE_HIT != 0, (random >> 32) as u32);
        corrupt = rule.corrupt.chance.hit(state.0 & State::CORRUPT_HIT != 0, random as u32);
        if corrupt {
            position = draw(2) as u32;
        }
    }

    let kind = u64::from(rule.loss.kind) << State::LOSS_KIND_SHIFT;
    let mut memory = kind | u64::from(loss_memory) & State::LOSS_MASK;
    if duplicate {
        memory |= State::DUPLICATE_HIT;
    }
    if corrupt {
        memory |= State::CORRUPT_HIT;
    }
    let next = State((index + 1) << 16 | memory);
    (Decision { index, lost, duplicate, corrupt, position }, next)
}
