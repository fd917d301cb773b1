//! The path of a packet: scope, parsing, rule lookup, faults.

mod asked;
pub mod backlog;
mod find;
mod fragment;
mod hold;
mod impair;
mod mss;
mod protect;
mod scope;
mod skb;
pub mod sockets;
mod unmatched;
mod wire;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    helpers::generated::bpf_redirect,
    programs::{TcContext, XdpContext},
};
use injector_common::{
    control::{Control, RuleSet},
    counter::{RuleCounters, SeenCounters},
    packet::{
        Direction, Packet,
        parse::{Link, Unparsed, parse},
    },
    rule::{RULE_REMOTE, RULE_WIRE, Rule},
};

use crate::{clock, maps};
use scope::Owner;

/// The verdict on a packet after applying its rule.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Continues, perhaps altered.
    Pass,
    /// Dropped, as if lost on the wire.
    Lost,
    /// Dropped as if sent: a clone of it is held.
    Replaced,
    /// Redirected into this host's receive path.
    TurnedBack,
    /// Redirected out of the interface on which it was received.
    SentBack,
    /// Redirected to the hold device.
    Held,
    /// Redirected to the device that segments it, see [`wire`].
    Segmented,
    /// Redirected into the receive path of its own interface, see [`backlog`].
    Deferred,
    /// Continues without the Ethernet header that it was given.
    Restored,
}

/// A packet at a tc hook.
struct Case<'a> {
    ctx: &'a TcContext,
    packet: &'a Packet,
    direction: Direction,
    link: Link,
    /// Index of the interface that sends or receives the packet.
    interface: u32,
    /// The rule's number.
    number: u32,
}

/// The rule that a packet matches.
struct Match<'a> {
    rule: &'a Rule,
    /// Index into [`maps::RULES`] and its siblings.
    index: u32,
    counters: &'a mut RuleCounters,
}

/// Classifies a packet at a tc hook and applies its rule.
#[inline(always)]
pub fn tc(ctx: &TcContext, direction: Direction, link: Link) -> i32 {
    match classify_skb(ctx, direction, link) {
        None | Some(Verdict::Pass) => TC_ACT_UNSPEC,
        // tcx would report a drop to the sender as congestion (`NET_XMIT_DROP`), which a wire never
        // does. A redirect to no interface frees the packet and reports success.
        // SAFETY: no pointers are passed.
        Some(Verdict::Lost) if direction == Direction::Egress => unsafe {
            bpf_redirect(0, 0) as i32
        },
        Some(Verdict::Lost) => TC_ACT_SHOT,
        // This must not count as a drop on receipt either.
        // SAFETY: no pointers are passed.
        Some(Verdict::Replaced) => unsafe { bpf_redirect(0, 0) as i32 },
        Some(Verdict::TurnedBack | Verdict::Deferred) => skb::turn_back(ctx),
        Some(Verdict::SentBack) => skb::send_back(ctx),
        Some(Verdict::Held) => hold::redirect(),
        Some(Verdict::Segmented) => wire::redirect(),
        Some(Verdict::Restored) => skb::remove_header(ctx, direction),
    }
}

