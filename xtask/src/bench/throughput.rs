//! Traffic over veth pairs, with and without the injector.
//!
//! Each variant has its own link with its programs attached. Traffic runs over one link after the
//! other in short slices, in random order. Ratios are taken within a turn of a tenth of a second, so
//! that other load on the machine affects all variants alike, or few turns.
//!
//! Links differ by their placement in memory. Therefore measurements are grouped in blocks, each with
//! new links, sockets and injectors. The value of a block is the median of its turns; confidence
//! intervals are over blocks.

use std::{
    array,
    hash::{BuildHasher as _, RandomState},
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::{
    injector::{Injector, Running},
    link::Link,
    numbers::{Estimate, median},
    peer, progress,
    rules::RuleFile,
    traffic::{Kind, Rate, Traffic, alone},
};

/// The time of traffic over one link.
const SLICE: Duration = Duration::from_millis(10);

/// The pause after each turn, for other programs.
const PAUSE: Duration = Duration::from_millis(20);

/// The traffic of a round. TCP between two CPUs varies most.
const TURNS: [Kind; 6] = [Kind::Tcp, Kind::TcpAlone, Kind::Tcp, Kind::Udp, Kind::Tcp, Kind::Many];

/// The baseline of the others. It is measured twice, each compared with the other, which shows the
/// noise.
const NOTHING: &str = "nothing attached";
const AGAIN: &str = "nothing attached, again";
/// The variant that has targets.
pub const NO_MATCH: &str = "1 rule, no match";
/// An empty eBPF program, the minimum cost.
const EMPTY: &str = "empty tcx program";

/// One kind of traffic under one variant.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// Bits or packets a second, the median of all turns.
    pub rate: f64,
    /// The rate by the sender's CPU time, relative to the baseline.
    pub sending: Estimate,
    /// The rate by wall-clock time, relative to the baseline.
    pub whole: Estimate,
}

/// The results of one variant.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The variant.
    pub name: &'static str,
    /// Whether it is a kernel feature for comparison.
    pub peer: bool,
    /// One TCP flow, in bits a second.
    pub tcp: Figure,
    /// One TCP flow on one CPU, in bits a second.
    pub tcp_alone: Figure,
    /// One UDP flow, in packets a second.
    pub udp: Figure,
    /// UDP to 65,536 remotes, in packets a second.
    pub many: Figure,
}

/// The results.
#[derive(Debug, Serialize)]
pub struct Throughput {
    /// The number of blocks.
    pub blocks: usize,
    /// The total number of rounds.
    pub rounds: usize,
    /// By variant.
    pub rows: Vec<Row>,
    /// [`NO_MATCH`] relative to [`EMPTY`] instead of [`NOTHING`]: UDP, by CPU time.
    pub udp_over_empty: Estimate,
}

impl Throughput {
    /// The row of a variant.
    pub fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }
}

/// A variant to measure.
struct Variant {
    name: &'static str,
    setting: Setting,
    /// Whether the first turns of each block suffice.
    rough: bool,
}

/// The programs attached to a link.
enum Setting {
    Nothing,
    /// An eBPF program that does nothing.
    Empty,
    /// u32 filters, by number.
    U32(u32),
    /// Injector with these rules, and whether packets must match.
    Injector(RuleFile, bool),
}

/// A link with its attached programs.
struct Site {
    traffic: Traffic,
    attached: Attached,
    // Dropped last.
    _link: Link,
}

/// The attachment, which ends when dropped.
enum Attached {
    Nothing,
    Programs { _links: [OwnedFd; 2] },
    Injector(Running),
}

/// The rates of one kind within a turn, by variant.
type Turn = Vec<Option<Rate>>;

/// All of a block, by [`Kind`].
type Block = [Vec<Turn>; 4];

/// Measures in blocks of rounds.
pub fn measure(injector: &Injector, quick: bool) -> Result<Throughput> {
    let (count, limit) =
        if quick { (6, Duration::from_secs(38)) } else { (12, Duration::from_secs(230)) };
    let variants = variants(quick)?;
    let start = Instant::now();
    let mut blocks = Vec::new();
    for number in 1..=count {
        progress(&format!("throughput, block {number} of {count}"));
        blocks.push(block(injector, &variants, start + limit * number / count)?);
    }
    Ok(evaluate(&variants, &blocks))
}

fn variants(quick: bool) -> Result<Vec<Variant>> {
    const NO_LOSS: &str = "loss: 0%";

    let ours = |rules, matches| Setting::Injector(rules, matches);
    let variant = |name, setting| Variant { name, setting, rough: false };
    let mut variants = vec![
        variant(NOTHING, Setting::Nothing),
        variant(AGAIN, Setting::Nothing),
        variant(EMPTY, Setting::Empty),
        variant(NO_MATCH, ours(RuleFile::elsewhere(1, NO_LOSS)?, false)),
        variant("1 rule, match at 0 %", ours(RuleFile::matching(1, NO_LOSS)?, true)),
        variant("1,000 rules, match at 0 %", ours(RuleFile::matching(1000, NO_LOSS)?, true)),
        variant("tc u32, 1 filter", Setting::U32(1)),
        Variant { rough: true, ..variant("tc u32, 1,000 filters", Setting::U32(1000)) },
    ];
    if !quick {
        let (elsewhere, matching) =
            (RuleFile::elsewhere(65_536, NO_LOSS)?, RuleFile::matching(65_536, NO_LOSS)?);
        variants.extend([
            variant("65,536 rules, no match", ours(elsewhere, false)),
            variant("65,536 rules, match at 0 %", ours(matching, true)),
            Variant { rough: true, ..variant("tc u32, 65,536 filters", Setting::U32(65_536)) },
        ]);
    }
    Ok(variants)
}

