//! Computes which faults are active at each time: a pure function of the file and the seed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    time::Duration,
};

use super::{
    Choice, FaultRef, PartitionSpec, Ramp, Scenario, ScenarioError, Step, StepError,
    amount::{self, Amount},
    partition::{self, Shape, Sides},
    ramp,
    random::Random,
};
use crate::spec::{
    Faults,
    distribution::Files,
    file::FaultsSpec,
    matching::Matching,
    packet::Impairment,
    peer::Peer,
    process::ProcessFaults,
    rule::{Direction, Rule},
    value::{HumanDuration, Remote},
};

/// How the names of partitions begin. The shape follows, and who is cut off from whom.
pub const PARTITION: &str = "partition ";

/// Maximum number of changes in a timeline.
pub const MAX_CHANGES: usize = 1_000_000;

/// The timeline of a scenario.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Names of the targets.
    pub targets: Vec<String>,
    /// All parts that are active at some time.
    pub parts: Vec<Part>,
    /// The amounts of the parts that are steps of ramps.
    pub amounts: BTreeMap<usize, Vec<Amount>>,
    /// The sides of the parts that are partitions.
    pub partitions: BTreeMap<usize, Sides>,
    /// Changes in ascending order of time, at most one per time.
    ///
    /// After the last one nothing is active, if the scenario ends.
    pub changes: Vec<Change>,
    /// Length of the scenario; `None` if it does not end by itself.
    pub length: Option<Duration>,
}

/// A set of faults, or a partition, that can be active on targets.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Display name.
    pub name: String,
    /// Number of the step that it belongs to, from 1.
    pub step: usize,
    /// What it does.
    pub what: What,
}

/// The action on a target.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// Apply faults.
    Faults(Box<Faults>),
    /// Drop packets between pairs of nodes.
    Partition(Vec<Cut>),
}

/// One direction of a partition between two nodes, and the target that drops its packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Index of the target that drops packets.
    pub at: usize,
    /// Direction of the packets, as seen from that target.
    pub direction: Direction,
    /// The peer.
    pub peer: Node,
}

/// A node of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A target, by its index.
    Target(usize),
    /// An address that is not a target.
    Remote(Remote),
}

/// A change of the active parts at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Time from the start of the scenario.
    pub at: Duration,
    /// The changed targets, with the parts that are active there afterwards.
    pub sets: Vec<(usize, Vec<usize>)>,
}

impl Plan {
    /// The amounts of ramps among these parts, by the name of the part.
    #[must_use]
    pub fn amounts(&self, parts: &[usize]) -> BTreeMap<String, Vec<Amount>> {
        let of =
            |part: &usize| Some((self.parts[*part].name.clone(), self.amounts.get(part).cloned()?));
        parts.iter().filter_map(of).collect()
    }

    /// The partitions among these parts, by the name of the part.
    #[must_use]
    pub fn partitions(&self, parts: &[usize]) -> BTreeMap<String, Sides> {
        let of = |part: &usize| {
            Some((self.parts[*part].name.clone(), self.partitions.get(part).cloned()?))
        };
        parts.iter().filter_map(of).collect()
    }

    /// The rules of the parts that are active at a target, each with the number of its part.
    #[must_use]
    pub fn rules(&self, target: usize, parts: &[usize]) -> Vec<(usize, Rule)> {
        let (mut cuts, mut others) = (Vec::new(), Vec::new());
        for &number in parts {
            let part = &self.parts[number];
            match &part.what {
                What::Faults(faults) => {
                    for rule in &faults.rules {
                        let name = format!("{}: {}", part.name, rule.name);
                        let name = if part.name == rule.name { rule.name.clone() } else { name };
                        others.push((number, Rule { name, ..rule.clone() }));
                    }
                }
                What::Partition(all) => {
                    let here = all.iter().filter(|cut| cut.at == target);
                    let mut ways: BTreeMap<bool, Vec<Remote>> = BTreeMap::new();
                    for cut in here {
                        let remotes = ways.entry(cut.direction == Direction::Ingress).or_default();
                        remotes.push(match &cut.peer {
                            Node::Target(peer) => self.peer(*peer),
                            Node::Remote(remote) => remote.clone(),
                        });
                    }
                    for (is_ingress, remotes) in ways {
                        let (shape, _) = part.name.split_once(": ").unwrap_or((&part.name, ""));
                        cuts.push((number, cut_off(shape, is_ingress, remotes)));
                    }
                }
            }
        }
        cuts.append(&mut others);
        cuts
    }

