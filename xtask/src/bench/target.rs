//! What a benchmark is to show, and whether it does.

/// A promise, and what came of it.
#[derive(Debug)]
pub struct Target {
    /// What is measured.
    pub name: String,
    /// Whether `measured` must be at least `limit`, else at most.
    pub least: bool,
    /// What was promised.
    pub limit: f64,
    /// What it is.
    pub measured: f64,
}

impl Target {
    fn is_met(&self) -> bool {
        if self.least { self.measured >= self.limit } else { self.measured <= self.limit }
    }
}

/// Prints a table; whether all are met.
pub fn report(targets: &[Target]) -> bool {
    println!("\n| target | limit | measured | |\n|---|--:|--:|---|");
    for target in targets {
        let Target { name, least, limit, measured } = target;
        let sign = if *least { "≥" } else { "≤" };
        let verdict = if target.is_met() { "met" } else { "MISSED" };
        println!("| {name} | {sign} {limit:.3} | {measured:.3} | {verdict} |");
    }
    targets.iter().all(Target::is_met)
}
