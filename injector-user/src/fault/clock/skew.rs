//! Compiles clock faults to the skews that processes and probes apply.

use std::time::Duration;

use injector_common::model::clock::{CLOCKS, Clock, FREEZE, STROBE, Skew, Span};

use crate::{
    kernel::clock::TrueTime,
    lifetime::lease::CLOCK_LEASE,
    spec::clock::{ClockFault, Steps},
};

/// Units of [`Skew`]'s rates in 1.
const ONE: f64 = 4_294_967_296.0;

/// A skew with an end.
#[derive(Clone, Copy, Debug)]
pub struct Timed {
    skew: Skew,
    /// The clock readings at the end, beyond which no lease extends.
    ends: TrueTime,
}

impl Timed {
    /// No skew: all clocks read true.
    #[must_use]
    pub const fn right() -> Self {
        Self { skew: Skew::TRUE, ends: [i64::MAX; CLOCKS] }
    }

    /// The skew of `fault`, starting now and lasting until `ends`.
    #[must_use]
    pub fn starting(fault: &ClockFault, now: TrueTime, ends: TrueTime) -> Self {
        let offset = fault.shift.offset.nanoseconds(now[Clock::Realtime as usize]);
        let slew_ns = nanoseconds(fault.shift.slew.0);
        let mut skew =
            Skew { drift: (fault.shift.drift_ppm / 1e6 * ONE).round() as i64, ..Skew::TRUE };
        if slew_ns == 0 {
            skew.offset = offset;
        } else {
            skew.slew = (i128::from(offset) * (1 << 32) / i128::from(slew_ns)) as i64;
            skew.slew_ns = slew_ns;
        }
        if fault.frozen {
            skew.flags |= FREEZE;
        }
        match fault.steps {
            Some(Steps::Jump(jump)) => {
                skew.step = jump.offset.as_nanos() as i64;
                skew.first_ns = nanoseconds(jump.at.0);
                // A single jump has an infinite period.
                skew.period_ns = jump.every.map_or(i64::MAX, |every| nanoseconds(every.0));
            }
            Some(Steps::Strobe(strobe)) => {
                skew.flags |= STROBE;
                skew.step = strobe.offset.as_nanos() as i64;
                skew.period_ns = nanoseconds(strobe.period.0);
            }
            None => {}
        }
        for clock in Clock::ALL {
            if fault.shift.clocks.has(clock) {
                skew.clocks[clock as usize].base = now[clock as usize];
                // `renewed` sets the lease.
                skew.clocks[clock as usize].lease = i64::MAX;
            }
        }
        Self { skew, ends }
    }

    /// The skew, for another [`CLOCK_LEASE`] from now.
    #[must_use]
    pub fn renewed(&self, now: TrueTime) -> Skew {
        let mut skew = self.skew;
        for (number, span) in skew.clocks.iter_mut().enumerate() {
            if *span != Span::TRUE {
                span.lease =
                    now[number].saturating_add(nanoseconds(CLOCK_LEASE)).min(self.ends[number]);
            }
        }
        skew
    }
}

/// The clock readings `after` from `now`; without `after`, the maximum.
#[must_use]
pub fn later(now: TrueTime, after: Option<Duration>) -> TrueTime {
    let mut then = [i64::MAX; CLOCKS];
    if let Some(after) = after {
        for (then, now) in then.iter_mut().zip(now) {
            *then = now.saturating_add(nanoseconds(after));
        }
    }
    then
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::clock::ClockSpec;

    const SECOND: i64 = 1_000_000_000;
    const NOW: TrueTime =
        [1_800_000_000 * SECOND, 50 * SECOND, 49 * SECOND, 60 * SECOND, 99 * SECOND];

    fn skew(spec: &ClockSpec) -> Skew {
        let fault = spec.check().expect("valid").expect("a fault");
        Timed::starting(&fault, NOW, later(NOW, Some(Duration::from_secs(100)))).renewed(NOW)
    }

    fn shift(text: &str) -> ClockSpec {
        ClockSpec { clock: Some(text.parse().expect(text)), ..ClockSpec::default() }
    }

    #[test]
    fn only_the_named_clocks_are_skewed() {
        let skew = skew(&shift("-5s,clock=monotonic+tai"));
        for (clock, offset) in [
            (Clock::Realtime, 0),
            (Clock::Monotonic, -5),
            (Clock::MonotonicRaw, -5),
            (Clock::Boottime, 0),
            (Clock::Tai, -5),
        ] {
            let now = NOW[clock as usize] + SECOND;
            assert_eq!(skew.read(clock, now), now + offset * SECOND, "{clock:?}");
        }
    }

    #[test]
    fn an_absolute_time_is_what_the_clock_shows_at_the_start() {
        let skew = skew(&shift("@2038-01-19T03:14:00Z"));
        assert_eq!(skew.read(Clock::Realtime, NOW[0]), 2_147_483_640 * SECOND);
    }

    #[test]
    fn a_slewed_clock_arrives_at_its_offset() {
        let skew = skew(&shift("-3s,slew=2s"));
        let at = |since: i64| skew.read(Clock::Realtime, NOW[0] + since) - NOW[0] - since;
        assert_eq!(at(0), 0);
        assert!((at(SECOND) + 3 * SECOND / 2).abs() < 10);
        assert!((at(2 * SECOND) + 3 * SECOND).abs() < 10);
    }

    #[test]
    fn jumps_come_at_their_time() {
        let jump = |text: &str| ClockSpec {
            clock_jump: Some(text.parse().expect(text)),
            ..ClockSpec::default()
        };
        let once = skew(&jump("-2s,at=1s"));
        let often = skew(&jump("-2s,at=1s,every=500ms"));
        let at = |skew: Skew, ms: i64| {
            (skew.read(Clock::Realtime, NOW[0] + ms * 1_000_000) - NOW[0]) / 1_000_000 - ms
        };
        assert_eq!(
            [0, 999, 1000, 1400, 1500, 2400].map(|ms| at(once, ms)),
            [0, 0, -2000, -2000, -2000, -2000]
        );
        assert_eq!(
            [0, 999, 1000, 1400, 1500, 2400].map(|ms| at(often, ms)),
            [0, 0, -2000, -2000, -4000, -6000]
        );
    }

    #[test]
    fn the_lease_is_short_and_never_beyond_the_end() {
        let fault = shift("1s").check().expect("valid").expect("a fault");
        let timed = Timed::starting(&fault, NOW, later(NOW, Some(Duration::from_secs(4))));
        let lease = |seconds: i64| {
            timed.renewed(NOW.map(|now| now + seconds * SECOND)).clocks[0].lease - NOW[0]
        };
        assert_eq!([lease(0), lease(1), lease(3)], [5 * SECOND / 2, 7 * SECOND / 2, 4 * SECOND]);
    }
}
