//! Loss models, with the terms and transitions of netem (tc-netem(8), `net/sched/sch_netem.c`).

use super::chance::{Chance, Probability};

/// No packet is lost.
pub const NONE: u32 = 0;
/// Random, optionally correlated: parameters are `after_miss`, `after_hit`.
pub const RANDOM: u32 = 1;
/// Every N-th packet: the parameter is N.
pub const EVERY: u32 = 2;
/// 4-state Markov: parameters are p13, p31, p32, p23, p14.
pub const STATE: u32 = 3;
/// Gilbert-Elliott: parameters are p, r, 1-h, 1-k.
pub const GEMODEL: u32 = 4;

/// Memory of [`STATE`], netem's states 1 to 4: received in a gap.
const IN_GAP: u32 = 0;
/// Received in a burst of losses.
const IN_BURST: u32 = 1;
/// Lost in a burst.
const LOST_IN_BURST: u32 = 2;
/// Lost alone, in a gap.
const LOST_IN_GAP: u32 = 3;

/// Memory of [`GEMODEL`]: the good state.
const GOOD: u32 = 0;
/// The bad state.
const BAD: u32 = 1;

/// A loss model with its parameters.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Which model: [`NONE`], [`RANDOM`], [`EVERY`], [`STATE`] or [`GEMODEL`].
    pub kind: u32,
    /// The model's parameters, see the kinds.
    pub parameters: [u32; 5],
}

impl Loss {
    /// Whether a packet is lost, and the next state of the model.
    ///
    /// `memory` is 0 at first, then the state that the previous step returned; `index` counts the packets
    /// before this one; both halves of `random` are used independently.
    #[inline(always)]
    #[must_use]
    pub const fn step(&self, memory: u32, index: u64, random: u64) -> (bool, u32) {
        let (high, low) = ((random >> 32) as u32, random as u32);
        match self.kind {
            RANDOM => {
                let [after_miss, after_hit, ..] = self.probabilities();
                let lost = Chance { after_miss, after_hit }.hit(memory != 0, high);
                (lost, lost as u32)
            }
            EVERY => {
                let every = self.parameters[0];
                (every != 0 && (index + 1).is_multiple_of(every as u64), 0)
            }
            STATE => self.step_state(memory, high),
            GEMODEL => self.step_gemodel(memory, high, low),
            _ => (false, 0),
        }
    }

    /// A step of the 4-state model.
    #[inline(always)]
    const fn step_state(&self, state: u32, random: u32) -> (bool, u32) {
        let [p13, p31, p32, p23, p14] = self.probabilities();
        match state {
            IN_GAP => {
                if p14.hit(random) {
                    (true, LOST_IN_GAP)
                } else if p13.hit(random.wrapping_sub(p14.0)) {
                    (true, LOST_IN_BURST)
                } else {
                    (false, IN_GAP)
                }
            }
            IN_BURST => {
                if p23.hit(random) {
                    (true, LOST_IN_BURST)
                } else {
                    (false, IN_BURST)
                }
            }
            LOST_IN_BURST => {
                if p32.hit(random) {
                    (false, IN_BURST)
                } else if p31.hit(random.wrapping_sub(p32.0)) {
                    (false, IN_GAP)
                } else {
                    (true, LOST_IN_BURST)
                }
            }
            _ => (false, IN_GAP),
        }
    }

    /// A step of the Gilbert-Elliott model. Loss depends on the state before the transition.
    #[inline(always)]
    const fn step_gemodel(&self, state: u32, transition: u32, loss: u32) -> (bool, u32) {
        let [p, r, loss_in_bad, loss_in_good, _] = self.probabilities();
        if state == GOOD {
            (loss_in_good.hit(loss), if p.hit(transition) { BAD } else { GOOD })
        } else {
            (loss_in_bad.hit(loss), if r.hit(transition) { GOOD } else { BAD })
        }
    }

    /// The parameters of models that have only probabilities.
    #[inline(always)]
    const fn probabilities(&self) -> [Probability; 5] {
        let [first, second, third, fourth, fifth] = self.parameters;
        [
            Probability(first),
            Probability(second),
            Probability(third),
            Probability(fourth),
            Probability(fifth),
        ]
    }

    /// The outcome if it is the same for all packets, so that no random number is needed.
    #[inline(always)]
    #[must_use]
    pub const fn certain(&self) -> Option<bool> {
        let [a, b, ..] = self.parameters;
        match self.kind {
            RANDOM if a == b && a == Probability::NEVER.0 => Some(false),
            RANDOM if a == b && a == Probability::ALWAYS.0 => Some(true),
            NONE => Some(false),
            _ => None,
        }
    }

    /// Whether a step depends on the previous one.
    #[must_use]
    pub const fn has_memory(&self) -> bool {
        match self.kind {
            RANDOM => self.parameters[0] != self.parameters[1],
            STATE | GEMODEL => true,
            _ => false,
        }
    }

    /// Random loss.
    #[must_use]
    pub fn random(chance: Chance) -> Self {
        Self { kind: RANDOM, parameters: [chance.after_miss.0, chance.after_hit.0, 0, 0, 0] }
    }

    /// Loss of every `n`-th packet; `n` is at least 1.
    #[must_use]
    pub fn every(n: u32) -> Self {
        Self { kind: EVERY, parameters: [n, 0, 0, 0, 0] }
    }

    /// The 4-state Markov model: 1 received in a gap, 2 received in a burst, 3 lost in a burst, 4 lost
    /// alone in a gap.
    #[must_use]
    pub fn state(
        p13: Probability,
        p31: Probability,
        p32: Probability,
        p23: Probability,
        p14: Probability,
    ) -> Self {
        Self { kind: STATE, parameters: [p13.0, p31.0, p32.0, p23.0, p14.0] }
    }

    /// The Gilbert-Elliott model: `p` good to bad, `r` bad to good, loss of `loss_in_bad` (1-h) and
    /// `loss_in_good` (1-k).
    #[must_use]
    pub fn gemodel(
        p: Probability,
        r: Probability,
        loss_in_bad: Probability,
        loss_in_good: Probability,
    ) -> Self {
        Self { kind: GEMODEL, parameters: [p.0, r.0, loss_in_bad.0, loss_in_good.0, 0] }
    }
}
