//! Faults for Rust programs such as integration tests, active while a guard is held.

use std::{
    io,
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use thiserror::Error;

use super::{
    FaultSet, Injection, InjectionError, Options,
    worker::{Status, Worker},
};
use crate::{
    fault::{
        clock::report::ClocksReport,
        network::{counts::Counts, report::Totals},
        process::Statistics,
    },
    lifetime::{cleanup, instance::SharedInstance, journal::Owner},
    spec::{
        Faults, SpecError, clock::ClockSpec, process::ProcessSpec, rule::RuleSpec,
        target::TargetSpec,
    },
    target::{Target, peers},
};

/// Why the faults cannot start.
#[derive(Debug, Error)]
pub enum BuildError {
    /// A value is invalid.
    #[error("{key}: {source}")]
    Value {
        /// The key, as in rule files.
        key: String,
        /// The reason.
        source: serde_json::Error,
    },
    /// Keys contradict each other.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The injection cannot start.
    #[error(transparent)]
    Injection(#[from] InjectionError),
    /// The thread cannot be created.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// Describes faults and their target, see [`Injection::builder`]. Keys and values are those of rule
/// files (docs/rules.md).
#[derive(Clone, Debug, Default)]
pub struct Builder {
    target: Map<String, Value>,
    rule: Map<String, Value>,
    clocks: Map<String, Value>,
    processes: Map<String, Value>,
    lasts: Option<Duration>,
    seed: Option<u64>,
}

/// Generates a method for each key with a text value.
macro_rules! keys {
    ($section:ident: $($(#[$doc:meta])* $name:ident $key:literal)*) => {
        $(
            $(#[$doc])*
            pub fn $name(self, value: &str) -> Result<Self, BuildError> {
                self.$section($key, value)
            }
        )*
    };
}

impl Builder {
    keys! { target:
        /// Faults the processes of a cgroup, by its path below the cgroup v2 mount.
        cgroup "cgroup"
        /// Faults the packets in a network namespace, by its name or path.
        netns "netns"
        /// Faults the processes of a container, by its name or ID.
        container "container"
        /// Faults the processes of a systemd unit, by its name.
        unit "unit"
        /// Faults the processes of this name, or of a name that matches `/REGEX/`.
        processes_named "process"
    }

    keys! { rule:
        /// Drops packets, for instance `5%`.
        loss "loss"
        /// Delays packets, for instance `50ms,jitter=10ms`.
        delay "delay"
        /// Flips a bit in packets, for instance `1%`.
        corrupt "corrupt"
        /// Sends packets twice, for instance `1%`.
        duplicate "duplicate"
        /// Limits the rate, for instance `1mbit`.
        rate "rate"
        /// Plays rate, delay and loss from a CSV file, for instance `lte.csv,loop`.
        trace "trace"
        /// Acts like a link, for instance `3g`; see `injector profiles`.
        profile "profile"
        /// Faults only packets to and from these addresses.
        remote "remote"
        /// Faults only packets of this protocol.
        protocol "protocol"
        /// Faults only packets of these local ports.
        local_port "local-port"
        /// Faults only packets of these remote ports.
        remote_port "remote-port"
        /// Faults only packets of this direction, `egress` or `ingress`.
        direction "direction"
    }

    keys! { clock_key:
        /// Offsets clocks, for instance `+1h` or `-5s,clock=all`.
        clock "clock"
    }

    keys! { process:
        /// Pauses processes, for instance `200ms,every=1s`.
        pause "pause"
        /// Sends signals, for instance `at=10s`.
        kill "kill"
        /// Makes system calls fail, for instance `openat=EIO,path=/data/*`.
        errno "errno"
        /// Limits total CPU time, for instance `25%`.
        cpu "cpu"
    }

    /// Faults a process and what it starts from then on. May be called several times.
    pub fn pid(self, pid: i32) -> Result<Self, BuildError> {
        let mut pids = match self.target.get("pid") {
            Some(Value::Array(pids)) => pids.clone(),
            _ => Vec::new(),
        };
        pids.push(pid.into());
        self.target("pid", pids)
    }

    /// Faults the packets on an interface. May be called several times.
    pub fn interface(self, name: &str) -> Result<Self, BuildError> {
        let mut names = match self.target.get("interface") {
            Some(Value::Array(names)) => names.clone(),
            _ => Vec::new(),
        };
        names.push(name.into());
        self.target("interface", names)
    }

    /// Sets a key of the target.
    pub fn target(mut self, key: &str, value: impl Into<Value>) -> Result<Self, BuildError> {
        set::<TargetSpec>(&mut self.target, key, value.into())?;
        Ok(self)
    }

    /// Sets a key of the rule.
    pub fn rule(mut self, key: &str, value: impl Into<Value>) -> Result<Self, BuildError> {
        set::<RuleSpec>(&mut self.rule, key, value.into())?;
        Ok(self)
    }

    /// Sets a key of the section `clocks`.
    pub fn clock_key(mut self, key: &str, value: impl Into<Value>) -> Result<Self, BuildError> {
        set::<ClockSpec>(&mut self.clocks, key, value.into())?;
        Ok(self)
    }

    /// Sets a key of the section `processes`.
    pub fn process(mut self, key: &str, value: impl Into<Value>) -> Result<Self, BuildError> {
        set::<ProcessSpec>(&mut self.processes, key, value.into())?;
        Ok(self)
    }

    /// Limits how long the faults last.
    #[must_use]
    pub const fn lasts(mut self, lasts: Duration) -> Self {
        self.lasts = Some(lasts);
        self
    }

    /// Sets the seed, which makes the decisions repeatable.
    #[must_use]
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Starts the faults, which are active when this returns. First cleans up after dead injectors.
    /// On error, everything is undone.
    pub fn start(self) -> Result<Guard, BuildError> {
        let target = read::<TargetSpec>(&self.target)?;
        target.check(false).map_err(SpecError::from)?;
        let mut faults = Faults {
            clock: read::<ClockSpec>(&self.clocks)?.check().map_err(SpecError::from)?,
            processes: read::<ProcessSpec>(&self.processes)?.check().map_err(SpecError::from)?,
            ..Faults::default()
        };
        if faults.clock.is_some() {
            target.check_for_clocks().map_err(SpecError::from)?;
        }
        if !self.rule.is_empty() || (faults.clock.is_none() && faults.processes.is_none()) {
            faults.rules = read::<RuleSpec>(&self.rule)?.check().map_err(SpecError::from)?;
        }
        let mut options = Options { outlived: true, ..Options::default() };
        options.peers.resolve(&peers::of_rules(&faults.rules)).map_err(InjectionError::from)?;
        options.network.protect = target.protection();
        options.network.lasts = self.lasts;
        let set = FaultSet::of(&faults, self.seed.unwrap_or_else(rand::random));
        let target = Target::resolve(&target, options.network.protect.operator)
            .map_err(InjectionError::from)?;
        for error in cleanup::cleanup().1 {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot undo what was left");
        }
        let instance = SharedInstance::start(Owner::current()).map_err(InjectionError::from)?;
        let mut injection = Injection::prepare(target, instance, set, &[], options)?;
        injection.start()?;
        let ends = self.lasts.and_then(|lasts| Instant::now().checked_add(lasts));
        Ok(Guard { worker: Worker::start(injection, ends).map_err(BuildError::Thread)? })
    }
}

/// Sets a key if the value is valid.
fn set<T: DeserializeOwned>(
    section: &mut Map<String, Value>,
    key: &str,
    value: Value,
) -> Result<(), BuildError> {
    let alone = Map::from_iter([(key.to_owned(), value.clone())]);
    let read = serde_json::from_value::<T>(Value::Object(alone));
    read.map_err(|source| BuildError::Value { key: key.to_owned(), source })?;
    section.insert(key.to_owned(), value);
    Ok(())
}

fn read<T: DeserializeOwned>(section: &Map<String, Value>) -> Result<T, BuildError> {
    serde_json::from_value(Value::Object(section.clone())).map_err(|source| {
        let key = section.keys().cloned().collect::<Vec<_>>().join(", ");
        BuildError::Value { key, source }
    })
}

/// Statistics of the faults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counters {
    /// Statistics of packet faults.
    pub packets: Totals,
    /// Statistics of clock faults, if any.
    pub clocks: Option<ClocksReport>,
    /// Statistics of process faults, if any.
    pub processes: Option<Statistics>,
    /// Warnings about faults that probably do not act as intended.
    pub warnings: Vec<String>,
    /// Whether the target is gone.
    pub is_gone: bool,
}

impl From<Status> for Counters {
    fn from(status: Status) -> Self {
        let Status { packets, clocks, processes, warnings, is_gone, .. } = status;
        let packets = Totals::from(&packets.iter().sum::<Counts>());
        Self { packets, clocks, processes, warnings, is_gone }
    }
}

/// Active faults. They end when the guard is dropped or the process ends, however that happens.
#[derive(Debug)]
#[must_use = "the faults end when it is dropped"]
pub struct Guard {
    worker: Worker,
}

impl Guard {
    /// The statistics so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.worker.refresh();
        self.worker.status().into()
    }

    /// Whether the faults have ended, because of their duration or a failure.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.worker.is_over()
    }

    /// Ends the faults and returns their statistics. Fails if the faults ended early because of an
    /// error.
    pub fn end(self) -> Result<Counters, InjectionError> {
        let (status, ended) = self.worker.end();
        ended.map(|()| status.into())
    }
}

impl Injection<u32> {
    /// Begins to describe faults, which a guard keeps active.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// use injector_user::Injection;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let guard = Injection::builder()
    ///     .cgroup("/shop.slice/cart.service")?
    ///     .loss("5%")?
    ///     .delay("50ms,jitter=10ms")?
    ///     .remote_port("5432")?
    ///     .lasts(Duration::from_secs(30))
    ///     .start()?;
    /// // Run the code under test here.
    /// assert!(guard.counters().packets.matched > 0);
    /// let counters = guard.end()?;
    /// println!("{} packets dropped", counters.packets.done.dropped);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(built: Result<Builder, BuildError>) -> String {
        built.expect_err("it makes no sense").to_string()
    }

    #[test]
    fn values_are_checked_where_they_are_given() {
        let builder = Injection::builder;
        assert!(refused(builder().loss("101%")).starts_with("loss: "));
        assert!(refused(builder().delay("fast")).starts_with("delay: "));
        assert!(refused(builder().clock("x")).starts_with("clock: "));
        assert!(refused(builder().rule("lose", "1%")).contains("unknown field"));
        assert!(builder().interface("a").and_then(|it| it.interface("b")).is_ok());
        assert!(builder().rule("loss-every", 3).and_then(|it| it.pause("1s,every=2s")).is_ok());
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_anything_is_touched() {
        let nowhere = Injection::builder().loss("1%").and_then(Builder::start);
        assert!(matches!(nowhere, Err(BuildError::Spec(SpecError::Target(_)))));
        let nothing = Injection::builder().netns("x").and_then(Builder::start);
        assert!(matches!(nothing, Err(BuildError::Spec(SpecError::Rule(_)))));
    }
}
