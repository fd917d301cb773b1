//! The trace model: a link whose rate, delay and loss follow a table.
//!
//! The table has the bytes that a sender with a backlog has sent since the start of the trace. The
//! state of a link is the number of these bytes that are used up. A packet starts behind them, or
//! behind those that have passed unused, and leaves when the bytes up to its end have passed. This is
//! exact for the opportunities of mahimahi, which pass at once, and for rates, which pass evenly.

use crate::verifier::forget;

/// The number of bits of an index into a table.
const INDEX_BITS: u32 = 23;

/// The maximum number of steps of a table.
pub const MAX_STEPS: u32 = 1 << INDEX_BITS;

/// [`Step::delay`] is in units of 2^this nanoseconds.
pub const DELAY_SHIFT: u32 = 4;

/// [`Trace::flags`]: the trace has a rate.
pub const RATE: u32 = 1 << 0;
/// [`Trace::flags`]: bytes pass at the steps, rather than evenly between them.
pub const JUMPS: u32 = 1 << 1;
/// [`Trace::flags`]: the trace has delays or losses.
pub const VALUES: u32 = 1 << 2;

/// The time of bytes that never pass.
pub const NEVER: u64 = u64::MAX;

/// The maximum packet length in bytes; longer packets are clamped.
const MAX_BYTES: i64 = 1 << 20;

/// A step of a table. Between two steps of a table without [`JUMPS`] there are at most 2^31 ns and
/// 2^32 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// The time since the start of the trace in nanoseconds; not less than that of the step before.
    pub at_ns: u64,
    /// The number of bytes that have passed until then, including those that pass at this time.
    pub total: u64,
    /// The delay from then on, see [`DELAY_SHIFT`].
    pub delay: u32,
    /// The probability of loss from then on, see [`super::chance::Probability`].
    pub loss: u32,
}

/// A trace. The last part of the table, the cycle, repeats.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// When the trace starts, by the clock of `now_ns`.
    pub start_ns: u64,
    /// The time of the last step.
    pub end_ns: u64,
    /// The bytes of the last step.
    pub end_total: u64,
    /// The length of the cycle, at most `end_ns`; 0 if the trace ends.
    pub cycle_ns: u64,
    /// The bytes of the cycle, at most `end_total`.
    pub cycle_total: u64,
    /// The queue limit in bytes.
    pub queue: u64,
    /// The index of the first step, which is at the time 0 with 0 bytes.
    pub first: u32,
    /// The number of steps, 1 to [`MAX_STEPS`].
    pub count: u32,
    /// Bytes added to the length of each packet; may be negative.
    pub overhead: i32,
    /// A combination of [`RATE`], [`JUMPS`] and [`VALUES`].
    pub flags: u32,
}

/// A trace that is played, and its state.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Player {
    /// The trace.
    pub trace: Trace,
    /// The bytes that are used up, by [`crate::packet::Direction`].
    pub used: [u64; 2],
}

/// Which field of a step is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// [`Step::at_ns`].
    Time = 0,
    /// [`Step::total`].
    Total = 1,
}

/// Access to the steps of all tables.
pub trait Steps {
    /// The step at this index.
    fn step(&self, index: u32) -> Step;

    /// See [`search`].
    fn search(&self, first: u32, count: u32, key: Key, limit: u64) -> u32 {
        search(self, first, count, key, limit)
    }
}

/// Of `count` steps from `first` on, the last one whose key is less than `limit`, relative to `first`; 0 if
/// none is.
#[inline(always)]
pub fn search(steps: &(impl Steps + ?Sized), first: u32, count: u32, key: Key, limit: u64) -> u32 {
    // The verifier would follow each known number separately.
    let mut found = forget(0, count);
    for bit in (0..INDEX_BITS).rev() {
        let next = found | 1 << bit;
        if next >= count {
            continue;
        }
        let step = steps.step(first.wrapping_add(next));
        let value = match key {
            Key::Time => step.at_ns,
            Key::Total => step.total,
        };
        if value < limit {
            found = next;
        }
    }
    found
}

/// The transmission of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmission {
    /// The number of bytes ahead in the queue.
    pub waits: u64,
    /// When the last byte has passed, by the clock of `now_ns`; [`NEVER`] if it does not.
    pub ends_ns: u64,
    /// The state of the link if the packet is sent.
    pub used: u64,
}

/// The place of a packet of `length` bytes on a link in the state `used` after `passed` bytes: the number
/// of bytes ahead of it, and the next state.
#[inline(always)]
#[must_use]
pub const fn place(used: u64, passed: u64, length: u64) -> (u64, u64) {
    let starts = if used > passed { used } else { passed };
    (starts.wrapping_sub(passed), starts.wrapping_add(length))
}

impl Trace {
    /// The last step whose key is less than `limit`.
    #[inline(always)]
    fn last(&self, steps: &impl Steps, key: Key, limit: u64) -> u32 {
        steps.search(self.first, self.count, key, limit)
    }

