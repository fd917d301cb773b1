//! The packet parser.
//!
//! Works on raw addresses, with each access checked against the end, as the eBPF verifier
//! requires. Host tests pass slices through [`parse_slice`].

use super::{Family, IcmpKind, Packet, protocol};
use crate::verifier::{forget, pin};

/// Why a frame could not be parsed. Such frames are never faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unparsed {
    /// Not IP, for instance ARP.
    NotIp,
    /// A header extends beyond the readable bytes.
    Truncated,
    /// A header contradicts itself, or there are more extension headers than are followed.
    Malformed,
}

/// The link layer before the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// An Ethernet header, with up to two VLAN tags (IEEE 802.1Q, 802.1ad).
    Ethernet,
    /// None: tun, `WireGuard`, tunnels.
    None,
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

/// The maximum number of IPv6 extension headers; packets with more count as malformed.
const MAX_EXTENSIONS: usize = 6;

/// Extension headers (RFC 8200, RFC 4302, RFC 6275, RFC 7401, RFC 5533).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

/// Reads a `T` at `offset`, if it lies within `start..end`.
///
/// # Safety
///
/// `start..end` must be readable, and any bit pattern must be a valid `T`.
#[inline(always)]
unsafe fn load<T: Copy>(start: usize, end: usize, offset: usize) -> Result<T, Unparsed> {
    let at = pin(start + offset);
    if at + size_of::<T>() > end {
        return Err(Unparsed::Truncated);
    }
    let pointer = at as *const T;
    // SAFETY: within bounds by the check above. The kernel allows unaligned packet access where the
    // machine does (x86-64, arm64); `read_unaligned` would make the eBPF side load byte by byte.
    #[cfg(target_arch = "bpf")]
    let value = unsafe { pointer.read() };
    // SAFETY: within bounds by the check above.
    #[cfg(not(target_arch = "bpf"))]
    let value = unsafe { pointer.read_unaligned() };
    Ok(value)
}

/// Parses the frame whose first bytes are at `start..end` into `packet`, all of which is written on success.
///
/// `length` is the length of the whole frame, of which only a part may be readable. Parses in place: on the
/// eBPF side, copying the result costs as much as parsing.
///
/// # Errors
///
/// See [`Unparsed`]. On [`Unparsed::Truncated`], parsing may succeed once more of the frame is readable.
///
/// # Safety
///
/// `start..end` must be readable.
#[inline(always)]
pub unsafe fn parse(
    start: usize,
    end: usize,
    length: u32,
    link: Link,
    packet: &mut Packet,
) -> Result<(), Unparsed> {
    // SAFETY: as for this function.
    let (l3, version) = unsafe { network_header(start, end, link)? };
    match version {
        // SAFETY: as for this function.
        4 => unsafe { ipv4(start, end, length, l3, packet) },
        // SAFETY: as for this function.
        6 => unsafe { ipv6(start, end, length, l3, packet) },
        _ => Err(Unparsed::NotIp),
    }
}

/// Parses a whole frame; for tests and tools.
///
/// # Errors
///
/// As for [`parse`].
pub fn parse_slice(frame: &[u8], link: Link) -> Result<Packet, Unparsed> {
    let range = frame.as_ptr_range();
    let length = u32::try_from(frame.len()).map_err(|_| Unparsed::Malformed)?;
    let mut packet = Packet::EMPTY;
    // SAFETY: the slice is readable.
    unsafe { parse(range.start as usize, range.end as usize, length, link, &mut packet)? };
    Ok(packet)
}

