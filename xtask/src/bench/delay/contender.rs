//! What delays the packets of the near end.

use std::{
    fmt::{self, Display, Formatter},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::super::{
    injector::{Injector, Running},
    link::{Link, NEAR},
};

/// Who delays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// The kernel's own emulator, as the root qdisc.
    Netem,
    /// Ours in the kernel.
    Edt,
    /// Ours in userspace.
    Tap,
}

impl Display for Contender {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Netem => "netem",
            Self::Edt => "injector (edt)",
            Self::Tap => "injector (tap)",
        })
    }
}

/// An active delay. Ends when it is dropped.
#[derive(Debug)]
pub struct Active<'a> {
    link: &'a Link,
    has_qdisc: bool,
    running: Option<Running>,
}

impl Contender {
    /// Those that this kernel can have.
    pub fn here(link: &Link) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for (kind, contender) in [("netem", Self::Netem), ("fq", Self::Edt)] {
            let mut add = link.near.command("tc")?;
            add.args(["qdisc", "add", "dev", NEAR, "root", kind]);
            if add.output().context("cannot run tc")?.status.success() {
                run(link.near.command("tc")?.args(["qdisc", "del", "dev", NEAR, "root"]))?;
                all.push(contender);
            }
        }
        all.push(Self::Tap);
        Ok(all)
    }

    /// Delays what the near end sends by so many milliseconds.
    pub fn start<'a>(self, link: &'a Link, injector: &Injector, ms: u32) -> Result<Active<'a>> {
        /// More than ever waits; netem's default of 1000 would lose most.
        const LIMIT: &str = "1000000";

        let mut active = Active { link, has_qdisc: false, running: None };
        let delay = format!("{ms}ms");
        let engine = match self {
            Self::Netem => {
                let add = ["qdisc", "add", "dev", NEAR, "root", "netem", "limit", LIMIT, "delay"];
                run(link.near.command("tc")?.args(add).arg(&delay))?;
                active.has_qdisc = true;
                return Ok(active);
            }
            Self::Edt => "edt",
            Self::Tap => "tap",
        };
        let mut command = injector.command(&link.near)?;
        command.args(["inject", "--interface", NEAR, "--no-protect", "--output", "json"]);
        command.args(["--direction", "egress", "--engine", engine, "--delay", &delay]);
        active.running = Some(Running::start(command)?);
        Ok(active)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        if self.has_qdisc {
            // The qdisc goes with the namespace at the latest.
            let _ = self
                .link
                .near
                .command("tc")
                .and_then(|mut tc| run(tc.args(["qdisc", "del", "dev", NEAR, "root"])));
        }
        if let Some(running) = self.running.take() {
            // Dropped, it would be killed, and its device left to the guardian.
            let _ = running.stop();
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().context("cannot run tc")?;
    ensure!(status.success(), "{command:?} failed");
    Ok(())
}
