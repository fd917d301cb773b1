//! What others take away of what injector has installed is put back within a second, and said; or the faults end.

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use testbed::{
    Family, Host, INTERFACE, Injector, Lab, Process, RuleFile, TIMEOUT, agent::Agent, bpf, engines,
    ip, is_guest, number, scratch_file, serve, wait_until,
};

/// How often each thing is taken away.
const ROUNDS: u32 = 50;

/// The longest time from when something is taken away until it is noticed, and what a busy machine adds.
fn soon() -> Duration {
    Duration::from_secs(if is_guest() { 10 } else { 3 })
}

/// Sends datagrams all the time, and counts what comes.
struct Traffic {
    receiver: Process,
    sender: Process,
}

impl Traffic {
    fn start(lab: &Lab) -> Self {
        let at = lab.right.at(Family::V4, 9000);
        let receiver = serve(&lab.right, None, &format!("udp-receive --bind {at}"));
        let line = format!("udp-send --to {at} --endless --count 1000000 --pause-us 5000");
        Self { receiver, sender: serve(&lab.left, None, &line) }
    }

    /// How many were sent, and how many came, if none is on its way for longer.
    fn end(self, longest: Duration) -> (u64, u64) {
        let sent = number(&self.sender.finish(), "sent");
        thread::sleep(longest);
        (sent, number(&self.receiver.finish(), "received"))
    }
}

/// Random moments that are the same in each run.
struct Moments(StdRng);

impl Moments {
    fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    fn wait(&mut self) {
        thread::sleep(Duration::from_millis(self.0.random_range(0..200)));
    }

    fn choose<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[self.0.random_range(0..among.len())]
    }
}

/// The warnings among what was said.
fn warnings(said: &[Value]) -> Vec<String> {
    let warnings = said.iter().filter(|event| event["event"] == "warning");
    warnings.map(|event| event["message"].as_str().expect("text").to_owned()).collect()
}

/// How often something happened, by warnings that say so.
fn times(warnings: &[String], what: &str) -> u32 {
    let places = warnings.iter().filter(|warning| warning.contains(what)).flat_map(|warning| {
        let (places, _) = warning.split_once(": ").expect("a place");
        places.split(", ").map(|place| {
            let count = place.rsplit_once('(').and_then(|(_, count)| count.strip_suffix(" times)"));
            count.map_or(1, |count| count.parse().expect("a number"))
        })
    });
    places.sum()
}

/// Ends an injector; returns the warnings since its start, and the summary.
fn stop(injector: Injector) -> (Vec<String>, Value) {
    injector.process.signal(Signal::SIGTERM);
    let (code, said) = injector.process.end();
    let summary = said.last().expect("a summary").clone();
    assert_eq!((code, &summary["event"]), (Some(0), &json!("summary")), "{said:?}");
    (warnings(&said), summary)
}

/// The names of the devices on which packets wait.
fn hold_devices(host: &Host) -> Vec<String> {
    own_devices(host, &["injhold", "injback"])
}

/// The names of the devices with these prefixes.
fn own_devices(host: &Host, prefixes: &[&str]) -> Vec<String> {
    let links = host.run("ip -o link show");
    let names = links.lines().filter_map(|line| line.split([':', '@']).nth(1));
    let names = names.map(|name| name.trim().to_owned());
    names.filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix))).collect()
}

/// What injector leaves behind, which is nothing.
fn assert_clean(host: &Host) {
    assert!(hold_devices(host).is_empty());
    assert!(!host.run("tc qdisc show").contains("clsact"));
}

fn pings(lab: &Lab, count: u32) -> u64 {
    lab.left.ping(None, lab.right.address(Family::V4), count)
}

/// What a state is like, and how long it takes until it is so.
#[track_caller]
fn wait_soon(what: &str, is_so: impl FnMut() -> bool) {
    wait_until(soon(), what, is_so);
}

