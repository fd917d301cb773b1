//! Received packets that return to their interface through the backlog of the CPU.
//!
//! The kernel drops what exceeds `net.core.netdev_max_backlog`, 1000 packets by default. A CPU takes up
//! to 64 GSO packets from its backlog in a row, and their segments would exceed that. So while many
//! packets wait, a GSO packet is put into the backlog itself, unsegmented, and segmented when it returns.
//!
//! A backlog is a queue. Packets keep their order as long as no packet is segmented while an earlier one
//! waits to be: a new packet while any waits, a returned one until the first that was sent back in the
//! current turn has returned.
//!
//! Packets are numbered per CPU. With receive packet steering they wait in the backlog of another CPU,
//! which takes an unsegmented one for a new one.

use aya_ebpf::{helpers::generated::bpf_get_smp_processor_id, programs::TcContext};

use super::skb;
use crate::maps;

/// The packets of a CPU that wait in a backlog, by number. It fills a cache line.
#[repr(C, align(64))]
pub struct Backlog {
    /// The last number given.
    sent: u32,
    /// The last number that returned.
    returned: u32,
    /// The first unsegmented packet of the current turn.
    first: u32,
    /// The last unsegmented packet.
    last: u32,
}

/// Words of the control block (`skb->cb`) of a packet in the backlog.
mod word {
    use crate::maps;

    pub const NUMBER: usize = 3;
    /// The CPU in the lower 12 bits, the sign above.
    pub const CPU: usize = 4;
    pub const SIGN: u32 = 0x94e6_1000;
    /// In place of the CPU: the packet has returned.
    pub const RETURNED: u32 = 0x51f2_c07a;
    /// It has returned, and has the right to be segmented now.
    pub const FIRST: u32 = 0x51f2_c07b;

    /// Tells a word of this injector from those of others.
    #[inline(always)]
    pub fn own(word: u32) -> u32 {
        word ^ maps::OWNER_MARK.load() << 12
    }
}

#[inline(always)]
fn this_cpu() -> u32 {
    // SAFETY: no pointers are passed.
    unsafe { bpf_get_smp_processor_id() & 0xfff }
}

#[inline(always)]
fn backlog(cpu: u32) -> Option<&'static mut Backlog> {
    // SAFETY: a map value. Only `returned` is written by other CPUs, and a stale value only delays
    // segmenting.
    Some(unsafe { &mut *maps::BACKLOG.get_ptr_mut(cpu)? })
}

/// Whether one number is after another.
#[inline(always)]
const fn is_after(number: u32, other: u32) -> bool {
    number.wrapping_sub(other).cast_signed() > 0
}

/// Notes that a received packet has arrived.
///
/// The result is in the packet, so that the verifier follows the subsequent code only once.
#[inline(always)]
pub fn arrive(ctx: &TcContext) {
    let cpu = skb::control(ctx, word::CPU) ^ word::own(word::SIGN);
    if cpu > 0xfff {
        return;
    }
    skb::take_priority(ctx);
    let mut arrival = 0;
    if let Some(backlog) = backlog(cpu) {
        let number = skb::control(ctx, word::NUMBER);
        backlog.returned = number;
        if cpu == this_cpu() {
            let is_first = number == backlog.first;
            arrival = word::own(if is_first { word::FIRST } else { word::RETURNED });
        }
    }
    skb::set_control(ctx, word::CPU, arrival);
}

/// Whether the packet must wait in the backlog before it is segmented. It must then [`enter`].
#[inline(always)]
pub fn must_wait(ctx: &TcContext) -> bool {
    let Some(backlog) = backlog(this_cpu()) else { return false };
    let arrival = skb::control(ctx, word::CPU);
    let waiting = backlog.sent.wrapping_sub(backlog.returned);
    let limit = maps::WIRE_BACKLOG.load();
    // So many cannot wait: the numbers of returned packets are lost on their way.
    if arrival == word::own(word::FIRST) || waiting > 8 * limit {
        return false;
    }
    let is_returned = arrival == word::own(word::RETURNED);
    let earlier = if is_returned { backlog.first } else { backlog.last };
    let must_wait =
        is_after(earlier, backlog.returned) || waiting.wrapping_add(skb::segments(ctx)) > limit;
    if must_wait {
        let number = backlog.sent.wrapping_add(1);
        if !is_after(backlog.first, backlog.returned) {
            backlog.first = number;
        }
        backlog.last = number;
    }
    must_wait
}

/// Numbers a packet that is about to be redirected into the receive path of an interface.
#[inline(always)]
pub fn enter(ctx: &TcContext) {
    let Some(backlog) = backlog(this_cpu()) else { return };
    backlog.sent = backlog.sent.wrapping_add(1);
    skb::send_priority(ctx, skb::metadata(ctx).priority);
    skb::set_control(ctx, word::NUMBER, backlog.sent);
    skb::set_control(ctx, word::CPU, word::own(word::SIGN) | this_cpu());
}