/// The offset of the IP header, and its version by the link layer.
#[inline(always)]
unsafe fn network_header(start: usize, end: usize, link: Link) -> Result<(usize, u8), Unparsed> {
    if link == Link::None {
        // SAFETY: as for the caller.
        let version = unsafe { load::<u8>(start, end, 0)? } >> 4;
        // As below, so that the verifier sees a single path from here.
        return Ok(((forget(0, u32::from(version)) & 0x1f) as usize, version));
    }
    let mut l3 = 14;
    // SAFETY: as for the caller.
    let mut ethertype = u16::from_be(unsafe { load(start, end, 12)? });
    if ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ {
        l3 = 18;
        // SAFETY: as for the caller.
        ethertype = u16::from_be(unsafe { load(start, end, 16)? });
        if ethertype == ETHERTYPE_VLAN {
            l3 = 22;
            // SAFETY: as for the caller.
            ethertype = u16::from_be(unsafe { load(start, end, 20)? });
        }
    }
    // One path for all numbers of tags. The mask has no effect but gives the verifier a bound.
    let l3 = (forget(l3, u32::from(ethertype)) & 0x1f) as usize;
    match ethertype {
        ETHERTYPE_IPV4 => Ok((l3, 4)),
        ETHERTYPE_IPV6 => Ok((l3, 6)),
        _ => Err(Unparsed::NotIp),
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Ipv4Header {
    version_ihl: u8,
    tos: u8,
    total_length: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}

#[inline(always)]
unsafe fn ipv4(
    start: usize,
    end: usize,
    length: u32,
    l3: usize,
    packet: &mut Packet,
) -> Result<(), Unparsed> {
    // SAFETY: as for the caller; any bytes make an Ipv4Header.
    let header: Ipv4Header = unsafe { load(start, end, l3)? };
    let header_length = usize::from(header.version_ihl & 0xf) * 4;
    if header.version_ihl >> 4 != 4 || header_length < 20 {
        return Err(Unparsed::Malformed);
    }
    let total_length = u32::from(u16::from_be(header.total_length));
    // BIG TCP sets 0, which means the length of the frame.
    let packet_end = if total_length == 0 { length } else { l3 as u32 + total_length };
    let field = u32::from(u16::from_be(header.fragment));
    packet.source = [header.source, 0, 0, 0];
    packet.destination = [header.destination, 0, 0, 0];
    packet.family = Family::V4;
    packet.protocol = header.protocol;
    packet.later_fragment = field & 0x1fff != 0;
    packet.fragment = field & 0x3fff != 0;
    packet.fragment_id = if field & 0x3fff != 0 { u32::from(header.id) } else { 0 };
    packet.l3 = l3 as u16;
    let upper = Upper {
        protocol: header.protocol,
        l4: l3 + header_length,
        end: packet_end,
        is_missing: field & 0x1fff != 0,
    };
    // SAFETY: as for the caller.
    unsafe { upper.parse(start, end, length, packet) }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Ipv6Header {
    version_class_label: u32,
    payload_length: u16,
    next_header: u8,
    hop_limit: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

#[inline(always)]
unsafe fn ipv6(
    start: usize,
    end: usize,
    length: u32,
    l3: usize,
    packet: &mut Packet,
) -> Result<(), Unparsed> {
    // SAFETY: as for the caller; any bytes make an Ipv6Header.
    let header: Ipv6Header = unsafe { load(start, end, l3)? };
    if u32::from_be(header.version_class_label) >> 28 != 6 {
        return Err(Unparsed::Malformed);
    }
    let payload_length = u32::from(u16::from_be(header.payload_length));
    // Jumbograms and BIG TCP set 0, which means the length of the frame.
    let packet_end = if payload_length == 0 && header.next_header != 59 {
        length
    } else {
        l3 as u32 + 40 + payload_length
    };

    let chain =
        Chain { next: header.next_header, l4: l3 as u32 + 40, fragment_field: 0, fragment_id: 0 };
    // SAFETY: as for the caller.
    let chain = unsafe { chain.follow(start, end, header.version_class_label)? };
    let is_fragment = chain.fragment_field & 0xfff9 != 0;
    packet.source = header.source;
    packet.destination = header.destination;
    packet.family = Family::V6;
    packet.protocol = chain.next;
    packet.later_fragment = chain.is_later_fragment();
    packet.fragment = is_fragment;
    packet.fragment_id = if is_fragment { chain.fragment_id } else { 0 };
    packet.l3 = l3 as u16;
    let upper = Upper {
        protocol: chain.next,
        l4: chain.l4 as usize,
        end: packet_end,
        is_missing: chain.is_later_fragment(),
    };
    // SAFETY: as for the caller.
    unsafe { upper.parse(start, end, length, packet) }
}

/// The position in a chain of IPv6 extension headers.
struct Chain {
    /// Type of the header at `l4`.
    next: u8,
    l4: u32,
    /// Offset and flags of the fragment header, host byte order; 0 if there is none.
    fragment_field: u32,
    fragment_id: u32,
}

impl Chain {
    /// A mask for the maximum offset, that of the longest chain after the longest link-layer
    /// and IPv6 headers.
    const MAX_L4: u32 = 0x3fff;

    /// Follows the chain to its end. `unknown` is as for [`forget`].
    #[inline(always)]
    unsafe fn follow(mut self, start: usize, end: usize, unknown: u32) -> Result<Self, Unparsed> {
        for _ in 0..MAX_EXTENSIONS {
            if self.is_complete() {
                break;
            }
            // SAFETY: as for the caller.
            unsafe { self.step(start, end)? };
            // One path for the verifier, whatever the number of previous extensions.
            self.next = forget(u32::from(self.next), unknown) as u8;
            // The mask has no effect but gives the verifier a bound.
            self.l4 = forget(self.l4, unknown) & Self::MAX_L4;
            self.fragment_field = forget(self.fragment_field, unknown);
            self.fragment_id = forget(self.fragment_id, unknown);
        }
        if self.is_complete() { Ok(self) } else { Err(Unparsed::Malformed) }
    }

    /// Advances to the next header.
    #[inline(always)]
    unsafe fn step(&mut self, start: usize, end: usize) -> Result<(), Unparsed> {
        let at = self.l4 as usize;
        // SAFETY: as for the caller.
        let [next, units, field_high, field_low]: [u8; 4] = unsafe { load(start, end, at)? };
        let units = u32::from(units);
        match self.next {
            FRAGMENT => {
                self.fragment_field = u32::from(u16::from_be_bytes([field_high, field_low]));
                // SAFETY: as for the caller.
                self.fragment_id = unsafe { load(start, end, at + 4)? };
                self.l4 += 8;
            }
            AUTHENTICATION => self.l4 += (units + 2) * 4,
            _ => self.l4 += (units + 1) * 8,
        }
        self.next = next;
        Ok(())
    }

    /// Whether this is a later fragment, in which no upper-layer header follows.
    #[inline(always)]
    const fn is_later_fragment(&self) -> bool {
        self.fragment_field & 0xfff8 != 0
    }

    #[inline(always)]
    const fn is_complete(&self) -> bool {
        self.is_later_fragment() || !is_extension(self.next)
    }
}

#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(
        next,
        HOP_BY_HOP
            | ROUTING
            | FRAGMENT
            | AUTHENTICATION
            | DESTINATION_OPTIONS
            | MOBILITY
            | HIP
            | SHIM6
    )
}

/// The location of the upper layer.
struct Upper {
    protocol: u8,
    l4: usize,
    end: u32,
    /// Whether there is no header, as in later fragments.
    is_missing: bool,
}

impl Upper {
    /// Parses the upper-layer header.
    #[inline(always)]
    unsafe fn parse(
        self,
        start: usize,
        end: usize,
        length: u32,
        packet: &mut Packet,
    ) -> Result<(), Unparsed> {
        let l4 = self.l4;
        if self.end > length || self.end < l4 as u32 {
            return Err(Unparsed::Truncated);
        }
        let room = self.end - l4 as u32;
        packet.tcp_flags = 0;
        packet.has_ports = false;
        packet.has_data = false;
        packet.source_port = 0;
        packet.destination_port = 0;
        packet.echo_id = 0;
        packet.icmp = IcmpKind::default();
        packet.l4 = l4 as u16;
        packet.payload = l4 as u16;
        packet.end = self.end;
        if self.is_missing {
            return Ok(());
        }
        match self.protocol {
            protocol::TCP => {
                if room < 20 {
                    return Err(Unparsed::Malformed);
                }
                // SAFETY: as for the caller.
                let [offset, flags]: [u8; 2] = unsafe { load(start, end, l4 + 12)? };
                let header_length = u32::from(offset >> 4) * 4;
                if header_length < 20 || header_length > room {
                    return Err(Unparsed::Malformed);
                }
                packet.tcp_flags = flags;
                packet.payload = (l4 as u32 + header_length) as u16;
                packet.has_data = room > header_length;
            }
            protocol::UDP | protocol::UDPLITE => {
                if room < 8 {
                    return Err(Unparsed::Malformed);
                }
                packet.payload = l4 as u16 + 8;
            }
            protocol::SCTP | protocol::DCCP => {
                if room < 12 {
                    return Err(Unparsed::Malformed);
                }
                packet.payload = l4 as u16 + 12;
            }
            protocol::ICMP | protocol::ICMPV6 => {
                if room < 8 {
                    return Err(Unparsed::Malformed);
                }
                // SAFETY: as for the caller.
                let [kind, code, _, _, id_high, id_low]: [u8; 6] = unsafe { load(start, end, l4)? };
                let is_echo = matches!(
                    (self.protocol, kind),
                    (protocol::ICMP, 0 | 8) | (protocol::ICMPV6, 128 | 129)
                );
                packet.icmp = IcmpKind { kind, code };
                if is_echo {
                    packet.echo_id = u16::from_be_bytes([id_high, id_low]);
                }
                packet.payload = l4 as u16 + 8;
                return Ok(());
            }
            _ => return Ok(()),
        }
        // SAFETY: as for the caller.
        let ports: [u16; 2] = unsafe { load(start, end, l4)? };
        packet.source_port = u16::from_be(ports[0]);
        packet.destination_port = u16::from_be(ports[1]);
        packet.has_ports = true;
        Ok(())
    }
}
