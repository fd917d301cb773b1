//! The rate model: a link with a fixed bit rate behind a bounded queue. The only state is a virtual
//! clock, the time at which the link becomes free.
//!
//! That time is shifted by one burst, so that the initial state 0 is a link with its whole burst even
//! when the clock is near 0 (`CLOCK_MONOTONIC` starts at boot).
//!
//! The time of a packet is rounded down to whole nanoseconds. From about 25 Gbit/s, this makes short
//! packets faster than requested, by 2 % for 64 bytes.

/// Costs are in units of 2^-20 nanoseconds.
const COST_SHIFT: u32 = 20;

/// The maximum packet length in bytes. Longer ones are clamped, so that no product overflows.
const MAX_BYTES: u32 = 1 << 20;

/// A limited rate.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// The time of a byte in units of 2^-20 ns; 0 without a limit.
    pub cost: u64,
    /// The maximum idle time in nanoseconds that the link makes up for: the time of the bytes of a burst.
    pub burst_ns: u64,
    /// The queue limit as a time in nanoseconds. Packets that would wait longer are dropped (or marked).
    pub queue_ns: u64,
    /// Bytes added to the length of each packet; may be negative.
    pub overhead: i32,
    /// Explicit padding to a multiple of 8 bytes.
    pub reserved: u32,
    /// When the rate changes, if that is known in advance, on the clock of `now_ns`; 0 for never.
    pub next_ns: u64,
    /// [`Self::cost`] from then on.
    pub next_cost: u64,
}

/// The transmission of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmission {
    /// The queueing delay in nanoseconds.
    pub waits_ns: u64,
    /// When its last bit is on the wire, on the clock of `now_ns`; 0 if before the clock's zero.
    pub ends_ns: u64,
    /// The link state if the packet is sent, for the next [`Rate::transmit`].
    pub free_ns: u64,
}

impl Rate {
    /// A rate of `bits_a_second` (1000 to 10^12), with a burst in bytes and a queue limit in ns.
    #[must_use]
    pub fn new(bits_a_second: u64, burst: u64, queue_ns: u64, overhead: i32) -> Self {
        // Rounded up, so that packets of whole nanoseconds take exactly these.
        let cost = (8_000_000_000u128 << COST_SHIFT).div_ceil(u128::from(bits_a_second.max(1)));
        let cost = cost as u64;
        let rate = Self { cost, queue_ns, overhead, ..Self::default() };
        Self { burst_ns: rate.time_of(burst), ..rate }
    }

    /// The time of a number of bytes, in nanoseconds.
    #[must_use]
    pub fn time_of(&self, bytes: u64) -> u64 {
        let time = (u128::from(self.cost) * u128::from(bytes)) >> COST_SHIFT;
        u64::try_from(time).unwrap_or(u64::MAX)
    }

    /// When `length` bytes have left that start at `starts_ns`, both shifted by a burst.
    ///
    /// A separate function, so that the verifier follows the subsequent code only once.
    #[inline(never)]
    const fn end(&self, starts_ns: u64, length: u64) -> u64 {
        // Below 2^63 for 1 kbit/s and 2^20 bytes: no overflow.
        let ends_ns = starts_ns + ((self.cost * length) >> COST_SHIFT);
        let change_ns = self.next_ns + self.burst_ns;
        if self.next_ns == 0 || self.cost == 0 || ends_ns <= change_ns {
            return ends_ns;
        }
        let (starts_ns, length) = if starts_ns >= change_ns {
            (starts_ns, length)
        } else {
            // The bytes that are left at the change; at most `length`, so this does not overflow.
            (change_ns, ((ends_ns - change_ns) << COST_SHIFT) / self.cost)
        };
        starts_ns + ((self.next_cost * length) >> COST_SHIFT)
    }

    /// The transmission of a packet of `bytes` at `now_ns`. `free_ns` is the link state: 0 at first, then
    /// that of the last packet sent.
    #[inline(always)]
    #[must_use]
    pub const fn transmit(&self, free_ns: u64, now_ns: u64, bytes: u32) -> Transmission {
        let length = bytes as i64 + self.overhead as i64;
        let length = if length < 0 {
            0
        } else if length > MAX_BYTES as i64 {
            MAX_BYTES as u64
        } else {
            length as u64
        };
        // The shift by a burst makes a link that was idle for a burst free now.
        let starts_ns = if free_ns > now_ns { free_ns } else { now_ns };
        let free_ns = self.end(starts_ns, length);
        Transmission {
            waits_ns: starts_ns.saturating_sub(now_ns).saturating_sub(self.burst_ns),
            ends_ns: free_ns.saturating_sub(self.burst_ns),
            free_ns,
        }
    }
}
