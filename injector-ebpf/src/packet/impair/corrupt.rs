//! Corrupts a packet so that the receiver's kernel detects it (`wire`) or does not (`silent`).

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_RECOMPUTE_CSUM},
    programs::{TcContext, XdpContext},
};
use injector_common::{
    model::Decision,
    packet::{Packet, protocol},
    rule::{CorruptMode, RULE_CORRUPTS},
    verifier::pin,
};

use super::checksum;
use crate::{
    maps,
    packet::{Case, Match, skb},
};

/// Number of payload bytes in which bits are flipped. They must be made contiguous and private.
const REACH: u32 = 1024;

/// The longest segment whose checksum is verified at the XDP hook, in bytes: what an Ethernet frame holds.
const MAX_VERIFIED: u32 = 1500;

/// Corrupts the packet if the decision selected it.
#[inline(always)]
pub fn apply(case: &Case, matched: &mut Match, decision: &Decision) {
    if !maps::may_have(RULE_CORRUPTS) || !decision.corrupt {
        return;
    }
    if corrupt(case.ctx, case.packet, matched.rule.corrupt.mode, decision.position) {
        matched.counters.corrupted += 1;
    } else {
        matched.counters.skipped += 1;
    }
}

/// Corrupts the packet at the XDP hook.
#[inline(always)]
pub fn apply_to_frame(ctx: &XdpContext, packet: &Packet, matched: &mut Match, decision: &Decision) {
    if !maps::may_have(RULE_CORRUPTS) || !decision.corrupt {
        return;
    }
    if corrupt_frame(ctx, packet, matched.rule.corrupt.mode, decision.position) {
        matched.counters.corrupted += 1;
    } else {
        matched.counters.skipped += 1;
    }
}

/// Corrupts the packet; returns `false`, with the packet unchanged, if it has nothing to corrupt.
///
/// A separate function for the verifier: inlined, the compiler separates checks from the accesses
/// that they protect.
#[inline(never)]
fn corrupt(ctx: &TcContext, packet: &Packet, mode: u32, position: u32) -> bool {
    if mode == CorruptMode::Silent as u32 {
        silent(ctx, packet, position)
    } else {
        wire(ctx, packet, position)
    }
}