/// The verdict; `None` if the packet is out of scope.
#[inline(always)]
fn classify_skb(ctx: &TcContext, direction: Direction, device: Link) -> Option<Verdict> {
    if direction == Direction::Ingress && maps::may_have(RULE_WIRE) {
        backlog::arrive(ctx);
    }
    if skb::has_owner_mark(ctx) {
        if direction == Direction::Ingress {
            skb::take_priority(ctx);
        }
        return None;
    }
    let (control, set) = active()?;
    let sender =
        if direction == Direction::Egress { scope::sender(ctx, &control) } else { Owner::Unknown };
    if sender == Owner::Other {
        return None;
    }
    let seen = seen(direction)?;
    let link = if skb::is_own_copy(ctx) { Link::None } else { device };
    let packet = keep(|packet| skb::parse(ctx, link, packet), seen, direction)?;
    fragment::complete(packet);
    if direction == Direction::Egress && sender == Owner::Unknown && !scope::has_closed(packet) {
        return None;
    }
    scope::remember(packet, direction);
    mss::clamp(ctx, packet, direction, set, &control);

    let mut number = find::rule(packet, direction, set, control.bank, skb::segment_size(ctx));
    let is_translated = maps::may_have(RULE_REMOTE)
        && set.uses_remotes != 0
        && asked::is_translated(ctx, packet, direction);
    if is_translated {
        // Its receiver is found by the endpoints of the socket as well.
        asked::exchange(packet, direction);
        let other = find::rule(packet, direction, set, control.bank, skb::segment_size(ctx));
        // The first of the rules that match either address.
        if other < number {
            number = other;
        }
    }
    if number == find::NO_RULE && !unmatched::is_wanted(direction) {
        return None;
    }
    if direction == Direction::Ingress && scope::may_be_shared(ctx, packet) {
        if number != find::NO_RULE {
            skipped(number, &control);
        }
        return None;
    }
    if direction == Direction::Ingress
        && !scope::receives(ctx, packet, control.cgroup_id, control.cgroup_level)
    {
        return None;
    }
    if is_translated {
        asked::exchange(packet, direction);
    }
    if number == find::NO_RULE {
        unmatched::count(packet, direction, packet.wire_length(skb::segment_size(ctx)));
        return None;
    }
    let mut matched = active_rule(number, &control, packet, direction)?;
    // This host's own copy of a multicast lacks the header that its interface has.
    if link == device && wire::takes(ctx, packet, direction, &matched) {
        if direction == Direction::Ingress && backlog::must_wait(ctx) {
            // Counted as wire packets instead.
            seen.packets[direction as usize] -= 1;
            backlog::enter(ctx);
            return Some(Verdict::Deferred);
        }
        if device != Link::None || skb::add_header(ctx) {
            seen.packets[direction as usize] -= 1;
            wire::send(ctx, direction, device, &mut matched);
            return Some(Verdict::Segmented);
        }
    }
    matched.count(direction, ctx.len());
    if impair::reset::is_astray(ctx, packet, direction, &matched) {
        // Without the owner mark: if received packets are classified too, they reset the connection.
        matched.counters.skipped += 1;
        note(|seen| seen.translated += 1);
        return Some(Verdict::Pass);
    }
    skb::set_owner_mark(ctx);

    // The hold device requires an Ethernet header.
    let is_extended =
        device == Link::None && impair::delay::holds(&matched) && skb::add_header(ctx);
    let link = if is_extended {
        packet.prepend(skb::ETHERNET_HEADER);
        Link::Ethernet
    } else {
        link
    };
    let interface = skb::interface(ctx);
    let case = Case { ctx, packet, direction, link, interface, number };
    match impair::impair(&case, &mut matched) {
        None | Some(Verdict::Pass) if is_extended => Some(Verdict::Restored),
        verdict => verdict,
    }
}

/// Applies a rule to a packet that was segmented; drops packets that injector did not send.
#[inline(always)]
pub fn wire(ctx: &TcContext) -> i32 {
    let Some(origin) = wire::origin(ctx) else { return TC_ACT_SHOT };
    // Without the owner mark, the interface's hook would send the packet here again.
    skb::set_owner_mark(ctx);
    let verdict = match segment(ctx, &origin) {
        None => None,
        // A constant direction for each copy of the code, as at the other hooks.
        Some((packet, matched)) => match origin.direction {
            Direction::Egress => impair_wire(ctx, packet, &origin, Direction::Egress, matched),
            Direction::Ingress => impair_wire(ctx, packet, &origin, Direction::Ingress, matched),
        },
    };
    match verdict {
        // SAFETY: no pointers are passed.
        Some(Verdict::Lost | Verdict::Replaced) => unsafe { bpf_redirect(0, 0) as i32 },
        Some(Verdict::Held) => hold::redirect(),
        _ => wire::leave(ctx, &origin),
    }
}

/// A packet that was segmented, and its rule, after counting both.
#[inline(always)]
fn segment(ctx: &TcContext, origin: &wire::Origin) -> Option<(&'static Packet, Match<'static>)> {
    let mut matched = rule_at(origin.index)?;
    wire::arrive(&mut matched);
    let seen = seen(origin.direction)?;
    let packet = keep(|packet| skb::parse(ctx, Link::Ethernet, packet), seen, origin.direction)?;
    matched.count(origin.direction, ctx.len() - origin.added);
    Some((packet, matched))
}

#[inline(always)]
fn impair_wire(
    ctx: &TcContext,
    packet: &Packet,
    origin: &wire::Origin,
    direction: Direction,
    mut matched: Match,
) -> Option<Verdict> {
    let &wire::Origin { interface, index, .. } = origin;
    let bank = maps::RULES_PER_BANK.load();
    let number = if index < bank { index } else { index - bank };
    let link = Link::Ethernet;
    impair::impair(&Case { ctx, packet, direction, link, interface, number }, &mut matched)
}

/// Sets a packet's release time in the hold device's queue; drops packets that injector did not
/// send.
#[inline(always)]
pub fn hold_egress(ctx: &TcContext) -> i32 {
    if hold::enter(ctx) { TC_ACT_UNSPEC } else { TC_ACT_SHOT }
}

/// Returns a packet from the hold device to its path; drops packets that injector did not send.
#[inline(always)]
pub fn hold_ingress(ctx: &TcContext) -> i32 {
    hold::leave(ctx).unwrap_or(TC_ACT_SHOT)
}

/// Classifies a packet at the XDP hook: host scope, ingress, loss and corruption only.
#[inline(always)]
pub fn xdp(ctx: &XdpContext) -> u32 {
    match classify_frame(ctx) {
        Some(Verdict::Lost) => xdp_action::XDP_DROP,
        _ => xdp_action::XDP_PASS,
    }
}

