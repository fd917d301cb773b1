//! Corrupting a packet, so that the receiver's kernel notices (`wire`) or does not (`silent`).

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_RECOMPUTE_CSUM},
    programs::{TcContext, XdpContext},
};
use injector_common::{
    model::Decision,
    packet::{Packet, protocol},
    rule::CorruptMode,
    verifier::pin,
};

use super::checksum;
use crate::packet::{Case, Match, skb};

/// Bits are flipped within so many bytes of payload, which must be made contiguous and private.
const REACH: u32 = 1024;

/// Corrupts the packet, if that was decided.
#[inline(always)]
pub fn apply(case: &Case, matched: &mut Match, decision: &Decision) {
    if !decision.corrupt {
        return;
    }
    if corrupt(case.ctx, case.packet, matched.rule.corrupt.mode, decision.position) {
        matched.counters.corrupted += 1;
    } else {
        matched.counters.skipped += 1;
    }
}

/// The same at the XDP hook.
#[inline(always)]
pub fn apply_to_frame(ctx: &XdpContext, packet: &Packet, matched: &mut Match, decision: &Decision) {
    if !decision.corrupt {
        return;
    }
    if corrupt_frame(ctx, packet, matched.rule.corrupt.mode, decision.position) {
        matched.counters.corrupted += 1;
    } else {
        matched.counters.skipped += 1;
    }
}

/// Corrupts the packet; `false` if it cannot be (nothing there to corrupt), and it is unchanged.
///
/// A function of its own for the verifier: inlined, the compiler moves parts of it to where the verifier
/// does not see that they belong together.
#[inline(never)]
fn corrupt(ctx: &TcContext, packet: &Packet, mode: u32, position: u32) -> bool {
    if mode == CorruptMode::Silent as u32 {
        silent(ctx, packet, position)
    } else {
        wire(ctx, packet, position)
    }
}

/// The offset of the 16-bit word to corrupt and the bit to flip in it, if the packet has payload.
/// Words are aligned to the upper-layer header, as the checksum is.
#[inline(always)]
fn target(packet: &Packet, position: u32) -> Option<(u32, u16)> {
    let payload = u32::from(packet.payload);
    let length = packet.end.checked_sub(payload)?;
    if length == 0 {
        return None;
    }
    let words = (if length < REACH { length } else { REACH }).div_ceil(2);
    let word = (position >> 8) % words;
    // In the half word at the end of an odd payload only the first byte exists.
    let byte = if word * 2 + 1 < length { position >> 4 & 1 } else { 0 };
    let bit = 1u16 << (position & 7);
    let mask = if byte == 0 {
        u16::from_ne_bytes([bit as u8, 0])
    } else {
        u16::from_ne_bytes([0, bit as u8])
    };
    Some((payload + word * 2, mask))
}