/// The offset of the 16-bit word to corrupt and the bit to flip, if the packet has payload. Words
/// are aligned to the upper-layer header, like the checksum.
#[inline(always)]
fn target(packet: &Packet, position: u32) -> Option<(u32, u16)> {
    let payload = u32::from(packet.payload);
    let length = packet.end.checked_sub(payload)?;
    if length == 0 {
        return None;
    }
    let words = (if length < REACH { length } else { REACH }).div_ceil(2);
    let word = (position >> 8) % words;
    // The last half word of an odd payload contains only the first byte.
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
    // Zero means "no checksum" in UDP. It must stay zero, and the repair must not produce it.
    let flags = if packet.protocol == protocol::UDP { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
    // A checksum that the hardware will complete stays unchanged.
    ctx.l4_csum_replace(checksum as usize, u64::from(from), u64::from(to), flags | 2).is_ok()
}

/// Corrupts the IP header, which the next receiver verifies, router or host.
///
/// An upper-layer checksum would not suffice. Routers do not verify it. Neither does the
/// destination if verification is left to the hardware (loopback, veth) or to an authenticating
/// protocol (`WireGuard`), or if such a tunnel is anywhere on the path.
#[inline(always)]
fn wire(ctx: &TcContext, packet: &Packet, position: u32) -> bool {
    let segment = skb::segment_size(ctx);
    if segment != 0 {
        // Segmentation would repair every header checksum, so the packet is cut to its first
        // segment. That arrives corrupted, the others do not arrive, and none reaches the
        // application.
        let length = u32::from(packet.payload) + segment;
        if length < ctx.len() && skb::truncate(ctx, length).is_err() {
            return break_version(ctx, packet, position);
        }
    }
    break_ip_header(ctx, packet, position)
}

/// Corrupts the IP version, which every receiver verifies too.
///
/// The kernel does not truncate a packet that it has put into a tunnel. Segmentation copies the version
/// to all segments of it, so none reaches the application.
#[inline(always)]
fn break_version(ctx: &TcContext, packet: &Packet, position: u32) -> bool {
    let mask = u16::from_ne_bytes([0x10 << (position & 3), 0]);
    let recompute = u64::from(BPF_F_RECOMPUTE_CSUM);
    flip(ctx, u32::from(packet.l3), mask, packet.end, recompute).is_some()
}

/// Corrupts a field that every receiver verifies: the IPv4 header checksum, or the IPv6 payload
/// length.
#[inline(always)]
fn break_ip_header(ctx: &TcContext, packet: &Packet, position: u32) -> bool {
    let recompute = u64::from(BPF_F_RECOMPUTE_CSUM);
    match checksum::ipv4_offset(packet) {
        Some(at) => flip(ctx, at, 1 << (position & 15), packet.end, recompute).is_some(),
        None => ctx.store(usize::from(packet.l3) + 4, &u16::MAX, recompute).is_ok(),
    }
}

/// Flips the bits in `mask` of the word at `at`; returns the word before and after.
#[inline(always)]
fn flip(ctx: &TcContext, at: u32, mask: u16, end: u32, flags: u64) -> Option<(u16, u16)> {
    if at + 2 > end {
        // The last half word of an odd payload; checksums pad it with zero.
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

/// Corrupts a packet at the XDP hook; `false` if that is not possible.
///
/// As at the other hooks, `wire` corrupts the IP header.
#[inline(always)]
fn corrupt_frame(ctx: &XdpContext, packet: &Packet, mode: u32, position: u32) -> bool {
    if mode == CorruptMode::Wire as u32 {
        let ipv4 = checksum::ipv4_offset(packet);
        // The payload length for IPv6.
        let Some(word) = word(ctx, ipv4.unwrap_or(u32::from(packet.l3) + 4)) else { return false };
        // SAFETY: within the frame, as checked by `word`.
        unsafe { *word = if ipv4.is_some() { *word ^ 1 << (position & 15) } else { u16::MAX } };
        return true;
    }
    let Some((at, mask)) = target(packet, position) else { return false };
    let Some(offset) = checksum::offset(packet) else { return false };
    // An odd last byte has no word of its own; use the one before.
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
        let without = packet.protocol == protocol::UDP && stored == 0;
        if !without && (!checksum::is_partial(packet, stored) || verifies(ctx, packet)) {
            // RFC 1624: HC' = ~(~HC + ~m + m').
            let sum = u64::from(!stored) + u64::from(!from) + u64::from(to);
            let repaired = !checksum::fold(sum);
            *field =
                if packet.protocol == protocol::UDP && repaired == 0 { u16::MAX } else { repaired };
        }
        *data = to;
    }
    true
}

/// Whether the checksum is right as it stands: one in 65,536 complete checksums equals the
/// pseudo-header sum, and the XDP hook does not see which of them the kernel has stored.
///
/// `false` for segments of more than [`MAX_VERIFIED`] bytes.
#[inline(never)]
fn verifies(ctx: &XdpContext, packet: &Packet) -> bool {
    let mut at = u32::from(packet.l4);
    let length = packet.end.wrapping_sub(at);
    let mut sum = u64::from(checksum::pseudo_header(packet, length));
    for _ in 0..MAX_VERIFIED / 2 {
        if at + 2 > packet.end {
            break;
        }
        let Some(word) = word(ctx, at) else { return false };
        // SAFETY: within the frame, as checked by `word`.
        sum += u64::from(unsafe { *word });
        at += 2;
    }
    if at + 1 == packet.end {
        // Checksums pad an odd last byte with zero.
        let Some(word) = word(ctx, at - 1) else { return false };
        // SAFETY: within the frame, as checked by `word`.
        let [_, last] = unsafe { *word }.to_ne_bytes();
        sum += u64::from(u16::from_ne_bytes([last, 0]));
        at += 1;
    }
    at == packet.end && checksum::fold(sum) == u16::MAX
}

/// The 16-bit word at `offset` of the frame, if the frame is long enough.
#[inline(always)]
fn word(ctx: &XdpContext, offset: u32) -> Option<*mut u16> {
    // The verifier requires a bound on what is added to a packet pointer, in the same register.
    let offset = pin(offset as usize);
    if offset > 0x3fff {
        return None;
    }
    let at = pin(ctx.data() + offset);
    if at + 2 > ctx.data_end() { None } else { Some(at as *mut u16) }
}
