//! Partition shapes, as in Jepsen's `jepsen.nemesis`.
//!
//! Maps nodes and random numbers to the pairs of nodes that are cut off from each other.

use std::{
    collections::BTreeSet,
    fmt::{self, Display, Formatter},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::random::Random;

/// Which nodes are cut off from which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// One node is alone: that of `isolate`, or else one drawn at random (Jepsen's `split-one`).
    One,
    /// The first half of the nodes, as they are listed, and the rest; the first half is the smaller one (`bisect`).
    Halves,
    /// The same after shuffling: a random minority and a majority, if the number of nodes is odd
    /// (`partition-random-halves`).
    Majority,
    /// Each node sees a majority, and no two nodes see the same (`majorities-ring`).
    MajoritiesRing,
    /// Two halves as they are listed, but the first node of the second one is connected to all (`bridge`).
    Bridge,
    /// The primary is in a minority: the largest number of nodes that is less than half, drawn at random.
    PrimaryMinority,
    /// Halves as they are listed: what the first sends to the second is lost, but not what the second sends.
    OneWay,
}

impl Shape {
    /// Minimum number of nodes.
    #[must_use]
    pub const fn least(self) -> usize {
        match self {
            Self::One | Self::Halves | Self::Majority | Self::OneWay => 2,
            Self::Bridge | Self::MajoritiesRing | Self::PrimaryMinority => 3,
        }
    }

    /// Name in files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Halves => "halves",
            Self::Majority => "majority",
            Self::MajoritiesRing => "majorities-ring",
            Self::Bridge => "bridge",
            Self::PrimaryMinority => "primary-minority",
            Self::OneWay => "one-way",
        }
    }
}

/// Pairs of nodes; the second does not receive packets of the first.
pub type Cuts = BTreeSet<(usize, usize)>;

/// The pairs that `shape` cuts among nodes 0 to `count` - 1. `count` must be at least
/// [`Shape::least`]. `chosen` is the primary, or the node to isolate if it is not drawn.
#[must_use]
pub fn cuts(shape: Shape, count: usize, chosen: Option<usize>, random: &mut Random) -> Cuts {
    let nodes: Vec<usize> = (0..count).collect();
    match shape {
        Shape::One => {
            let loner = chosen.unwrap_or_else(|| random.below(count));
            between(&[loner], &without(&nodes, &[loner]))
        }
        Shape::Halves => {
            let (first, second) = bisect(&nodes);
            between(first, second)
        }
        Shape::Majority => {
            let shuffled = random.shuffled(nodes);
            let (first, second) = bisect(&shuffled);
            between(first, second)
        }
        Shape::MajoritiesRing => majorities_ring(&nodes, random),
        Shape::Bridge => {
            let (first, second) = bisect(&nodes);
            between(first, &second[1..])
        }
        Shape::PrimaryMinority => {
            let primary = chosen.unwrap_or_default();
            let mut minority = random.shuffled(without(&nodes, &[primary]));
            minority.truncate((count - 1) / 2 - 1);
            minority.push(primary);
            between(&minority, &without(&nodes, &minority))
        }
        Shape::OneWay => {
            let (first, second) = bisect(&nodes);
            pairs(first, second).collect()
        }
    }
}

/// A partition with the names of its nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Partition")]
pub struct Sides {
    /// The shape.
    pub shape: Shape,
    /// Which nodes are cut off from which.
    pub cuts: Vec<Separation>,
}

/// Nodes that are cut off from others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Separation {
    /// Nodes whose packets to the receivers are dropped.
    pub senders: Vec<String>,
    /// Nodes that receive nothing from the senders.
    pub receivers: Vec<String>,
    /// Whether the packets of the receivers to the senders are dropped as well.
    pub both_ways: bool,
}

impl Sides {
    /// The sides of a partition that cuts these pairs. Of both ways, the smaller side is the first.
    #[must_use]
    pub fn new(shape: Shape, cuts: &Cuts, names: &[String]) -> Self {
        let is_mutual = |&(from, to): &(usize, usize)| cuts.contains(&(to, from));
        let (mutual, single): (Cuts, Cuts) = cuts.iter().partition(|cut| is_mutual(cut));
        let list = |nodes: Vec<usize>| nodes.into_iter().map(|node| names[node].clone()).collect();
        let separation = |both_ways| {
            move |(mut senders, mut receivers): (Vec<usize>, Vec<usize>)| {
                if both_ways && receivers.len() < senders.len() {
                    std::mem::swap(&mut senders, &mut receivers);
                }
                Separation { senders: list(senders), receivers: list(receivers), both_ways }
            }
        };
        let mutual = grouped(mutual, true).into_iter().map(separation(true));
        let single = grouped(single, false).into_iter().map(separation(false));
        Self { shape, cuts: mutual.chain(single).collect() }
    }
}

