//! The reading of a skewed clock, as a pure function of the true clock.
//!
//! The same function exists as the machine code that is written into the vDSO of processes
//! (`injector-user/src/kernel/vdso`). A property test compares the two.

/// Independent clocks. Their coarse and alarm variants read the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Clock {
    /// `CLOCK_REALTIME`, `_COARSE` and `_ALARM`; also what `gettimeofday` and `time` read.
    Realtime = 0,
    /// `CLOCK_MONOTONIC` and `_COARSE`.
    Monotonic = 1,
    /// `CLOCK_MONOTONIC_RAW`.
    MonotonicRaw = 2,
    /// `CLOCK_BOOTTIME` and `_ALARM`.
    Boottime = 3,
    /// `CLOCK_TAI`.
    Tai = 4,
}

/// The number of [`Clock`]s.
pub const CLOCKS: usize = 5;

impl Clock {
    /// All clocks, by number.
    pub const ALL: [Self; CLOCKS] =
        [Self::Realtime, Self::Monotonic, Self::MonotonicRaw, Self::Boottime, Self::Tai];

    /// The clock of an `id` of `clock_gettime(2)`; `None` for those that are never faulted (CPU time,
    /// devices, clocks of later kernels).
    #[inline(always)]
    #[must_use]
    pub const fn of_id(id: i32) -> Option<Self> {
        Some(match id {
            0 | 5 | 8 => Self::Realtime,
            1 | 6 => Self::Monotonic,
            4 => Self::MonotonicRaw,
            7 | 9 => Self::Boottime,
            11 => Self::Tai,
            _ => return None,
        })
    }
}

/// [`Skew::flags`]: the clock stands still at `base + offset`.
pub const FREEZE: u64 = 1;

/// [`Skew::flags`]: every second step is reverted.
pub const STROBE: u64 = 2;

/// The period in which one clock is skewed. Times are true readings of that clock in nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// The start of the skew.
    pub base: i64,
    /// The end of the lease, from which the clock reads true unless it is renewed. `i64::MIN` if
    /// the clock is not skewed.
    pub lease: i64,
}

impl Span {
    /// A clock that reads true.
    pub const TRUE: Self = Self { base: 0, lease: i64::MIN };
}

/// A skew of clocks. Durations are in nanoseconds, rates in units of 2^-32.
///
/// Layout shared with the vDSO hook and the eBPF maps.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skew {
    /// [`FREEZE`], [`STROBE`].
    pub flags: u64,
    /// Added from the start.
    pub offset: i64,
    /// Added for each nanosecond since the start.
    pub drift: i64,
    /// Added for each nanosecond of the first `slew_ns` since the start.
    pub slew: i64,
    /// The duration of the slew, not negative.
    pub slew_ns: i64,
    /// Added at each step.
    pub step: i64,
    /// The time of the first step since the start, not negative.
    pub first_ns: i64,
    /// The time between steps; 0 without steps.
    pub period_ns: i64,
    /// The clocks, by number.
    pub clocks: [Span; CLOCKS],
}

impl Skew {
    /// All clocks read true.
    pub const TRUE: Self = Self {
        flags: 0,
        offset: 0,
        drift: 0,
        slew: 0,
        slew_ns: 0,
        step: 0,
        first_ns: 0,
        period_ns: 0,
        clocks: [Span::TRUE; CLOCKS],
    };

    /// The reading of `clock` when the true one reads `true_ns`.
    #[inline(always)]
    #[must_use]
    pub const fn read(&self, clock: Clock, true_ns: i64) -> i64 {
        let Span { base, lease } = self.clocks[clock as usize];
        if true_ns >= lease {
            return true_ns;
        }
        if self.flags & FREEZE != 0 {
            return base.wrapping_add(self.offset);
        }
        // The true clock may have been set back to before the start.
        let since = true_ns.wrapping_sub(base);
        let since = if since < 0 { 0 } else { since };
        let slewed = if since < self.slew_ns { since } else { self.slew_ns };
        true_ns
            .wrapping_add(self.offset)
            .wrapping_add(scale(since, self.drift))
            .wrapping_add(scale(slewed, self.slew))
            .wrapping_add(self.steps(since).wrapping_mul(self.step))
    }

    /// The number of effective steps `since` the start.
    #[inline(always)]
    pub(super) const fn steps(&self, since: i64) -> i64 {
        if self.period_ns == 0 || since < self.first_ns {
            return 0;
        }
        // Unsigned, since eBPF lacks signed division.
        let periods = match (since - self.first_ns)
            .cast_unsigned()
            .checked_div(self.period_ns.cast_unsigned())
        {
            Some(periods) => periods.cast_signed() + 1,
            None => 0,
        };
        if self.flags & STROBE != 0 { periods & 1 } else { periods }
    }
}

