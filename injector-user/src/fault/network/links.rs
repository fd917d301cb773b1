//! Links: the state that rules keep across a change.
//!
//! A rule acts like a link with a queue, a virtual clock and a memory. If a change replaces the rule
//! by another one for the same packets, the link stays and gets other properties.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use injector_common::{
    hold::Hold,
    model::random,
    rule::{self, RULE_HOLDS},
};

use super::compile::Compiled;
use crate::spec::{matching::Matching, rule::Rule};

/// What a rule takes over from the rule that it replaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Continued {
    /// The state of the decisions.
    pub state: bool,
    /// The state of the queue.
    pub hold: bool,
}

/// For each new rule, the number of the old rule whose link it continues.
///
/// That is the old rule with the same matching; of several, the one in the same place among them.
/// Only the first of them decides about packets.
fn pairs(old: &[Rule], new: &[Rule]) -> Vec<Option<usize>> {
    let mut links: HashMap<&Matching, VecDeque<usize>> = HashMap::new();
    for (number, rule) in old.iter().enumerate() {
        links.entry(&rule.matching).or_default().push_back(number);
    }
    new.iter().map(|rule| links.get_mut(&rule.matching)?.pop_front()).collect()
}

/// The rules that stay the same in a change, as pairs of their old and new numbers.
#[must_use]
pub fn kept(old: &[Rule], new: &[Rule]) -> Vec<(u32, u32)> {
    let pairs = pairs(old, new).into_iter().enumerate();
    let same = pairs.filter_map(|(new_number, pair)| Some((pair?, new_number)));
    let same = same.filter(|&(old_number, new_number)| old[old_number] == new[new_number]);
    same.map(|(old_number, new_number)| (old_number as u32, new_number as u32)).collect()
}

/// Assigns links to the rules of a set that may replace the active one. Continued links have the
/// state and the random stream of their predecessors. `count` is the number of links, at least that
/// of both sets together.
pub fn assign(new: &mut Compiled, active: Option<&Compiled>, seed: u64, count: u32) {
    let no_rules = Vec::new();
    let (old_spec, old) = active.map_or((&no_rules, [].as_slice()), |old| (&old.spec, &old.rules));
    let pairs = pairs(old_spec, &new.spec);
    new.continued = vec![Continued::default(); pairs.len()];
    let mut used: HashSet<u32> = old.iter().map(|rule| rule.link).collect();
    let mut next = 0;
    for (number, pair) in pairs.into_iter().enumerate() {
        if let Some(pair) = pair {
            new.carry_on(number, &old[pair], &old_spec[pair]);
            continue;
        }
        // Links of the same number make runs with the same seed alike.
        let mut link = number as u32;
        while !used.insert(link) && next < count {
            link = next;
            next += 1;
        }
        let rule = &mut new.rules[number];
        (rule.link, rule.stream) = (link, random::stream(seed, link));
    }
}

/// The time from an unforeseen change of the rules to that of the rates. Packets in a queue have their
/// times of departure already. With this notice, those that arrive meanwhile are scheduled by both rates.
pub const NOTICE: Duration = Duration::from_millis(150);

/// What is known of the rules that replace others.
#[derive(Clone, Debug, Default)]
pub enum Next {
    /// Nothing: a change takes [`NOTICE`] to reach the rates.
    #[default]
    Unknown,
    /// No change is near.
    Nothing,
    /// A change is near.
    Change(Upcoming),
}

/// Rules that will replace others at a known time.
#[derive(Clone, Debug)]
pub struct Upcoming {
    /// The time by `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// The rules.
    pub rules: Vec<Rule>,
}

/// Tells the links of a set how their rates will change. Packets that wait in a queue at that time
/// then leave at the new rate.
pub fn foresee(set: &mut Compiled, upcoming: &Upcoming) {
    for (next, pair) in upcoming.rules.iter().zip(pairs(&set.spec, &upcoming.rules)) {
        if let (Some(hold), Some(next)) =
            (pair.and_then(|number| set.holds.get_mut(number)), next.impairment.hold)
            && hold.rate.cost != 0
            && next.rate.cost != 0
        {
            (hold.rate.next_ns, hold.rate.next_cost) = (upcoming.at_ns, next.rate.cost);
        }
    }
}

/// Makes links keep the rates of the active set until `at_ns`, by `CLOCK_MONOTONIC`, and then change to those
/// of `set`, its successor. If a link's rate is due to change after `now_ns` already, it changes at that time.
pub fn give_notice(set: &mut Compiled, active: &Compiled, now_ns: u64, at_ns: u64) {
    let pairs = pairs(&active.spec, &set.spec);
    for (new, pair) in set.holds.iter_mut().zip(pairs) {
        let Some(old) = pair.and_then(|number| active.holds.get(number)) else { continue };
        let (new, old) = (&mut new.rate, &old.rate);
        let is_changing = old.next_ns > now_ns;
        let cost = if is_changing || old.next_ns == 0 { old.cost } else { old.next_cost };
        if cost != 0 && new.cost != 0 && cost != new.cost {
            let at_ns = if is_changing { old.next_ns } else { at_ns };
            (new.cost, new.next_ns, new.next_cost) = (cost, at_ns, new.cost);
        }
    }
}