#[inline(always)]
fn classify_frame(ctx: &XdpContext) -> Option<Verdict> {
    let direction = Direction::Ingress;
    let (control, set) = active()?;
    let seen = seen(direction)?;
    let (start, end) = (ctx.data(), ctx.data_end());
    let length = (end - start) as u32;
    let packet = keep(
        // SAFETY: the kernel makes data..data_end readable; the verifier checks all accesses.
        |packet| unsafe { parse(start, end, length, Link::Ethernet, packet) },
        seen,
        direction,
    )?;
    fragment::complete(packet);
    let Some(number) = find::search(packet, direction, set, control.bank, 0) else {
        if unmatched::is_wanted(direction) {
            unmatched::count(packet, direction, packet.wire_length(0));
        }
        return None;
    };
    let mut matched = active_rule(number, &control, packet, direction)?;
    matched.count(direction, length);
    impair::impair_frame(ctx, packet, &mut matched)
}

/// The active rule set, unless it is empty. Its control values are copied, so that one packet uses
/// one bank even if userspace switches meanwhile.
#[inline(always)]
fn active() -> Option<(Control, &'static RuleSet)> {
    let control = *maps::CONTROL.get(0)?;
    let set = maps::RULE_SETS.get(control.bank)?;
    if set.packets.count == 0 {
        return None;
    }
    Some((control, set))
}

/// Counts the packet as seen.
#[inline(always)]
fn seen(direction: Direction) -> Option<&'static mut SeenCounters> {
    // SAFETY: per CPU, and programs of one CPU do not interrupt each other within a hook.
    let seen = unsafe { &mut *maps::SEEN.get_ptr_mut(0)? };
    seen.packets[direction as usize] += 1;
    Some(seen)
}

/// Parses the packet into [`maps::PACKETS`], or counts why it cannot be parsed.
#[inline(always)]
fn keep(
    parse: impl FnOnce(&mut Packet) -> Result<(), Unparsed>,
    seen: &mut SeenCounters,
    direction: Direction,
) -> Option<&'static mut Packet> {
    let mut kept = maps::PACKETS.get_ptr_mut(direction as u32)?;
    // SAFETY: per CPU, and programs of one CPU do not interrupt each other within a hook; packets
    // that they send from within it carry the owner mark and do not get here. Any content is a
    // valid packet: all zeroes, or an earlier one.
    match parse(unsafe { &mut *kept }) {
        Ok(()) => {}
        Err(Unparsed::NotIp) => {
            seen.not_ip += 1;
            return None;
        }
        Err(Unparsed::Truncated | Unparsed::Malformed) => {
            seen.unparsed += 1;
            return None;
        }
    }
    // Keeps the compiler from reusing the values that it has just written.
    // SAFETY: a move to itself; with no instruction at all, the line information would be refused.
    unsafe { core::arch::asm!("{kept} = {kept}", kept = inout(reg) kept) };
    // SAFETY: as above.
    Some(unsafe { &mut *kept })
}

impl Match<'_> {
    /// Counts the match.
    #[inline(always)]
    fn count(&mut self, direction: Direction, length: u32) {
        self.counters.packets[direction as usize] += 1;
        self.counters.bytes[direction as usize] += u64::from(length);
    }
}

/// The rule at this index, and its counters.
#[inline(always)]
fn rule_at(index: u32) -> Option<Match<'static>> {
    let rule = maps::RULES.get(index)?;
    // SAFETY: per CPU, and programs of one CPU do not interrupt each other within a hook.
    let counters = unsafe { &mut *maps::COUNTERS.get_ptr_mut(index)? };
    Some(Match { rule, index, counters })
}

/// The rule and its counters; `None` if the rule must not act, after counting why.
#[inline(always)]
fn active_rule(
    number: u32,
    control: &Control,
    packet: &Packet,
    direction: Direction,
) -> Option<Match<'static>> {
    let matched = rule_at(control.bank * maps::RULES_PER_BANK.load() + number)?;
    if protect::protects(packet, direction) {
        matched.counters.protected += 1;
        return None;
    }
    let now = clock::now_ns();
    if now >= matched.rule.deadline_ns || now >= control.lease_deadline_ns {
        matched.counters.expired += 1;
        return None;
    }
    Some(matched)
}

/// Counts a packet that the rule should have impaired, but that may have receivers outside the
/// target.
#[inline(always)]
fn skipped(number: u32, control: &Control) {
    let index = control.bank * maps::RULES_PER_BANK.load() + number;
    if let Some(counters) = maps::COUNTERS.get_ptr_mut(index) {
        // SAFETY: per CPU, and programs of one CPU do not interrupt each other within a hook.
        unsafe { (*counters).skipped += 1 };
    }
    note(|seen| seen.shared += 1);
}

/// Counts why a packet was skipped.
#[inline(always)]
fn note(count: impl FnOnce(&mut SeenCounters)) {
    if let Some(seen) = maps::SEEN.get_ptr_mut(0) {
        // SAFETY: per CPU, and programs of one CPU do not interrupt each other within a hook.
        count(unsafe { &mut *seen });
    }
}