#[test]
fn hold_devices_are_made_again_and_what_they_held_is_counted() {
    /// Indexes of hold devices are not below it.
    const HOLD_DEVICE: u32 = 1_000_000_000;
    for engine in engines() {
        let lab = Lab::new();
        let left = &lab.left;
        let line = format!(
            "--engine {engine} --interface {INTERFACE} --direction egress --protocol udp --delay 30ms"
        );
        let injector = Injector::start(left, &line);
        let pid = injector.process.pid().as_raw();
        let names = hold_devices(left);
        assert_eq!(names.len(), if engine == "edt" { 2 } else { 1 }, "{names:?}");
        let links = || {
            let mut links = bpf::links(pid);
            links.retain(|link| link.interface >= HOLD_DEVICE);
            links
        };
        let count = links().len();
        // Before tcx, filters; the last of them completes a device.
        let filters = || {
            let shown = names.iter().flat_map(|name| {
                ["ingress", "egress"].map(|side| format!("tc filter show dev {name} {side}"))
            });
            let shown = shown.map(|line| left.run_in(None, &line).1);
            shown.map(|text| text.matches("direct-action").count()).sum::<usize>()
        };
        let filter_count = filters();
        let traffic = Traffic::start(&lab);
        let mut moments = Moments::new(1);
        for round in 0..ROUNDS {
            moments.wait();
            let name = moments.choose(&names);
            let way = *moments.choose(&["down", "del", "detach"]);
            match (way, links().first()) {
                ("detach", Some(first)) => bpf::detach(*first).expect("it is attached"),
                ("down", _) => drop(left.run(&format!("ip link set {name} down"))),
                _ => drop(left.run(&format!("ip link del {name}"))),
            }
            wait_soon(&format!("{engine}: round {round}: after {way} of {name}"), || {
                let state = left.run("ip -o link show");
                let is_up = |line: &&str| line.contains(": inj") && line.contains(",UP");
                state.lines().filter(is_up).count() == names.len()
                    && links().len() == count
                    && filters() == filter_count
            });
        }
        let (sent, received) = traffic.end(Duration::from_millis(300));
        let (warnings, summary) = stop(injector);
        let (lost, dropped) =
            (number(&summary["held"], "lost"), number(&summary["held"], "dropped"));
        // An emulated machine can stand still for longer than the lease.
        let expired = number(&summary, "expired");
        assert!(expired == 0 || is_guest(), "{engine}: {summary}");
        assert_eq!(number(&summary, "matched") + expired, sent, "{engine}: {summary}");
        assert_eq!(received + lost + dropped, sent, "{engine}: {summary}");
        assert!(lost > 0, "{engine}: {summary}");
        let told = times(&warnings, "set down") + times(&warnings, "removed or changed");
        assert_eq!(told, ROUNDS, "{engine}: {warnings:#?}");
        assert_clean(left);
    }
}

#[test]
fn devices_that_segment_packets_are_made_again() {
    /// Indexes of these devices are not below it.
    const WIRE_DEVICE: u32 = 1_100_000_000;
    let lab = Lab::new();
    let left = &lab.left;
    let line = format!("--interface {INTERFACE} --protocol udp --loss 0.000001%");
    let injector = Injector::start(left, &line);
    let pid = injector.process.pid().as_raw();
    let names = own_devices(left, &["injwire", "injcut"]);
    assert_eq!(names.len(), 3, "{names:?}");
    let links = || {
        let mut links = bpf::links(pid);
        links.retain(|link| link.interface >= WIRE_DEVICE);
        links
    };
    let count = links().len();
    let traffic = Traffic::start(&lab);
    let mut moments = Moments::new(2);
    for round in 0..ROUNDS {
        moments.wait();
        let name = moments.choose(&names);
        let way = *moments.choose(&["down", "del", "detach"]);
        match (way, links().first()) {
            ("detach", Some(first)) => bpf::detach(*first).expect("it is attached"),
            ("down", _) => drop(left.run(&format!("ip link set {name} down"))),
            _ => drop(left.run(&format!("ip link del {name}"))),
        }
        wait_soon(&format!("round {round}: after {way} of {name}"), || {
            let state = left.run("ip -o link show");
            let is_up = |line: &&str| line.contains(": inj") && line.contains(",UP");
            state.lines().filter(is_up).count() == names.len() && links().len() == count
        });
    }
    let (sent, received) = traffic.end(Duration::from_millis(300));
    let (warnings, summary) = stop(injector);
    assert_eq!(number(&summary["egress"], "packets"), sent, "{summary}");
    // Single datagrams are sent at once, and only GSO packets take the other way.
    assert_eq!(received, sent, "{summary}");
    let told = times(&warnings, "set down") + times(&warnings, "removed or changed");
    assert_eq!(told, ROUNDS, "{warnings:#?}");
    assert!(own_devices(left, &["inj"]).is_empty());
    assert_clean(left);
}

