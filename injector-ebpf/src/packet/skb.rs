//! Access to an skb: headers, metadata, owner mark, redirection.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::generated::{
        bpf_get_hash_recalc, bpf_redirect, bpf_set_hash, bpf_skb_change_head, bpf_skb_change_tail,
        bpf_skb_change_type, bpf_skb_ecn_set_ce, bpf_skb_load_bytes, bpf_skb_store_bytes,
        bpf_skb_vlan_pop, bpf_skb_vlan_push,
    },
    programs::TcContext,
};
use injector_common::{
    hold::{self, Metadata, TAG_PROTOCOL},
    packet::{
        Direction, Packet,
        parse::{self, Link, Unparsed},
    },
    verifier,
};

use crate::maps;

/// Number of bytes searched for headers: Ethernet, two VLAN tags, IPv6, a few extension headers,
/// TCP.
const HEADERS: u32 = 256;

/// Ethernet, IPv4 and TCP without options.
const MIN_HEADERS: u32 = 14 + 20 + 20;

#[inline(always)]
fn raw(ctx: &TcContext) -> *mut __sk_buff {
    ctx.skb.skb
}

/// Whether this instance has already classified the packet at another hook.
#[inline(always)]
pub fn has_owner_mark(ctx: &TcContext) -> bool {
    // SAFETY: the context is readable.
    unsafe { (*raw(ctx)).tc_index & maps::OWNER_MARK.load() != 0 }
}

/// Sets the owner mark. It is in `tc_index` rather than the packet mark, because no routing or
/// filtering depends on `tc_index`.
#[inline(always)]
pub fn set_owner_mark(ctx: &TcContext) {
    // SAFETY: tc programs may write this field.
    unsafe { (*raw(ctx)).tc_index |= maps::OWNER_MARK.load() };
}

/// The packet's interface.
#[inline(always)]
pub fn interface(ctx: &TcContext) -> u32 {
    // SAFETY: the context is readable.
    unsafe { (*raw(ctx)).ifindex }
}

/// Payload bytes per segment of a GSO packet; 0 for a single wire packet.
#[inline(always)]
pub fn segment_size(ctx: &TcContext) -> u32 {
    // SAFETY: the context is readable.
    unsafe { (*raw(ctx)).gso_size }
}

/// Number of segments of a GSO packet, if known; else 1.
#[inline(always)]
pub fn segments(ctx: &TcContext) -> u32 {
    // SAFETY: the context is readable.
    let segments = unsafe { (*raw(ctx)).gso_segs };
    if segments == 0 { 1 } else { segments }
}

/// Parses the headers after making them contiguous if necessary.
///
/// Packets of the kernel's own protocols and of drivers have at least contiguous Ethernet, IPv4 and
/// TCP headers; if not even these are contiguous, more is pulled. Pulling only after a failed parse
/// would be exact, but doubles the verifier's work.
#[inline(always)]
pub fn parse(ctx: &TcContext, link: Link, packet: &mut Packet) -> Result<(), Unparsed> {
    let linear = (ctx.data_end() - ctx.data()) as u32;
    if linear < MIN_HEADERS && linear < ctx.len() {
        let wanted = if ctx.len() < HEADERS { ctx.len() } else { HEADERS };
        // Without memory for it, the packet counts as unparsed.
        let _ = ctx.pull_data(wanted);
    }
    // SAFETY: the kernel makes data..data_end readable; the verifier checks all accesses.
    unsafe { parse::parse(ctx.data(), ctx.data_end(), ctx.len(), link, packet) }
}

/// `skb->pkt_type`: broadcast.
const PACKET_BROADCAST: u32 = 1;

/// `skb->pkt_type`: this host's own copy of a multicast or broadcast that it sends.
const PACKET_LOOPBACK: u32 = 5;

/// Whether the packet is this host's own copy of a multicast or broadcast that it sends. The kernel
/// receives it on the sending interface, but without a link-layer header.
#[inline(always)]
pub fn is_own_copy(ctx: &TcContext) -> bool {
    // SAFETY: the context is readable.
    unsafe { (*raw(ctx)).pkt_type == PACKET_LOOPBACK }
}

