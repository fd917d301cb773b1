//! The way of a packet: whose is it, what is it, which rule, what to do.

mod find;
mod fragment;
mod hold;
mod impair;
mod protect;
mod scope;
mod skb;

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
    rule::{RULE_RESET, Rule},
};

use crate::{clock, maps};

/// What becomes of a packet after its rule has been applied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Goes on its way, perhaps altered.
    Pass,
    /// Is gone, as if the wire had lost it.
    Lost,
    /// Is gone, as if it had been passed on: a clone of it is held.
    Replaced,
    /// Goes into this host's receive path instead of out.
    TurnedBack,
    /// Goes to the hold device.
    Held,
}

/// A packet at a tc hook.
struct Case<'a> {
    ctx: &'a TcContext,
    packet: &'a Packet,
    direction: Direction,
    link: Link,
    /// The number of the rule.
    number: u32,
}

/// The rule that a packet falls under.
struct Match<'a> {
    rule: &'a Rule,
    /// Index into [`maps::RULES`] and its siblings.
    index: u32,
    counters: &'a mut RuleCounters,
}

/// Judges a packet at a tc hook.
#[inline(always)]
pub fn tc(ctx: &TcContext, direction: Direction, link: Link) -> i32 {
    match judge_skb(ctx, direction, link) {
        None | Some(Fate::Pass) => TC_ACT_UNSPEC,
        // tcx would report a drop to the sender as congestion (NET_XMIT_DROP), which a wire never does.
        // A redirect to no interface frees the packet and reports success.
        // SAFETY: no pointers are passed.
        Some(Fate::Lost) if direction == Direction::Egress => unsafe { bpf_redirect(0, 0) as i32 },
        Some(Fate::Lost) => TC_ACT_SHOT,
        // Nor is it a drop on receipt.
        // SAFETY: no pointers are passed.
        Some(Fate::Replaced) => unsafe { bpf_redirect(0, 0) as i32 },
        Some(Fate::TurnedBack) => skb::turn_back(ctx),
        Some(Fate::Held) => hold::redirect(),
    }
}

/// `None` if the packet is none of ours.
#[inline(always)]
fn judge_skb(ctx: &TcContext, direction: Direction, link: Link) -> Option<Fate> {
    if skb::is_judged(ctx) {
        if direction == Direction::Ingress {
            skb::take_priority(ctx);
        }
        return None;
    }
    let (control, set) = active()?;
    if direction == Direction::Egress && !scope::sends(ctx, &control) {
        return None;
    }
    let seen = seen(direction)?;
    let link = if skb::is_own_copy(ctx) { Link::None } else { link };
    let packet = keep(|packet| skb::parse(ctx, link, packet), seen, direction)?;
    fragment::complete(packet);
    scope::remember(packet, direction);

    let number = find::rule(packet, direction, set, control.bank);
    if number == find::NO_RULE {
        return None;
    }
    if direction == Direction::Ingress && scope::may_be_shared(ctx, packet) {
        skipped(number, &control);
        return None;
    }
    if direction == Direction::Ingress
        && !scope::receives(ctx, packet, control.cgroup_id, control.cgroup_level)
    {
        return None;
    }
    let mut matched = counted(number, &control, packet, direction, ctx.len())?;
    if matched.rule.flags & RULE_RESET != 0
        && direction == Direction::Egress
        && skb::comes_back(ctx)
        && scope::is_translated(ctx, packet)
    {
        // A packet of the loopback keeps its connection's translation, which is that of the way there: an answer to it
        // would be led astray. Where received packets are judged as well, its connection is reset by those.
        matched.counters.skipped += 1;
        note(|seen| seen.translated += 1);
        return Some(Fate::Pass);
    }
    skb::set_judged(ctx);

    impair::impair(&Case { ctx, packet, direction, link, number }, &mut matched)
}

/// Tells the queue of the hold device when a packet is due; drops what is not ours.
#[inline(always)]
pub fn hold_egress(ctx: &TcContext) -> i32 {
    if hold::enter(ctx) { TC_ACT_UNSPEC } else { TC_ACT_SHOT }
}

/// Puts a packet that comes back from the hold device on its way; drops what is not ours.
#[inline(always)]
pub fn hold_ingress(ctx: &TcContext) -> i32 {
    hold::leave(ctx).unwrap_or(TC_ACT_SHOT)
}