    /// The active clock fault's part, if there is one.
    #[must_use]
    pub fn clock(&self, parts: &[usize]) -> Option<usize> {
        let has_clock = |faults: &Faults| faults.clock.is_some();
        parts.iter().copied().find(|&part| self.parts[part].faults().is_some_and(has_clock))
    }

    /// The process faults of these parts, each with the number of its part.
    pub fn processes(&self, parts: &[usize]) -> impl Iterator<Item = (usize, &ProcessFaults)> {
        parts.iter().filter_map(|&part| Some((part, self.parts[part].processes()?)))
    }

    /// All sets of parts that are active at a target at some time.
    pub fn sets(&self, target: usize) -> impl Iterator<Item = &[usize]> {
        let sets = self.changes.iter().flat_map(|change| &change.sets);
        sets.filter(move |(at, _)| *at == target).map(|(_, parts)| parts.as_slice())
    }

    /// A target as a peer of others.
    fn peer(&self, target: usize) -> Remote {
        Remote::Peer(Peer::Target(self.targets[target].clone()))
    }

    /// The targets whose addresses must be known.
    #[must_use]
    pub fn peers(&self) -> BTreeSet<usize> {
        let target = |cut: &Cut| match cut.peer {
            Node::Target(target) => Some(target),
            Node::Remote(_) => None,
        };
        self.cuts().filter_map(target).collect()
    }

    /// The peers other than targets, by address or name.
    pub fn remotes(&self) -> impl Iterator<Item = &Remote> {
        let faults = self.parts.iter().filter_map(Part::faults);
        let rules = faults.flat_map(|faults| &faults.rules);
        let cut_off = self.cuts().filter_map(|cut| match &cut.peer {
            Node::Remote(remote) => Some(remote),
            Node::Target(_) => None,
        });
        rules.flat_map(|rule| &rule.matching.remotes).chain(cut_off)
    }

    fn cuts(&self) -> impl Iterator<Item = &Cut> {
        self.parts.iter().flat_map(|part| match &part.what {
            What::Partition(cuts) => cuts.as_slice(),
            What::Faults(_) => &[],
        })
    }
}

impl Part {
    /// The faults; `None` for a partition.
    #[must_use]
    pub const fn faults(&self) -> Option<&Faults> {
        match &self.what {
            What::Faults(faults) => Some(faults),
            What::Partition(_) => None,
        }
    }

    /// Whether it is a partition.
    #[must_use]
    pub const fn is_partition(&self) -> bool {
        matches!(self.what, What::Partition(_))
    }

    /// Whether the part affects packets.
    #[must_use]
    pub fn has_rules(&self) -> bool {
        self.faults().is_none_or(|faults| !faults.rules.is_empty())
    }

    /// Whether the part affects more than clocks, whose processes are counted by target.
    #[must_use]
    pub fn has_counters(&self) -> bool {
        self.has_rules() || self.processes().is_some()
    }

    /// The process faults, if there are any.
    #[must_use]
    pub fn processes(&self) -> Option<&ProcessFaults> {
        self.faults().and_then(|faults| faults.processes.as_ref())
    }

    /// The kinds of faults in this part of which a target can have only one at a time.
    fn claims(&self) -> Vec<&'static str> {
        let Some(faults) = self.faults() else { return Vec::new() };
        let processes = faults.processes.as_ref();
        let claims = [
            ("clocks", faults.clock.is_some()),
            ("pauses", processes.is_some_and(|processes| processes.pause.is_some())),
            ("processor time", processes.is_some_and(|processes| processes.cpu.is_some())),
            ("block I/O", processes.is_some_and(|processes| processes.io.is_some())),
        ];
        claims.into_iter().filter(|(_, is_made)| *is_made).map(|(what, _)| what).collect()
    }
}

/// A rule that drops all packets to, or from, these peers.
fn cut_off(name: &str, is_ingress: bool, remotes: Vec<Remote>) -> Rule {
    let (direction, way) =
        if is_ingress { (Direction::Ingress, "from") } else { (Direction::Egress, "to") };
    let listed: Vec<String> = remotes.iter().map(ToString::to_string).collect();
    Rule {
        name: format!("{name}: {way} {}", listed.join(", ")),
        matching: Matching { direction, remotes, ..Matching::default() },
        impairment: Impairment::drop_all(),
        ..Rule::default()
    }
}

