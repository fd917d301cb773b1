//! Answers a packet that is too long for the path, as a router would: ICMP "fragmentation needed"
//! (RFC 1191) or `ICMPv6` "packet too big" (RFC 4443).

use aya_ebpf::{
    bindings::BPF_F_RECOMPUTE_CSUM, helpers::generated::bpf_csum_diff, programs::TcContext,
};
use injector_common::{
    packet::{Direction, Family, Packet, protocol},
    rule::RULE_TOO_BIG,
};

use super::{checksum, reset::swap_addresses};
use crate::{
    maps,
    packet::{Case, Match, Verdict, skb},
};

/// How much of the packet the answer contains, beginning with the IP header.
const QUOTE: u32 = 128;

/// The length of the ICMP message: its header and the quote.
const MESSAGE: u32 = 8 + QUOTE;

const _: () = assert!(size_of::<maps::IcmpMessage>() == MESSAGE as usize);

/// The minimum MTU of IPv6 (RFC 8200): the least that an answer may tell.
const MIN_MTU_V6: u32 = 1280;

/// Replaces the packet with the answer to its sender, if the rule requires it. A packet that cannot
/// be answered passes: a router would fragment it.
#[inline(always)]
pub fn apply(case: &Case, matched: &mut Match) -> Option<Verdict> {
    let &Case { ctx, packet, direction, .. } = case;
    if !maps::has(matched.rule, RULE_TOO_BIG) {
        return None;
    }
    if !answer(ctx, packet, direction, u32::from(matched.rule.mtu)) {
        matched.counters.skipped += 1;
        return Some(Verdict::Pass);
    }
    matched.counters.too_big += 1;
    Some(match direction {
        Direction::Egress if skb::comes_back(ctx) => Verdict::Pass,
        Direction::Egress => Verdict::TurnedBack,
        Direction::Ingress => Verdict::SentBack,
    })
}

/// Replaces the packet. A separate function, so that the verifier follows the subsequent code only
/// once.
#[inline(never)]
fn answer(ctx: &TcContext, packet: &Packet, direction: Direction, mtu: u32) -> bool {
    attempt(ctx, packet, direction, mtu).is_some()
}

#[inline(always)]
fn attempt(ctx: &TcContext, packet: &Packet, direction: Direction, mtu: u32) -> Option<()> {
    /// Don't fragment (RFC 791).
    const DF: u16 = 0x4000;

    let l3 = usize::from(packet.l3);
    if packet.is_for_group() || packet.later_fragment {
        return None;
    }
    let (kind, mtu, header_length) = match packet.family {
        Family::V4 => {
            let field: u16 = ctx.load(l3 + 6).ok()?;
            if u16::from_be(field) & DF == 0 {
                return None;
            }
            (0x0304_0000_u32, mtu, 20)
        }
        Family::V6 => {
            if packet.wire_length(skb::segment_size(ctx)) <= MIN_MTU_V6 {
                return None;
            }
            (0x0200_0000, if mtu < MIN_MTU_V6 { MIN_MTU_V6 } else { mtu }, 40)
        }
    };
    let message = maps::MESSAGE.get_ptr_mut(0)?;
    // SAFETY: per CPU, and programs of one CPU do not interrupt each other within a hook.
    let message = unsafe { &mut *message };
    skb::load_into(ctx, packet.l3.into(), &mut message.quote).ok()?;
    message.header = [kind.to_be(), mtu.to_be()];
    let pseudo = match packet.family {
        Family::V4 => 0,
        Family::V6 => checksum::pseudo_header_of(packet, protocol::ICMPV6, MESSAGE),
    };
    let [high, low] = sum(message, pseudo.into()).to_ne_bytes();
    // The type and the code come before the checksum.
    message.header[0] |= u32::from_ne_bytes([0, 0, high, low]);

    if direction == Direction::Ingress {
        forget_checksum(ctx, packet);
    }
    let recompute = u64::from(BPF_F_RECOMPUTE_CSUM);
    let at = l3 + header_length;
    skb::truncate(ctx, at as u32 + MESSAGE).ok()?;
    swap_addresses(ctx, packet)?;
    match packet.family {
        Family::V4 => ip_v4(ctx, packet)?,
        Family::V6 => {
            let fixed = [0x6000_0000, MESSAGE << 16 | u32::from(protocol::ICMPV6) << 8 | 64];
            ctx.store(l3, &fixed.map(u32::to_be), recompute).ok()?;
        }
    }
    ctx.store(at, message, recompute).ok()
}

/// The checksum of the message with a zero checksum field.
#[inline(always)]
fn sum(message: &mut maps::IcmpMessage, seed: u32) -> u16 {
    let words = core::ptr::from_mut(message).cast();
    // SAFETY: a map value of this size.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, words, MESSAGE, seed) };
    !checksum::fold(sum as u64)
}

/// Writes the IPv4 header, except the addresses.
#[inline(always)]
fn ip_v4(ctx: &TcContext, packet: &Packet) -> Option<()> {
    let mut words = [
        (0x4500_0000 | (20 + MESSAGE)).to_be(),
        0,
        (64 << 24 | u32::from(protocol::ICMP) << 16).to_be(),
    ];
    let sum = words.iter().map(|word| u64::from(*word)).sum::<u64>()
        + u64::from(packet.source[0])
        + u64::from(packet.destination[0]);
    let [high, low] = (!checksum::fold(sum)).to_ne_bytes();
    let [ttl, protocol, _, _] = words[2].to_ne_bytes();
    words[2] = u32::from_ne_bytes([ttl, protocol, high, low]);
    ctx.store(usize::from(packet.l3), &words, u64::from(BPF_F_RECOMPUTE_CSUM)).ok()
}

/// Makes the kernel forget that it, or a network card, has yet to complete the packet's checksum,
/// which would overwrite a part of the answer. It forgets that once the start of the summed bytes
/// has been cut off. Where it cannot be cut off, the answer may arrive with a wrong checksum.
#[inline(always)]
fn forget_checksum(ctx: &TcContext, packet: &Packet) {
    /// More than the IP header with usual options or extensions.
    const CUT: u32 = 128;

    // First makes a GSO packet a plain one, of which more than the answer remains after the cuts.
    let is_plain = skb::truncate(ctx, u32::from(packet.l3) + 3 * CUT + MESSAGE).is_ok();
    if is_plain && skb::cut(ctx, CUT).is_ok() {
        // The kernel compares before it cuts, so this sees the effect of the first cut.
        let _ = skb::cut(ctx, 4);
    }
}
