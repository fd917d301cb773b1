//! The contenders that delay packets of the near end.

use std::fmt::{self, Display, Formatter};

use anyhow::{Context as _, Result, ensure};

use super::super::{
    injector::{Injector, Running},
    link::{Link, NEAR},
};

/// tc commands that redirect packets of the near end through another device, which marks them so that
/// they pass the second time.
const DETOUR: [&str; 9] = [
    "ip link add detour0 type veth peer name detour1",
    "ip link set detour0 up",
    "ip link set detour1 up",
    "tc qdisc add dev detour0 root fq limit 1000000 flow_limit 1000000",
    "tc qdisc add dev detour1 clsact",
    "tc filter add dev detour1 ingress u32 match u32 0 0 \
     action skbedit mark 1 pipe action mirred egress redirect dev near0",
    "tc qdisc add dev near0 clsact",
    "tc filter add dev near0 egress prio 1 u32 match mark 1 0xffffffff action pass",
    "tc filter add dev near0 egress prio 2 u32 match u32 0 0 action mirred egress redirect dev detour0",
];

/// A way to delay packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// netem as the root qdisc.
    Netem,
    /// The path of injector without delay: through fq on a second device and back, by tc actions. Shows
    /// the cost of not replacing the interface's root qdisc.
    Detour,
    /// Injector with the edt engine.
    Edt,
    /// Injector with the tap engine.
    Tap,
}

impl Display for Contender {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Netem => "netem",
            Self::Detour => "second device (fq, no eBPF)",
            Self::Edt => "injector (edt)",
            Self::Tap => "injector (tap)",
        })
    }
}

/// An active delay. Ends when dropped.
#[derive(Debug)]
pub struct Active<'a> {
    link: &'a Link,
    undo: &'static [&'static str],
    running: Option<Running>,
}

impl Contender {
    /// The contenders available on this kernel.
    pub fn here(link: &Link) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for (kind, contenders) in
            [("netem", &[Self::Netem][..]), ("fq", &[Self::Detour, Self::Edt])]
        {
            let mut add = link.near.command("tc")?;
            add.args(["qdisc", "add", "dev", NEAR, "root", kind]);
            if add.output().context("cannot run tc")?.status.success() {
                run(link, "tc qdisc del dev near0 root")?;
                all.extend(contenders);
            }
        }
        all.push(Self::Tap);
        Ok(all)
    }

    /// Delays packets of the near end by a number of milliseconds.
    pub fn start<'a>(self, link: &'a Link, injector: &Injector, ms: u32) -> Result<Active<'a>> {
        /// More than are ever queued. netem's default of 1000 would drop most packets.
        const LIMIT: u32 = 1_000_000;

        let mut active = Active { link, undo: &[], running: None };
        let delay = format!("{ms}ms");
        let engine = match self {
            Self::Netem => {
                active.undo = &["tc qdisc del dev near0 root"];
                run(
                    link,
                    &format!("tc qdisc add dev near0 root netem limit {LIMIT} delay {delay}"),
                )?;
                return Ok(active);
            }
            Self::Detour => {
                active.undo = &["tc qdisc del dev near0 clsact", "ip link del detour0"];
                DETOUR.iter().try_for_each(|line| run(link, line))?;
                return Ok(active);
            }
            Self::Edt => "edt",
            Self::Tap => "tap",
        };
        let mut command = injector.command(&link.near)?;
        command.args(["inject", "--interface", NEAR, "--no-protect", "--for", "forever"]);
        command.args(["--output", "json"]);
        command.args(["--direction", "egress", "--engine", engine, "--delay", &delay]);
        active.running = Some(Running::start(command)?);
        Ok(active)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        for line in self.undo {
            // The namespace ends with everything in it at the latest.
            let _ = run(self.link, line);
        }
        if let Some(running) = self.running.take() {
            // Stop it here: when dropped, it is killed and its device is left to the guardian.
            let _ = running.stop();
        }
    }
}

/// Runs a command at the near end.
fn run(link: &Link, command: &str) -> Result<()> {
    let mut words = command.split(' ');
    let program = words.next().context("an empty line")?;
    let status = link.near.command(program)?.args(words).status().context("cannot run it")?;
    ensure!(status.success(), "{command} failed");
    Ok(())
}