/// Sets everything up and measures until `end`, but at least one round.
fn block(injector: &Injector, variants: &[Variant], end: Instant) -> Result<Block> {
    let mut sites: Vec<Option<Site>> = variants.iter().map(|_| None).collect();
    for number in shuffled(variants.len()) {
        let variant = &variants[number];
        let site =
            Site::new(injector, &variant.setting).with_context(|| variant.name.to_owned())?;
        sites[number] = Some(site);
    }
    let sites: Vec<Site> = sites.into_iter().flatten().collect();
    // Warm up neighbours, routes and windows.
    alone(|| {
        let mut all = sites.iter().flat_map(|site| Kind::ALL.map(|kind| (site, kind)));
        all.try_for_each(|(site, kind)| site.traffic.measure(kind, SLICE).map(drop))
    })?;
    let mut block: Block = array::from_fn(|_| Vec::new());
    let mut round = Duration::ZERO;
    while round.is_zero() || Instant::now() + round < end {
        let start = Instant::now();
        for kind in TURNS {
            let turns = &mut block[kind as usize];
            let takes_part = |variant: usize| turns.is_empty() || !variants[variant].rough;
            turns.push(alone(|| turn(&sites, kind, takes_part))?);
            thread::sleep(PAUSE);
        }
        round = start.elapsed();
    }
    for (site, variant) in sites.into_iter().zip(variants) {
        site.end(&variant.setting).with_context(|| variant.name.to_owned())?;
    }
    Ok(block)
}

/// Measures each participating variant once.
fn turn(sites: &[Site], kind: Kind, takes_part: impl Fn(usize) -> bool) -> Result<Turn> {
    let mut turn = vec![None; sites.len()];
    for variant in shuffled(sites.len()) {
        if takes_part(variant) {
            turn[variant] = Some(sites[variant].traffic.measure(kind, SLICE)?);
        }
    }
    Ok(turn)
}

/// The numbers from 0, in random order.
fn shuffled(count: usize) -> Vec<usize> {
    let state = RandomState::new();
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_cached_key(|number| state.hash_one(number));
    order
}

impl Site {
    fn new(injector: &Injector, setting: &Setting) -> Result<Self> {
        let link = Link::new()?;
        let traffic = Traffic::new(&link)?;
        let attached = match setting {
            Setting::Nothing => Attached::Nothing,
            Setting::Empty => Attached::Programs { _links: peer::attach_empty(&link)? },
            Setting::U32(count) => {
                peer::install_u32(&link, *count)?;
                Attached::Nothing
            }
            Setting::Injector(rules, _) => Attached::Injector(injector.inject(&link.near, rules)?),
        };
        Ok(Self { traffic, attached, _link: link })
    }

    /// Checks the number of packets that injector matched.
    fn end(self, setting: &Setting) -> Result<()> {
        if let (Attached::Injector(running), Setting::Injector(_, is_match)) =
            (self.attached, setting)
        {
            let matched = running.stop()?;
            ensure!(
                (matched > 0) == *is_match,
                "{matched} packets matched: this does not measure what it should"
            );
        }
        Ok(())
    }
}

fn evaluate(variants: &[Variant], blocks: &[Block]) -> Throughput {
    let index = |name| variants.iter().position(|variant| variant.name == name);
    let nothing: Vec<usize> = [NOTHING, AGAIN].into_iter().filter_map(index).collect();
    let figure = |variant: usize, kind: Kind| {
        let rates =
            blocks.iter().flat_map(|block| &block[kind as usize]).filter_map(|turn| turn[variant]);
        let rates: Vec<f64> = rates.map(|rate| rate.whole).collect();
        let base: Vec<usize> = nothing.iter().copied().filter(|&base| base != variant).collect();
        let ratio = |of| ratio(blocks, kind, variant, &base, of);
        Figure {
            rate: median(&rates),
            sending: ratio(|rate| rate.sending),
            whole: ratio(|rate| rate.whole),
        }
    };
    let rows = variants.iter().enumerate().map(|(number, variant)| Row {
        name: variant.name,
        peer: matches!(variant.setting, Setting::Empty | Setting::U32(_)),
        tcp: figure(number, Kind::Tcp),
        tcp_alone: figure(number, Kind::TcpAlone),
        udp: figure(number, Kind::Udp),
        many: figure(number, Kind::Many),
    });
    let empty: Vec<usize> = index(EMPTY).into_iter().collect();
    let no_match = index(NO_MATCH).unwrap_or_default();
    Throughput {
        blocks: blocks.len(),
        rounds: blocks.iter().map(|block| block[Kind::Udp as usize].len()).sum(),
        rows: rows.collect(),
        udp_over_empty: ratio(blocks, Kind::Udp, no_match, &empty, |rate| rate.sending),
    }
}

/// The rate of a variant relative to the mean of others in the same turn: the median over a block's
/// turns, then the median over blocks with its interval.
fn ratio(
    blocks: &[Block],
    kind: Kind,
    variant: usize,
    base: &[usize],
    of: fn(&Rate) -> f64,
) -> Estimate {
    let of_turn = |turn: &Turn| {
        let rate = |variant: usize| turn[variant].as_ref().map(of);
        let sum: Option<f64> = base.iter().map(|&variant| rate(variant)).sum();
        Some(rate(variant)? * base.len() as f64 / sum?)
    };
    let of_block = |block: &Block| {
        let ratios: Vec<f64> = block[kind as usize].iter().filter_map(of_turn).collect();
        median(&ratios)
    };
    let values: Vec<f64> = blocks.iter().map(of_block).collect();
    Estimate::of(&values)
}
