//! Sends a TCP RST to the local side of a connection, as if from its peer (RFC 9293, 3.10.7).

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_RECOMPUTE_CSUM, BPF_NOEXIST},
    helpers::generated::bpf_ktime_get_ns,
    programs::TcContext,
};
use aya_log_ebpf::debug;
use injector_common::{
    packet::{Direction, Family, Packet, protocol, tcp_flag},
    rule::{RULE_RESET, RULE_RESET_SYN, RULE_TOO_BIG},
};

use super::checksum;
use crate::{
    atomic, maps,
    packet::{Case, Match, Verdict, protect::connection, scope, skb},
};

/// Interval before a receiving connection gets another RST, which is not counted again: it may have
/// ignored the first, if that was not the next expected segment. A connection that still sends has
/// certainly ignored it, and gets another at once: the answer to an unexpected RST contains the
/// expected sequence number.
const AGAIN_AFTER_NS: u64 = 1_000_000;

/// Value in [`maps::RESET`] instead of a time: the connection is in its handshake.
const HANDSHAKE: u64 = u64::MAX;

/// Value in [`maps::RESET`] instead of a time: the handshake is complete, and nothing was reset.
const ESTABLISHED: u64 = u64::MAX - 1;

/// The packet is unchanged.
const NOT_RESET: u32 = 0;
/// The packet was replaced by the first RST of its connection.
const FIRST_RESET: u32 = 1;
/// The packet was replaced by another RST of its connection.
const RESET_AGAIN: u32 = 2;

/// Whether the rule requires an answer that would not arrive: a loopback packet keeps the NAT
/// translation of its own direction, so an answer made from it would be misrouted.
#[inline(always)]
pub fn is_astray(ctx: &TcContext, packet: &Packet, direction: Direction, matched: &Match) -> bool {
    maps::has(matched.rule, RULE_RESET | RULE_TOO_BIG)
        && direction == Direction::Egress
        && skb::comes_back(ctx)
        && scope::is_translated(ctx, packet)
}

/// Resets the packet's connection if the rule requires it.
#[inline(always)]
pub fn apply(case: &Case, matched: &mut Match) -> Option<Verdict> {
    let &Case { ctx, packet, direction, .. } = case;
    if !maps::has(matched.rule, RULE_RESET) {
        return None;
    }
    // Checked here, because Linux 6.1 rounds the stack of each function in a call chain up to 32
    // bytes, even for functions that are never called, and limits a chain to 512.
    let is_known = direction == Direction::Egress || scope::has_connection(ctx, packet);
    let reset = reset(ctx, packet, direction, matched.rule.flags, is_known);
    if reset == NOT_RESET {
        return None;
    }
    if reset == FIRST_RESET {
        matched.counters.reset += 1;
        debug!(ctx, "rule {}: connection reset", case.number);
    }
    Some(if direction == Direction::Egress && !skb::comes_back(ctx) {
        Verdict::TurnedBack
    } else {
        Verdict::Pass
    })
}

/// Replaces the packet with an RST for its local side, if it must be reset. On egress the caller
/// must then redirect it back, except on loopback, where it returns by itself. `is_known` says
/// whether the connection of a received packet (still) exists on this host.
///
/// A separate function that returns a number, so that the verifier follows the subsequent code only
/// once, whatever the path through this function.
#[inline(never)]
fn reset(
    ctx: &TcContext,
    packet: &Packet,
    direction: Direction,
    flags: u32,
    is_known: bool,
) -> u32 {
    match attempt(ctx, packet, direction, flags, is_known) {
        None => NOT_RESET,
        Some(true) => FIRST_RESET,
        Some(false) => RESET_AGAIN,
    }
}

/// Whether this was the connection's first reset; `None` if the packet was not reset.
#[inline(always)]
fn attempt(
    ctx: &TcContext,
    packet: &Packet,
    direction: Direction,
    rule_flags: u32,
    is_known: bool,
) -> Option<bool> {
    if packet.protocol != protocol::TCP || packet.fragment {
        return None;
    }
    let flags = packet.tcp_flags;
    if flags & tcp_flag::RST != 0 {
        return None;
    }
    let connection = connection(packet, direction);
    if flags & tcp_flag::SYN != 0 && rule_flags & RULE_RESET_SYN == 0 {
        // A new connection, possibly with the ports of one that was reset before.
        let _ = maps::RESET.insert(&connection, &HANDSHAKE, u64::from(BPF_ANY));
        return None;
    }
    // Packets of a connection may be judged on several CPUs at once. If the value is reused for another
    // connection meanwhile, one RST more or less is sent.
    let value = maps::RESET.get_ptr_mut(&connection);
    // SAFETY: map values are never freed while a program runs.
    let earlier = value.map(|value| unsafe { value.read_volatile() });
    if let Some(value) = value
        && earlier == Some(HANDSHAKE)
        && !packet.has_data
        && flags & tcp_flag::FIN == 0
    {
        // This acknowledgment completes the handshake. A reset in its place would make the connect
        // fail, or would hide the connection from the server under test.
        // SAFETY: as above; a map value is aligned to 8 bytes.
        unsafe { atomic::compare_exchange(value, HANDSHAKE, ESTABLISHED) };
        return None;
    }
    let last = earlier.filter(|at| *at < ESTABLISHED);
    // SAFETY: no pointers are passed.
    let now = unsafe { bpf_ktime_get_ns() };
    let is_recent = |at: u64| now.wrapping_sub(at) < AGAIN_AFTER_NS;
    if direction == Direction::Ingress
        && (last.is_some_and(is_recent)
            // The kernel answers packets of a closed connection itself, with an RST to the peer.
            || last.is_some() && !is_known)
    {
        return None;
    }
    match direction {
        Direction::Egress => answer(ctx, packet)?,
        Direction::Ingress => replace(ctx, packet)?,
    }
    // If two CPUs reset it at once, only one counts as the first.
    let is_changed = match (value, earlier) {
        // SAFETY: as above.
        (Some(value), Some(earlier)) => unsafe {
            atomic::compare_exchange(value, earlier, now) == earlier
        },
        _ => maps::RESET.insert(&connection, &now, u64::from(BPF_NOEXIST)).is_ok(),
    };
    Some(last.is_none() && is_changed)
}