    /// A time since the start within the table, and the number of cycles before it.
    #[inline(always)]
    fn wrapped(&self, at_ns: u64) -> (u64, u64) {
        if at_ns < self.end_ns {
            return (at_ns, 0);
        }
        let before = self.end_ns.wrapping_sub(self.cycle_ns);
        let cycles = at_ns.wrapping_sub(before).checked_div(self.cycle_ns).unwrap_or(0);
        (at_ns.wrapping_sub(cycles.wrapping_mul(self.cycle_ns)), cycles)
    }

    /// The number of bytes that have passed at a time since the start.
    #[inline(always)]
    #[must_use]
    pub fn passed(&self, steps: &impl Steps, at_ns: u64) -> u64 {
        let (at_ns, cycles) = self.wrapped(at_ns);
        let found = self.last(steps, Key::Time, at_ns.wrapping_add(1));
        let step = steps.step(self.first.wrapping_add(found));
        let mut total = step.total;
        if self.flags & JUMPS == 0 && found.wrapping_add(1) < self.count {
            let next = steps.step(self.first.wrapping_add(found).wrapping_add(1));
            let bytes = next.total.wrapping_sub(step.total);
            let part = bytes.wrapping_mul(at_ns.wrapping_sub(step.at_ns));
            let length = next.at_ns.wrapping_sub(step.at_ns);
            total = total.wrapping_add(part.checked_div(length).unwrap_or(0));
        }
        total.wrapping_add(cycles.wrapping_mul(self.cycle_total))
    }

    /// The time since the start when `total` bytes, at least 1, have passed; [`NEVER`] if that many do
    /// not pass.
    #[inline(always)]
    #[must_use]
    pub fn reached(&self, steps: &impl Steps, total: u64) -> u64 {
        let (mut total, mut cycles) = (total, 0);
        if total > self.end_total {
            let before = self.end_total.wrapping_sub(self.cycle_total);
            let beyond = total.wrapping_sub(1).wrapping_sub(before);
            let Some(number) = beyond.checked_div(self.cycle_total) else { return NEVER };
            cycles = number;
            total = total.wrapping_sub(cycles.wrapping_mul(self.cycle_total));
        }
        let found = self.last(steps, Key::Total, total);
        let next = steps.step(self.first.wrapping_add(found).wrapping_add(1));
        let mut at_ns = next.at_ns;
        if self.flags & JUMPS == 0 {
            let step = steps.step(self.first.wrapping_add(found));
            let length = next.at_ns.wrapping_sub(step.at_ns);
            let bytes = next.total.wrapping_sub(step.total);
            let part = length.wrapping_mul(total.wrapping_sub(step.total));
            // Rounded up: the bytes have passed at this time.
            let up = part.wrapping_add(bytes).wrapping_sub(1);
            at_ns = step.at_ns.wrapping_add(up.checked_div(bytes).unwrap_or(0));
        }
        at_ns.wrapping_add(cycles.wrapping_mul(self.cycle_ns))
    }

    /// The number of bytes that a packet takes.
    #[inline(always)]
    #[must_use]
    pub fn length(&self, bytes: u32) -> u64 {
        let length = i64::from(bytes) + i64::from(self.overhead);
        // Not 0, which would be sent before it arrives.
        if length < 1 {
            1
        } else if length > MAX_BYTES {
            MAX_BYTES.cast_unsigned()
        } else {
            length.cast_unsigned()
        }
    }

    /// The time since the start at `now_ns`.
    #[inline(always)]
    #[must_use]
    pub const fn elapsed_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.start_ns)
    }

    /// The transmission of a packet of `bytes` at `now_ns` on a link in the state `used`.
    #[must_use]
    pub fn transmit(&self, steps: &impl Steps, used: u64, now_ns: u64, bytes: u32) -> Transmission {
        let passed = self.passed(steps, self.elapsed_ns(now_ns));
        let (waits, used) = place(used, passed, self.length(bytes));
        Transmission { waits, ends_ns: self.ends_ns(steps, used), used }
    }

    /// When `used` bytes have passed, by the clock of `now_ns`; [`NEVER`] if that many do not pass.
    #[inline(always)]
    #[must_use]
    pub fn ends_ns(&self, steps: &impl Steps, used: u64) -> u64 {
        match self.reached(steps, used) {
            NEVER => NEVER,
            at_ns => self.start_ns.wrapping_add(at_ns),
        }
    }

    /// The step with the delay and the loss at `now_ns`.
    #[inline(always)]
    #[must_use]
    pub fn at(&self, steps: &impl Steps, now_ns: u64) -> Step {
        let (at_ns, _) = self.wrapped(self.elapsed_ns(now_ns));
        let found = self.last(steps, Key::Time, at_ns.wrapping_add(1));
        steps.step(self.first.wrapping_add(found))
    }
}