/// Whether the packet was broadcast.
#[inline(always)]
pub fn is_broadcast(ctx: &TcContext) -> bool {
    // SAFETY: the context is readable.
    unsafe { (*raw(ctx)).pkt_type == PACKET_BROADCAST }
}

/// Whether the interface is the loopback, which delivers each sent packet to this host together
/// with the packet's route. A redirected packet loses that route, and the kernel then drops an IPv4
/// packet from one of its own addresses as a martian.
#[inline(always)]
pub fn comes_back(ctx: &TcContext) -> bool {
    /// The loopback's index in every network namespace (`LOOPBACK_IFINDEX`).
    const LOOPBACK: u32 = 1;
    interface(ctx) == LOOPBACK
}

/// Redirects the packet into the receive path of its own interface.
#[inline(always)]
pub fn turn_back(ctx: &TcContext) -> i32 {
    // SAFETY: no pointers are passed.
    unsafe { bpf_redirect(interface(ctx), u64::from(BPF_F_INGRESS)) as i32 }
}

/// Length of an Ethernet header.
pub const ETHERNET_HEADER: u16 = 14;

/// Gives a packet of an interface without link-layer headers an Ethernet header, as the hold device
/// requires. The kernel removes it on redirection to such an interface.
#[inline(always)]
pub fn add_header(ctx: &TcContext) -> bool {
    const PROTOCOL_OFFSET: u32 = 12;
    let skb = raw(ctx);
    // SAFETY: the context is readable.
    let protocol = unsafe { (*skb).protocol } as u16;
    // SAFETY: the context's own skb; the kernel reads two bytes of `protocol`.
    unsafe {
        bpf_skb_change_head(skb, u32::from(ETHERNET_HEADER), 0) == 0
            && bpf_skb_store_bytes(skb, PROTOCOL_OFFSET, (&raw const protocol).cast(), 2, 0) == 0
    }
}

/// Redirects a packet with the header of [`add_header`] to its own interface, so that it continues
/// without.
#[inline(always)]
pub fn remove_header(ctx: &TcContext, direction: Direction) -> i32 {
    if direction == Direction::Ingress {
        send_priority(ctx, metadata(ctx).priority);
        return turn_back(ctx);
    }
    send_back(ctx)
}

/// Redirects the packet out of its own interface.
#[inline(always)]
pub fn send_back(ctx: &TcContext) -> i32 {
    // SAFETY: no pointers are passed.
    unsafe { bpf_redirect(interface(ctx), 0) as i32 }
}

/// Fills `bytes` from an offset of the packet.
#[inline(always)]
pub fn load_into<const N: usize>(
    ctx: &TcContext,
    offset: u32,
    bytes: &mut [u8; N],
) -> Result<(), ()> {
    let to = bytes.as_mut_ptr().cast();
    // SAFETY: the context's own skb, and N writable bytes.
    let result = unsafe { bpf_skb_load_bytes(raw(ctx).cast(), offset, to, N as u32) };
    if result == 0 { Ok(()) } else { Err(()) }
}

/// Removes bytes behind the link-layer header.
#[inline(always)]
pub fn cut(ctx: &TcContext, bytes: u32) -> Result<(), ()> {
    ctx.skb.adjust_room(-bytes.cast_signed(), BPF_ADJ_ROOM_MAC, 0).map_err(drop)
}

/// Truncates the packet to `length` bytes; a GSO packet becomes a plain one.
#[inline(always)]
pub fn truncate(ctx: &TcContext, length: u32) -> Result<(), ()> {
    // SAFETY: the context's own skb.
    if unsafe { bpf_skb_change_tail(raw(ctx), length, 0) } == 0 { Ok(()) } else { Err(()) }
}

