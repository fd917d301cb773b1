//! Traffic over a veth pair, with and without the injector.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::{
    injector::Injector,
    link::Link,
    numbers::{median, spread},
    peer,
    rules::RuleFile,
    say,
    traffic::{Kind, Rate, Traffic},
};

/// One kind of traffic under one variant.
#[derive(Debug, Default, Serialize)]
pub struct Figure {
    /// Bits or packets a second, the median of all rounds.
    pub rate: f64,
    /// How much is sent in a second of the sender's processor time, divided by that of the same round with nothing attached (the mean of both times), the median
    /// of all rounds.
    pub ratio: f64,
    /// Half the distance between the quartiles of the ratio.
    pub spread: f64,
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
    /// One UDP flow, in packets a second.
    pub udp: Figure,
    /// UDP to 65,536 remotes, in packets a second.
    pub many: Figure,
}

/// Something to measure.
struct Variant {
    name: &'static str,
    setting: Setting,
    /// By [`Kind::ALL`], one a round.
    rates: [Vec<Rate>; 3],
}

enum Setting {
    /// Nothing is attached.
    Nothing,
    /// The injector with these rules; whether packets are to match.
    Injector(RuleFile, bool),
    /// A link of its own, prepared beforehand.
    Peer(Box<(Link, Traffic)>),
}

/// Measures in rounds, each variant once in each.
pub fn measure(injector: &Injector, quick: bool) -> Result<Vec<Row>> {
    let (slot, limit, most) = if quick {
        (Duration::from_millis(120), Duration::from_secs(22), 5)
    } else {
        (Duration::from_millis(400), Duration::from_secs(230), 31)
    };
    let link = Link::new()?;
    let traffic = Traffic::new(&link)?;
    let mut variants = variants(quick)?;
    for kind in Kind::ALL {
        // Neighbours, routes and windows settle.
        traffic.measure(kind, slot)?;
    }
    let start = Instant::now();
    let mut longest = Duration::ZERO;
    for round in 0..most {
        if start.elapsed() + longest > limit {
            break;
        }
        let before = Instant::now();
        say(&format!("throughput, round {}", round + 1));
        let count = variants.len();
        for number in 0..count {
            // Each round starts elsewhere, so that none always runs after the same one.
            let variant = &mut variants[(number + round) % count];
            variant
                .measure(injector, &link, &traffic, slot)
                .with_context(|| variant.name.to_owned())?;
        }
        longest = longest.max(before.elapsed());
    }
    Ok(rows(&variants))
}

fn variants(quick: bool) -> Result<Vec<Variant>> {
    const NO_LOSS: &str = "loss: 0%";

    let ours = |rules, matches| Setting::Injector(rules, matches);
    let mut settings = vec![
        (NOTHING, Setting::Nothing),
        (NO_MATCH, ours(RuleFile::elsewhere(1, NO_LOSS)?, false)),
        ("65,536 rules, no match", ours(RuleFile::elsewhere(65_536, NO_LOSS)?, false)),
        ("1 rule, match at 0 %", ours(RuleFile::matching(1, NO_LOSS)?, true)),
        ("1,000 rules, match at 0 %", ours(RuleFile::matching(1000, NO_LOSS)?, true)),
        ("65,536 rules, match at 0 %", ours(RuleFile::matching(65_536, NO_LOSS)?, true)),
        (AGAIN, Setting::Nothing),
        ("tc u32, 1 filter", u32_filters(1)?),
        ("tc u32, 1,000 filters", u32_filters(1000)?),
    ];
    if !quick {
        settings.push(("tc u32, 65,536 filters", u32_filters(65_536)?));
    }
    Ok(settings
        .into_iter()
        .map(|(name, setting)| Variant { name, setting, rates: Default::default() })
        .collect())
}

/// The variant that the others are compared with.
pub const NOTHING: &str = "nothing attached";
/// The same a second time, which shows how much is noise.
const AGAIN: &str = "nothing attached, again";
/// The variant that has a target.
pub const NO_MATCH: &str = "1 rule, no match";

fn u32_filters(count: u32) -> Result<Setting> {
    let link = Link::new()?;
    let traffic = Traffic::new(&link)?;
    peer::install_u32(&link, count)?;
    Ok(Setting::Peer(Box::new((link, traffic))))
}

impl Variant {
    fn measure(
        &mut self,
        injector: &Injector,
        link: &Link,
        traffic: &Traffic,
        slot: Duration,
    ) -> Result<()> {
        match &self.setting {
            Setting::Nothing => each_kind(traffic, slot, &mut self.rates),
            Setting::Peer(peer) => each_kind(&peer.1, slot, &mut self.rates),
            Setting::Injector(rules, is_match) => {
                let running = injector.inject(&link.near, rules)?;
                each_kind(traffic, slot, &mut self.rates)?;
                let matched = running.stop()?;
                ensure!(
                    (matched > 0) == *is_match,
                    "{matched} packets matched: this does not measure what it should"
                );
                Ok(())
            }
        }
    }
}

fn each_kind(traffic: &Traffic, slot: Duration, rates: &mut [Vec<Rate>; 3]) -> Result<()> {
    for (kind, rates) in Kind::ALL.into_iter().zip(rates) {
        rates.push(traffic.measure(kind, slot)?);
    }
    Ok(())
}

fn rows(variants: &[Variant]) -> Vec<Row> {
    let nothing: Vec<&Variant> =
        variants.iter().filter(|variant| matches!(variant.setting, Setting::Nothing)).collect();
    let base = |kind: usize, round: usize| {
        let rates = nothing.iter().map(|variant| variant.rates[kind][round].a_cpu_second);
        rates.sum::<f64>() / nothing.len() as f64
    };
    let figure = |variant: &Variant, kind: usize| {
        let rates = &variant.rates[kind];
        let ratio = |(round, rate): (usize, &Rate)| rate.a_cpu_second / base(kind, round);
        let ratios: Vec<f64> = rates.iter().enumerate().map(ratio).collect();
        let rates: Vec<f64> = rates.iter().map(|rate| rate.a_second).collect();
        Figure { rate: median(&rates), ratio: median(&ratios), spread: spread(&ratios) }
    };
    variants
        .iter()
        .map(|variant| Row {
            name: variant.name,
            peer: matches!(variant.setting, Setting::Peer(_)),
            tcp: figure(variant, 0),
            udp: figure(variant, 1),
            many: figure(variant, 2),
        })
        .collect()
}
