use std::fs;

use super::*;
use crate::spec::{
    parameters::malformed,
    rule::{Direction, RuleSpec},
};

/// A file with this text, and its rule.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let name = format!("injector-trace-{name}-{}", std::process::id());
        let file = Self(std::env::temp_dir().join(name));
        fs::write(&file.0, text).expect("a file");
        file
    }

    /// Checks a rule with `FILE` for the path.
    fn check(&self, yaml: &str) -> Result<Vec<crate::spec::rule::Rule>, RuleError> {
        let yaml = yaml.replace("FILE", &self.0.display().to_string());
        serde_saphyr::from_str::<RuleSpec>(&yaml).expect("valid YAML").check()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn traces_print_as_they_were_written() {
    for text in ["a.csv", "./a b,loop", "a,loop,overhead=-14,queue=64kb", "a=b"] {
        assert_eq!(text.parse::<Trace>().map(|trace| trace.to_string()), Ok(text.into()));
    }
    for text in ["a,loop=true", "a,queue=", "a,rate=1mbit", "a,"] {
        assert_eq!(text.parse::<Trace>(), Err(malformed::<Trace>(text).into()));
    }
    assert_eq!("a,queue=1s".parse::<Trace>(), Err(FaultError::Size("1s".into())));
}

#[test]
fn a_trace_goes_with_what_it_has_no_column_for() {
    let all = File::new("all", "time,rate,delay,loss\n0s,1mbit,1ms,1%\n");
    let delay = File::new("delay", "time,delay\n0s,1ms\n");
    let opportunities = File::new("opportunities", "1\n");
    for (file, yaml, error) in [
        (&all, "{trace: FILE, rate: 1mbit}", WITH_RATE),
        (&all, "{trace: FILE, delay: 1ms}", WITH_DELAY),
        (&all, "{trace: FILE, rtt: 1ms}", WITH_DELAY),
        (&all, "{trace: FILE, loss: 1%}", WITH_LOSS),
        (&all, "{trace: FILE, loss-every: 3}", WITH_LOSS),
        (&all, "{trace: FILE, profile: 3g}", WITH_RATE),
        (&opportunities, "{trace: /dev/null, rate: {trace: FILE}}", ""),
    ] {
        let found = file.check(yaml).expect_err(yaml).to_string();
        assert!(found.contains(error), "{yaml}: {found}");
    }
    for yaml in
        ["{trace: FILE, rate: 1mbit, loss: 1%}", "{trace: FILE, ecn: true, rate: down=1mbit}"]
    {
        for rule in delay.check(yaml).expect(yaml) {
            assert!(rule.impairment.trace.is_some(), "{yaml}");
        }
    }
    let path = delay.0.display();
    let yaml = format!("{{trace: {path}, rate: 'trace=FILE'}}");
    let error = opportunities.check(&yaml).expect_err("two traces");
    assert_eq!(error, RuleError::Fault(WITH_RATE_TRACE));
}

#[test]
fn rows_of_each_direction_make_a_rule_each() {
    let both = File::new("both", "time,loss,direction\n0s,1%,up\n0s,2%,down\n");
    let up = File::new("up", "time,loss,direction\n0s,1%,egress\n");
    let path = both.0.display();
    let names = |file: &File, yaml: &str| -> Vec<(Direction, String)> {
        let rules = file.check(yaml).expect(yaml);
        rules.into_iter().map(|rule| (rule.matching.direction, rule.name)).collect()
    };
    assert_eq!(
        names(&both, "{trace: FILE}"),
        [
            (Direction::Ingress, format!("down: trace {path}")),
            (Direction::Egress, format!("up: trace {path}"))
        ]
    );
    assert_eq!(
        names(&both, "{trace: {file: FILE, loop: false}, direction: egress}"),
        [(Direction::Egress, format!("trace {path}"))]
    );
    let path = up.0.display();
    assert_eq!(names(&up, "{trace: FILE}"), [(Direction::Egress, format!("up: trace {path}"))]);
    assert_eq!(
        names(&up, "{trace: FILE, delay: 1ms}"),
        [
            (Direction::Ingress, "down: delay 1ms".into()),
            (Direction::Egress, format!("up: delay 1ms, trace {path}"))
        ]
    );
    let error = up.check("{trace: FILE, direction: ingress}").expect_err("no rows");
    assert_eq!(error, RuleError::Fault(NO_ROWS));
}
