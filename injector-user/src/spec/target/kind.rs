//! The kinds of targets, one row each.
//!
//! Messages that list options, display names, and the rules for combining targets derive from this
//! table.

use super::TargetSpec;

/// A kind of target.
#[derive(Debug)]
pub struct Kind {
    /// Name of the option and key.
    pub name: &'static str,
    /// What kind of object the option names.
    pub names: Names,
    /// Returns the display name; `None` if the option was not given.
    title: fn(&TargetSpec) -> Option<String>,
}

/// The kind of object that a target option names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// A group of processes. A target has at most one.
    Processes,
    /// Single processes, instead of a group.
    Process,
    /// Processes by name: alone, or those of a group.
    Named,
    /// A network namespace, which can restrict a group of processes.
    Namespace,
    /// Interfaces, which can restrict other targets. Alone, they cover all traffic on them.
    Interfaces,
    /// The whole host, instead of processes.
    Host,
}

/// All kinds.
pub static KINDS: [Kind; 11] = [
    Kind {
        name: "cgroup",
        names: Names::Processes,
        title: |spec| Some(format!("cgroup {}", spec.cgroup.as_deref()?.display())),
    },
    Kind {
        name: "cgroup-of",
        names: Names::Processes,
        title: |spec| Some(format!("cgroup of process {}", spec.cgroup_of?)),
    },
    Kind {
        name: "pid",
        names: Names::Process,
        title: |spec| (!spec.pid.is_empty()).then(|| pids(&spec.pid)),
    },
    Kind {
        name: "process",
        names: Names::Named,
        title: |spec| Some(format!("processes {}", spec.process.as_ref()?)),
    },
    Kind {
        name: "container",
        names: Names::Processes,
        title: |spec| Some(format!("container {}", spec.container.as_ref()?)),
    },
    Kind {
        name: "pod",
        names: Names::Processes,
        title: |spec| Some(format!("pod {}", spec.pod.as_ref()?)),
    },
    Kind {
        name: "pods",
        names: Names::Processes,
        title: |spec| Some(format!("pods {}", spec.pods.as_ref()?)),
    },
    Kind {
        name: "unit",
        names: Names::Processes,
        title: |spec| Some(format!("unit {}", spec.unit.as_ref()?)),
    },
    Kind {
        name: "netns",
        names: Names::Namespace,
        title: |spec| Some(format!("network namespace {}", spec.netns.as_deref()?.display())),
    },
    Kind {
        name: "interface",
        names: Names::Interfaces,
        title: |spec| {
            (!spec.interface.is_empty()).then(|| format!("interface {}", spec.interface.join(", ")))
        },
    },
    Kind { name: "host", names: Names::Host, title: |spec| spec.host.then(|| "host".into()) },
];

/// Display name of processes.
#[must_use]
pub fn pids(pids: &[i32]) -> String {
    let numbers: Vec<String> = pids.iter().map(i32::to_string).collect();
    let noun = if pids.len() == 1 { "process" } else { "processes" };
    format!("{noun} {}", numbers.join(", "))
}

impl Kind {
    /// Whether a target is of this kind, possibly among others.
    #[must_use]
    pub fn is_given(&self, spec: &TargetSpec) -> bool {
        (self.title)(spec).is_some()
    }

    /// Whether the kind covers the traffic of all processes.
    #[must_use]
    pub const fn is_wide(&self) -> bool {
        matches!(self.names, Names::Interfaces | Names::Host)
    }

    /// Whether it names processes.
    #[must_use]
    pub const fn names_processes(&self) -> bool {
        matches!(self.names, Names::Processes | Names::Process | Names::Named)
    }

    /// Whether the kind is mutually exclusive with other processes and the host.
    const fn is_exclusive(&self) -> bool {
        matches!(self.names, Names::Processes | Names::Process | Names::Host)
    }
}

impl TargetSpec {
    /// The kinds of this target.
    pub fn kinds(&self) -> impl Iterator<Item = &'static Kind> {
        KINDS.iter().filter(|kind| kind.is_given(self))
    }

    /// Display names of the target's processes, or of its places.
    pub fn titles(&self, of_processes: bool) -> impl Iterator<Item = String> {
        let kinds = KINDS.iter().filter(move |kind| kind.names_processes() == of_processes);
        kinds.filter_map(|kind| (kind.title)(self))
    }

    /// The mutually exclusive kinds of this target.
    pub(super) fn exclusive_kinds(&self) -> impl Iterator<Item = &'static Kind> {
        self.kinds().filter(|kind| kind.is_exclusive())
    }
}

/// All target options.
pub(super) fn options() -> String {
    list("--", ", ", KINDS.iter())
}

/// The options that name processes, as alternatives.
#[must_use]
pub fn process_options() -> String {
    let those = |names| KINDS.iter().filter(move |kind| kind.names == names);
    let processes = those(Names::Process).chain(those(Names::Named));
    list("--", " or ", those(Names::Processes).chain(processes))
}

/// The options that name places, as alternatives.
pub(super) fn place_options() -> String {
    list("--", " or ", KINDS.iter().filter(|kind| !kind.names_processes()))
}

/// Names of the mutually exclusive kinds.
pub(super) fn exclusive() -> String {
    list("", " and ", KINDS.iter().filter(|kind| kind.is_exclusive()))
}

/// Joins names, with `prefix` before each and `last` before the last.
fn list(prefix: &str, last: &str, kinds: impl Iterator<Item = &'static Kind>) -> String {
    let names: Vec<String> = kinds.map(|kind| format!("{prefix}{}", kind.name)).collect();
    match &names[..] {
        [rest @ .., end] if !rest.is_empty() => format!("{}{last}{end}", rest.join(", ")),
        names => names.concat(),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, Command};

    use super::*;

    #[test]
    fn each_option_is_a_kind() {
        let command = TargetSpec::augment_args(Command::new("test"));
        let mut options: Vec<_> =
            command.get_arguments().filter_map(|argument| argument.get_long()).collect();
        // It adds to a kind.
        options.retain(|option| *option != "tree");
        options.sort_unstable();
        let mut kinds: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
        kinds.sort_unstable();
        assert_eq!(options, kinds);
    }

    #[test]
    fn options_conflict_as_kinds_do() {
        let given = |kind: &Kind| match kind.name {
            "host" => vec!["--host".to_owned()],
            "pid" | "cgroup-of" | "process" => vec![format!("--{}=1", kind.name)],
            name => vec![format!("--{name}=a/b")],
        };
        for one in &KINDS {
            for other in KINDS.iter().filter(|other| other.name != one.name) {
                let arguments = [vec!["test".to_owned()], given(one), given(other)].concat();
                let command = TargetSpec::augment_args(Command::new("test"));
                let is_refused = command.try_get_matches_from(arguments).is_err();
                let pair = [one.name, other.name];
                let is_expected = (one.is_exclusive() && other.is_exclusive())
                    || (pair.contains(&"host") && pair.contains(&"netns"))
                    || pair.contains(&"pods")
                    || pair.contains(&"process")
                        && ["pid", "cgroup-of", "host"].iter().any(|name| pair.contains(name));
                assert_eq!(is_refused, is_expected, "{pair:?}");
            }
        }
    }

    #[test]
    fn lists_are_sentences() {
        assert_eq!(exclusive(), "cgroup, cgroup-of, pid, container, pod, pods, unit and host");
        assert_eq!(
            process_options(),
            "--cgroup, --cgroup-of, --container, --pod, --pods, --unit, --pid or --process"
        );
        assert_eq!(place_options(), "--netns, --interface or --host");
    }
}
