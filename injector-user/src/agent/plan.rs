//! Turns a request into a plan. This covers all checks that change nothing, and all lookups that
//! may block (name servers, file systems).

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use super::{
    MAX_LEASE, MAX_LIFE, MIN_LEASE,
    api::{Code, Fault, FaultRequest, Kind, Problem},
};
use crate::{
    spec::{
        Faults, SpecError,
        distribution::Files,
        file::FaultsSpec,
        peer::Peer,
        rule::RuleSpec,
        target::{PodSelection, Protection, TargetSpec},
        value::HumanDuration,
    },
    target::{
        ResolveError, Target,
        peers::{self, Peers, Resolved},
    },
};

/// Maximum length of a fault name.
const MAX_NAME: usize = 128;

/// Maximum number of interfaces of a target: they are stored and reported with the fault.
const MAX_LIST: usize = 1024;

/// The faults and how long they last.
#[derive(Debug)]
pub struct Terms {
    /// The name of the fault.
    pub name: String,
    /// The faults.
    pub faults: Faults,
    /// How long it lasts.
    pub lasts: Option<Duration>,
    /// How long it outlives its last renewal.
    pub lease: Option<Duration>,
}

/// A validated request.
#[derive(Debug)]
pub struct Plan {
    /// The faults and how long they last.
    pub terms: Terms,
    /// The target as requested.
    pub spec: TargetSpec,
    /// The resolved target.
    pub target: Target,
    /// The fault of selected pods that this is a part of. The part shares its deadlines and has
    /// none of its own.
    pub part_of: Option<Arc<Fault>>,
    /// What is excluded.
    pub protect: Protection,
    /// The peers that its rules name.
    pub peers: Peers,
    /// Their addresses.
    pub resolved: Vec<Resolved>,
}

/// A validated request for selected pods. Checks that require a pod come later.
#[derive(Debug)]
pub struct Selection {
    /// The faults of each pod, and how long they last.
    pub terms: Terms,
    /// The selected pods.
    pub pods: PodSelection,
    /// The request, with its final seed.
    pub request: Arc<FaultRequest>,
}

impl Terms {
    /// The kinds of its faults.
    #[must_use]
    pub fn kinds(&self) -> Vec<Kind> {
        let is = |kind: &Kind| match kind {
            Kind::Network => !self.faults.rules.is_empty(),
            Kind::Clock => self.faults.clock.is_some(),
            Kind::Process => self.faults.processes.is_some(),
        };
        Kind::ALL.into_iter().filter(is).collect()
    }

    /// A short description for the audit log.
    #[must_use]
    pub fn summary(&self) -> String {
        /// Further rules are only counted.
        const MAX_LISTED: usize = 8;
        let Faults { rules, clock, processes, .. } = &self.faults;
        let mut words: Vec<&str> =
            rules.iter().take(MAX_LISTED).map(|rule| rule.name.as_str()).collect();
        let more = rules.len().saturating_sub(MAX_LISTED);
        let more = (more > 0).then(|| format!("and {more} more rules"));
        words.extend(more.as_deref());
        words.extend(clock.as_ref().map(|clock| clock.name.as_str()));
        words.extend(processes.as_ref().map(|processes| processes.name.as_str()));
        words.join("; ")
    }

    /// The description with the duration.
    #[must_use]
    pub fn lasting(&self) -> String {
        let lasts = self.lasts.map(|lasts| format!(" for {lasts:?}")).unwrap_or_default();
        let lease =
            self.lease.map(|lease| format!(" with a lease of {lease:?}")).unwrap_or_default();
        format!("{}{lasts}{lease}", self.summary())
    }
}

/// Validates a request and resolves its names, except for peers that are known already. May block.
pub fn plan(request: FaultRequest, peers: Peers) -> Result<Plan, Problem> {
    let protect = request.target.protection();
    plan_for(request, peers, protect, |target| Target::resolve(target, protect.operator))
}

/// The peers of a request that are in the Kubernetes cluster.
#[must_use]
pub fn cluster_peers(rules: &[RuleSpec]) -> BTreeSet<Peer> {
    let named = peers::named(rules.iter().flat_map(RuleSpec::remotes));
    named.into_iter().filter(|peer| matches!(peer, Peer::Cluster(_))).cloned().collect()
}

/// Like [`plan`], with peers whose addresses are known already, and for a target that is resolved
/// in another way than by its specification.
pub fn plan_for(
    request: FaultRequest,
    peers: Peers,
    protect: Protection,
    find: impl FnOnce(&TargetSpec) -> Result<Target, ResolveError>,
) -> Result<Plan, Problem> {
    let terms = agree(&request)?;
    let spec = request.target;
    let resolved = peers.resolve(&peers::of_rules(&terms.faults.rules)).map_err(unresolved)?;
    let target = find(&spec).map_err(unresolved)?;
    Ok(Plan { terms, spec, target, part_of: None, protect, peers, resolved })
}

/// Validates a request for `pods`.
pub fn select(request: FaultRequest, pods: PodSelection) -> Result<Selection, Problem> {
    // All pods derive their streams from the same seed, which is reported.
    let seed = request.seed.unwrap_or_else(rand::random);
    let request = FaultRequest { seed: Some(seed), ..request };
    let terms = agree(&request)?;
    Ok(Selection { terms, pods, request: Arc::new(request) })
}