#[test]
fn qdiscs_of_hold_devices_are_changed_back() {
    for engine in engines() {
        let lab = Lab::new();
        let left = &lab.left;
        let line = format!(
            "--engine {engine} --interface {INTERFACE} --direction egress --protocol udp --delay 30ms"
        );
        let injector = Injector::start(left, &line);
        let names = hold_devices(left);
        let name = names.iter().find(|name| name.contains("hold")).expect("a device");
        let qdisc = || {
            let (_, text) = left.run_in(None, &format!("tc -d qdisc show dev {name} root"));
            text
        };
        let before = qdisc();
        let mut moments = Moments::new(6);
        // A TAP has the kernel's default, without settings.
        let ways: &[&str] = if engine == "edt" {
            &[
                "change|fq limit 1",
                "change|fq horizon 1ms",
                "replace|fq maxrate 1kbit",
                "replace|pfifo limit 1",
            ]
        } else {
            &["replace|pfifo limit 1"]
        };
        let traffic = Traffic::start(&lab);
        for round in 0..10 {
            moments.wait();
            let (verb, what) = moments.choose(ways).split_once('|').expect("two parts");
            left.run(&format!("tc qdisc {verb} dev {name} root {what}"));
            let is_back = || {
                let same = |text: &str| {
                    let words = text.split_whitespace();
                    words.filter(|word| !word.ends_with(':')).map(str::to_owned).collect::<Vec<_>>()
                };
                same(&qdisc()) == same(&before)
            };
            wait_soon(&format!("{engine}: round {round}: after {verb} {what}"), is_back);
        }
        let (sent, received) = traffic.end(Duration::from_millis(300));
        let (warnings, summary) = stop(injector);
        let told = times(&warnings, "qdisc changed") + times(&warnings, "removed or changed");
        assert_eq!(told, 10, "{engine}: {warnings:#?}");
        let held = &summary["held"];
        let (lost, dropped) = (number(held, "lost"), number(held, "dropped"));
        let found = (number(&summary, "matched"), received + lost + dropped);
        assert_eq!(found, (sent, sent), "{engine}: {received} received: {summary}");
        assert_clean(left);
    }
}

/// Injector with a `/run` of its own, as in a container: so its slot is the first, whoever else runs.
fn in_own_run(host: &Host, line: &str) -> Injector {
    let mut command = host.command("unshare", None);
    let script = "mount -t tmpfs none /run && exec \"$@\"";
    command.args(["--mount", "sh", "-c", script, "sh", testbed::INJECTOR, "inject"]);
    command.args(line.split_whitespace()).args(["--output", "json", "--for", "1h"]);
    let mut process = Process::start(command);
    let started = process.wait_for("started");
    Injector { process, started }
}

#[test]
fn a_killed_injector_removes_no_filter_of_another_one_in_its_place() {
    let lab = Lab::new();
    let left = &lab.left;
    let line = format!("--interface {INTERFACE} --hook clsact --loss 100%");
    let first = in_own_run(left, &line);
    // It puts nothing back.
    first.process.signal(Signal::SIGSTOP);
    let sides = ["ingress", "egress"];
    let show = |side| left.run(&format!("tc filter show dev {INTERFACE} {side}"));
    let before = sides.map(show);
    for side in sides {
        left.run(&format!("tc filter del dev {INTERFACE} {side}"));
    }
    let second = in_own_run(left, &line);
    let place = |text: &str| {
        let line = text.lines().find(|line| line.contains("handle")).expect("a filter");
        line.split(" name").next().map(|place| place.split(" bpf").next().map(str::to_owned))
    };
    for (side, before) in sides.iter().zip(&before) {
        assert_eq!(place(&show(side)), place(before), "they have the same place");
    }
    let pid = first.process.pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let guardian = children.expect("it is alive").trim().to_owned();
    first.process.signal(Signal::SIGKILL);
    drop(first);
    // Its guardian ends once it has undone all that it would.
    let process = std::path::Path::new("/proc").join(&guardian);
    assert!(!guardian.contains(' ') && process.exists(), "{guardian}");
    wait_until(TIMEOUT, "the guardian ends", || !process.exists());
    for side in sides {
        assert!(show(side).contains("direct-action"), "{side} of the second one is gone");
    }
    assert_eq!(pings(&lab, 1), 0);
    stop(second);
    assert_eq!(pings(&lab, 3), 3);
    assert!(sides.iter().all(|side| !show(side).contains("bpf")));
}

