//! Access to an skb: its headers, its mark of having been judged, its turning back.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS},
    helpers::generated::{
        bpf_redirect, bpf_skb_change_tail, bpf_skb_change_type, bpf_skb_ecn_set_ce,
        bpf_skb_set_tstamp, bpf_skb_vlan_pop, bpf_skb_vlan_push,
    },
    programs::TcContext,
};
use injector_common::{
    hold::TAG_PROTOCOL,
    packet::{
        Packet,
        parse::{self, Link, Unparsed},
    },
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

/// The packet's `mark`, `priority` and `tc_index`.
#[inline(always)]
pub fn marks(ctx: &TcContext) -> (u32, u32, u32) {
    let skb = raw(ctx);
    // SAFETY: the context is readable.
    unsafe { ((*skb).mark, (*skb).priority, (*skb).tc_index) }
}

/// Sets the packet's `mark`, `priority` and `tc_index`.
#[inline(always)]
pub fn set_marks(ctx: &TcContext, mark: u32, priority: u32, tc_index: u32) {
    let skb = raw(ctx);
    // SAFETY: tc programs may write these fields.
    unsafe {
        (*skb).mark = mark;
        (*skb).priority = priority;
        (*skb).tc_index = tc_index;
    }
}

/// Sets the time before which `sch_fq` does not send the packet, in `CLOCK_MONOTONIC` nanoseconds (Linux 5.18).
#[inline(always)]
pub fn set_departure(ctx: &TcContext, time_ns: u64) -> bool {
    const DELIVERY_MONO: u32 = 1;
    // SAFETY: the context's own skb.
    unsafe { bpf_skb_set_tstamp(raw(ctx), time_ns, DELIVERY_MONO) == 0 }
}

/// Has the kernel forget that the packet was not for the device that it came in by.
#[inline(always)]
pub fn forget_addressee(ctx: &TcContext) {
    const PACKET_HOST: u32 = 0;
    // SAFETY: the context's own skb. It fails for no such packet as comes in.
    unsafe { bpf_skb_change_type(raw(ctx), PACKET_HOST) };
}

/// Has the kernel forget in which queue the packet came in: the next device's queue is chosen by that else (a TAP has
/// but one, so all flows would share one), and not by the packet's flow.
#[inline(always)]
pub fn forget_queue(ctx: &TcContext) {
    // SAFETY: tc programs may write this field.
    unsafe { (*raw(ctx)).queue_mapping = 0 };
}
