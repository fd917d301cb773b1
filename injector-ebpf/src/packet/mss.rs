//! Clamps the MSS of new TCP connections: the option of their SYN segments that tells the peer how
//! much a segment may carry (RFC 9293, 3.7.1).
//!
//! The SYN limits what the accepting side sends, and the SYN-ACK what the connecting side sends. Both
//! are changed, in whichever direction the rule acts.

use aya_ebpf::programs::TcContext;
use injector_common::{
    control::{Control, RuleSet},
    packet::{Direction, Family, Packet, protocol, tcp_flag},
    rule::RULE_CLAMPS,
    verifier::forget,
};

use super::{find, protect, scope, skb};
use crate::{clock, maps};

/// Clamps the MSS if the packet is a SYN of a connection that a rule limits. A sent packet must
/// belong to the target.
#[inline(always)]
pub fn clamp(
    ctx: &TcContext,
    packet: &Packet,
    direction: Direction,
    set: &RuleSet,
    control: &Control,
) {
    if !maps::may_have(RULE_CLAMPS)
        || set.connections.count == 0
        || packet.protocol != protocol::TCP
        || packet.tcp_flags & tcp_flag::SYN == 0
        || packet.fragment
    {
        return;
    }
    clamp_as(ctx, packet, direction, set, control);
    // The owner mark may prevent that the receiving side sees it again.
    if direction == Direction::Egress && skb::comes_back(ctx) {
        clamp_as(ctx, packet, Direction::Ingress, set, control);
    }
}

/// Clamps the MSS for the sender or the receiver of the packet.
#[inline(always)]
fn clamp_as(
    ctx: &TcContext,
    packet: &Packet,
    direction: Direction,
    set: &RuleSet,
    control: &Control,
) {
    let number = find::connection(packet, direction, set, control.bank);
    if number == find::NO_RULE
        || direction == Direction::Ingress
            && !scope::receives(ctx, packet, control.cgroup_id, control.cgroup_level)
        || protect::protects(packet, direction)
    {
        return;
    }
    let index = control.bank * maps::RULES_PER_BANK.load() + number;
    let Some(rule) = maps::RULES.get(index) else { return };
    let now = clock::now_ns();
    if now < rule.deadline_ns && now < control.lease_deadline_ns {
        rewrite(ctx, packet, rule.clamp_mtu.into());
    }
}

/// Lowers the MSS option for packets of at most `mtu` bytes. Returns whether there is such an option.
///
/// A separate function, so that the verifier follows the subsequent code only once.
#[inline(never)]
fn rewrite(ctx: &TcContext, packet: &Packet, mtu: u32) -> bool {
    attempt(ctx, packet, mtu).is_some()
}

#[inline(always)]
fn attempt(ctx: &TcContext, packet: &Packet, mtu: u32) -> Option<()> {
    const TCP_HEADER: u32 = 20;
    /// Options without the four bytes of an MSS.
    const MAX_OPTIONS: u32 = 40 - 4;
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const MSS: u8 = 2;

    let headers = TCP_HEADER
        + match packet.family {
            Family::V4 => 20,
            Family::V6 => 40,
        };
    let most = mtu.checked_sub(headers)? as u16;
    let l4 = u32::from(packet.l4);
    let mut at = l4 + TCP_HEADER;
    for _ in 0..=MAX_OPTIONS {
        if at + 4 > u32::from(packet.payload) {
            return None;
        }
        let [kind, length, high, low]: [u8; 4] = ctx.load(at as usize).ok()?;
        match (kind, length) {
            (NO_OPERATION, _) => at += 1,
            (MSS, 4) => {
                let mss = u16::from_be_bytes([high, low]);
                return if mss > most { replace(ctx, l4, at + 2, mss, most) } else { Some(()) };
            }
            (END, _) | (_, 0 | 1) => return None,
            (_, length) => at += u32::from(length),
        }
        // One path for the verifier, whatever the previous options.
        at = forget(at, packet.end);
    }
    None
}

/// Replaces a number of the TCP header and updates the checksum.
#[inline(always)]
fn replace(ctx: &TcContext, l4: u32, at: u32, from: u16, to: u16) -> Option<()> {
    const CHECKSUM: u32 = 16;

    ctx.store(at as usize, &to.to_be(), 0).ok()?;
    // At an odd offset, each byte counts in the other half of a word of the checksum.
    let is_odd = !(at - l4).is_multiple_of(2);
    let word = |number: u16| {
        let word = number.to_be();
        u64::from(if is_odd { word.swap_bytes() } else { word })
    };
    ctx.l4_csum_replace((l4 + CHECKSUM) as usize, word(from), word(to), 2).ok()
}
