//! Link profiles on real traffic.

use serde_json::json;
use testbed::{Family, INJECTOR, Injector, Lab, RuleFile, binomial, engines};

/// The minimum round-trip time in ms of a ping from the faulted host.
fn round_trip_ms(lab: &Lab) -> f64 {
    let to = lab.right.address(Family::V4);
    let output = lab.left.run(&format!("ping -n -c 5 -i 0.2 -W 5 {to}"));
    let times = output.lines().filter_map(|line| line.split("time=").nth(1)?.split(' ').next());
    let times = times.filter_map(|time| time.parse::<f64>().ok());
    times.reduce(f64::min).unwrap_or_else(|| panic!("{output}"))
}

/// Starts injector on the interface, and returns it with the names of its rules.
fn start(lab: &Lab, options: &str) -> (Injector, Vec<String>) {
    let injector = Injector::start(&lab.left, &format!("--interface veth0 {options}"));
    let rules = injector.started["rules"].as_array().expect("a list");
    let names = rules.iter().map(|rule| rule["name"].as_str().expect("a name").to_owned());
    let names = names.collect();
    (injector, names)
}

#[test]
fn a_profile_has_its_round_trip_time_and_options_replace_it() {
    /// How much longer than asked for the best of five round trips may take.
    const LATENESS_MS: f64 = 50.0;
    let lab = Lab::new();
    for engine in engines() {
        for (options, down, up, rtt) in [
            (
                "--profile 3g-fast",
                "profile 3g-fast, delay 75ms, rate 1600kbit",
                "profile 3g-fast, delay 75ms, rate 768kbit",
                150.0,
            ),
            (
                "--profile 3g-fast --rtt 40ms --loss 0%",
                "profile 3g-fast, loss 0%, delay 20ms, rate 1600kbit",
                "profile 3g-fast, loss 0%, delay 20ms, rate 768kbit",
                40.0,
            ),
            (
                "--profile edge-lossy --loss 0% --delay down=100ms,up=0s --rate 10mbit",
                "profile edge-lossy, loss 0%, delay 100ms, rate 10mbit",
                "profile edge-lossy, loss 0%, delay 0s, rate 10mbit",
                100.0,
            ),
        ] {
            let (injector, rules) = start(&lab, &format!("--engine {engine} {options}"));
            assert_eq!(rules, [format!("down: {down}"), format!("up: {up}")], "{options}");
            let best = round_trip_ms(&lab);
            assert!((rtt..rtt + LATENESS_MS).contains(&best), "{engine} {options}: {best} ms");
            let summary = injector.stop();
            assert_eq!(summary.total.dropped, 0, "{summary:?}");
        }
    }
}

#[test]
fn a_profile_has_its_loss_in_each_direction() {
    const PINGS: u64 = 2000;
    let lab = Lab::new();
    // The rate and the delay of the profile would take minutes.
    let (injector, _) = start(&lab, "--profile 2g-rural --delay 0s --rate 1gbit");
    lab.left.run(&format!("ping -q -f -c {PINGS} {}", lab.right.address(Family::V4)));
    let total = injector.stop().total;
    assert!(total.matched > PINGS, "{total:?}");
    assert!(binomial(total.matched, 0.02).contains(&total.dropped), "{total:?}");
}

#[test]
fn what_a_profile_stands_for_is_told_for_each_rule_also_if_it_has_a_name() {
    let lab = Lab::new();
    let file = RuleFile::new(
        "rules:\n- {name: bus, profile: 3g, loss: 2%}\n- {loss: 1%}\n\
         - {name: train, profile: edge, direction: egress, delay: 5ms}\n- {profile: dsl}\n",
    );
    let (injector, rules) = start(&lab, &file.option());
    let dsl = [("down", 1500), ("up", 384)]
        .map(|(way, rate)| format!("{way}: profile dsl, delay 25ms, rate {rate}kbit"));
    assert_eq!(rules, ["bus", "bus", "loss 1%", "train", &dsl[0], &dsl[1]]);
    for (rule, profile) in [
        (0, json!({"name": "3g", "faults": "loss 2%, delay 150ms, rate 1600kbit"})),
        (1, json!({"name": "3g", "faults": "loss 2%, delay 150ms, rate 768kbit"})),
        (2, json!(null)),
        (3, json!({"name": "edge", "faults": "delay 5ms, rate 200kbit"})),
        (4, json!({"name": "dsl", "faults": "delay 25ms, rate 1500kbit"})),
        (5, json!({"name": "dsl", "faults": "delay 25ms, rate 384kbit"})),
    ] {
        assert_eq!(injector.started["rules"][rule]["profile"], profile, "{}", injector.started);
    }
    let mut command = lab.left.command(INJECTOR, None);
    command.args(["inject", "--interface", "veth0", "--for", "10ms", "--rules"]).arg(&file.path);
    let output = command.output().expect("it can be run");
    let text = String::from_utf8(output.stdout).expect("text");
    for line in [
        "rule 0: bus (profile 3g: loss 2%, delay 150ms, rate 1600kbit): all packets, received\n",
        "rule 2: loss 1% of ",
        "rule 3: train (profile edge: delay 5ms, rate 200kbit): ",
        &format!("rule 4: {} of all packets, received\n", dsl[0]),
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}