/// Says who is cut off from whom: `one: b cut off from a, c`, or `one-way: a cannot send to b`.
impl Display for Sides {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let cuts: Vec<String> = self.cuts.iter().map(ToString::to_string).collect();
        write!(f, "{}: {}", self.shape.name(), cuts.join("; "))
    }
}

impl Display for Separation {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let words = if self.both_ways { "cut off from" } else { "cannot send to" };
        write!(f, "{} {words} {}", self.senders.join(", "), self.receivers.join(", "))
    }
}

/// Senders with the same receivers, and these. Of mutual cuts, each pair is in one group only.
fn grouped(mut cuts: Cuts, is_mutual: bool) -> Vec<(Vec<usize>, Vec<usize>)> {
    let receivers = |cuts: &Cuts, node: usize| -> Vec<usize> {
        cuts.iter().filter(|(from, _)| *from == node).map(|(_, to)| *to).collect()
    };
    let mut groups = Vec::new();
    while let Some(&(first, _)) = cuts.first() {
        let to = receivers(&cuts, first);
        let all: BTreeSet<usize> = cuts.iter().map(|(from, _)| *from).collect();
        let from: Vec<usize> =
            all.into_iter().filter(|&node| receivers(&cuts, node) == to).collect();
        for pair in pairs(&from, &to) {
            cuts.remove(&pair);
            if is_mutual {
                cuts.remove(&(pair.1, pair.0));
            }
        }
        groups.push((from, to));
    }
    groups
}

/// Splits the nodes in half, the smaller half first.
fn bisect(nodes: &[usize]) -> (&[usize], &[usize]) {
    nodes.split_at(nodes.len() / 2)
}

fn without(nodes: &[usize], gone: &[usize]) -> Vec<usize> {
    nodes.iter().copied().filter(|node| !gone.contains(node)).collect()
}

fn pairs<'a>(from: &'a [usize], to: &'a [usize]) -> impl Iterator<Item = (usize, usize)> + 'a {
    from.iter().flat_map(move |&from| to.iter().map(move |&to| (from, to)))
}

/// Cuts both directions between two groups (Jepsen's `complete-grudge`).
fn between(one: &[usize], other: &[usize]) -> Cuts {
    pairs(one, other).chain(pairs(other, one)).collect()
}

/// Smallest number of nodes that is more than half.
const fn majority(count: usize) -> usize {
    count / 2 + 1
}

fn majorities_ring(nodes: &[usize], random: &mut Random) -> Cuts {
    if nodes.len() <= 5 { perfect_ring(nodes, random) } else { stochastic_ring(nodes, random) }
}

/// A ring in random order. Each node receives from its neighbours, a majority centred on itself.
fn perfect_ring(nodes: &[usize], random: &mut Random) -> Cuts {
    let ring = random.shuffled(nodes.to_vec());
    let size = majority(ring.len());
    let mut cuts = Cuts::new();
    for start in 0..ring.len() {
        let heard: Vec<usize> = (0..size).map(|n| ring[(start + n) % ring.len()]).collect();
        let node = heard[size / 2];
        cuts.extend(without(nodes, &heard).into_iter().map(|from| (from, node)));
    }
    cuts
}

