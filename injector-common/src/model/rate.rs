//! A link that sends so many bits a second, behind a bounded queue, as a virtual clock: all that is kept is
//! when the link will be free again.
//!
//! That time counts from a burst before the clock's zero. So 0, where each link begins, is a link that has its
//! whole burst, however near to zero the clock is (`CLOCK_MONOTONIC` begins when the machine boots).
//!
//! Each packet's time is rounded down to whole nanoseconds, so that short packets leave faster than asked from some
//! 25 Gbit/s on: those of 64 bytes by 2 %.

/// Costs are in units of 2^-this nanoseconds.
const COST_SHIFT: u32 = 20;

/// Bytes beyond which a packet counts as so long, so that no product overflows.
const MOST_BYTES: u32 = 1 << 20;

/// A limited rate.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Time that a byte takes, in units of 2^-20 ns; 0 if there is no limit.
    pub cost: u64,
    /// For so long the link may have been idle and still make up for it, in nanoseconds: the time that the
    /// bytes of a burst take.
    pub burst_ns: u64,
    /// A packet that would have to wait for longer is dropped (or marked), in nanoseconds.
    pub queue_ns: u64,
    /// Bytes that the link adds to each packet, or takes off.
    pub overhead: i32,
    /// Keeps the size a multiple of 8 without implicit padding.
    pub reserved: u32,
}

/// What sending one packet means to the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmission {
    /// For how long the packet waits for those before it, in nanoseconds.
    pub waits_ns: u64,
    /// When its last bit is on the wire, on the same clock as `now_ns`; 0 if that was before the clock's zero.
    pub ends_ns: u64,
    /// When the link is free again if the packet is sent, for the next [`Rate::transmit`].
    pub free_ns: u64,
}

impl Rate {
    /// At `bits_a_second` (1000 to 10^12), with a burst in bytes; the queue is given as a time.
    #[must_use]
    pub fn new(bits_a_second: u64, burst: u64, queue_ns: u64, overhead: i32) -> Self {
        // Rounded up, so that a packet of whole nanoseconds takes these.
        let cost = (8_000_000_000u128 << COST_SHIFT).div_ceil(u128::from(bits_a_second.max(1)));
        let cost = cost as u64;
        let rate = Self { cost, queue_ns, overhead, ..Self::default() };
        Self { burst_ns: rate.time_of(burst), ..rate }
    }

    /// The time that so many bytes take, in nanoseconds.
    #[must_use]
    pub fn time_of(&self, bytes: u64) -> u64 {
        let time = (u128::from(self.cost) * u128::from(bytes)) >> COST_SHIFT;
        u64::try_from(time).unwrap_or(u64::MAX)
    }

    /// What becomes of a packet of `bytes` at `now_ns` if the link is free from `free_ns` on, which is 0 for the first
    /// packet, then what the last packet that was sent has left it at.
    #[inline(always)]
    #[must_use]
    pub const fn transmit(&self, free_ns: u64, now_ns: u64, bytes: u32) -> Transmission {
        let length = bytes as i64 + self.overhead as i64;
        let length = if length < 0 {
            0
        } else if length > MOST_BYTES as i64 {
            MOST_BYTES as u64
        } else {
            length as u64
        };
        // What is a burst before now counts as now.
        let starts_ns = if free_ns > now_ns { free_ns } else { now_ns };
        // Below 2^63 for 1 kbit/s and 2^20 bytes: no overflow.
        let free_ns = starts_ns + ((self.cost * length) >> COST_SHIFT);
        Transmission {
            waits_ns: starts_ns.saturating_sub(now_ns).saturating_sub(self.burst_ns),
            ends_ns: free_ns.saturating_sub(self.burst_ns),
            free_ns,
        }
    }
}
