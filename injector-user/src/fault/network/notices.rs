//! Rate-limited notices of interference by other processes with what injector installed.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// The minimum time between notices of the same kind.
const MIN_INTERVAL: Duration = Duration::from_secs(2);

/// The maximum number of places listed in a notice.
const MAX_PLACES: usize = 5;

/// A kind of interference by another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Interference {
    /// A hold device was set down.
    DeviceDown,
    /// A hold device was removed, or something without which it is of no use.
    DeviceRemoved,
    /// The settings of a hold device's qdisc were changed.
    QueueChanged,
    /// A device that segments packets was set down.
    WireDown,
    /// A device that segments packets was removed, or something without which it is of no use.
    WireRemoved,
    /// A tcx or XDP program was detached.
    ProgramDetached,
    /// A filter was removed, perhaps with its qdisc.
    FilterRemoved,
    /// A filter came ahead of injector's, which is the first again.
    FilterOvertaken,
    /// A named interface is gone.
    InterfaceGone,
    /// A filter is ahead of injector's.
    FilterAhead,
    /// A program is ahead of injector's.
    ProgramAhead,
}

impl Interference {
    /// The text of the notice, after the list of places.
    const fn text(self) -> &'static str {
        match self {
            Self::DeviceDown => {
                "set down by another process, which lost the packets held there: set up again"
            }
            Self::DeviceRemoved => {
                "removed or changed by another process, which lost the packets held there: made again"
            }
            Self::QueueChanged => {
                "qdisc changed by another process, which may have dropped packets held there or released them early: \
                 changed back"
            }
            Self::WireDown => {
                "set down by another process, which lost the packets segmented there: set up again"
            }
            Self::WireRemoved => {
                "removed or changed by another process, which lost the packets segmented there: made again"
            }
            Self::ProgramDetached => "eBPF program detached by another process: attached again",
            Self::FilterRemoved => "tc filter removed by another process: added again",
            Self::FilterOvertaken => {
                "tc filter added ahead of injector's by another process: injector's goes first again"
            }
            Self::InterfaceGone => "interface gone: nothing is faulted there until it is back",
            Self::FilterAhead => {
                "tc filter ahead of injector's: packets that it accepts, drops or redirects are not faulted, and it sees \
                 each packet that is held back twice"
            }
            Self::ProgramAhead => {
                "eBPF program ahead of injector's: packets that it accepts, drops or redirects are not faulted, and it \
                 sees each packet that is held back twice"
            }
        }
    }
}

/// Pending notices, by kind.
#[derive(Debug, Default)]
pub struct Notices {
    kinds: BTreeMap<Interference, Kind>,
}

#[derive(Debug, Default)]
struct Kind {
    last_emitted: Option<Instant>,
    /// The places since then, with the number of times.
    places: BTreeMap<String, u32>,
}

impl Notices {
    /// Records an interference.
    pub fn add(&mut self, what: Interference, place: String) {
        *self.kinds.entry(what).or_default().places.entry(place).or_default() += 1;
    }

    /// The notices that are due now; with `is_end`, all pending ones.
    pub fn take(&mut self, now: Instant, is_end: bool) -> Vec<String> {
        let mut messages = Vec::new();
        for (what, kind) in &mut self.kinds {
            let is_due = is_end
                || kind.last_emitted.is_none_or(|last| now.duration_since(last) >= MIN_INTERVAL);
            if !kind.places.is_empty() && is_due {
                kind.last_emitted = Some(now);
                messages.push(message(*what, &std::mem::take(&mut kind.places)));
            }
        }
        messages
    }
}

fn message(what: Interference, places: &BTreeMap<String, u32>) -> String {
    let mut listed: Vec<String> = places
        .iter()
        .take(MAX_PLACES)
        .map(|(place, count)| match count {
            1 => place.clone(),
            count => format!("{place} ({count} times)"),
        })
        .collect();
    if places.len() > MAX_PLACES {
        listed.push(format!("{} more", places.len() - MAX_PLACES));
    }
    format!("{}: {}", listed.join(", "), what.text())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_emitted_at_once_and_then_rate_limited() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut notices = Notices::default();
        notices.add(Interference::DeviceDown, "injhold0".into());
        notices.add(Interference::FilterRemoved, "va ingress".into());
        let said = notices.take(start, false);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].starts_with("injhold0: set down by another process"), "{said:?}");
        assert!(said[1].starts_with("va ingress: tc filter removed"), "{said:?}");
        for ms in (250..2000).step_by(250) {
            notices.add(Interference::DeviceDown, "injhold0".into());
            assert!(notices.take(at(ms), false).is_empty());
        }
        notices.add(Interference::ProgramDetached, "va egress".into());
        assert_eq!(notices.take(at(1800), false).len(), 1);
        let said = notices.take(at(2000), false);
        assert!(said.len() == 1 && said[0].starts_with("injhold0 (7 times): "), "{said:?}");
        assert!(notices.take(at(9000), false).is_empty());
        notices.add(Interference::DeviceDown, "injhold0".into());
        assert_eq!(notices.take(at(9000), false).len(), 1);
        notices.add(Interference::DeviceDown, "injhold0".into());
        assert_eq!(notices.take(at(9001), true).len(), 1);
    }

    #[test]
    fn many_places_are_not_all_listed() {
        let mut notices = Notices::default();
        (0..7).for_each(|n| notices.add(Interference::ProgramDetached, format!("v{n} egress")));
        let said = notices.take(Instant::now(), false);
        assert!(
            said[0].starts_with("v0 egress, v1 egress, v2 egress, v3 egress, v4 egress, 2 more:")
        );
    }
}
