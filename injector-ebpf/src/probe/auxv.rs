//! Hides the vDSO from a new program, so that it reads the time by system calls.
//!
//! A program finds the vDSO through the auxiliary vector (getauxval(3)). At `sched_process_exec`
//! the kernel has already placed the vector on the program's stack, right below 16 random bytes.
//! The type of the vDSO's entry is overwritten with `AT_IGNORE`.

use aya_ebpf::helpers::{bpf_probe_read_user, bpf_probe_write_user};

use crate::{current, kernel::field, maps, skew::count, task};

const AT_NULL: u64 = 0;
const AT_IGNORE: u64 = 1;
const AT_RANDOM: u64 = 25;
const AT_SYSINFO_EHDR: u64 = 33;

/// Maximum number of entries in the vector, with room for additions (26 in Linux 7.3).
const ENTRIES: u32 = 40;

/// Runs when a program starts.
#[inline(always)]
pub fn hide_vdso() {
    if maps::HIDE_VDSO.load() == 0 || !current::is_in_target() {
        return;
    }
    // Without a vDSO there is nothing to hide.
    let Some((vdso, _)) = task::vdso() else { return };
    if hide(vdso).is_some() {
        count(|counters| &mut counters.hidden);
    } else {
        count(|counters| &mut counters.not_hidden);
    }
}

#[inline(always)]
fn hide(vdso: u64) -> Option<()> {
    // Search backwards from the random bytes, which may be unaligned.
    let end = random_bytes()? & !7;
    let mut next = 0;
    for n in 1..=2 * ENTRIES {
        let address = (end - 8 * u64::from(n)) as *mut u64;
        // SAFETY: the helper checks the address.
        let word = unsafe { bpf_probe_read_user(address) }.ok()?;
        if word == AT_SYSINFO_EHDR && next == vdso {
            // SAFETY: the helper checks the address; this is the vDSO's entry.
            return unsafe { bpf_probe_write_user(address, &AT_IGNORE) }.ok();
        }
        next = word;
    }
    None
}

/// The address of the random bytes, from the kernel's copy of the vector.
#[inline(always)]
fn random_bytes() -> Option<u64> {
    let mm: u64 = field(task::address(), maps::TASK_MM.load())?;
    for n in 0..ENTRIES {
        let [kind, value]: [u64; 2] = field(mm, maps::MM_AUXV.load() + 16 * n)?;
        match kind {
            AT_NULL => return None,
            AT_RANDOM => return Some(value),
            _ => {}
        }
    }
    None
}