impl Compiled {
    /// The links that start with this set.
    #[must_use]
    pub fn new_links(&self) -> Vec<u32> {
        let rules = self.rules.iter().zip(&self.continued);
        rules.filter(|(_, continued)| !continued.state).map(|(rule, _)| rule.link).collect()
    }

    /// The links whose queues start with this set, with their random streams.
    #[must_use]
    pub fn new_queues(&self) -> Vec<(u32, u64)> {
        let rules = self.rules.iter().zip(&self.continued).take(self.holds.len());
        let new = rules.filter(|(_, continued)| !continued.hold);
        new.map(|(rule, _)| (rule.link, rule.stream)).collect()
    }

    /// Makes a rule continue the link of the rule `old`.
    fn carry_on(&mut self, number: usize, old: &rule::Rule, old_spec: &Rule) {
        let spec = &self.spec[number];
        let is_same = spec == old_spec;
        let plays_on = spec.impairment.trace == old_spec.impairment.trace;
        let holds = old.flags & RULE_HOLDS != 0;
        if holds && self.holds.is_empty() {
            self.holds = vec![Hold::default(); self.rules.len()];
        }
        let rule = &mut self.rules[number];
        (rule.link, rule.stream) = (old.link, old.stream);
        if plays_on {
            rule.trace = old.trace;
        }
        if is_same {
            // Its time goes on.
            rule.deadline_ns = old.deadline_ns;
        }
        // Without a delay, packets must still not overtake those in the queue.
        rule.flags |= old.flags & RULE_HOLDS;
        self.continued[number] = Continued { state: true, hold: holds };
    }
}

#[cfg(test)]
mod tests {
    use injector_common::model::rate::Rate;

    use super::{super::compile::compile, *};
    use crate::{spec::rule::RuleSpec, target::peers::Addresses};

    fn rules(texts: &[&str]) -> Vec<Rule> {
        let spec = |text: &&str| serde_json::from_str::<RuleSpec>(text).expect("a rule");
        texts.iter().flat_map(|text| spec(text).check().expect("it is valid")).collect()
    }

    const COUNT: u32 = 16;

    fn first(rules: &[Rule], seed: u64) -> Compiled {
        let mut compiled = compile(rules, &Addresses::new(), seed).expect("it compiles");
        assign(&mut compiled, None, seed, COUNT);
        compiled
    }

    fn change(active: &Compiled, rules: &[Rule], seed: u64) -> Compiled {
        let mut compiled = compile(rules, &Addresses::new(), seed).expect("it compiles");
        assign(&mut compiled, Some(active), seed, COUNT);
        compiled
    }

    fn links(compiled: &Compiled) -> Vec<u32> {
        compiled.rules.iter().map(|rule| rule.link).collect()
    }

    const TCP: &str = r#"{"loss": "1%", "protocol": "tcp"}"#;
    const SLOW_TCP: &str = r#"{"rate": "1mbit", "protocol": "tcp"}"#;
    const UDP: &str = r#"{"loss": "1%", "protocol": "udp"}"#;
    const ALL: &str = r#"{"delay": "10ms"}"#;