/// Turns a sent packet into the RST that answers it, addressed to its sender.
#[inline(always)]
fn answer(ctx: &TcContext, packet: &Packet) -> Option<()> {
    let (sequence, acknowledged) = numbers(ctx, packet)?;
    let payload = packet.end.wrapping_sub(u32::from(packet.payload));
    let control = u32::from(packet.tcp_flags & tcp_flag::SYN != 0)
        + u32::from(packet.tcp_flags & tcp_flag::FIN != 0);
    let segment = Segment {
        source_port: packet.destination_port,
        destination_port: packet.source_port,
        // The sequence number that the local side expects next, and the end of its own data.
        sequence: acknowledged,
        acknowledgment: u32::from_be(sequence).wrapping_add(payload).wrapping_add(control).to_be(),
    };
    swap_addresses(ctx, packet)?;
    segment.write(ctx, packet)
}

/// Turns a received packet into an RST.
#[inline(always)]
fn replace(ctx: &TcContext, packet: &Packet) -> Option<()> {
    let (sequence, acknowledgment) = numbers(ctx, packet)?;
    let segment = Segment {
        source_port: packet.source_port,
        destination_port: packet.destination_port,
        sequence,
        acknowledgment,
    };
    segment.write(ctx, packet)
}

/// The sequence and acknowledgment numbers of the packet, in network byte order.
#[inline(always)]
fn numbers(ctx: &TcContext, packet: &Packet) -> Option<(u32, u32)> {
    let sequence = ctx.load(usize::from(packet.l4) + 4).ok()?;
    let acknowledgment = ctx.load(usize::from(packet.l4) + 8).ok()?;
    Some((sequence, acknowledgment))
}

/// An RST segment. Sequence numbers are in network byte order.
struct Segment {
    source_port: u16,
    destination_port: u16,
    sequence: u32,
    acknowledgment: u32,
}

impl Segment {
    /// Replaces the packet's TCP header and truncates the payload.
    #[inline(always)]
    fn write(&self, ctx: &TcContext, packet: &Packet) -> Option<()> {
        const HEADER: u32 = 20;
        const RST_ACK: u32 = (tcp_flag::RST | tcp_flag::ACK) as u32;

        let mut header = [
            (u32::from(self.source_port) << 16 | u32::from(self.destination_port)).to_be(),
            self.sequence,
            self.acknowledgment,
            ((HEADER / 4) << 28 | RST_ACK << 16).to_be(),
            0,
        ];
        // Swapping the addresses does not change their sum.
        header[4] = u32::from_ne_bytes({
            let [a, b] = checksum::tcp_header(packet, &mut header).to_ne_bytes();
            [a, b, 0, 0]
        });
        let recompute = u64::from(BPF_F_RECOMPUTE_CSUM);
        skb::truncate(ctx, u32::from(packet.l4) + HEADER).ok()?;
        ctx.store(usize::from(packet.l4), &header, recompute).ok()?;
        match packet.family {
            Family::V4 => {
                let at = usize::from(packet.l3) + 2;
                let before: u16 = ctx.load(at).ok()?;
                let length = (packet.l4 - packet.l3 + HEADER as u16).to_be();
                ctx.store(at, &length, recompute).ok()?;
                let checksum = usize::from(packet.l3) + 10;
                ctx.l3_csum_replace(checksum, u64::from(before), u64::from(length), 2).ok()
            }
            Family::V6 => {
                let length = (packet.l4 - packet.l3 - 40 + HEADER as u16).to_be();
                ctx.store(usize::from(packet.l3) + 4, &length, recompute).ok()
            }
        }
    }
}

/// Swaps source and destination, in the link-layer header (if any) and the IP header.
#[inline(always)]
pub fn swap_addresses(ctx: &TcContext, packet: &Packet) -> Option<()> {
    let l3 = usize::from(packet.l3);
    if l3 != 0 {
        let macs: [[u8; 6]; 2] = ctx.load(0).ok()?;
        ctx.store(0, &[macs[1], macs[0]], 0).ok()?;
    }
    let recompute = u64::from(BPF_F_RECOMPUTE_CSUM);
    // Reads the kept packet in place: a copy would use stack.
    match packet.family {
        Family::V4 => {
            ctx.store(l3 + 12, &packet.destination[0], recompute).ok()?;
            ctx.store(l3 + 16, &packet.source[0], recompute).ok()
        }
        Family::V6 => {
            ctx.store(l3 + 8, &packet.destination, recompute).ok()?;
            ctx.store(l3 + 24, &packet.source, recompute).ok()
        }
    }
}