/// `time` times `rate`, which is in units of 2^-32, rounded down. `time` is not negative.
#[inline(always)]
pub(super) const fn scale(time: i64, rate: i64) -> i64 {
    const LOW: i64 = 0xffff_ffff;
    let (rate_high, rate_low) = (rate >> 32, rate & LOW);
    let (time_high, time_low) = (time >> 32, time & LOW);
    // In 64 bits, since eBPF lacks 128-bit arithmetic.
    let low = (time_low.cast_unsigned().wrapping_mul(rate_low.cast_unsigned()) >> 32).cast_signed();
    time.wrapping_mul(rate_high).wrapping_add(time_high.wrapping_mul(rate_low)).wrapping_add(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn skewed(skew: Skew) -> Skew {
        Skew { clocks: [Span { base: 100 * SECOND, lease: 10_000 * SECOND }; CLOCKS], ..skew }
    }

    #[test]
    fn a_clock_without_lease_reads_true() {
        let skew = Skew { offset: SECOND, ..Skew::TRUE };
        for clock in Clock::ALL {
            assert_eq!(skew.read(clock, -5), -5);
            assert_eq!(skew.read(clock, i64::MAX), i64::MAX);
        }
    }

    #[test]
    fn the_skew_ends_with_the_lease() {
        let skew = skewed(Skew { offset: SECOND, ..Skew::TRUE });
        let end = 10_000 * SECOND;
        assert_eq!(skew.read(Clock::Tai, end - 1), end - 1 + SECOND);
        assert_eq!(skew.read(Clock::Tai, end), end);
    }

    #[test]
    fn drift_is_in_proportion_to_time() {
        let skew = skewed(Skew { drift: (1 << 32) / 1000, ..Skew::TRUE });
        let read = skew.read(Clock::Realtime, 1100 * SECOND) - 1100 * SECOND;
        assert!((read - SECOND).abs() < 1000, "{read}");
        let skew = skewed(Skew { drift: -(1 << 31), ..Skew::TRUE });
        assert_eq!(skew.read(Clock::Realtime, 300 * SECOND), 200 * SECOND);
    }

    #[test]
    fn a_slewed_clock_reaches_its_offset_and_keeps_it() {
        let skew = skewed(Skew { slew: 1 << 31, slew_ns: 10 * SECOND, ..Skew::TRUE });
        for (since, offset) in [(0, 0), (4, 2), (10, 5), (500, 5)] {
            let now = (100 + since) * SECOND;
            assert_eq!(skew.read(Clock::Realtime, now), now + offset * SECOND);
        }
    }

    #[test]
    fn steps_accumulate_and_strobes_revert() {
        let steps =
            Skew { step: SECOND, first_ns: 5 * SECOND, period_ns: 10 * SECOND, ..Skew::TRUE };
        let strobe = Skew { flags: STROBE, ..steps };
        for (since, stepped, strobed) in [(4, 0, 0), (5, 1, 1), (14, 1, 1), (15, 2, 0), (25, 3, 1)]
        {
            let now = (100 + since) * SECOND;
            assert_eq!(skewed(steps).read(Clock::Monotonic, now), now + stepped * SECOND);
            assert_eq!(skewed(strobe).read(Clock::Monotonic, now), now + strobed * SECOND);
        }
    }

    #[test]
    fn a_frozen_clock_does_not_advance() {
        let skew = skewed(Skew { flags: FREEZE, offset: -SECOND, ..Skew::TRUE });
        assert_eq!(skew.read(Clock::Boottime, 123 * SECOND), 99 * SECOND);
        assert_eq!(skew.read(Clock::Boottime, 9999 * SECOND), 99 * SECOND);
    }

    #[test]
    fn scaling_is_exact() {
        let exact = |time: i64, rate: i64| ((i128::from(time) * i128::from(rate)) >> 32) as i64;
        for time in [0, 1, 999, 0xffff_ffff, 1 << 32, 0x1234_5678_9abc, 1 << 50] {
            for rate in [0, 1, -1, 4295, -4295, 1 << 31, -(1 << 31), 1 << 32, -(1 << 32), 77 << 32]
            {
                assert_eq!(scale(time, rate), exact(time, rate), "{time} {rate}");
            }
        }
    }
}