    #[test]
    fn rules_for_the_same_packets_are_paired() {
        let old = rules(&[TCP, UDP, ALL]);
        assert_eq!(pairs(&old, &rules(&[ALL, SLOW_TCP])), [Some(2), Some(0)]);
        assert_eq!(pairs(&old, &rules(&[r#"{"loss": "1%", "remote-port": 1}"#])), [None]);
        let twice = rules(&[TCP, ALL, SLOW_TCP]);
        assert_eq!(pairs(&twice, &rules(&[SLOW_TCP, TCP, TCP])), [Some(0), Some(2), None]);
        assert_eq!(pairs(&[], &old), [None, None, None]);
    }

    #[test]
    fn rules_that_stay_are_found_wherever_they_are() {
        let old = rules(&[TCP, UDP, ALL]);
        assert_eq!(kept(&old, &rules(&[ALL, SLOW_TCP, UDP])), [(2, 0), (1, 2)]);
        assert_eq!(kept(&old, &old), [(0, 0), (1, 1), (2, 2)]);
    }

    #[test]
    fn the_first_rules_have_links_and_streams_by_their_numbers() {
        let compiled = first(&rules(&[TCP, UDP, ALL]), 7);
        assert_eq!(links(&compiled), [0, 1, 2]);
        let streams: Vec<u64> = compiled.rules.iter().map(|rule| rule.stream).collect();
        assert_eq!(streams, [0, 1, 2].map(|number| random::stream(7, number)));
        assert!(compiled.continued.iter().all(|continued| *continued == Continued::default()));
    }

    #[test]
    fn a_link_goes_on_with_its_stream_and_others_get_a_free_one() {
        let old = first(&rules(&[TCP, ALL]), 7);
        let new = change(&old, &rules(&[UDP, SLOW_TCP, ALL]), 8);
        assert_eq!(links(&new)[1..], [0, 1]);
        assert!(links(&new)[0] > 1);
        assert_eq!(new.rules[1].stream, old.rules[0].stream);
        assert_eq!(new.rules[2].stream, old.rules[1].stream);
        assert_eq!(new.rules[0].stream, random::stream(8, new.rules[0].link));
        let state = Continued { state: true, hold: false };
        let all = Continued { state: true, hold: true };
        assert_eq!(new.continued, [Continued::default(), state, all]);
    }

    #[test]
    fn no_two_rules_share_a_link_over_many_changes() {
        let texts: Vec<String> =
            (0..8).map(|n| format!(r#"{{"loss": "1%", "remote-port": {n}}}"#)).collect();
        let mut active = first(&[], 0);
        for seed in 1u64..200 {
            let chosen: Vec<&str> = (0..8)
                .filter(|n| random::draw(seed, *n) & 1 != 0)
                .map(|n| texts[n as usize].as_str())
                .collect();
            let new = change(&active, &rules(&chosen), seed);
            let all: HashSet<u32> = links(&new).into_iter().collect();
            assert_eq!(all.len(), new.rules.len());
            assert!(all.iter().all(|link| *link < COUNT));
            for (number, rule) in new.rules.iter().enumerate() {
                let is_old = active.rules.iter().any(|old| old.link == rule.link);
                assert_eq!(is_old, new.continued[number].state);
            }
            active = new;
        }
    }

    #[test]
    fn a_rule_that_follows_a_delay_keeps_the_order() {
        let old = first(&rules(&[ALL]), 1);
        let new = change(&old, &rules(&[r#"{"loss": "1%"}"#]), 1);
        assert!(new.needs_hold() && new.rules[0].flags & RULE_HOLDS != 0);
        assert_eq!(new.holds, [Hold::default()]);
    }

    #[test]
    fn an_upcoming_rate_is_that_of_the_rule_that_continues_the_link() {
        let fast_tcp = r#"{"rate": "2mbit", "protocol": "tcp"}"#;
        let slow_udp = r#"{"rate": "1mbit", "protocol": "udp"}"#;
        let mut set = first(&rules(&[SLOW_TCP, slow_udp, ALL]), 1);
        let next = rules(&[UDP, ALL, fast_tcp]);
        foresee(&mut set, &Upcoming { at_ns: 5, rules: next });
        let known: Vec<(u64, u64)> =
            set.holds.iter().map(|hold| (hold.rate.next_ns, hold.rate.next_cost)).collect();
        assert_eq!(known, [(5, set.holds[0].rate.cost / 2), (0, 0), (0, 0)]);
    }

    #[test]
    fn a_rate_that_nobody_foresaw_changes_after_the_notice() {
        let rate = |rate: &str| {
            let udp = format!(r#"{{"rate": "{rate}", "protocol": "udp"}}"#);
            rules(&[&udp, ALL, SLOW_TCP])
        };
        let known = |set: &Compiled| {
            let Rate { cost, next_ns, next_cost, .. } = set.holds[0].rate;
            (cost, next_ns, next_cost)
        };
        let cost = |mbits: u64| Rate::new(mbits * 1_000_000, 0, 0, 0).cost;
        let fast = first(&rate("8mbit"), 1);
        let mut slow = change(&fast, &rate("2mbit"), 1);
        give_notice(&mut slow, &fast, 10, 110);
        assert_eq!(known(&slow), (cost(8), 110, cost(2)));
        // The others stay as they are.
        assert!(slow.holds[1..].iter().all(|hold| hold.rate.next_ns == 0));
        // A change before the time of the first one comes in its place, one after it has a time of its own.
        for (now, expected) in [(60, (cost(8), 110, cost(4))), (160, (cost(2), 260, cost(4)))] {
            let mut other = change(&slow, &rate("4mbit"), 1);
            give_notice(&mut other, &slow, now, now + 100);
            assert_eq!(known(&other), expected, "{now}");
        }
    }

    #[test]
    fn the_time_of_an_unchanged_rule_goes_on() {
        let timed = r#"{"loss": "1%", "for": "30s"}"#;
        let longer = r#"{"loss": "1%", "for": "60s"}"#;
        let mut old = first(&rules(&[timed]), 1);
        old.start(1_000, u64::MAX);
        let mut new = compile(&rules(&[timed]), &Addresses::new(), 1).expect("it compiles");
        new.start(2_000, u64::MAX);
        assign(&mut new, Some(&old), 1, COUNT);
        assert_eq!(new.rules[0].deadline_ns, 30_000_001_000);
        let mut new = compile(&rules(&[longer]), &Addresses::new(), 1).expect("it compiles");
        new.start(2_000, u64::MAX);
        assign(&mut new, Some(&old), 1, COUNT);
        assert_eq!(new.rules[0].deadline_ns, 60_000_002_000);
    }
}
