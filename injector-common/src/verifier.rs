//! Help for the kernel's verifier, which follows each way through a program that it cannot prove equal
//! to one that it has followed before.

/// Returns `value`, without what the verifier knows of it, so that ways which differ in this value alone
/// count as equal. `unknown` is any number of which it knows nothing, for instance one from the packet.
#[inline(always)]
#[must_use]
pub fn forget(value: u32, unknown: u32) -> u32 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = u64::from(value);
        // SAFETY: changes the register twice, to the same effect as not at all.
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

/// Returns `address`, so that the compiler computes it once. The verifier knows of a bound only for the
/// very register that has been compared, not for another that is computed alike.
#[inline(always)]
#[must_use]
pub fn pin(address: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    {
        let mut address = address;
        // SAFETY: a move to itself; with no instruction at all, the line information would be refused.
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