/// An interval in which parts are active on targets.
struct Active {
    from: Duration,
    /// End of the interval; `None` if it does not end.
    until: Option<Duration>,
    targets: Vec<usize>,
    part: usize,
}

/// A partition whose nodes were found.
struct Partition {
    shape: Shape,
    /// The names of the nodes, as given.
    names: Vec<String>,
    nodes: Vec<Node>,
    /// The node that is isolated, or the primary, if the file names it.
    chosen: Option<usize>,
}

struct Planner<'a> {
    path: &'a Path,
    scenario: &'a Scenario,
    seed: u64,
    targets: Vec<String>,
    named: HashMap<&'a str, Faults>,
    files: Files,
    parts: Vec<Part>,
    amounts: BTreeMap<usize, Vec<Amount>>,
    partitions: BTreeMap<usize, Sides>,
    active: Vec<Active>,
}

/// Plans a scenario that was read from `path`. Reads the files that faults name.
pub fn plan(path: &Path, scenario: &Scenario, seed: u64) -> Result<Plan, ScenarioError> {
    if scenario.targets.is_empty() {
        return Err(ScenarioError::NoTargets(path.into()));
    }
    if scenario.r#for.is_some_and(|length| length.0.is_zero()) {
        return Err(ScenarioError::NoTime(path.into()));
    }
    for (name, target) in &scenario.targets {
        target.check(false).map_err(|source| ScenarioError::Target {
            path: path.into(),
            name: name.clone(),
            source,
        })?;
    }
    let mut planner = Planner {
        path,
        scenario,
        seed,
        targets: scenario.targets.keys().cloned().collect(),
        named: HashMap::new(),
        files: Files::default(),
        parts: Vec::new(),
        amounts: BTreeMap::new(),
        partitions: BTreeMap::new(),
        active: Vec::new(),
    };
    for (name, faults) in &scenario.faults {
        let checked = planner.check(faults).map_err(|source| ScenarioError::Fault {
            path: path.into(),
            name: name.clone(),
            source: source.into(),
        })?;
        planner.named.insert(name, checked);
    }
    for (number, step) in (1..).zip(&scenario.timeline) {
        planner.step(number, step).map_err(|source| ScenarioError::Step {
            path: path.into(),
            number,
            source: source.into(),
        })?;
    }
    planner.finish()
}

