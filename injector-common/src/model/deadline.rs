//! The true time at which a skewed clock reads a given value: the inverse of [`Skew::read`].

use super::clock::{Clock, FREEZE, STROBE, Skew, scale};

impl Skew {
    /// The first true time at which `clock` reads `shown` or later; `None` if it never does.
    ///
    /// Exact for offset, drift and steps; at most 1 ns late where drift and slew overlap.
    /// Steps during a slew are computed without it.
    #[inline(always)]
    #[must_use]
    pub const fn when(&self, clock: Clock, shown: i64) -> Option<i64> {
        if self.flags & FREEZE != 0 {
            return None;
        }
        let base = self.clocks[clock as usize].base;
        // How far the clock must have advanced since the start.
        let gone = shown.wrapping_sub(self.offset).wrapping_sub(base);
        let since = if self.period_ns == 0 {
            self.elapse(gone)
        } else if self.flags & STROBE != 0 {
            self.elapse_strobed(gone)
        } else {
            self.elapse_stepped(gone)
        };
        match since {
            Some(since) => Some(base.wrapping_add(since)),
            None => None,
        }
    }

    /// The true time to advance by `gone` without steps. Before the start, the clock reads true.
    #[inline(always)]
    const fn elapse(&self, gone: i64) -> Option<i64> {
        if gone <= 0 {
            return Some(gone);
        }
        let slewed = scale(self.slew_ns, self.slew);
        let end = self.slew_ns.wrapping_add(scale(self.slew_ns, self.drift)).wrapping_add(slewed);
        if self.slew == 0 || gone > end {
            return unscale(gone.wrapping_sub(slewed), self.drift);
        }
        let since = unscale(gone, self.drift.wrapping_add(self.slew));
        match since {
            // Drift and slew are rounded down separately.
            Some(since) if self.drift != 0 => Some(since.wrapping_add(1)),
            since => since,
        }
    }

    /// As [`Self::elapse`], with cumulative steps.
    #[inline(always)]
    const fn elapse_stepped(&self, gone: i64) -> Option<i64> {
        let first = self.first_ns.wrapping_add(scale(self.first_ns, self.drift));
        let beyond = gone.wrapping_sub(first);
        if beyond < 0 {
            return self.elapse(gone);
        }
        // The advance in a period. An infinite one saturates.
        let period = self.period_ns.wrapping_add(scale(self.period_ns, self.drift));
        let period = period.saturating_add(self.step);
        if period <= 0 {
            return None;
        }
        // The number of the step after which the value is reached, if before the next one.
        let Some(steps) = (beyond as u64).checked_div(period as u64) else { return None };
        let steps = steps.cast_signed();
        let step_at = self.first_ns.wrapping_add(steps.wrapping_mul(self.period_ns));
        let taken = steps.wrapping_add(1).wrapping_mul(self.step);
        match self.elapse(gone.wrapping_sub(taken)) {
            Some(since) if since > step_at => Some(since),
            // The step skips the value.
            Some(_) => Some(step_at),
            None => None,
        }
    }

    /// As [`Self::elapse`], with alternating steps.
    #[inline(always)]
    const fn elapse_strobed(&self, gone: i64) -> Option<i64> {
        let (ahead, behind) = if self.step > 0 { (self.step, 0) } else { (0, self.step) };
        let Some(early) = self.elapse(gone.wrapping_sub(ahead)) else { return None };
        let is_ahead = (self.step > 0) as i64;
        if self.steps(if early < 0 { 0 } else { early }) == is_ahead {
            return Some(early);
        }
        let next = if early < self.first_ns {
            self.first_ns
        } else {
            let since = (early.wrapping_sub(self.first_ns)) as u64;
            let Some(into) = since.checked_rem(self.period_ns as u64) else { return None };
            early.wrapping_add(self.period_ns).wrapping_sub(into.cast_signed())
        };
        match self.elapse(gone.wrapping_sub(behind)) {
            Some(late) if late < next => Some(late),
            _ => Some(next),
        }
    }
}