/// Judges a packet at the XDP hook: host scope, ingress, loss and corruption only.
#[inline(always)]
pub fn xdp(ctx: &XdpContext) -> u32 {
    match judge_frame(ctx) {
        Some(Fate::Lost) => xdp_action::XDP_DROP,
        _ => xdp_action::XDP_PASS,
    }
}

#[inline(always)]
fn judge_frame(ctx: &XdpContext) -> Option<Fate> {
    let direction = Direction::Ingress;
    let (control, set) = active()?;
    let seen = seen(direction)?;
    let (start, end) = (ctx.data(), ctx.data_end());
    let length = (end - start) as u32;
    let packet = keep(
        // SAFETY: the kernel makes data..data_end readable; the verifier checks that we keep to it.
        |packet| unsafe { parse(start, end, length, Link::Ethernet, packet) },
        seen,
        direction,
    )?;
    fragment::complete(packet);
    let number = find::search(packet, direction, set, control.bank)?;
    let mut matched = counted(number, &control, packet, direction, length)?;
    impair::impair_frame(ctx, packet, &mut matched)
}

/// The active rule set, unless it is empty. What controls it is copied, so that one packet sees one
/// bank though userspace may flip it meanwhile.
#[inline(always)]
fn active() -> Option<(Control, &'static RuleSet)> {
    let control = *maps::CONTROL.get(0)?;
    let set = maps::RULE_SETS.get(control.bank)?;
    if set.mask_count == 0 {
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

/// Has the packet parsed into [`maps::PACKETS`], or counts why it cannot be.
#[inline(always)]
fn keep(
    parse: impl FnOnce(&mut Packet) -> Result<(), Unparsed>,
    seen: &mut SeenCounters,
    direction: Direction,
) -> Option<&'static mut Packet> {
    let mut kept = maps::PACKETS.get_ptr_mut(direction as u32)?;
    // SAFETY: per CPU, and programs of one CPU do not interrupt each other within a hook; what they
    // make the kernel send from within it is marked as judged and does not come here. Whatever is there is
    // a packet: all zeroes, or what was parsed before.
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
    // The compiler must not remember what it has just written either.
    // SAFETY: a move to itself; with no instruction at all, the line information would be refused.
    unsafe { core::arch::asm!("{kept} = {kept}", kept = inout(reg) kept) };
    // SAFETY: as above.
    Some(unsafe { &mut *kept })
}

/// The rule and its counters, the packet counted as matched; `None` if the rule must leave it alone.
#[inline(always)]
fn counted(
    number: u32,
    control: &Control,
    packet: &Packet,
    direction: Direction,
    length: u32,
) -> Option<Match<'static>> {
    let index = control.bank * maps::RULES_PER_BANK.load() + number;
    let rule = maps::RULES.get(index)?;
    // SAFETY: per CPU, and programs of one CPU do not interrupt each other within a hook.
    let counters = unsafe { &mut *maps::COUNTERS.get_ptr_mut(index)? };
    if protect::protects(packet, direction) {
        counters.protected += 1;
        return None;
    }
    let now = clock::now_ns();
    if now >= rule.deadline_ns || now >= control.lease_deadline_ns {
        counters.expired += 1;
        return None;
    }
    counters.packets[direction as usize] += 1;
    counters.bytes[direction as usize] += u64::from(length);
    Some(Match { rule, index, counters })
}

/// Counts a packet that the rule should have impaired, but that may be for others than the target as well.
#[inline(always)]
fn skipped(number: u32, control: &Control) {
    let index = control.bank * maps::RULES_PER_BANK.load() + number;
    if let Some(counters) = maps::COUNTERS.get_ptr_mut(index) {
        // SAFETY: per CPU, and programs of one CPU do not interrupt each other within a hook.
        unsafe { (*counters).skipped += 1 };
    }
    note(|seen| seen.shared += 1);
}

/// Counts the reason for which a packet was skipped.
#[inline(always)]
fn note(count: impl FnOnce(&mut SeenCounters)) {
    if let Some(seen) = maps::SEEN.get_ptr_mut(0) {
        // SAFETY: per CPU, and programs of one CPU do not interrupt each other within a hook.
        count(unsafe { &mut *seen });
    }
}
