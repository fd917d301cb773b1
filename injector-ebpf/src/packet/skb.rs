//! Access to an skb: its headers, its mark of having been judged, its turning back.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS},
    helpers::generated::{
        bpf_get_hash_recalc, bpf_redirect, bpf_set_hash, bpf_skb_change_tail, bpf_skb_change_type,
        bpf_skb_ecn_set_ce, bpf_skb_vlan_pop, bpf_skb_vlan_push,
    },
    programs::TcContext,
};
use injector_common::{
    hold::{Metadata, TAG_PROTOCOL},
    packet::{
        Packet,
        parse::{self, Link, Unparsed},
    },
    verifier,
};

use crate::maps;

/// Headers are looked for in so many bytes: Ethernet, two VLAN tags, IPv6, a few extension headers, TCP.
const HEADERS: u32 = 256;

/// Ethernet, IPv4 and TCP without options.
const LEAST_HEADERS: u32 = 14 + 20 + 20;

#[inline(always)]
fn raw(ctx: &TcContext) -> *mut __sk_buff {
    ctx.skb.skb
}

/// Whether this instance has judged the packet before, at another hook.
#[inline(always)]
pub fn is_judged(ctx: &TcContext) -> bool {
    // SAFETY: the context is readable.
    unsafe { (*raw(ctx)).tc_index & maps::JUDGED_BIT.load() != 0 }
}

/// Marks the packet as judged. `tc_index` is used, and not the mark, because no routing or filtering
/// depends on it.
#[inline(always)]
pub fn set_judged(ctx: &TcContext) {
    // SAFETY: tc programs may write this field.
    unsafe { (*raw(ctx)).tc_index |= maps::JUDGED_BIT.load() };
}

/// The interface that the packet is on.
#[inline(always)]
pub fn interface(ctx: &TcContext) -> u32 {
    // SAFETY: the context is readable.
    unsafe { (*raw(ctx)).ifindex }
}

/// How many payload bytes each segment of a GSO packet carries; 0 if it is one wire packet.
#[inline(always)]
pub fn segment_size(ctx: &TcContext) -> u32 {
    // SAFETY: the context is readable.
    unsafe { (*raw(ctx)).gso_size }
}

/// Parses the headers, made contiguous first if they are not.
///
/// Packets of the kernel's own protocols and of drivers have their headers in one piece, at least those of
/// Ethernet, IPv4 and TCP; if these are not, nothing is taken for granted. Trying first and making
/// contiguous only on failure would be exact, but doubles the verifier's work.
#[inline(always)]
pub fn parse(ctx: &TcContext, link: Link, packet: &mut Packet) -> Result<(), Unparsed> {
    let linear = (ctx.data_end() - ctx.data()) as u32;
    if linear < LEAST_HEADERS && linear < ctx.len() {
        let wanted = if ctx.len() < HEADERS { ctx.len() } else { HEADERS };
        // If there is no memory for it, the packet counts as unparsed.
        let _ = ctx.pull_data(wanted);
    }
    // SAFETY: the kernel makes data..data_end readable; the verifier checks that we keep to it.
    unsafe { parse::parse(ctx.data(), ctx.data_end(), ctx.len(), link, packet) }
}

/// `skb->pkt_type`: for all hosts.
const PACKET_BROADCAST: u32 = 1;

/// `skb->pkt_type`: this host's own copy of what it sends to a group or to all hosts.
const PACKET_LOOPBACK: u32 = 5;

/// Whether the packet is this host's own copy of what it sends to a group or to all hosts. The kernel receives
/// it on the interface that it is sent by, but without a link-layer header.
#[inline(always)]
pub fn is_own_copy(ctx: &TcContext) -> bool {
    // SAFETY: the context is readable.
    unsafe { (*raw(ctx)).pkt_type == PACKET_LOOPBACK }
}

/// Whether the packet was sent to all hosts of the link.
#[inline(always)]
pub fn is_broadcast(ctx: &TcContext) -> bool {
    // SAFETY: the context is readable.
    unsafe { (*raw(ctx)).pkt_type == PACKET_BROADCAST }
}

/// Whether the interface is the loopback, which gives each sent packet to this host together with the
/// packet's route. If the packet is redirected, it loses that route, and the kernel takes an IPv4 packet from
/// one of its own addresses for a martian.
#[inline(always)]
pub fn comes_back(ctx: &TcContext) -> bool {
    /// The loopback's index in every network namespace (`LOOPBACK_IFINDEX`).
    const LOOPBACK: u32 = 1;
    interface(ctx) == LOOPBACK
}

