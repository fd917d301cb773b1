//! Packet faults, one file each: how it is written, what it needs, and what the kernel is told.

pub mod corrupt;
pub mod delay;
pub mod duplicate;
pub mod ecn;
pub mod loss;
pub mod partition;
pub mod rate;
pub mod reorder;
pub mod reset;
pub mod rtt;

use injector_common::{hold::Hold, rule};

use super::{
    distribution::{Files, Table},
    info::Info,
    rule::{RuleError, RuleSpec},
};

/// The table of packet faults, in the order in which options and titles have them. Calls `$callback!` with `$args` and a
/// row for each: the field of a rule, with further attributes of it; the type that describes the fault; and the field's type.
///
/// A fault may look at what those before it have made of the rule.
macro_rules! packet_faults {
    ($callback:ident! { $($args:tt)* }) => {
        $callback! { $($args)*
            { #[arg(group = "loss-model")] loss, packet::loss::Loss, Option<packet::loss::Loss> }
            { #[arg(group = "loss-model")] loss_every, packet::loss::LossEvery, Option<packet::loss::LossEvery> }
            { #[arg(group = "loss-model")] loss_state, packet::loss::LossState, Option<packet::loss::LossState> }
            { #[arg(group = "loss-model")] loss_gemodel, packet::loss::LossGemodel, Option<packet::loss::LossGemodel> }
            { corrupt, packet::corrupt::Corrupt, Option<packet::corrupt::Corrupt> }
            { #[arg(hide_possible_values = true)] corrupt_mode, packet::corrupt::CorruptMode, Option<packet::corrupt::CorruptMode> }
            { duplicate, packet::duplicate::Duplicate, Option<packet::duplicate::Duplicate> }
            { delay, packet::delay::DelaySpec, Option<packet::delay::DelaySpec> }
            { #[arg(conflicts_with = "delay")] rtt, packet::rtt::Rtt, Option<packet::rtt::Rtt> }
            { reorder, packet::reorder::Reorder, Option<packet::reorder::Reorder> }
            { rate, packet::rate::Rate, Option<packet::rate::Rate> }
            { ecn, packet::ecn::Ecn, bool }
            {
                #[arg(value_delimiter = ',')]
                #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
                #[schemars(with = "OneOrMany<Remote>")]
                partition, packet::partition::Partition, Vec<Remote>
            }
            { reset, packet::reset::Reset, bool }
        }
    };
}
pub(super) use packet_faults;

/// A packet fault, or what goes with one.
pub trait PacketFault {
    /// Its value.
    type Value: ?Sized;

    /// Its option, its help, and what it needs.
    const INFO: PacketInfo;

    /// Checks it against the rest of the rule, and has the kernel do it.
    fn compile(value: &Self::Value, compiler: &mut Compiler) -> Result<(), RuleError>;
}

/// What the faults of a rule are compiled with.
#[derive(Debug)]
pub struct Compiler<'a> {
    /// The whole rule.
    pub rule: &'a RuleSpec,
    /// The files that faults name.
    pub files: &'a mut Files,
    /// What has been made of the rule.
    pub impairment: Impairment,
}

/// What is known of a packet fault besides its value.
#[derive(Debug)]
pub struct PacketInfo {
    /// What is known of all faults.
    pub info: Info,
    /// It goes with another fault, and is none by itself.
    pub is_modifier: bool,
    /// Packets are held back for it, so that it takes an engine that does.
    pub holds: bool,
    /// XDP can do it, which sees received packets only, neither sockets nor copies, and holds nothing.
    pub by_xdp: bool,
    /// It is for TCP only.
    pub tcp_only: bool,
}

impl PacketInfo {
    /// To be filled in.
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

/// What a rule does to its packets, as the kernel takes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Impairment {
    /// Decisions about packets; its deadline and its random stream come later.
    pub rule: rule::Rule,
    /// How packets are held back, if they are; the number of the distribution comes later.
    pub hold: Option<Hold>,
    /// The distribution of their delays, if it takes a table.
    pub table: Option<Table>,
    /// The first fault in it that XDP cannot do.
    pub not_by_xdp: Option<&'static str>,
}

impl Impairment {
    /// How packets are held back: a delay of 0 is one as well.
    pub fn hold(&mut self) -> &mut Hold {
        self.rule.flags |= rule::RULE_HOLDS;
        self.hold.get_or_insert_default()
    }
}

/// A field of a rule: whether it is given.
pub trait Field {
    /// What is given.
    type Value: ?Sized;

    /// The value, if it is given.
    fn given(&self) -> Option<&Self::Value>;

    /// The value as text, if it is given and has one.
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