#[test]
fn links_are_attached_again() {
    for (line, count) in [("--loss 100%", 2), ("--xdp --loss 100%", 1)] {
        let lab = Lab::new();
        let injector = Injector::start(&lab.left, &format!("--interface {INTERFACE} {line}"));
        let pid = injector.process.pid().as_raw();
        if injector.started["attached"][0]["hook"] == "clsact" {
            testbed::skip("this kernel has no tcx");
            injector.stop();
            continue;
        }
        let mut moments = Moments::new(2);
        let rounds = ROUNDS / 2;
        let mut taken = 0;
        for round in 0..rounds {
            moments.wait();
            let links = bpf::links(pid);
            assert_eq!(links.len(), count, "{line}");
            let both = moments.choose(&[false, true]);
            for link in links.iter().take(if *both { count } else { 1 }) {
                bpf::detach(*link).expect("it is attached");
                taken += 1;
            }
            wait_soon(&format!("{line}: round {round}"), || bpf::links(pid).len() == count);
            assert!(round % 5 != 0 || pings(&lab, 1) == 0, "{line}");
        }
        let (warnings, _) = stop(injector);
        assert_eq!(times(&warnings, "program detached"), taken, "{warnings:#?}");
        assert_eq!(pings(&lab, 3), 3);
    }
}

#[test]
fn filters_are_added_again() {
    let lab = Lab::new();
    let left = &lab.left;
    let injector =
        Injector::start(left, &format!("--interface {INTERFACE} --hook clsact --loss 100%"));
    let is_there = |side: &str| {
        let filters = left.run(&format!("tc filter show dev {INTERFACE} {side}"));
        filters.matches("direct-action").count() == 1
    };
    let mut moments = Moments::new(3);
    let mut taken = 0;
    for round in 0..ROUNDS {
        moments.wait();
        let (way, filters) = *moments.choose(&[
            ("qdisc del dev veth0 clsact", 2),
            ("filter del dev veth0 ingress", 1),
            ("filter del dev veth0 egress", 1),
        ]);
        left.run(&format!("tc {way}"));
        taken += filters;
        wait_soon(&format!("round {round}: {way}"), || is_there("ingress") && is_there("egress"));
        assert!(round % 5 != 0 || pings(&lab, 1) == 0, "{way}");
    }
    let (warnings, _) = stop(injector);
    assert_eq!(times(&warnings, "tc filter removed"), taken, "{warnings:#?}");
    assert_eq!(pings(&lab, 3), 3);
    assert_clean(left);
}

#[test]
fn a_qdisc_that_others_made_meanwhile_stays() {
    let lab = Lab::new();
    let left = &lab.left;
    let line = format!("--interface {INTERFACE} --hook clsact --loss 100%");
    let injector = Injector::start(left, &line);
    // Between two looks of injector, or not: the qdisc is theirs by then.
    tc(left, "qdisc del dev veth0 clsact\nqdisc add dev veth0 clsact\n");
    wait_soon("the filters are back", || {
        let show = |side| left.run(&format!("tc filter show dev {INTERFACE} {side}"));
        ["ingress", "egress"].iter().all(|side| show(side).contains("direct-action"))
    });
    stop(injector);
    assert!(left.run(&format!("tc qdisc show dev {INTERFACE}")).contains("clsact"));
    assert!(!left.run(&format!("tc filter show dev {INTERFACE} ingress")).contains("bpf"));
}

/// Runs a batch of tc(8) commands; whether all succeed.
fn tc(host: &Host, batch: &str) -> bool {
    let file = scratch_file();
    std::fs::write(&file, batch).expect("it can be written");
    let (success, _) = host.run_in(None, &format!("tc -batch {}", file.display()));
    let _ = std::fs::remove_file(&file);
    success
}