/// Adds links between the nodes with the fewest links until all have a majority.
fn stochastic_ring(nodes: &[usize], random: &mut Random) -> Cuts {
    let mut links: Vec<BTreeSet<usize>> =
        nodes.iter().map(|&node| BTreeSet::from([node])).collect();
    loop {
        let mut order = random.shuffled(nodes.to_vec());
        order.sort_by_key(|&node| links[node].len());
        let one = order[0];
        if links[one].len() >= majority(nodes.len()) {
            break;
        }
        let Some(&other) = order.iter().find(|other| !links[one].contains(other)) else { break };
        links[one].insert(other);
        links[other].insert(one);
    }
    let all = pairs(nodes, nodes);
    all.filter(|&(from, to)| !links[to].contains(&from)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const SHAPES: [Shape; 7] = [
        Shape::One,
        Shape::Halves,
        Shape::Majority,
        Shape::MajoritiesRing,
        Shape::Bridge,
        Shape::PrimaryMinority,
        Shape::OneWay,
    ];

    fn cut(shape: Shape, count: usize, seed: u64) -> Cuts {
        let primary = (shape == Shape::PrimaryMinority).then_some(1);
        cuts(shape, count, primary, &mut Random::new(seed, 0))
    }

    fn described(cuts: &Cuts) -> String {
        let names: Vec<String> = ('a'..='z').map(String::from).collect();
        let text = Sides::new(Shape::One, cuts, &names).to_string();
        text.strip_prefix("one: ").expect("the shape").to_owned()
    }

    #[test]
    fn it_is_said_who_is_cut_off_from_whom() {
        let chosen = |node| cuts(Shape::One, 3, Some(node), &mut Random::new(0, 0));
        assert_eq!(described(&chosen(0)), "a cut off from b, c");
        assert_eq!(described(&chosen(1)), "b cut off from a, c");
        assert_eq!(described(&chosen(2)), "c cut off from a, b");
        assert_eq!(described(&cut(Shape::Halves, 5, 0)), "a, b cut off from c, d, e");
        assert_eq!(described(&cut(Shape::Bridge, 5, 0)), "a, b cut off from d, e");
        assert_eq!(described(&cut(Shape::OneWay, 4, 0)), "a, b cannot send to c, d");
        let ring: Cuts = [(0, 1), (1, 2), (2, 0)].into();
        assert_eq!(described(&ring), "a cannot send to b; b cannot send to c; c cannot send to a");
        let mixed: Cuts = [(0, 1), (1, 0), (0, 2)].into();
        assert_eq!(described(&mixed), "a cut off from b; a cannot send to c");
    }

    /// The cuts that a description says.
    fn read(text: &str) -> Cuts {
        let nodes = |list: &str| -> Vec<usize> {
            list.split(", ").map(|name| usize::from(name.as_bytes()[0] - b'a')).collect()
        };
        let mut cuts = Cuts::new();
        for part in text.split("; ") {
            if let Some((one, other)) = part.split_once(" cut off from ") {
                cuts.extend(between(&nodes(one), &nodes(other)));
            } else if let Some((from, to)) = part.split_once(" cannot send to ") {
                cuts.extend(pairs(&nodes(from), &nodes(to)));
            }
        }
        cuts
    }

    /// In Jepsen's notation: the nodes that each node does not receive from.
    fn grudge(cuts: &Cuts) -> BTreeMap<usize, Vec<usize>> {
        let mut grudge: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &(from, to) in cuts {
            grudge.entry(to).or_default().push(from);
        }
        grudge
    }

    /// The groups of nodes with the same view.
    fn groups(cuts: &Cuts, count: usize) -> BTreeSet<BTreeSet<usize>> {
        (0..count)
            .map(|to| (0..count).filter(|&from| !cuts.contains(&(from, to))).collect())
            .collect()
    }

    #[test]
    fn nodes_are_bisected_with_the_smaller_half_first() {
        // jepsen.nemesis-test/bisect-test
        for (nodes, halves) in [
            (&[][..], (&[][..], &[][..])),
            (&[1], (&[], &[1])),
            (&[1, 2, 3, 4], (&[1, 2], &[3, 4])),
            (&[1, 2, 3, 4, 5], (&[1, 2], &[3, 4, 5])),
        ] {
            assert_eq!(bisect(nodes), halves);
        }
    }

    #[test]
    fn halves_are_a_complete_grudge() {
        // jepsen.nemesis-test/complete-grudge-test: {1 #{3 4 5}, 2 #{3 4 5}, 3 #{1 2}, ...}
        let grudge = grudge(&cut(Shape::Halves, 5, 0));
        let expected = [vec![2, 3, 4], vec![2, 3, 4], vec![0, 1], vec![0, 1], vec![0, 1]];
        assert_eq!(grudge, (0..).zip(expected).collect());
    }

    #[test]
    fn a_bridge_is_hated_by_nobody() {
        // jepsen.nemesis-test/bridge-test: {1 #{4 5}, 2 #{4 5}, 4 #{1 2}, 5 #{1 2}}
        let grudge = grudge(&cut(Shape::Bridge, 5, 0));
        let expected = [(0, vec![3, 4]), (1, vec![3, 4]), (3, vec![0, 1]), (4, vec![0, 1])];
        assert_eq!(grudge, expected.into());
    }

    #[test]
    fn one_way_is_the_half_of_halves() {
        let expected: Cuts = [(0, 2), (0, 3), (1, 2), (1, 3)].into();
        assert_eq!(cut(Shape::OneWay, 4, 0), expected);
    }

    #[test]
    fn each_of_the_nodes_is_alone_sometimes() {
        let loners: BTreeSet<usize> = (0..100)
            .map(|seed| {
                let groups = groups(&cut(Shape::One, 5, seed), 5);
                assert_eq!(groups.len(), 2);
                let loner = groups.iter().find(|group| group.len() == 1).expect("a loner");
                *loner.first().expect("one")
            })
            .collect();
        assert_eq!(loners.len(), 5);
    }

    #[test]
    fn majorities_are_drawn_at_random() {
        let cases: BTreeSet<Cuts> = (0..200).map(|seed| cut(Shape::Majority, 5, seed)).collect();
        assert_eq!(cases.len(), 10, "two of five, in all ways");
    }

    #[test]
    fn three_nodes_in_a_ring_each_hear_one_neighbour() {
        // Jepsen's formula: in a majority (a b), b receives from a.
        for (_, heard_not) in grudge(&cut(Shape::MajoritiesRing, 3, 7)) {
            assert_eq!(heard_not.len(), 1);
        }
    }

    proptest! {
        #[test]
        fn the_same_seed_cuts_the_same(count in 3usize..12, seed: u64) {
            for shape in SHAPES {
                prop_assert_eq!(cut(shape, count, seed), cut(shape, count, seed));
            }
        }

        #[test]
        fn descriptions_tell_all_cuts(count in 3usize..12, seed: u64) {
            for shape in SHAPES {
                let cuts = cut(shape, count, seed);
                prop_assert_eq!(read(&described(&cuts)), cuts);
            }
        }

        #[test]
        fn nobody_is_deaf_to_itself(count in 3usize..12, seed: u64) {
            for shape in SHAPES {
                let cuts = cut(shape, count, seed);
                prop_assert!(!cuts.is_empty());
                prop_assert!(cuts.iter().all(|&(a, b)| a != b && a < count && b < count));
            }
        }

        #[test]
        fn all_but_one_way_and_small_rings_are_symmetric(count in 3usize..12, seed: u64) {
            for shape in SHAPES {
                let small_ring = shape == Shape::MajoritiesRing && count <= 5;
                if shape != Shape::OneWay && !small_ring {
                    let cuts = cut(shape, count, seed);
                    prop_assert!(cuts.iter().all(|&(a, b)| cuts.contains(&(b, a))), "{:?}", shape);
                }
            }
        }

        #[test]
        fn halves_are_two_groups(count in 2usize..12, seed: u64) {
            for shape in [Shape::One, Shape::Halves, Shape::Majority] {
                let groups = groups(&cut(shape, count, seed), count);
                prop_assert_eq!(groups.len(), 2);
                prop_assert_eq!(groups.iter().map(BTreeSet::len).sum::<usize>(), count);
            }
        }

        #[test]
        fn the_primary_is_in_a_minority(count in 3usize..12, seed: u64) {
            let groups = groups(&cut(Shape::PrimaryMinority, count, seed), count);
            prop_assert_eq!(groups.len(), 2);
            let minority = groups.iter().find(|group| group.contains(&1)).expect("its group");
            prop_assert!(2 * minority.len() < count && 2 * (minority.len() + 1) >= count);
        }

        #[test]
        fn in_a_ring_all_hear_a_majority_and_no_two_the_same(count in 3usize..12, seed: u64) {
            let cuts = cut(Shape::MajoritiesRing, count, seed);
            let mut seen = BTreeSet::new();
            for to in 0..count {
                let heard: BTreeSet<usize> =
                    (0..count).filter(|&from| !cuts.contains(&(from, to))).collect();
                prop_assert!(heard.contains(&to) && heard.len() > count / 2);
                // For more than 5 nodes, Jepsen's algorithm does not guarantee distinct majorities.
                prop_assert!(seen.insert(heard) || count > 5);
            }
        }
    }
}
