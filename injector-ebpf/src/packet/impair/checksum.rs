//! The Internet checksum (RFC 1071), and detection of checksums left to the hardware.

use aya_ebpf::helpers::generated::bpf_csum_diff;
use injector_common::packet::{Family, Packet, protocol};

/// Offset of the checksum in the upper-layer header, if the protocol has an Internet checksum.
#[inline(always)]
pub fn offset(packet: &Packet) -> Option<u32> {
    if packet.later_fragment {
        return None;
    }
    match packet.protocol {
        protocol::TCP => Some(u32::from(packet.l4) + 16),
        protocol::UDP => Some(u32::from(packet.l4) + 6),
        protocol::ICMP | protocol::ICMPV6 => Some(u32::from(packet.l4) + 2),
        _ => None,
    }
}

/// The one's complement sum, folded to 16 bits.
#[inline(always)]
pub fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32 & 0xffff) + (sum >> 48);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The pseudo-header sum for an upper layer of `length` bytes (RFC 9293, RFC 8200), folded, in
/// memory order.
#[inline(always)]
pub fn pseudo_header(packet: &Packet, length: u32) -> u16 {
    pseudo_header_of(packet, packet.protocol, length)
}

/// As [`pseudo_header`], for another protocol between the same addresses.
#[inline(always)]
pub fn pseudo_header_of(packet: &Packet, protocol: u8, length: u32) -> u16 {
    let mut sum = u64::from(length.to_be()) + u64::from(u32::from(protocol).to_be());
    for word in packet.source {
        sum += u64::from(word);
    }
    for word in packet.destination {
        sum += u64::from(word);
    }
    fold(sum)
}

/// Whether `field` is the bare pseudo-header sum, which the kernel stores if the hardware is to
/// complete the checksum (`CHECKSUM_PARTIAL`). Such a packet is not verified on loopback and veth.
#[inline(always)]
pub fn is_partial(packet: &Packet, field: u16) -> bool {
    if packet.protocol != protocol::TCP && packet.protocol != protocol::UDP {
        return false;
    }
    field == pseudo_header(packet, packet.end.wrapping_sub(u32::from(packet.l4)))
}

/// The checksum of a 20-byte TCP header without payload, in memory order.
#[inline(always)]
pub fn tcp_header(packet: &Packet, header: &mut [u32; 5]) -> u16 {
    let pseudo = pseudo_header(packet, 20);
    // SAFETY: the header is on the stack.
    let sum = unsafe {
        bpf_csum_diff(core::ptr::null_mut(), 0, header.as_mut_ptr(), 20, u32::from(pseudo))
    };
    !fold(sum as u64)
}

/// The offset of the IPv4 header checksum, which every receiver verifies; `None` for IPv6.
#[inline(always)]
pub fn ipv4_offset(packet: &Packet) -> Option<u32> {
    match packet.family {
        Family::V4 => Some(u32::from(packet.l3) + 10),
        Family::V6 => None,
    }
}
