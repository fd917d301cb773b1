//! Ramps: faults that change gradually from one value to another.

use crate::spec::{file::FaultsSpec, interpolate::Difference};

/// Interpolates the faults in `steps` even steps. The result has both ends, so one more than that.
pub fn between(
    from: &FaultsSpec,
    to: &FaultsSpec,
    steps: u32,
) -> Result<Vec<FaultsSpec>, Difference> {
    if from.rules.len() != to.rules.len() {
        return Err(Difference::of("rules", &from.rules, &to.rules));
    }
    let between = |part: f64| {
        let pairs = from.rules.iter().zip(&to.rules);
        Ok(FaultsSpec {
            seed: from.seed,
            rules: pairs.map(|(from, to)| from.between(to, part)).collect::<Result<_, _>>()?,
            clocks: from.clocks.between(&to.clocks, part)?,
            processes: from.processes.between(&to.processes, part)?,
        })
    };
    let last = f64::from(steps.max(1));
    let mut faults: Vec<_> =
        (0..=steps).map(|step| between(f64::from(step) / last)).collect::<Result<_, _>>()?;
    // Keep the ends as written, free of floating-point rounding.
    if let [first, .., last] = faults.as_mut_slice() {
        (*first, *last) = (from.clone(), to.clone());
    }
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(yaml: &str) -> FaultsSpec {
        serde_saphyr::from_str(yaml).expect(yaml)
    }

    fn steps(from: &str, to: &str, steps: u32) -> Vec<String> {
        let steps = between(&faults(from), &faults(to), steps).expect("a ramp");
        let check = |faults: &FaultsSpec| {
            let files = &mut crate::spec::distribution::Files::default();
            faults.check_with("test".as_ref(), files).expect("valid")
        };
        let name = |faults: FaultsSpec| {
            let faults = check(&faults);
            let clock = faults.clock.map(|clock| clock.name);
            faults
                .rules
                .into_iter()
                .map(|rule| rule.name)
                .chain(clock)
                .collect::<Vec<_>>()
                .join("; ")
        };
        steps.into_iter().map(name).collect()
    }

    #[test]
    fn amounts_change_evenly_from_one_end_to_the_other() {
        let steps = |from, to| steps(from, to, 2);
        assert_eq!(
            steps("rules: [{loss: 0%}]", "rules: [{loss: 20%}]"),
            ["loss 0%", "loss 10%", "loss 20%"]
        );
        assert_eq!(
            steps("rules: [{delay: '0s,jitter=1ms'}]", "rules: [{delay: '1s,jitter=2ms'}]"),
            ["delay 0s,jitter=1ms", "delay 500ms,jitter=1.5ms", "delay 1s,jitter=2ms"]
        );
        assert_eq!(
            steps("rules: [{rate: 10mbit}]", "rules: [{rate: 64kbit}]"),
            ["rate 10mbit", "rate 5032kbit", "rate 64kbit"]
        );
        assert_eq!(
            steps(
                "rules: [{rate: {rate: 10mbit, burst: 0b}}]",
                "rules: [{rate: '2mbit,burst=16kb'}]"
            ),
            ["rate 10mbit", "rate 6mbit,burst=8kb", "rate 2mbit,burst=16kb"]
        );
        // Different units and forms.
        assert_eq!(
            steps("rules: [{delay: 500us}]", "rules: [{delay: {time: 0.5s}}]"),
            ["delay 500µs", "delay 250.25ms", "delay 500ms"]
        );
        assert_eq!(
            steps("clocks: {clock: '-1s,drift=100ppm'}", "clocks: {clock: '+1s,drift=200ppm'}"),
            ["clock -1s,drift=100ppm", "clock +0s,drift=150ppm", "clock +1s,drift=200ppm"]
        );
    }

    #[test]
    fn steps_are_round_where_they_can_be() {
        let delays = |to: &str, count| {
            steps("rules: [{delay: 0ms}]", &format!("rules: [{{delay: {to}}}]"), count)
        };
        let tens: Vec<String> = (1..=10).map(|n| format!("delay {}ms", 10 * n)).collect();
        assert_eq!(delays("100ms", 10)[0], "delay 0s");
        assert_eq!(delays("100ms", 10)[1..], tens);
        assert_eq!(
            delays("100ms", 3),
            ["delay 0s", "delay 33.33ms", "delay 66.67ms", "delay 100ms"]
        );
        assert_eq!(
            steps("rules: [{loss: 1%}]", "rules: [{loss: 2%}]", 3),
            ["loss 1%", "loss 1.3333%", "loss 1.6667%", "loss 2%"]
        );
    }

    #[test]
    fn several_rules_change_together() {
        let ends =
            ["rules: [{loss-every: 10}, {loss: 1%}]", "rules: [{loss-every: 4}, {loss: 3%}]"];
        assert_eq!(
            steps(ends[0], ends[1], 2),
            ["loss-every 10; loss 1%", "loss-every 7; loss 2%", "loss-every 4; loss 3%"]
        );
    }

    #[test]
    fn what_is_no_amount_must_be_the_same() {
        for (from, to) in [
            ("{rules: [{loss: 1%}]}", "{rules: [{delay: 1s}]}"),
            ("{rules: [{loss: 1%, remote: 10.0.0.1}]}", "{rules: [{loss: 2%, remote: 10.0.0.2}]}"),
            ("{rules: [{loss: 1%, remote-port: 80}]}", "{rules: [{loss: 2%, remote-port: 90}]}"),
            ("{rules: [{loss: 1%}]}", "{rules: [{loss: 1%}, {loss: 2%}]}"),
            ("{rules: [{rate: 1mbit}]}", "{rules: [{rate: '1mbit,queue=1s'}]}"),
            ("{rules: [{loss: 1%}]}", "{rules: [{loss: 1%, ecn: true}]}"),
            ("{rules: [{delay: 1ms}]}", "{rules: [{delay: '2ms,jitter=1ms'}]}"),
            ("{processes: {kill: [at=1s]}}", "{processes: {kill: [at=1s, at=2s]}}"),
            ("{processes: {errno: [read=EIO]}}", "{processes: {errno: [write=EIO]}}"),
        ] {
            assert!(between(&faults(from), &faults(to), 3).is_err(), "{from} {to}");
        }
    }

    #[test]
    fn the_key_that_differs_is_named() {
        for (from, to, expected) in [
            (
                "{rules: [{loss: 1%, remote: 10.0.0.1}]}",
                "{rules: [{loss: 1%, remote: 10.0.0.2}]}",
                r#"`remote` is ["10.0.0.1/32"] at one end and ["10.0.0.2/32"] at the other"#,
            ),
            (
                "{rules: [{loss: 1%}]}",
                "{rules: [{delay: 1s}]}",
                r#"`loss` is "1%" at one end and null at the other"#,
            ),
            ("{rules: []}", "{rules: [{loss: 1%}]}", "`rules` is"),
        ] {
            let faults = |yaml| serde_saphyr::from_str(yaml).unwrap_or_default();
            let error = between(&faults(from), &faults(to), 3).expect_err(from).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
