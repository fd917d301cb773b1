//! Helpers for the kernel's verifier, which follows every path that it cannot prove equivalent to
//! an earlier one.

/// Returns `value`, but makes the verifier forget its bounds, so that paths which differ only in
/// this value are equivalent. `unknown` is any number without known bounds, for instance one from
/// the packet.
#[inline(always)]
#[must_use]
pub fn forget(value: u32, unknown: u32) -> u32 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = u64::from(value);
        // SAFETY: changes the register twice, with no net effect.
        unsafe {
            core::arch::asm!(
                "{value} ^= {unknown}",
                "{value} ^= {unknown}",
                value = inout(reg) value,
                unknown = in(reg) u64::from(unknown),
            );
        }
        value as u32
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        let _ = unknown;
        value
    }
}

/// Returns `address`, and makes the compiler compute it only once. The verifier only knows the
/// bounds of the register that was compared, not of another with the same value.
#[inline(always)]
#[must_use]
pub fn pin(address: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    {
        let mut address = address;
        // SAFETY: a move to itself; with no instruction at all, the line information would be
        // refused.
        unsafe {
            core::arch::asm!(
                "{address} = {address}",
                address = inout(reg) address,
                options(pure, nomem, nostack),
            );
        }
        address
    }
    #[cfg(not(target_arch = "bpf"))]
    address
}