/// The packet's bytes on the wire. This includes the headers of each segment of a sent GSO packet,
/// but not those of packets merged on receipt (GRO).
#[inline(always)]
pub fn wire_length(ctx: &TcContext) -> u32 {
    // SAFETY: the context is readable.
    unsafe { (*raw(ctx)).wire_len }
}

/// Sets the ECN CE mark (RFC 3168) if the packet is ECN-capable.
#[inline(always)]
pub fn mark_congestion(ctx: &TcContext) -> bool {
    // SAFETY: the context's own skb.
    unsafe { bpf_skb_ecn_set_ce(raw(ctx)) == 1 }
}

/// Pushes injector's VLAN tag; the packet's own tags stay below it.
#[inline(always)]
pub fn push_tag(ctx: &TcContext, tag: u16) -> bool {
    // SAFETY: the context's own skb.
    unsafe { bpf_skb_vlan_push(raw(ctx), TAG_PROTOCOL.to_be(), tag) == 0 }
}

/// Pops the outermost VLAN tag.
#[inline(always)]
pub fn pop_tag(ctx: &TcContext) -> bool {
    // SAFETY: the context's own skb.
    unsafe { bpf_skb_vlan_pop(raw(ctx)) == 0 }
}

/// The value of the outermost VLAN tag.
#[inline(always)]
pub fn tag(ctx: &TcContext) -> Option<u16> {
    // SAFETY: the context is readable.
    unsafe { ((*raw(ctx)).vlan_present != 0).then(|| (*raw(ctx)).vlan_tci as u16) }
}

/// Whether the packet is charged to a socket. It is charged to its sender's until the receiving
/// stack takes it. That includes packets received over a veth from a sender on this host.
#[inline(always)]
pub fn has_socket(ctx: &TcContext) -> bool {
    // SAFETY: the context is readable; only the address is used.
    unsafe { !(*raw(ctx)).__bindgen_anon_2.sk.is_null() }
}

/// The packet's hash, computed now if it has none: with injector's tag on top it would differ.
#[inline(always)]
pub fn hash(ctx: &TcContext) -> u32 {
    // SAFETY: the context's own skb. The hash is stored in the packet too.
    unsafe { bpf_get_hash_recalc(raw(ctx)) }
}

/// Flips these bits of the packet's hash, if it has one.
#[inline(always)]
pub fn change_hash(ctx: &TcContext, bits: u32) {
    let skb = raw(ctx);
    // SAFETY: the context's own skb, whose hash is readable.
    unsafe {
        if bits == 0 || (*skb).hash == 0 {
            return;
        }
        bpf_set_hash(skb, (*skb).hash ^ bits);
    }
}

/// The packet's metadata.
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

/// Sets the packet's metadata except `queue` and `priority`.
#[inline(always)]
pub fn set_metadata(ctx: &TcContext, metadata: &Metadata) {
    let skb = raw(ctx);
    // SAFETY: tc programs may write these fields; the context's own skb.
    unsafe {
        (*skb).mark = metadata.mark;
        (*skb).tc_index = metadata.tc_index;
        // A packet that cannot be parsed has no hash.
        if metadata.hash != 0 {
            bpf_set_hash(skb, metadata.hash);
        }
    }
}

/// Sets the receive queue from which the next device chooses its own; 0 means none.
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

/// Words of the control block (`skb->cb`) that carry metadata across the hold device. `sch_fq` uses the
/// first 12 bytes, and neither a veth nor the backlog touches any.
const CARRIED: [usize; 2] = [3, 4];

/// Metadata that the hold device loses or changes.
#[derive(Clone, Copy, Default)]
pub struct Carried {
    /// `skb->priority`.
    pub priority: u32,
    /// `skb->queue_mapping`.
    pub queue: u32,
    /// The lower 16 bits of `skb->hash` that differ on the hold device.
    pub hash: u32,
}

impl Carried {
    /// The words of the control block.
    #[inline(always)]
    const fn words(self) -> [u32; 2] {
        [self.priority, self.hash << 16 | self.queue & 0xffff]
    }

