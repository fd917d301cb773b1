//! Traffic over veth pairs, with and without the injector.
//!
//! Each variant has a link of its own, with what it is about attached. Traffic goes over one after the other in
//! short slices, in random order: a turn, within which ratios are taken, is a tenth of a second. What else the
//! machine does falls on all of them alike, or on few turns.
//!
//! Links differ by the luck of where their memory is. So there are blocks, each with new links, sockets and
//! injectors. A block has one value, the median of its turns; the interval is over blocks.

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
    peer,
    rules::RuleFile,
    say,
    traffic::{Kind, Rate, Traffic, alone},
};

/// How long traffic goes over one link at a time.
const SLICE: Duration = Duration::from_millis(10);

/// How long other programs have the processors to themselves after each turn.
const BREATH: Duration = Duration::from_millis(20);

/// What is sent in a round. TCP between two processors varies most.
const TURNS: [Kind; 6] = [Kind::Tcp, Kind::TcpAlone, Kind::Tcp, Kind::Udp, Kind::Tcp, Kind::Many];

/// The variant that the others are compared with. It is there twice, each compared with the other: what differs
/// is noise.
const NOTHING: &str = "nothing attached";
const AGAIN: &str = "nothing attached, again";
/// The variant that has targets.
pub const NO_MATCH: &str = "1 rule, no match";
/// What any eBPF program costs.
const EMPTY: &str = "empty tcx program";

/// One kind of traffic under one variant.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// Bits or packets a second, the median of all turns.
    pub rate: f64,
    /// What is sent in a second of the sender's processor time, by the mean of the same with nothing attached.
    pub sending: Estimate,
    /// What is sent and received in a second of wall-clock time, likewise.
    pub whole: Estimate,
}

/// What was measured of one variant.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The variant.
    pub name: &'static str,
    /// Whether it is a thing of the kernel to compare with.
    pub peer: bool,
    /// One TCP flow, in bits a second.
    pub tcp: Figure,
    /// The same on one processor.
    pub tcp_alone: Figure,
    /// One UDP flow, in packets a second.
    pub udp: Figure,
    /// UDP to 65,536 remotes, in packets a second.
    pub many: Figure,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Throughput {
    /// How many times everything was set up.
    pub blocks: usize,
    /// How many rounds there were in all.
    pub rounds: usize,
    /// By variant.
    pub rows: Vec<Row>,
    /// [`NO_MATCH`] by [`EMPTY`] instead of by [`NOTHING`]: UDP, by processor time.
    pub udp_over_empty: Estimate,
}

impl Throughput {
    /// The row of a variant.
    pub fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }
}

/// Something to measure.
struct Variant {
    name: &'static str,
    setting: Setting,
    /// Whether a rough figure is enough: that of the first turns of each block.
    rough: bool,
}

/// What is attached.
enum Setting {
    Nothing,
    /// An eBPF program that does nothing.
    Empty,
    /// So many u32 filters.
    U32(u32),
    /// The injector with these rules; whether packets are to match.
    Injector(RuleFile, bool),
}

/// A link with what is attached to it.
struct Site {
    traffic: Traffic,
    attached: Attached,
    // The last to go.
    _link: Link,
}

/// What has to be ended.
enum Attached {
    Nothing,
    Programs { _links: [OwnedFd; 2] },
    Injector(Running),
}

/// What was measured of one kind within a fraction of a second, by variant.
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
        say(&format!("throughput, block {number} of {count}"));
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

/// Sets everything up, and measures until `end`, or for a round at least.
fn block(injector: &Injector, variants: &[Variant], end: Instant) -> Result<Block> {
    let mut sites: Vec<Option<Site>> = variants.iter().map(|_| None).collect();
    for number in shuffled(variants.len()) {
        let variant = &variants[number];
        let site =
            Site::new(injector, &variant.setting).with_context(|| variant.name.to_owned())?;
        sites[number] = Some(site);
    }
    let sites: Vec<Site> = sites.into_iter().flatten().collect();
    // Neighbours, routes and windows settle.
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
            thread::sleep(BREATH);
        }
        round = start.elapsed();
    }
    for (site, variant) in sites.into_iter().zip(variants) {
        site.end(&variant.setting).with_context(|| variant.name.to_owned())?;
    }
    Ok(block)
}

/// Measures each variant that takes part, once.
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

    /// Checks that the injector did what it was to.
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

/// A variant's rate by the mean of those of others in the same turn: the median of a block's turns, and of these
/// the median and its interval.
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