impl Planner<'_> {
    fn check(&mut self, faults: &FaultsSpec) -> Result<Faults, StepError> {
        if faults.seed.is_some() {
            return Err(StepError::Seed);
        }
        if faults.rules.iter().any(|rule| rule.r#for.is_some()) {
            return Err(StepError::RuleFor);
        }
        Ok(faults.check_with(self.path, &mut self.files)?)
    }

    fn step(&mut self, number: usize, step: &Step) -> Result<(), StepError> {
        let kinds = [
            !step.faults.is_empty(),
            step.ramp.is_some(),
            step.partition.is_some(),
            !step.choose.is_empty(),
        ];
        if kinds.into_iter().filter(|given| *given).count() != 1 {
            return Err(StepError::What);
        }
        let random = Random::new(self.seed, number as u32);
        let on = self.on(&step.on)?;
        let times = self.times(step)?;
        if let Some(ramp) = &step.ramp {
            return self.ramp(number, step, ramp, &on, &times);
        }
        if step.partition.is_some() && !step.on.is_empty() {
            return Err(StepError::PartitionOn);
        }
        // Faults are the same in each repetition; partitions are drawn anew.
        let fixed = self.faults(number, &step.faults)?;
        let mut choices = Vec::with_capacity(step.choose.len());
        for choice in &step.choose {
            choices.push(self.choice(number, choice, &on)?);
        }
        let weights: Vec<usize> = step.choose.iter().map(|choice| choice.weight as usize).collect();
        if !step.choose.is_empty() && weights.iter().sum::<usize>() == 0 {
            return Err(StepError::NoWeight);
        }
        for (occurrence, (from, until)) in (0..).zip(times) {
            let mut random = random.time(occurrence);
            if let Some(partition) = &step.partition {
                self.partition(number, partition, &mut random, from, until)?;
            }
            let (on, parts) = if step.choose.is_empty() {
                (&on, &fixed)
            } else {
                let chosen = weighted(&weights, &mut random);
                if let Some(partition) = &step.choose[chosen].partition {
                    self.partition(number, partition, &mut random, from, until)?;
                }
                let (on, parts) = &choices[chosen];
                (on, parts)
            };
            for &part in parts {
                let part =
                    if occurrence > 0 && step.every == step.r#for { self.anew(part) } else { part };
                self.active.push(Active { from, until, targets: on.clone(), part });
            }
        }
        Ok(())
    }

    fn choice(
        &mut self,
        number: usize,
        choice: &Choice,
        on: &[usize],
    ) -> Result<(Vec<usize>, Vec<usize>), StepError> {
        match (choice.faults.is_empty(), &choice.partition) {
            (false, Some(_)) => return Err(StepError::What),
            (true, Some(_)) if !choice.on.is_empty() => return Err(StepError::PartitionOn),
            (true, None) if !choice.on.is_empty() => return Err(StepError::ChoiceWhat),
            _ => {}
        }
        if let Some(partition) = &choice.partition {
            self.nodes(partition)?;
        }
        let on = if choice.on.is_empty() { on.to_vec() } else { self.on(&choice.on)? };
        Ok((on, self.faults(number, &choice.faults)?))
    }

    /// The targets with these names; all if there are none.
    fn on(&self, names: &[String]) -> Result<Vec<usize>, StepError> {
        if names.is_empty() {
            return Ok((0..self.targets.len()).collect());
        }
        let mut on = Vec::with_capacity(names.len());
        for name in names {
            let target = self.target(name).ok_or_else(|| StepError::NoTarget(name.clone()))?;
            if !on.contains(&target) {
                on.push(target);
            }
        }
        Ok(on)
    }

    fn target(&self, name: &str) -> Option<usize> {
        self.targets.iter().position(|target| target == name)
    }

    /// The intervals in which a step is active.
    fn times(&self, step: &Step) -> Result<Vec<(Duration, Option<Duration>)>, StepError> {
        let end = self.scenario.r#for.map(|end| end.0);
        if let Some(end) = end
            && step.at.0 >= end
        {
            return Err(StepError::TooLate { at: step.at, end: HumanDuration(end) });
        }
        if step.r#for.is_some_and(|length| length.0.is_zero()) {
            return Err(StepError::NoTime);
        }
        let until = |from: Duration| match (step.r#for, end) {
            (Some(length), Some(end)) => Some((from + length.0).min(end)),
            (Some(length), None) => Some(from + length.0),
            (None, end) => end,
        };
        let Some(every) = step.every else {
            if step.times.is_some() {
                return Err(StepError::TimesWithoutEvery);
            }
            return Ok(vec![(step.at.0, until(step.at.0))]);
        };
        if step.times.is_none() && end.is_none() {
            return Err(StepError::Endless);
        }
        if every.0.is_zero() || step.r#for.is_none_or(|length| length > every) {
            return Err(StepError::Overlap);
        }
        let mut times = Vec::new();
        let mut from = step.at.0;
        for _ in 0..step.times.unwrap_or(u32::MAX) {
            if end.is_some_and(|end| from >= end) {
                break;
            }
            if times.len() >= MAX_CHANGES {
                return Err(StepError::TooLong);
            }
            times.push((from, until(from)));
            from += every.0;
        }
        Ok(times)
    }

    /// Resolves references to faults into parts.
    fn faults(&mut self, step: usize, refs: &[FaultRef]) -> Result<Vec<usize>, StepError> {
        let mut parts = Vec::with_capacity(refs.len());
        for fault in refs {
            let (name, faults) = self.fault(fault)?;
            parts.push(self.add(Part { name, step, what: What::Faults(faults.into()) }));
        }
        Ok(parts)
    }

    fn fault(&mut self, fault: &FaultRef) -> Result<(String, Faults), StepError> {
        match fault {
            FaultRef::Named(name) => match self.named.get(name.as_str()) {
                Some(faults) => Ok((name.clone(), faults.clone())),
                None => Err(StepError::NoFault(name.clone())),
            },
            FaultRef::Inline(faults) => {
                let faults = self.check(faults)?;
                Ok((title(&faults), faults))
            }
        }
    }

    /// The part to use when a repetition begins as the previous one ends.
    ///
    /// Process faults must restart, so they get a new part. All other faults simply continue.
    fn anew(&mut self, part: usize) -> usize {
        match self.parts[part].processes() {
            Some(_) => self.add(self.parts[part].clone()),
            None => part,
        }
    }

    fn add(&mut self, part: Part) -> usize {
        self.parts.push(part);
        self.parts.len() - 1
    }

    fn ramp(
        &mut self,
        number: usize,
        step: &Step,
        ramp: &Ramp,
        on: &[usize],
        times: &[(Duration, Option<Duration>)],
    ) -> Result<(), StepError> {
        let Some(length) = step.r#for else { return Err(StepError::RampFor) };
        if !(1..=1000).contains(&ramp.steps) {
            return Err(StepError::RampSteps);
        }
        let mut ends = Vec::with_capacity(2);
        let mut name = None;
        for end in [&ramp.from, &ramp.to] {
            self.fault(end)?;
            ends.push(match end {
                FaultRef::Named(named) => {
                    name.get_or_insert_with(Vec::new).push(named.as_str());
                    &self.scenario.faults[named]
                }
                FaultRef::Inline(faults) => faults,
            });
        }
        let levels = ramp::between(ends[0], ends[1], ramp.steps)?;
        let mut parts = Vec::with_capacity(levels.len());
        for level in &levels {
            let amounts = amount::amounts(ends[0], ends[1], level);
            let faults = self.check(level)?;
            let title = title(&faults);
            let name = match &name {
                Some(ends) => format!("{}: {title}", ends.join(" to ")),
                None => format!("ramp of step {number}: {title}"),
            };
            let part = self.add(Part { name, step: number, what: What::Faults(faults.into()) });
            self.amounts.insert(part, amounts);
            parts.push(part);
        }
        for &(start, end) in times {
            for (n, &part) in (0u32..).zip(&parts) {
                let at = |n: u32| start + ramp_time(length.0, n, ramp.steps + 1);
                if end.is_some_and(|end| at(n) >= end) {
                    break;
                }
                let until = end.map(|end| at(n + 1).min(end));
                self.active.push(Active { from: at(n), until, targets: on.to_vec(), part });
            }
        }
        Ok(())
    }

    /// The nodes of a partition, its shape, and the node that it is about, if it names one.
    fn nodes(&self, partition: &PartitionSpec) -> Result<Partition, StepError> {
        let PartitionSpec { shape, isolate, nodes, primary } = partition;
        let shape = match (shape, isolate) {
            (None, None) => return Err(StepError::NoShape),
            (Some(shape), Some(_)) if *shape != Shape::One => {
                return Err(StepError::Isolate(shape.name()));
            }
            (shape, _) => shape.unwrap_or(Shape::One),
        };
        let mut names = nodes.clone();
        if let Some(alone) = isolate {
            if nodes.is_empty() {
                names.clone_from(&self.targets);
            }
            if !names.contains(alone) {
                names.insert(0, alone.clone());
            }
        } else if nodes.is_empty() {
            return Err(StepError::NoNodes);
        }
        let mut found = Vec::with_capacity(names.len());
        for name in &names {
            let node = match self.target(name) {
                Some(target) => Node::Target(target),
                // A host name is likely a mistyped target.
                None => match name.parse() {
                    Ok(Remote::Peer(Peer::Host(_))) | Err(_) => {
                        return Err(StepError::NoNode(name.clone()));
                    }
                    Ok(remote) => Node::Remote(remote),
                },
            };
            if found.contains(&node) {
                return Err(StepError::NodeTwice(name.clone()));
            }
            found.push(node);
        }
        if found.len() < shape.least() {
            return Err(StepError::TooFewNodes { shape: shape.name(), least: shape.least() });
        }
        let place = |name: &String| names.iter().position(|node| node == name);
        let chosen = match (shape, primary) {
            (Shape::PrimaryMinority, Some(primary)) => {
                Some(place(primary).ok_or(StepError::Primary)?)
            }
            (Shape::PrimaryMinority, None) | (_, Some(_)) => return Err(StepError::Primary),
            _ => isolate.as_ref().and_then(place),
        };
        Ok(Partition { shape, names, nodes: found, chosen })
    }

    fn partition(
        &mut self,
        step: usize,
        spec: &PartitionSpec,
        random: &mut Random,
        from: Duration,
        until: Option<Duration>,
    ) -> Result<(), StepError> {
        let Partition { shape, names, nodes, chosen } = self.nodes(spec)?;
        let pairs = partition::cuts(shape, nodes.len(), chosen, random);
        let mut cuts = Vec::new();
        for &(from, to) in &pairs {
            // Cut at the sender if it is a target, else at the receiver.
            cuts.push(match (&nodes[from], &nodes[to]) {
                (Node::Target(at), peer) => {
                    Cut { at: *at, direction: Direction::Egress, peer: peer.clone() }
                }
                (peer, Node::Target(at)) => {
                    Cut { at: *at, direction: Direction::Ingress, peer: peer.clone() }
                }
                (Node::Remote(_), Node::Remote(_)) => {
                    return Err(StepError::NoCut(names[from].clone(), names[to].clone()));
                }
            });
        }
        let targets: BTreeSet<usize> = cuts.iter().map(|cut| cut.at).collect();
        let sides = Sides::new(shape, &pairs, &names);
        let name = format!("{PARTITION}{sides}");
        let part = self.add(Part { name, step, what: What::Partition(cuts) });
        self.partitions.insert(part, sides);
        self.active.push(Active { from, until, targets: targets.into_iter().collect(), part });
        Ok(())
    }

    fn finish(self) -> Result<Plan, ScenarioError> {
        let Self { path, scenario, targets, parts, amounts, partitions, active, .. } = self;
        let length = match scenario.r#for {
            Some(end) => Some(end.0),
            // The latest end, if all intervals end.
            None => active
                .iter()
                .map(|active| active.until)
                .try_fold(Duration::ZERO, |last, until| until.map(|until| last.max(until))),
        };
        let step = |part: usize, source| ScenarioError::Step {
            path: path.into(),
            number: parts[part].step,
            source: Box::new(source),
        };
        // The intervals that end and begin at each time. Ends come first, so that an interval can
        // follow another immediately.
        let mut times: BTreeMap<Duration, [Vec<usize>; 2]> = BTreeMap::new();
        for (number, active) in active.iter().enumerate() {
            times.entry(active.from).or_default()[1].push(number);
            if let Some(until) = active.until {
                times.entry(until).or_default()[0].push(number);
            }
            if times.len() > MAX_CHANGES {
                return Err(step(active.part, StepError::TooLong));
            }
        }
        if let Some(length) = length {
            times.entry(length).or_default();
        }
        let mut now: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); targets.len()];
        let mut changes = Vec::with_capacity(times.len());
        for (at, [ends, begins]) in times {
            let mut touched: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
            for number in ends {
                let Active { targets, part, .. } = &active[number];
                for &target in targets {
                    touched.entry(target).or_insert_with(|| now[target].clone());
                    now[target].remove(part);
                }
            }
            for number in begins {
                let Active { targets: on, part, .. } = &active[number];
                for &target in on {
                    touched.entry(target).or_insert_with(|| now[target].clone());
                    let mut others = now[target].iter().flat_map(|&other| parts[other].claims());
                    let claims = parts[*part].claims();
                    if let Some(what) = others.find(|other| claims.contains(other)) {
                        let target = targets[target].clone();
                        return Err(step(
                            *part,
                            StepError::Two { at: HumanDuration(at), what, target },
                        ));
                    }
                    now[target].insert(*part);
                }
            }
            let sets: Vec<_> = touched
                .into_iter()
                .filter(|(target, before)| now[*target] != *before)
                .map(|(target, _)| (target, now[target].iter().copied().collect()))
                .collect();
            if !sets.is_empty() {
                changes.push(Change { at, sets });
            }
        }
        Ok(Plan { targets, parts, amounts, partitions, changes, length })
    }
}

/// When part `n` of so many parts of a ramp begins: in milliseconds if the parts are long enough.
fn ramp_time(length: Duration, n: u32, parts: u32) -> Duration {
    /// In shorter parts, a millisecond matters.
    const LONG: Duration = Duration::from_millis(100);

    let at = length * n / parts;
    let is_whole = n == parts || length / parts < LONG;
    if is_whole { at } else { Duration::from_millis(at.as_millis() as u64) }
}

/// Draws one of the choices by weight.
fn weighted(weights: &[usize], random: &mut Random) -> usize {
    let mut drawn = random.below(weights.iter().sum());
    for (number, &weight) in weights.iter().enumerate() {
        if drawn < weight {
            return number;
        }
        drawn -= weight;
    }
    0
}

/// Display name of faults without a name.
fn title(faults: &Faults) -> String {
    let rules = faults.rules.iter().map(|rule| rule.name.as_str());
    let clock = faults.clock.iter().map(|clock| clock.name.as_str());
    let processes = faults.processes.iter().map(|processes| processes.name.as_str());
    rules.chain(clock).chain(processes).collect::<Vec<_>>().join("; ")
}