/// Flips a payload bit and repairs the checksum.
#[inline(always)]
fn silent(ctx: &TcContext, packet: &Packet, position: u32) -> bool {
    let Some((at, mask)) = target(packet, position) else { return false };
    let Some(checksum) = checksum::offset(packet) else { return false };
    let Some((from, to)) = flip(ctx, at, mask, packet.end, 0) else { return false };
    // Zero means "no checksum" in UDP and must stay so, nor may it come about by the repair.
    let flags = if packet.protocol == protocol::UDP { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
    // Leaves a checksum alone that the hardware will complete.
    ctx.l4_csum_replace(checksum as usize, u64::from(from), u64::from(to), flags | 2).is_ok()
}

/// Breaks the IP header, which whoever receives the packet next verifies, be it a router.
///
/// The checksum of the upper layer would not do: routers do not verify it, and nor does the host at the end where
/// it is left to the hardware (loopback, veth) or to what authenticates the packet (`WireGuard`), or where the packet
/// comes there by such a tunnel, anywhere on its way.
#[inline(always)]
fn wire(ctx: &TcContext, packet: &Packet, position: u32) -> bool {
    let segment = skb::segment_size(ctx);
    if segment != 0 {
        // Segmentation would repair every header checksum. The first segment stands for all: it
        // arrives broken, the others do not arrive, and none of them reaches the application.
        let length = u32::from(packet.payload) + segment;
        if length < ctx.len() && skb::truncate(ctx, length).is_err() {
            return false;
        }
    }
    break_ip_header(ctx, packet, position)
}

/// Breaks what every receiver verifies itself: the IPv4 header's checksum, or the IPv6 header's length.
#[inline(always)]
fn break_ip_header(ctx: &TcContext, packet: &Packet, position: u32) -> bool {
    let recompute = u64::from(BPF_F_RECOMPUTE_CSUM);
    match checksum::ipv4_offset(packet) {
        Some(at) => flip(ctx, at, 1 << (position & 15), packet.end, recompute).is_some(),
        None => ctx.store(usize::from(packet.l3) + 4, &u16::MAX, recompute).is_ok(),
    }
}

/// Flips the bits `mask` of the word at `at`; returns the word before and after.
#[inline(always)]
fn flip(ctx: &TcContext, at: u32, mask: u16, end: u32, flags: u64) -> Option<(u16, u16)> {
    if at + 2 > end {
        // The half word at the end of an odd payload; checksums pad it with zero.
        let from: u8 = ctx.load(at as usize).ok()?;
        let to = from ^ mask.to_ne_bytes()[0];
        ctx.store(at as usize, &to, flags).ok()?;
        return Some((u16::from_ne_bytes([from, 0]), u16::from_ne_bytes([to, 0])));
    }
    let from: u16 = ctx.load(at as usize).ok()?;
    let to = from ^ mask;
    ctx.store(at as usize, &to, flags).ok()?;
    Some((from, to))
}

/// Corrupts a packet at the XDP hook; `false` if it cannot be.
///
/// `wire` breaks the IP header, as at the other hooks.
#[inline(always)]
fn corrupt_frame(ctx: &XdpContext, packet: &Packet, mode: u32, position: u32) -> bool {
    if mode == CorruptMode::Wire as u32 {
        let ipv4 = checksum::ipv4_offset(packet);
        // For IPv6 the payload length.
        let Some(word) = word(ctx, ipv4.unwrap_or(u32::from(packet.l3) + 4)) else { return false };
        // SAFETY: within the frame, as checked by `word`.
        unsafe { *word = if ipv4.is_some() { *word ^ 1 << (position & 15) } else { u16::MAX } };
        return true;
    }
    let Some((at, mask)) = target(packet, position) else { return false };
    let Some(offset) = checksum::offset(packet) else { return false };
    // The odd byte at the end has no word of its own; the one before it will do.
    let at = if at + 2 > packet.end { at.wrapping_sub(2) } else { at };
    if at < u32::from(packet.payload) {
        return false;
    }
    let Some(data) = word(ctx, at) else { return false };
    let Some(field) = word(ctx, offset) else { return false };
    // SAFETY: within the frame, as checked by `word`.
    unsafe {
        let (from, stored) = (*data, *field);
        let to = from ^ mask;
        *data = to;
        let without = packet.protocol == protocol::UDP && stored == 0;
        if !without && !checksum::is_partial(packet, stored) {
            // RFC 1624: HC' = ~(~HC + ~m + m').
            let sum = u64::from(!stored) + u64::from(!from) + u64::from(to);
            let repaired = !checksum::fold(sum);
            *field =
                if packet.protocol == protocol::UDP && repaired == 0 { u16::MAX } else { repaired };
        }
    }
    true
}

/// The 16-bit word at `offset` of the frame, if it is there.
#[inline(always)]
fn word(ctx: &XdpContext, offset: u32) -> Option<*mut u16> {
    // The verifier wants a bound on what it adds to a packet pointer.
    if offset > 0x3fff {
        return None;
    }
    let at = pin(ctx.data() + offset as usize);
    if at + 2 > ctx.data_end() { None } else { Some(at as *mut u16) }
}
