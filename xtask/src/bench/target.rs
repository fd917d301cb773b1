//! Targets of benchmarks.

/// A target and the measured value.
#[derive(Debug)]
pub struct Target {
    /// What is measured.
    pub name: String,
    /// Whether `limit` is a minimum rather than a maximum.
    pub is_minimum: bool,
    /// The limit.
    pub limit: f64,
    /// The measured value.
    pub measured: f64,
}

impl Target {
    fn is_met(&self) -> bool {
        if self.is_minimum { self.measured >= self.limit } else { self.measured <= self.limit }
    }
}

/// Prints a table. Returns whether all targets are met.
pub fn report(targets: &[Target]) -> bool {
    println!("\n| target | limit | measured | |\n|---|--:|--:|---|");
    for target in targets {
        let Target { name, is_minimum, limit, measured } = target;
        let sign = if *is_minimum { "≥" } else { "≤" };
        let verdict = if target.is_met() { "met" } else { "MISSED" };
        println!("| {name} | {sign} {limit:.3} | {measured:.3} | {verdict} |");
    }
    targets.iter().all(Target::is_met)
}