    /// Itself if this is its [`hold::check`]; else nothing: another kernel's queue may change the words.
    #[inline(always)]
    pub fn checked(self, check: u32) -> Self {
        // Pinned: the compiler would merge conditional reads into one from a computed address, which
        // the verifier rejects.
        let pinned = |value: u32| verifier::pin(value as usize) as u32;
        if hold::check(self.words()) != check {
            return Self::default();
        }
        Self { priority: pinned(self.priority), queue: pinned(self.queue), hash: pinned(self.hash) }
    }
}

/// Stores the packet's priority and queue in the control block, and the bits of its hash that are to
/// differ. Returns their [`hold::check`].
#[inline(always)]
pub fn carry(ctx: &TcContext, hash: u32) -> u32 {
    let skb = raw(ctx);
    // SAFETY: tc programs may use the control block; the indices are constant.
    unsafe {
        let carried = Carried { priority: (*skb).priority, queue: (*skb).queue_mapping, hash };
        let words = carried.words();
        (*skb).cb[CARRIED[0]] = words[0];
        (*skb).cb[CARRIED[1]] = words[1];
        hold::check(words)
    }
}

/// What [`carry`] has stored.
#[inline(always)]
pub fn carried(ctx: &TcContext) -> Carried {
    let skb = raw(ctx);
    // SAFETY: tc programs may use the control block; the indices are constant.
    let [priority, word] = unsafe { [(*skb).cb[CARRIED[0]], (*skb).cb[CARRIED[1]]] };
    Carried { priority, queue: word & 0xffff, hash: word >> 16 }
}

/// A word of the control block (`skb->cb`).
#[inline(always)]
pub fn control(ctx: &TcContext, word: usize) -> u32 {
    // SAFETY: tc programs may use the control block; the index is constant.
    unsafe { (*raw(ctx)).cb[word] }
}

/// Sets a word of the control block.
#[inline(always)]
pub fn set_control(ctx: &TcContext, word: usize, value: u32) {
    // SAFETY: tc programs may use the control block; the index is constant.
    unsafe { (*raw(ctx)).cb[word] = value };
}

/// Words of the control block that carry a priority into the receive path.
mod inbound {
    pub const SIGN: [u32; 2] = [0x6b9d_2e41, 0xc70f_58a3];
    pub const PRIORITY: usize = 2;
}

/// Preserves this priority across a redirection into a receive path, which resets it. The
/// interface's own program restores it, see [`take_priority`].
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

/// Restores the priority stored by [`send_priority`], once.
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

/// The departure time set by the sender's own pacing, which a qdisc such as `sch_fq` would enforce,
/// in `CLOCK_MONOTONIC` nanoseconds; `now` if it has passed or is unknown.
#[inline(always)]
pub fn departure(ctx: &TcContext, now: u64) -> u64 {
    /// The default horizon of `sch_fq`. Times of other clocks are far beyond it, or in the past.
    const HORIZON: u64 = 10_000_000_000;

    // SAFETY: the context is readable.
    let time = unsafe { (*raw(ctx)).tstamp };
    if time.wrapping_sub(now) <= HORIZON { time } else { now }
}

/// Sets the time before which `sch_fq` does not send the packet, in `CLOCK_MONOTONIC` nanoseconds;
/// 0 means none.
///
/// `bpf_skb_set_tstamp`, which would also mark it as a delivery time, rejects packets with two VLAN
/// tags. The time must therefore be reset to 0 before it is taken for a time of arrival.
#[inline(always)]
pub fn set_departure(ctx: &TcContext, time_ns: u64) {
    // SAFETY: tc programs may write this field.
    unsafe { (*raw(ctx)).tstamp = time_ns };
}

/// Marks the packet as addressed to this host, whatever its destination address on the receiving
/// device.
#[inline(always)]
pub fn forget_addressee(ctx: &TcContext) {
    const PACKET_HOST: u32 = 0;
    // SAFETY: the context's own skb. It does not fail for received packets.
    unsafe { bpf_skb_change_type(raw(ctx), PACKET_HOST) };
}