/// Sends the packet into the receive path of its own interface.
#[inline(always)]
pub fn turn_back(ctx: &TcContext) -> i32 {
    // SAFETY: no pointers are passed.
    unsafe { bpf_redirect(interface(ctx), u64::from(BPF_F_INGRESS)) as i32 }
}

/// Cuts the packet off after `length` bytes; a GSO packet becomes a plain one.
#[inline(always)]
pub fn truncate(ctx: &TcContext, length: u32) -> Result<(), ()> {
    // SAFETY: the context's own skb.
    if unsafe { bpf_skb_change_tail(raw(ctx), length, 0) } == 0 { Ok(()) } else { Err(()) }
}

/// How many bytes the packet has on the wire. The headers of each segment of a GSO packet count when it is sent,
/// but not those of packets that were merged on receipt (GRO).
#[inline(always)]
pub fn wire_length(ctx: &TcContext) -> u32 {
    // SAFETY: the context is readable.
    unsafe { (*raw(ctx)).wire_len }
}

/// Marks the packet as having met congestion (RFC 3168), unless its sender does not know that.
#[inline(always)]
pub fn mark_congestion(ctx: &TcContext) -> bool {
    // SAFETY: the context's own skb.
    unsafe { bpf_skb_ecn_set_ce(raw(ctx)) == 1 }
}

/// Puts a VLAN tag of ours on top; the packet's own ones stay below it.
#[inline(always)]
pub fn push_tag(ctx: &TcContext, tag: u16) -> bool {
    // SAFETY: the context's own skb.
    unsafe { bpf_skb_vlan_push(raw(ctx), TAG_PROTOCOL.to_be(), tag) == 0 }
}

/// Takes the uppermost VLAN tag off.
#[inline(always)]
pub fn pop_tag(ctx: &TcContext) -> bool {
    // SAFETY: the context's own skb.
    unsafe { bpf_skb_vlan_pop(raw(ctx)) == 0 }
}

/// What the uppermost VLAN tag says.
#[inline(always)]
pub fn tag(ctx: &TcContext) -> Option<u16> {
    // SAFETY: the context is readable.
    unsafe { ((*raw(ctx)).vlan_present != 0).then(|| (*raw(ctx)).vlan_tci as u16) }
}

/// Whether the packet is charged to a socket: to its sender's, until its own host's stack takes it in. That goes
/// for received packets too, if they come over a veth from a sender on this machine.
#[inline(always)]
pub fn has_socket(ctx: &TcContext) -> bool {
    // SAFETY: the context is readable; nothing but the address is looked at.
    unsafe { !(*raw(ctx)).__bindgen_anon_2.sk.is_null() }
}

/// Has the kernel compute the packet's hash now if it has none: of a packet with a tag of ours on top, it would be
/// another one.
#[inline(always)]
pub fn keep_hash(ctx: &TcContext) {
    // SAFETY: the context's own skb. What it returns is in the packet as well.
    unsafe { bpf_get_hash_recalc(raw(ctx)) };
}

/// What the packet bears besides its bytes.
#[inline(always)]
pub fn metadata(ctx: &TcContext) -> Metadata {
    let skb = raw(ctx);
    // SAFETY: the context is readable.
    unsafe {
        Metadata {
            mark: (*skb).mark,
            priority: (*skb).priority,
            tc_index: (*skb).tc_index,
            queue: (*skb).queue_mapping,
            hash: (*skb).hash,
        }
    }
}

/// Gives the packet what another one bore, but for `queue` and `priority`.
#[inline(always)]
pub fn set_metadata(ctx: &TcContext, metadata: &Metadata) {
    let skb = raw(ctx);
    // SAFETY: tc programs may write these fields; the context's own skb.
    unsafe {
        (*skb).mark = metadata.mark;
        (*skb).tc_index = metadata.tc_index;
        // Of one that cannot be parsed there is none.
        if metadata.hash != 0 {
            bpf_set_hash(skb, metadata.hash);
        }
    }
}

/// Sets the queue that the next device chooses its own by, as if the packet had come in by it; 0 is none.
#[inline(always)]
pub fn set_queue(ctx: &TcContext, queue: u32) {
    // SAFETY: tc programs may write this field.
    unsafe { (*raw(ctx)).queue_mapping = queue };
}

/// Sets the packet's priority.
#[inline(always)]
pub fn set_priority(ctx: &TcContext, priority: u32) {
    // SAFETY: tc programs may write this field.
    unsafe { (*raw(ctx)).priority = priority };
}