/// The minimum `time` for which `time + rate * time` reaches `gone`, which is not negative;
/// `None` if the clock runs backward or is too slow to reach it.
#[inline(always)]
const fn unscale(gone: i64, rate: i64) -> Option<i64> {
    // Leaves room to shift the remainder of a division by 16 bits.
    const FASTEST: i64 = 1 << 47;
    // Two divisions fit in 63 bits.
    const LONGEST: u64 = 1 << 30;

    let speed = rate.wrapping_add(1 << 32);
    if speed <= 0 || speed >= FASTEST {
        return None;
    }
    let (gone, speed) = (gone as u64, speed as u64);
    // gone * 2^32 / speed, 16 bits at a time, as eBPF has no 128.
    let (Some(high), Some(left)) = (gone.checked_div(speed), gone.checked_rem(speed)) else {
        return None;
    };
    if high > LONGEST {
        return None;
    }
    let left = left << 16;
    let (Some(middle), Some(left)) = (left.checked_div(speed), left.checked_rem(speed)) else {
        return None;
    };
    let left = left << 16;
    let (Some(low), Some(left)) = (left.checked_div(speed), left.checked_rem(speed)) else {
        return None;
    };
    let up = (left != 0) as i64;
    Some((high << 32 | middle << 16 | low).cast_signed() + up)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::clock::{CLOCKS, Span};

    const SECOND: i64 = 1_000_000_000;
    const BASE: i64 = 100 * SECOND;

    fn skewed(skew: Skew) -> Skew {
        Skew { clocks: [Span { base: BASE, lease: i64::MAX }; CLOCKS], ..skew }
    }

    /// Checks that the clock reads `shown` from then on, and not before.
    fn check(skew: &Skew, shown: i64, slack: i64) {
        let when = skew.when(Clock::Realtime, shown).expect("it comes");
        let read = |at| skew.read(Clock::Realtime, at);
        assert!(read(when) >= shown, "{skew:?} {shown}: {} at {when}", read(when));
        let before = read(when - 1 - slack);
        assert!(before < shown, "{skew:?} {shown}: {before} before {when}");
    }

    #[test]
    fn what_a_clock_reads_is_when_it_is_waited_for() {
        let rates = [0, 4295, -4295, 1 << 31, -(1 << 31), 1 << 32, 7 << 32, -(1 << 32) + (1 << 22)];
        for offset in [0, 1, -1, 3600 * SECOND, -3600 * SECOND] {
            for drift in rates {
                let skew = skewed(Skew { offset, drift, ..Skew::TRUE });
                for gone in [-5, 0, 1, 7, 999_999_937, 86_400 * SECOND] {
                    check(&skew, BASE + offset + gone, 0);
                }
            }
        }
    }

    #[test]
    fn slew_ends() {
        for (drift, slack) in [(0, 0), (4295, 2)] {
            for slew in [1 << 31, -(1 << 31), 4295] {
                let skew = skewed(Skew { drift, slew, slew_ns: 10 * SECOND, ..Skew::TRUE });
                for gone in [0, 1, 4 * SECOND, 5 * SECOND, 10 * SECOND, 15 * SECOND, 99 * SECOND] {
                    check(&skew, BASE + gone, slack);
                }
            }
        }
    }

    #[test]
    fn steps_are_waited_for() {
        for step in [SECOND, 25 * SECOND, -SECOND, -9 * SECOND] {
            for first_ns in [1, 5 * SECOND] {
                let skew = skewed(Skew { step, first_ns, period_ns: 10 * SECOND, ..Skew::TRUE });
                for gone in (0..200).map(|half| half * SECOND / 2) {
                    check(&skew, BASE + gone, 0);
                }
            }
        }
        // A single step, and steps back by more than the advance in a period.
        let once = skewed(Skew { step: SECOND, first_ns: 1, period_ns: i64::MAX, ..Skew::TRUE });
        check(&once, BASE + 77 * SECOND, 0);
        let back = skewed(Skew { step: -11 * SECOND, period_ns: 10 * SECOND, ..Skew::TRUE });
        assert_eq!(back.when(Clock::Realtime, BASE + 11 * SECOND), None);
    }

    #[test]
    fn strobes_are_waited_for() {
        for step in [SECOND, 25 * SECOND, -SECOND, -25 * SECOND] {
            for first_ns in [1, 5 * SECOND] {
                let strobe = Skew { step, first_ns, period_ns: 10 * SECOND, ..Skew::TRUE };
                let skew = skewed(Skew { flags: STROBE, ..strobe });
                for gone in (0..200).map(|half| half * SECOND / 2) {
                    let shown = BASE + gone;
                    let when = skew.when(Clock::Tai, shown).expect("it comes");
                    assert!(skew.read(Clock::Tai, when) >= shown, "{skew:?} {gone}");
                    // Verify by brute force that it is the first.
                    let first = (-600..1600)
                        .map(|tenth| BASE + tenth * SECOND / 10)
                        .find(|&at| skew.read(Clock::Tai, at) >= shown)
                        .expect("it comes");
                    assert!((when - first).abs() <= SECOND / 10, "{skew:?} {gone} {when} {first}");
                }
            }
        }
    }

    #[test]
    fn what_never_comes_is_told() {
        let frozen = skewed(Skew { flags: FREEZE, ..Skew::TRUE });
        assert_eq!(frozen.when(Clock::Realtime, BASE), None);
        for drift in [-(1 << 32), i64::MIN, i64::MAX] {
            let skew = skewed(Skew { drift, ..Skew::TRUE });
            assert_eq!(skew.when(Clock::Realtime, BASE + 1), None);
        }
    }
}
