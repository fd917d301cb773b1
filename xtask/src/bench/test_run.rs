//! Time a packet by `BPF_PROG_TEST_RUN`: the program alone, without the network stack.
//!
//! The kernel runs the program on one skb repeatedly. Classified packets are marked in the skb and
//! skipped later, so the programs are loaded without a mark (an owner mark of 0). The counters verify
//! that each run was complete.

mod case;

use std::{fs, os::unix::fs::MetadataExt as _};

use anyhow::{Context as _, Result, ensure};
use injector_user::target::cgroup::Hierarchy;
use serde::Serialize;

use super::{
    namespace::Namespace,
    numbers::{median, spread},
    progress,
};
use case::Case;
pub use case::{EMPTY_TC, EMPTY_XDP, MATCH, NO_MATCH, XDP_LOSS};

/// The result of one program with one set of rules.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The name of the case.
    pub name: &'static str,
    /// The number of rules.
    pub rules: u32,
    /// The median time a packet of all rounds, in nanoseconds.
    pub ns: f64,
    /// Half the interquartile range.
    pub spread: f64,
}

/// Measures in rounds, each case once in each.
pub fn measure(quick: bool) -> Result<Vec<Row>> {
    let (repeat, rounds) = if quick { (200_000, 7) } else { (1_000_000, 11) };
    let own = own_cgroup()?;
    // The programs run on the loopback of the calling thread's namespace.
    Namespace::new()?.run(|| {
        progress("BPF_PROG_TEST_RUN, loading");
        let mut cases = case::all(own)?;
        for case in &mut cases {
            case.run(repeat / 10)?;
        }
        let mut times = vec![Vec::new(); cases.len()];
        for round in 0..rounds {
            progress(&format!("BPF_PROG_TEST_RUN, round {}", round + 1));
            for (case, times) in cases.iter_mut().zip(&mut times) {
                times.push(case.run(repeat).with_context(|| case.name.to_owned())?);
            }
        }
        let runs = u64::from(repeat / 10) + u64::from(repeat) * rounds;
        cases.iter_mut().zip(times).map(|(case, times)| row(case, runs, &times)).collect()
    })
}

fn row(case: &mut Case, runs: u64, times: &[f64]) -> Result<Row> {
    let matched = case.matched()?;
    let expected = if case.matches { runs } else { 0 };
    ensure!(
        matched == expected,
        "{}, {} rules: {matched} packets matched of {expected}: this does not measure what it should",
        case.name,
        case.rules
    );
    Ok(Row { name: case.name, rules: case.rules, ns: median(times), spread: spread(times) })
}

/// The ID and level of this process's cgroup, which the kernel also uses for the packet.
fn own_cgroup() -> Result<(u64, u32)> {
    let hierarchy = Hierarchy::find()?;
    let path = hierarchy.path_of_process(std::process::id().cast_signed())?;
    // The root cgroup, at level 0, is refused as a target.
    hierarchy.open(&path).map_or_else(
        |_| Ok((fs::metadata(&path)?.ino(), 0)),
        |cgroup| Ok((cgroup.id, cgroup.level)),
    )
}