fn agree(request: &FaultRequest) -> Result<Terms, Problem> {
    let faults = check(request)?;
    let made_up = || format!("fault-{:08x}", rand::random::<u32>());
    let name = request.name.clone().unwrap_or_else(made_up);
    let (lasts, lease) = (request.r#for.map(|span| span.0), request.lease.map(|span| span.0));
    Ok(Terms { name, faults, lasts, lease })
}

/// Validates a request as far as possible without the state of this host.
pub fn check(request: &FaultRequest) -> Result<Faults, Problem> {
    let FaultRequest { name, target: spec, seed, rules, clocks, processes, r#for, lease } = request;
    if name.as_ref().is_some_and(|name| !is_name(name)) {
        return Err(Problem::new(
            Code::Invalid,
            "a name is up to 128 letters, digits, dots, dashes and underscores, the first a letter or digit",
        ));
    }
    check_times(r#for.map(|span| span.0), lease.map(|span| span.0))?;
    check_target(spec)?;
    let faults = FaultsSpec {
        seed: *seed,
        rules: rules.clone(),
        clocks: clocks.clone(),
        processes: processes.clone(),
    };
    let faults = faults
        .check_with(Path::new("the fault"), &mut Files::closed())
        .map_err(|error| Problem::from_error(Code::Invalid, error))?;
    if faults.clock.is_some() {
        spec.check_for_clocks().map_err(|error| Problem::from_error(Code::Invalid, error))?;
    }
    Ok(faults)
}

fn unresolved(error: ResolveError) -> Problem {
    Problem::from_error(Code::Invalid, error)
}

fn is_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
}

fn check_times(lasts: Option<Duration>, lease: Option<Duration>) -> Result<(), Problem> {
    let invalid = |message: String| Err(Problem::new(Code::Invalid, message));
    if lasts.is_none() && lease.is_none() {
        return invalid(
            "every fault must end: give `for`, how long it lasts, or `lease`, for how long it outlives its last renewal"
                .into(),
        );
    }
    if lasts.is_some_and(|lasts| lasts.is_zero() || lasts > MAX_LIFE) {
        return invalid(format!("`for` is more than 0s and at most {}", HumanDuration(MAX_LIFE)));
    }
    if lease.is_some_and(|lease| !(MIN_LEASE..=MAX_LEASE).contains(&lease)) {
        return invalid(format!(
            "`lease` is {} to {}",
            HumanDuration(MIN_LEASE),
            HumanDuration(MAX_LEASE)
        ));
    }
    Ok(())
}

/// Checks that clap performs for the command line.
fn check_target(spec: &TargetSpec) -> Result<(), Problem> {
    spec.check(false)
        .map_err(|error| Problem::from_error(Code::Invalid, SpecError::from(error)))?;
    if spec.host && spec.netns.is_some() {
        return Err(Problem::new(Code::Invalid, "a host has no netns beside it"));
    }
    if spec.interface.len().max(spec.address.len()) > MAX_LIST {
        let message = format!("a target has up to {MAX_LIST} interfaces and addresses");
        return Err(Problem::new(Code::Invalid, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> String {
        let request: FaultRequest = serde_json::from_str(json).expect(json);
        let problem = plan(request, Peers::default()).expect_err(json);
        assert_eq!(problem.error, Code::Invalid, "{problem}");
        problem.message
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        for (json, reason) in [
            (r#"{"target": {"host": true}, "rules": [{"loss": "1%"}]}"#, "every fault must end"),
            (r#"{"target": {"host": true}, "rules": [{"loss": "1%"}], "for": "25h"}"#, "`for`"),
            (r#"{"target": {"host": true}, "rules": [{"loss": "1%"}], "for": "0s"}"#, "`for`"),
            (r#"{"target": {"host": true}, "rules": [{"loss": "1%"}], "lease": "11m"}"#, "`lease`"),
            (r#"{"target": {"host": true}, "rules": [{"loss": "1%"}], "lease": "9ms"}"#, "`lease`"),
            (r#"{"target": {}, "rules": [{"loss": "1%"}], "for": "1s"}"#, "no target"),
            (
                r#"{"target": {"host": true, "pid": 1}, "rules": [{"loss": "1%"}], "for": "1s"}"#,
                "a target has one of cgroup, cgroup-of, pid",
            ),
            (
                r#"{"target": {"host": true, "netns": "x"}, "rules": [{"loss": "1%"}], "for": "1s"}"#,
                "no netns beside it",
            ),
            (r#"{"target": {"host": true}, "for": "1s"}"#, "no rule"),
            (r#"{"target": {"host": true}, "rules": [{}], "for": "1s"}"#, "rule 0"),
            (r#"{"name": "../x", "target": {"host": true}, "for": "1s"}"#, "a name is"),
            (
                r#"{"target": {"host": true}, "rules": [{"delay": "samples=/etc/shadow"}], "for": "1s"}"#,
                "reads no files",
            ),
            (
                r#"{"target": {"host": true}, "rules": [{"rate": "trace=/etc/shadow"}], "for": "1s"}"#,
                "does not read traces",
            ),
            (
                r#"{"target": {"host": true}, "rules": [{"trace": "/etc/shadow"}], "for": "1s"}"#,
                "does not read traces",
            ),
            (
                r#"{"target": {"pid": 1}, "processes": {"pause": "1s,jitter=1s,dist=/etc/shadow"}, "for": "1s"}"#,
                "reads no files",
            ),
            (
                r#"{"target": {"host": true}, "clocks": {"clock": "1s"}, "for": "1s"}"#,
                "clocks are faulted for processes",
            ),
            (
                r#"{"target": {"netns": "no-such"}, "rules": [{"loss": "1%"}], "for": "1s"}"#,
                "no-such",
            ),
        ] {
            let message = refused(json);
            assert!(message.contains(reason), "{json}: {message}");
        }
        let many = vec!["lo"; 2000];
        let json = serde_json::json!({
            "target": {"interface": many}, "rules": [{"loss": "1%"}], "for": "1s",
        });
        assert!(refused(&json.to_string()).contains("up to 1024"));
    }
}