#[test]
fn interfaces_that_go_and_come_again_are_faulted_again() {
    let lab = Lab::new();
    let (left, right) = (&lab.left, &lab.right);
    // Beside the one of the lab, which is not named.
    let add = || {
        ip(
            &["-n", &left.netns],
            &format!("link add va type veth peer name vb netns {}\nlink set va up\n", right.netns),
        );
    };
    add();
    let mut injector = Injector::start(left, "--interface va --loss 100% --delay 10ms");
    let pid = injector.process.pid().as_raw();
    let mut moments = Moments::new(4);
    for round in 0..ROUNDS {
        moments.wait();
        left.run("ip link del va");
        if *moments.choose(&[true, false, false, false, false]) {
            // Long enough that it is said.
            let message = injector.process.wait_for_warning("gone");
            assert!(message.starts_with("va"), "{message}");
        }
        add();
        let index = || left.run("ip -o link show va").split(':').next().map(str::to_owned);
        let index: u32 = index().expect("an index").parse().expect("a number");
        let is_on_it = |link: &bpf::Link| link.interface == index;
        let attached = injector.started["attached"][0]["hook"].clone();
        wait_soon(&format!("round {round}"), || {
            if attached == "clsact" {
                left.run("tc filter show dev va ingress").contains("direct-action")
            } else {
                bpf::links(pid).iter().filter(|link| is_on_it(link)).count() == 2
            }
        });
    }
    stop(injector);
    left.run("ip link del va");
    assert_clean(left);
}

#[test]
fn a_named_interface_that_vanishes_during_the_start_is_said_to_have() {
    let lab = Lab::new();
    let left = &lab.left;
    let mut moments = Moments::new(5);
    let mut vanished = 0;
    for round in 0..20 {
        left.run("ip link add va type veth peer name vb");
        let mut command = Injector::command(left, "--interface va --loss 1% --for 200ms");
        command.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let injector = command.spawn().expect("it can be run");
        moments.wait();
        left.run("ip link del va");
        let output = injector.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        let is_clear =
            ["va vanished while", "no interface va"].iter().any(|part| said.contains(part));
        assert!(output.status.success() || is_clear, "round {round}: {said}");
        vanished += u32::from(said.contains("va vanished while"));
    }
    println!("{vanished} of 20 vanished during the start");
}

#[test]
fn what_cannot_be_put_back_ends_the_faults() {
    let lab = Lab::new();
    let left = &lab.left;
    let line = format!("--interface {INTERFACE} --delay 20ms --engine tap");
    let injector = Injector::start(left, &line);
    let name = hold_devices(left).pop().expect("a device");
    let file = scratch_file();
    std::fs::write(
        &file,
        format!("link del {name}\nlink add name {name} type veth peer name other\n"),
    )
    .expect("it can be written");
    // Injector may be the first to use the name again.
    wait_until(TIMEOUT, "another device has its name", || {
        left.run_in(None, &format!("ip -batch {}", file.display())).0
    });
    let _ = std::fs::remove_file(&file);
    let (code, said) = injector.process.end();
    assert_eq!(code, Some(1), "{said:?}");
    assert_eq!(pings(&lab, 5), 5);
    left.run(&format!("ip link del {name}"));
    assert_clean(left);

    let injector =
        Injector::start(left, &format!("--interface {INTERFACE} --hook clsact --loss 100%"));
    wait_until(TIMEOUT, "another qdisc is there", || {
        tc(left, "qdisc del dev veth0 clsact\nqdisc add dev veth0 ingress\n")
    });
    let (code, said) = injector.process.end();
    assert_eq!(code, Some(1), "{said:?}");
    assert_eq!(pings(&lab, 5), 5);
}

#[test]
fn a_command_goes_on_without_faults_that_cannot_be_put_back() {
    let lab = Lab::new();
    let (left, right) = (&lab.left, lab.right.address(Family::V4));
    // It ends once a ping is answered, which none is until the faults have ended: also where packets that cannot
    // be held pass at once.
    let file =
        RuleFile::new("rules: [{delay: 1ms, protocol: tcp}, {loss: 100%, protocol: icmp}]\n");
    let script = format!(
        "ping -c 1 -W 2 {right}; name=$(ip -o link | grep -o 'injhold[0-9]*' | head -n 1); \
         until printf 'link del %s\nlink add name %s type veth peer name other\n' $name $name | \
         ip -batch -; do :; done; until ping -c 1 -W 0.2 {right}; do :; done; \
         ip link del other; exit $0"
    );
    for (code, expected) in [("0", 1), ("7", 7)] {
        let mut command = left.command(testbed::INJECTOR, None);
        command.args(["run", "--rules"]).arg(&file.path);
        command.args(["--", "bash", "-c", &script, code]);
        let output = command.output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(expected), "{said}");
        assert!(said.contains("the faults have ended: cannot put back"), "{said}");
        assert_clean(left);
    }
}

