//! What to compare with: the kernel's own u32 classifier, which netem users select packets by, and an eBPF
//! program that does nothing.

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

/// u32 numbers the filters of one priority by 12 bits.
const FILTERS_PER_PRIORITY: usize = 4000;

/// "I have nothing to say about this packet", of `enum tcx_action_base` (include/uapi/linux/bpf.h).
const TCX_NEXT: i32 = -1;

/// Puts `count` u32 filters on the near end's egress, one for each of the networks that `count` rules of
/// ours would be for.
///
/// A matching filter has no action, so this is the cost of finding it alone.
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

/// Puts a program that does nothing on the near end, where the injector has its own: both directions. It is
/// there until what is returned is dropped.
pub fn attach_empty(link: &Link) -> Result<[OwnedFd; 2]> {
    let program = load_empty(SCHED_CLS, TCX_NEXT).context("cannot load an empty program")?;
    let name = CString::new(NEAR)?;
    let tcx = |side| attach(program.as_fd(), &name, side, 0).context("cannot attach by tcx");
    link.near.run(|| Ok([tcx(TCX_EGRESS)?, tcx(TCX_INGRESS)?]))
}
