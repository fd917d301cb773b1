//! Baselines: the kernel's u32 classifier, by which netem users select packets, and an empty eBPF
//! program.

use std::{
    ffi::CString,
    fmt::Write as _,
    io::Write as _,
    os::fd::{AsFd as _, OwnedFd},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};

use testbed::bpf::{SCHED_CLS, TCX_EGRESS, TCX_INGRESS, attach, load_empty};

use super::{
    link::{Link, NEAR},
    rules::networks,
};

/// u32 numbers the filters of one priority with 12 bits.
const FILTERS_PER_PRIORITY: usize = 4000;

/// Continue with the next program, of `enum tcx_action_base` (include/uapi/linux/bpf.h).
const TCX_NEXT: i32 = -1;

/// Adds `count` u32 filters to the near end's egress, for the same networks as `count` rules.
///
/// Filters have no action: only the cost of matching is measured.
pub fn install_u32(link: &Link, count: u32) -> Result<()> {
    let mut batch = format!("qdisc add dev {NEAR} clsact\n");
    for (number, network) in networks(count).enumerate() {
        let priority = 1 + number / FILTERS_PER_PRIORITY;
        writeln!(
            batch,
            "filter add dev {NEAR} egress prio {priority} protocol ip u32 match ip dst {network} flowid 1:1"
        )?;
    }
    let mut tc = link.near.command("tc")?;
    let mut tc = tc.args(["-batch", "-"]).stdin(Stdio::piped()).spawn().context("cannot run tc")?;
    tc.stdin.take().context("no standard input")?.write_all(batch.as_bytes())?;
    ensure!(tc.wait()?.success(), "tc failed");
    Ok(())
}

/// Attaches an empty program to both directions of the near end, as injector does. Dropping the
/// returned links detaches it.
pub fn attach_empty(link: &Link) -> Result<[OwnedFd; 2]> {
    let program = load_empty(SCHED_CLS, TCX_NEXT).context("cannot load an empty program")?;
    let name = CString::new(NEAR)?;
    let tcx = |side| attach(program.as_fd(), &name, side, 0).context("cannot attach by tcx");
    link.near.run(|| Ok([tcx(TCX_EGRESS)?, tcx(TCX_INGRESS)?]))
}