#[test]
fn links_of_tracepoints_cannot_be_detached() {
    let lab = Lab::new();
    let cgroup = testbed::TestCgroup::new();
    let injector = Injector::on(&lab.left, &cgroup, "--kill TERM,after=3:write");
    let links = bpf::all_links(injector.process.pid().as_raw());
    assert!(!links.is_empty());
    for link in links {
        let refused = bpf::detach_by_id(link).expect_err("the kernel has no way to");
        assert_eq!(refused.raw_os_error(), Some(libc::EOPNOTSUPP), "{refused}");
    }
    stop(injector);
}

#[test]
fn taking_away_over_and_over_does_not_keep_injector_busy() {
    let lab = Lab::new();
    let injector = Injector::start(&lab.left, &format!("--interface {INTERFACE} --delay 10ms"));
    let name = hold_devices(&lab.left).into_iter().find(|name| name.contains("hold"));
    let name = name.expect("a device");
    let end = Instant::now() + Duration::from_secs(6);
    while Instant::now() < end {
        // It is not there while it is made again.
        lab.left.run_in(None, &format!("ip link set {name} down"));
        thread::sleep(Duration::from_millis(100));
    }
    let pid = injector.process.pid().as_raw();
    let process = procfs::process::Process::new(pid).and_then(|process| process.stat());
    let stat = process.expect("it runs");
    let spent = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
    let (warnings, _) = stop(injector);
    assert!(warnings.len() <= 6, "{warnings:#?}");
    assert!(times(&warnings, "set down") >= 5, "{warnings:#?}");
    assert!(spent < if is_guest() { 60.0 } else { 3.0 }, "{spent} s of a processor");
}

#[test]
fn scenarios_and_agents_put_back_as_well() {
    let lab = Lab::new();
    let left = &lab.left;
    let file = RuleFile::new(&format!(
        "targets: {{a: {{interface: [{INTERFACE}], protect: false}}}}\n\
         timeline: [{{at: 0s, for: 1h, faults: {{rules: [{{delay: 10ms}}]}}}}]\n"
    ));
    let scenario = testbed::start_scenario(left, &file.path, &[]);
    let mut scenario = scenario;
    let name = hold_devices(left).into_iter().find(|name| name.contains("hold"));
    left.run(&format!("ip link del {}", name.expect("a device")));
    let warning = scenario.wait_for("warning");
    let message = warning["message"].as_str().expect("text");
    assert!(message.contains("target a: injhold"), "{message}");
    assert_eq!(pings(&lab, 3), 3);
    scenario.signal(Signal::SIGTERM);
    let (code, said) = scenario.end();
    assert_eq!(code, Some(0), "{said:?}");
    assert_clean(left);

    let agent = Agent::start(left);
    agent.create(&json!({
        "name": "f", "for": "1h",
        "target": {"interface": [INTERFACE], "protect": false}, "rules": [{"loss": "100%"}],
    }));
    let pid = agent.child.id().cast_signed();
    if let Some(link) = bpf::links(pid).first() {
        bpf::detach(*link).expect("it is attached");
        wait_soon("attached again", || bpf::links(pid).len() == 2);
        assert_eq!(pings(&lab, 1), 0);
        let is_told = |fault: &Value| {
            let warnings = fault["warnings"].as_array().into_iter().flatten();
            warnings.into_iter().any(|warning| {
                let warning = warning.as_str().expect("text");
                warning.starts_with(INTERFACE) && warning.contains("detached by another process")
            })
        };
        agent.wait_for("f", is_told);
        let list = format!("{} list --agent {}", testbed::INJECTOR, agent.socket.display());
        let list = left.run(&list);
        assert!(list.contains("   warning  veth0"), "{list}");
        assert!(is_told(&agent.delete("f")));
        agent.stop();
        assert_eq!(pings(&lab, 3), 3);
        return;
    }
    testbed::skip("this kernel has no tcx");
    agent.delete("f");
    agent.stop();
    assert_eq!(pings(&lab, 3), 3);
}
