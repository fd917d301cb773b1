//! Link profiles on real traffic.

use testbed::{Family, Injector, Lab, binomial, engines};

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
    let rules = serde_json::from_value(injector.started["rules"].clone());
    (injector, rules.expect("names"))
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
                "profile edge-lossy, loss 0%, delay 0ns, rate 10mbit",
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
