//! Packet faults, one file each: their syntax, their constraints, and their compilation for the
//! kernel.

pub mod corrupt;
pub mod delay;
pub mod duplicate;
pub mod ecn;
pub mod loss;
pub mod mtu;
pub mod partition;
pub mod pieces;
pub mod profile;
pub mod rate;
pub mod reorder;
pub mod reset;
pub mod rtt;
pub mod too_big;
pub mod trace;
pub mod ways;

use injector_common::{hold::Hold, rule};

use super::{
    distribution::{Files, Table},
    info::Info,
    rule::{RuleError, RuleSpec},
    trace::Played,
};

/// The table of packet faults, in the order of options and titles.
///
/// Calls `$callback!` with `$args` and a row for each fault: the field of a rule with additional
/// attributes, the type that describes the fault, and the field's type. A fault may depend on what
/// earlier ones compiled.
macro_rules! packet_faults {
    ($callback:ident! { $($args:tt)* }) => {
        $callback! { $($args)*
            { #[arg(hide_possible_values = true)] profile, packet::profile::Profile, Option<packet::profile::Profile> }
            { #[arg(group = "loss-model")] loss, packet::loss::Loss, Option<packet::ways::Ways<packet::loss::Loss>> }
            { #[arg(group = "loss-model")] loss_every, packet::loss::LossEvery, Option<packet::loss::LossEvery> }
            { #[arg(group = "loss-model")] loss_state, packet::loss::LossState, Option<packet::loss::LossState> }
            { #[arg(group = "loss-model")] loss_gemodel, packet::loss::LossGemodel, Option<packet::loss::LossGemodel> }
            { corrupt, packet::corrupt::Corrupt, Option<packet::corrupt::Corrupt> }
            { #[arg(hide_possible_values = true)] corrupt_mode, packet::corrupt::CorruptMode, Option<packet::corrupt::CorruptMode> }
            { duplicate, packet::duplicate::Duplicate, Option<packet::duplicate::Duplicate> }
            { delay, packet::delay::DelaySpec, Option<packet::ways::Ways<packet::delay::DelaySpec>> }
            { #[arg(conflicts_with = "delay")] rtt, packet::rtt::Rtt, Option<packet::rtt::Rtt> }
            { reorder, packet::reorder::Reorder, Option<packet::reorder::Reorder> }
            { rate, packet::rate::Rate, Option<packet::ways::Ways<packet::rate::Rate>> }
            { trace, packet::trace::Trace, Option<packet::trace::Trace> }
            { ecn, packet::ecn::Ecn, bool }
            { pieces, packet::pieces::Pieces, bool }
            { mtu, packet::mtu::Mtu, Option<packet::mtu::Mtu> }
            {
                #[arg(value_delimiter = ',')]
                #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
                #[schemars(with = "OneOrMany<Remote>")]
                partition, packet::partition::Partition, Vec<Remote>
            }
            { reset, packet::reset::Reset, bool }
            { too_big, packet::too_big::TooBig, bool }
        }
    };
}
pub(super) use packet_faults;

/// A packet fault or a modifier of one.
pub trait PacketFault {
    /// Type of the value.
    type Value: ?Sized;

    /// Option, help, and constraints.
    const INFO: PacketInfo;

    /// Checks the fault against the rest of the rule, and compiles it for the kernel.
    fn compile(value: &Self::Value, compiler: &mut Compiler) -> Result<(), RuleError>;
}

/// State of the compilation of a rule.
#[derive(Debug)]
pub struct Compiler<'a> {
    /// The complete rule.
    pub rule: &'a RuleSpec,
    /// Cache of the files that faults name.
    pub files: &'a mut Files,
    /// The result so far.
    pub impairment: Impairment,
}

/// Metadata of a packet fault.
#[derive(Debug)]
pub struct PacketInfo {
    /// Metadata common to all faults.
    pub info: Info,
    /// The option modifies another fault and is none by itself.
    pub is_modifier: bool,
    /// The fault holds packets, and so requires an engine that can delay.
    pub holds: bool,
    /// XDP can apply the fault. XDP sees only received packets, has no socket, and cannot copy or
    /// hold packets.
    pub by_xdp: bool,
    /// The fault applies to TCP only.
    pub tcp_only: bool,
}

impl PacketInfo {
    /// A base for struct update syntax.
    pub const DEFAULT: Self = Self {
        info: Info::DEFAULT,
        is_modifier: false,
        holds: false,
        by_xdp: false,
        tcp_only: false,
    };
}

impl std::ops::Deref for PacketInfo {
    type Target = Info;

    fn deref(&self) -> &Info {
        &self.info
    }
}

/// The effect of a rule on its packets, in the kernel's format.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Impairment {
    /// Decisions about packets. The deadline and the random stream are set later.
    pub rule: rule::Rule,
    /// How packets are held, if they are. The index of the distribution is set later.
    pub hold: Option<Hold>,
    /// The distribution of delays, if it requires a table.
    pub table: Option<Table>,
    /// The trace that the rule plays.
    pub trace: Option<Played>,
    /// Whether to act on GSO packets rather than wire packets.
    pub pieces: bool,
    /// The first fault of the rule that XDP cannot apply.
    pub not_by_xdp: Option<&'static str>,
}

impl Impairment {
    /// The settings for holding packets. Even a delay of 0 holds them.
    pub fn hold(&mut self) -> &mut Hold {
        self.rule.flags |= rule::RULE_HOLDS;
        self.hold.get_or_insert_default()
    }

    /// Makes the rule play a trace, which holds packets.
    pub fn play(&mut self, trace: Played) {
        self.hold();
        self.trace = Some(trace);
    }
}

/// A field of a rule that may be absent.
pub trait Field {
    /// Type of the value.
    type Value: ?Sized;

    /// The value, if present.
    fn given(&self) -> Option<&Self::Value>;

    /// The value as text, if it is present and has a text form.
    fn text(&self) -> Option<String>;
}

impl<T: std::fmt::Display> Field for Option<T> {
    type Value = T;

    fn given(&self) -> Option<&T> {
        self.as_ref()
    }

    fn text(&self) -> Option<String> {
        self.as_ref().map(ToString::to_string)
    }
}

impl Field for bool {
    type Value = Self;

    fn given(&self) -> Option<&Self> {
        self.then_some(&true)
    }

    fn text(&self) -> Option<String> {
        None
    }
}

impl<T> Field for Vec<T> {
    type Value = [T];

    fn given(&self) -> Option<&[T]> {
        (!self.is_empty()).then_some(self)
    }

    fn text(&self) -> Option<String> {
        None
    }
}