/// Words of the control block (`skb->cb`) that carry `priority` and `queue` over the hold device. `sch_fq` uses the
/// first 12 bytes, and neither a veth nor the backlog touches any.
mod carried {
    pub const PRIORITY: usize = 3;
    /// In the upper half, [`SIGN`].
    pub const QUEUE: usize = 4;
    /// Tells what was carried from what another kernel's queue may leave there.
    pub const SIGN: u32 = 0xa5c3;
}

/// Has the packet carry its priority and queue over the hold device, where both are lost.
#[inline(always)]
pub fn carry(ctx: &TcContext) {
    let skb = raw(ctx);
    // SAFETY: tc programs may use the control block.
    unsafe {
        (*skb).cb[carried::PRIORITY] = (*skb).priority;
        (*skb).cb[carried::QUEUE] = carried::SIGN << 16 | (*skb).queue_mapping & 0xffff;
    }
}

/// The priority and queue that the packet carried over the hold device.
#[inline(always)]
pub fn carried(ctx: &TcContext) -> (u32, u32) {
    let skb = raw(ctx);
    // SAFETY: tc programs may use the control block.
    let (priority, queue) = unsafe { ((*skb).cb[carried::PRIORITY], (*skb).cb[carried::QUEUE]) };
    if queue >> 16 != carried::SIGN {
        return (0, 0);
    }
    // Pinned: of one read or another, the compiler would make one from a computed address, which the verifier refuses.
    let pinned = |value: u32| verifier::pin(value as usize) as u32;
    (pinned(priority), pinned(queue & 0xffff))
}

/// Words of the control block that carry a priority into the receive path.
mod inbound {
    pub const SIGN: [u32; 2] = [0x6b9d_2e41, 0xc70f_58a3];
    pub const PRIORITY: usize = 2;
}

/// Has a packet that is about to be redirected into a receive path have this priority there: the redirection makes
/// it 0, so it is carried to the interface's own program, see [`take_priority`].
#[inline(always)]
pub fn send_priority(ctx: &TcContext, priority: u32) {
    if priority == 0 {
        return;
    }
    let skb = raw(ctx);
    // SAFETY: tc programs may use the control block.
    unsafe {
        (*skb).cb[0] = inbound::SIGN[0];
        (*skb).cb[1] = inbound::SIGN[1];
        (*skb).cb[inbound::PRIORITY] = priority;
    }
}

/// Gives a packet the priority of [`send_priority`], once.
#[inline(always)]
pub fn take_priority(ctx: &TcContext) {
    let skb = raw(ctx);
    // SAFETY: tc programs may use the control block, and write the priority.
    unsafe {
        if (*skb).cb[0] == inbound::SIGN[0] && (*skb).cb[1] == inbound::SIGN[1] {
            (*skb).cb[0] = 0;
            (*skb).priority = (*skb).cb[inbound::PRIORITY];
        }
    }
}

/// When a sent packet is to leave by its sender's own pacing, which a qdisc such as `sch_fq` would see to, in
/// `CLOCK_MONOTONIC` nanoseconds; `now` if that is over or unknown.
#[inline(always)]
pub fn departure(ctx: &TcContext, now: u64) -> u64 {
    /// As far ahead as `sch_fq` takes packets by default. Other clocks' times are far beyond, or before.
    const HORIZON: u64 = 10_000_000_000;

    // SAFETY: the context is readable.
    let time = unsafe { (*raw(ctx)).tstamp };
    if time.wrapping_sub(now) <= HORIZON { time } else { now }
}

/// Sets the time before which `sch_fq` does not send the packet, in `CLOCK_MONOTONIC` nanoseconds; 0 is none.
///
/// `bpf_skb_set_tstamp`, which also tells the kernel that it is no time of arrival, refuses packets below two VLAN
/// tags. So this must be made 0 again before anybody takes it for one.
#[inline(always)]
pub fn set_departure(ctx: &TcContext, time_ns: u64) {
    // SAFETY: tc programs may write this field.
    unsafe { (*raw(ctx)).tstamp = time_ns };
}

/// Has the kernel forget that the packet was not for the device that it came in by.
#[inline(always)]
pub fn forget_addressee(ctx: &TcContext) {
    const PACKET_HOST: u32 = 0;
    // SAFETY: the context's own skb. It fails for no such packet as comes in.
    unsafe { bpf_skb_change_type(raw(ctx), PACKET_HOST) };
}
