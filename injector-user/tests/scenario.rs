//! Scenarios with real packets: changes happen as planned and on time, and nothing is left.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{SocketAddr, UdpSocket},
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::{
    Family, Host, INJECTOR, Lab, Process, RuleFile, TIMEOUT, TestCgroup, apply, number,
    scratch_file, start_scenario, wait_until,
};

/// All events of a scenario that ends by itself.
fn run(lab: &Lab, file: &RuleFile, options: &[&str]) -> Vec<Value> {
    let output =
        apply(&lab.left, &file.path, options).stderr(Stdio::inherit()).output().expect("it runs");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{text}");
    testbed::output::lines(&text)
}

fn targets(lab: &Lab) -> String {
    format!("targets: {{l: {{netns: {}}}, r: {{netns: {}}}}}\n", lab.left.netns, lab.right.netns)
}

fn answers(lab: &Lab) -> bool {
    lab.left.ping(None, lab.right.address(Family::V4), 3) > 0
}

/// A socket inside the namespace of a host.
fn socket(host: &Host, at: SocketAddr) -> UdpSocket {
    host.inside(|| UdpSocket::bind(at)).expect("the address is free")
}

#[test]
fn faults_come_and_go_as_planned_at_several_targets() {
    let lab = Lab::new();
    let file = RuleFile::new(&format!(
        "{}faults: {{lost: {{rules: [{{loss: 100%, direction: egress}}]}}}}\n\
         timeline:\n- {{at: 1s, for: 1500ms, on: l, faults: lost}}\n\
         - {{at: 4s, for: 1500ms, on: r, faults: lost}}\n",
        targets(&lab)
    ));
    let timeline = scratch_file();
    let path = timeline.display().to_string();
    let mut process =
        start_scenario(&lab.left, &file.path, &["--timeline", &path, "--sample", "200ms"]);
    assert!(answers(&lab), "it has not begun");
    for target in ["l", "r"] {
        let change = process.wait_for("change");
        assert_eq!(change["targets"][0]["name"], target);
        assert_eq!(change["targets"][0]["active"][0], "lost");
        assert!(!answers(&lab), "{change}");
        let change = process.wait_for("change");
        assert_eq!(change["targets"][0]["active"], serde_json::json!([]));
        let replaced = number(&change["targets"][0]["replaced"]["lost"], "dropped");
        assert!(replaced >= 3, "{change}");
        assert_eq!(number(&change["targets"][0]["before"], "dropped"), replaced);
        if target == "l" {
            assert!(answers(&lab), "{change}");
        }
    }
    let ended = process.finish();
    assert_eq!((&ended["event"], &ended["reason"]), (&"ended".into(), &"done".into()));
    assert!(number(&ended["targets"]["r"], "dropped") >= 3, "{ended}");
    assert_eq!(ended["faults"]["l"]["lost"], ended["targets"]["l"]);
    assert!(answers(&lab));
    let written = fs::read_to_string(&timeline).expect("it is written");
    fs::remove_file(timeline).expect("it is there");
    let events = testbed::output::lines(&written);
    let count = |event: &str| events.iter().filter(|line| line["event"] == event).count();
    assert_eq!((count("started"), count("change"), count("ended")), (1, 4, 1));
    assert!(count("sample") >= 10, "{written}");
}

#[test]
fn changes_come_when_they_are_planned() {
    const CHANGES: u64 = 200;
    let lab = Lab::new();
    let file = RuleFile::new(&format!(
        "{}timeline: [{{at: 200ms, every: 60ms, for: 30ms, times: {}, faults: {{rules: [{{loss: 10%}}]}}}}]",
        targets(&lab),
        CHANGES / 2
    ));
    let events = run(&lab, &file, &[]);
    let changes: Vec<&Value> = events.iter().filter(|line| line["event"] == "change").collect();
    assert_eq!(changes.len() as u64, CHANGES);
    for (number, change) in (0u32..).zip(&changes) {
        let planned = change["planned_ms"].as_f64().expect("a time");
        assert!((planned - 200.0 - 30.0 * f64::from(number)).abs() < 0.001, "{change}");
        assert!(change["actual_ms"].as_f64().expect("a time") >= planned, "{change}");
    }
    // Generous bounds, as other tests may use the CPUs. `cargo xtask bench scenario` measures.
    let late = &events.last().expect("an end")["late"];
    assert!(late["p50_ms"].as_f64().expect("a time") < 10.0, "{late}");
}

#[test]
fn partitions_are_cut_by_their_shapes() {
    let lab = Lab::new();
    let file = RuleFile::new(&format!(
        "{}timeline:\n- {{at: 500ms, for: 2s, partition: {{shape: one-way, nodes: [l, r]}}}}\n\
         - {{at: 4s, for: 2s, partition: {{shape: halves, nodes: [l, {}]}}}}\n",
        targets(&lab),
        lab.right.nth(Family::V4, 1)
    ));
    let (here, there) = (lab.left.at(Family::V4, 7000), lab.right.at(Family::V4, 7000));
    let (left, right) = (socket(&lab.left, here), socket(&lab.right, there));
    let passes = |from: &UdpSocket, to: &UdpSocket, address: SocketAddr| {
        to.set_read_timeout(Some(Duration::from_millis(200))).expect("more than 0");
        from.send_to(b"x", address).expect("it is sent");
        to.recv(&mut [0; 8]).is_ok()
    };
    let mut process = start_scenario(&lab.left, &file.path, &[]);
    process.wait_for("change");
    assert!(!passes(&left, &right, there), "the first half is not heard");
    assert!(passes(&right, &left, here), "but hears");
    process.wait_for("change");
    assert!(passes(&left, &right, there) && passes(&right, &left, here));
    process.wait_for("change");
    assert!(passes(&left, &right, there), "only the second address is cut off");
    let second = SocketAddr::new(lab.right.nth(Family::V4, 1), 7001);
    let other = socket(&lab.right, second);
    assert!(!passes(&left, &other, second) && !passes(&other, &left, here));
    process.finish();
}

#[test]
fn partitions_say_who_is_cut_off_from_whom() {
    const SIDES: &str = "partition one: l cut off from r";
    let lab = Lab::new();
    let file = RuleFile::new(&format!(
        "{}timeline: [{{at: 500ms, for: 1500ms, partition: {{isolate: l}}}}]\n",
        targets(&lab)
    ));
    let check = |options: &[&str]| {
        let mut command = Command::new(INJECTOR);
        let output = command.args(["apply", "--check"]).args(options).arg(&file.path).output();
        let output = output.expect("it can be run");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let text = check(&[]);
    assert!(text.contains(&format!("l: {SIDES}\n")) && text.contains(&format!("r: {SIDES}\n")));
    let line: Value =
        serde_json::from_str(check(&["--output", "json"]).lines().next().expect("one"))
            .expect("JSON");
    assert_eq!(line["active"], serde_json::json!([SIDES]));
    let sides = serde_json::json!({SIDES: {
        "shape": "one", "cuts": [{"senders": ["l"], "receivers": ["r"], "both_ways": true}],
    }});
    assert_eq!(line["partitions"], sides);
    let (timeline, page) = (scratch_file(), scratch_file());
    let mut command = lab.left.command(INJECTOR, None);
    command.arg("apply").arg(&file.path).arg("--timeline").arg(&timeline);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("it can be run");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut told = Vec::new();
    let mut next = |words: &str| {
        let line = lines.by_ref().map(|line| line.expect("text"));
        let mut line = line.inspect(|line| told.push(line.clone()));
        line.find(|line| line.contains(words)).unwrap_or_else(|| panic!("no {words}"))
    };
    next(&format!("r: {SIDES}"));
    // Only one of them sends, and what it sends is dropped there.
    let (here, there) = (lab.left.at(Family::V4, 7000), lab.right.at(Family::V4, 7000));
    socket(&lab.left, here).send_to(b"x", there).expect("it is sent");
    next("ended after 2 changes");
    assert_eq!(next("l: "), format!("injector:   l: {SIDES}: 1 packet matched, 1 dropped"));
    assert_eq!(next("r: "), format!("injector:   r: {SIDES}: nothing matched"));
    assert!(child.wait().expect("it ends").success());
    assert!(!told.iter().any(|line| line.contains("no packet matched")), "{told:?}");
    let status = Command::new(INJECTOR)
        .arg("report")
        .arg(&timeline)
        .arg("--output")
        .arg(&page)
        .status()
        .expect("it can be run");
    assert!(status.success());
    let html = fs::read_to_string(&page).expect("it is written");
    assert!(html.contains(&format!("l: {SIDES}")), "{html}");
    let written = fs::read_to_string(&timeline).expect("it is written");
    let events = testbed::output::lines(&written);
    assert_eq!((&events[0]["event"], &events[0]["partitions"]), (&"started".into(), &sides));
    let change = events.iter().find(|event| event["event"] == "change").expect("a change");
    assert_eq!(change["targets"][0]["active"], serde_json::json!([SIDES]));
    assert_eq!(change["targets"][0]["partitions"], sides);
    for file in [timeline, page] {
        fs::remove_file(file).expect("it is there");
    }
}

#[test]
fn the_same_seed_loses_doubles_and_swaps_the_same_packets() {
    const COUNT: u32 = 300;
    let lab = Lab::new();
    let rule =
        "{direction: egress, protocol: udp, loss: 20%, duplicate: 10%, delay: 400ms, reorder: 25%}";
    let file = RuleFile::new(&format!(
        "targets: {{l: {{netns: {}}}}}\ntimeline:\n- {{at: 0s, for: 1500ms, faults: {{rules: [{rule}]}}}}\n\
         - {{at: 1500ms, for: 1500ms, faults: {{rules: [{rule}]}}}}\n",
        lab.left.netns
    ));
    // The numbers of received packets, in order, in either step.
    let exchange = |seed: &str| -> [Vec<u32>; 2] {
        let (here, there) = (lab.left.at(Family::V4, 7000), lab.right.at(Family::V4, 7000));
        let (left, right) = (socket(&lab.left, here), socket(&lab.right, there));
        right.set_read_timeout(Some(Duration::from_millis(700))).expect("more than 0");
        let mut process = start_scenario(&lab.left, &file.path, &["--seed", seed]);
        let steps = [(), ()].map(|()| {
            process.wait_for("change");
            // All within the delay, so that arrival is in the order of decisions.
            for number in 0..COUNT {
                left.send_to(&number.to_be_bytes(), there).expect("it is sent");
            }
            let mut arrived = Vec::new();
            let mut packet = [0; 4];
            while right.recv(&mut packet).is_ok() {
                arrived.push(u32::from_be_bytes(packet));
            }
            arrived
        });
        process.finish();
        steps
    };
    let first = exchange("7");
    let lost = (0..COUNT).filter(|number| !first[0].contains(number)).count();
    let doubled = (0..COUNT)
        .filter(|number| first[0].iter().filter(|&arrived| arrived == number).count() == 2)
        .count();
    let swapped = first[0].windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!((30..90).contains(&lost) && doubled > 5 && swapped > 0, "{lost} {doubled} {swapped}");
    assert!(first[0] != first[1], "each step has decisions of its own");
    assert!(first == exchange("7"), "the same seed");
    assert!(first != exchange("8"), "another seed");
}

#[test]
fn targets_in_the_same_namespace_get_along() {
    let lab = Lab::new();
    let (one, other) = (TestCgroup::new(), TestCgroup::new());
    // Both hold packets, and the namespace loses some: each fault applies to each packet.
    let file = RuleFile::new(&format!(
        "targets: {{one: {{cgroup: {}}}, other: {{cgroup: {}}}, all: {{netns: {}}}}}\ntimeline:\n\
         - {{for: 4s, on: one, faults: {{rules: [{{delay: 100ms, direction: egress}}]}}}}\n\
         - {{for: 4s, on: other, faults: {{rules: [{{delay: 300ms, direction: egress}}]}}}}\n\
         - {{for: 4s, on: all, faults: {{rules: [{{loss: 0%, direction: egress, protocol: icmp}}]}}}}\n",
        one.path.display(),
        other.path.display(),
        lab.left.netns,
    ));
    let mut process = start_scenario(&lab.left, &file.path, &[]);
    process.wait_for("change");
    let to = lab.right.address(Family::V4);
    for (cgroup, least) in [(Some(&one), 100.0), (Some(&other), 300.0), (None, 0.0)] {
        let (_, text) = lab.left.run_in(cgroup, &format!("ping -n -q -c 2 -i 0.2 {to}"));
        let times = text.lines().find_map(|line| line.strip_prefix("rtt min/avg/max/mdev = "));
        let shortest = times.and_then(|times| times.split('/').next()).expect("it is answered");
        let shortest: f64 = shortest.parse().expect("a time");
        assert!(shortest >= least && shortest < least + 90.0, "{shortest} instead of {least}");
    }
    let ended = process.finish();
    assert_eq!(number(&ended["targets"]["one"], "delayed"), 2);
    assert_eq!(number(&ended["targets"]["other"], "delayed"), 2);
    assert_eq!(number(&ended["targets"]["all"]["egress"], "packets"), 6, "{ended}");
}

#[test]
fn clocks_go_wrong_and_right_again() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let mut sleep = lab.left.command("sleep", Some(&cgroup)).arg("60").spawn().expect("sleep");
    let file = RuleFile::new(&format!(
        "targets: {{c: {{cgroup: {}}}}}\ntimeline:\n\
         - {{at: 500ms, for: 2s, faults: {{clocks: {{clock: -1h}}}}}}\n\
         - {{at: 4s, for: 10ms, faults: {{clocks: {{clock: +1h}}}}}}\n",
        cgroup.path.display(),
    ));
    let off = || {
        let (_, text) = lab.left.run_in(Some(&cgroup), "date +%s");
        let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
        text.trim().parse::<i64>().expect("a time") - now.cast_signed()
    };
    let mut process = start_scenario(&lab.left, &file.path, &[]);
    process.wait_for("change");
    assert!((off() + 3600).abs() < 5);
    process.wait_for("change");
    assert!(off().abs() < 5);
    let ended = process.finish();
    assert!(number(&ended["clocks"]["c"], "patched") >= 1, "{ended}");
    sleep.kill().expect("it is ours");
    sleep.wait().expect("killed");
}

#[test]
fn what_fails_undoes_all() {
    let lab = Lab::new();
    let file = RuleFile::new(&format!(
        "targets: {{l: {{netns: {}, interface: [veth0]}}, r: {{netns: {}}}}}\ntimeline:\n\
         - {{on: r, faults: {{rules: [{{loss: 100%}}]}}}}\n\
         - {{at: 100ms, on: l, faults: {{rules: [{{delay: 10ms}}]}}}}\n",
        lab.left.netns, lab.right.netns
    ));
    let mut process = start_scenario(&lab.left, &file.path, &[]);
    process.wait_for("change");
    process.wait_for("change");
    assert!(!answers(&lab));
    // Another device takes the place of the one on which packets are held.
    let links = lab.left.run("ip -json link");
    let links: Value = serde_json::from_str(&links).expect("JSON");
    let is_hold =
        |link: &&Value| link["ifname"].as_str().is_some_and(|it| it.starts_with("injhold"));
    let hold = links.as_array().into_iter().flatten().find(is_hold).expect("a hold device");
    let (name, index) = (hold["ifname"].as_str().expect("a name"), number(hold, "ifindex"));
    wait_until(TIMEOUT, "the free index", || {
        lab.left.run_in(None, &format!("ip link del {name}"));
        let add = format!("ip link add extra0 index {index} type veth peer name extra1");
        lab.left.run_in(None, &add).0
    });
    let failed = process.wait_for("failed");
    assert!(failed["error"].as_str().is_some_and(|text| text.contains("target l")), "{failed}");
    assert_eq!(process.wait_for("ended")["reason"], "failed");
    assert_eq!(process.child.wait().expect("it ends").code(), Some(1));
    assert!(answers(&lab), "the other target as well");
}

#[test]
fn asked_to_end_it_ends_at_once() {
    let lab = Lab::new();
    let file = RuleFile::new(&format!(
        "{}timeline: [{{faults: {{rules: [{{loss: 100%}}]}}}}]",
        targets(&lab)
    ));
    let mut process = start_scenario(&lab.left, &file.path, &[]);
    process.wait_for("change");
    assert!(!answers(&lab));
    process.signal(Signal::SIGINT);
    let ended = process.finish();
    assert_eq!(ended["reason"], "asked");
    assert!(answers(&lab));

    // Enter, on a terminal.
    let line = format!("{} apply {} --output json", INJECTOR, file.path.display());
    let mut command = lab.left.command("script", None);
    command.args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"]);
    let mut process = Process::start(command);
    process.wait_for("change");
    assert!(!answers(&lab));
    process.tell("");
    let mut lines = Vec::new();
    // The terminal echoes input.
    while let Ok(line) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| process.next())) {
        let Some(line) = line else { break };
        lines.push(line);
    }
    assert!(answers(&lab), "{lines:?}");
}

#[test]
fn behind_its_changes_it_stays_active_and_ends_when_asked() {
    let lab = Lab::new();
    // No machine makes a change in 10 µs.
    let file = RuleFile::new(&format!(
        "{}timeline:\n- {{faults: {{rules: [{{loss: 100%, protocol: icmp}}]}}}}\n\
         - {{every: 20us, for: 10us, times: 400000, faults: {{rules: [{{loss: 1%, protocol: tcp}}]}}}}\n",
        targets(&lab)
    ));
    let mut process = start_scenario(&lab.left, &file.path, &[]);
    process.wait_for("change");
    let lease_is_over = Instant::now() + Duration::from_secs(6);
    while Instant::now() < lease_is_over {
        assert!(!answers(&lab));
    }
    process.signal(Signal::SIGTERM);
    let asked = Instant::now();
    let ended = process.finish();
    assert_eq!(ended["reason"], "asked");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert!(answers(&lab));
    let totals = ended["targets"].as_object().expect("targets").values();
    assert!(totals.clone().all(|counts| counts["expired"] == 0), "{ended}");
}

#[test]
fn killed_it_leaves_nothing() {
    let lab = Lab::new();
    let cgroup = TestCgroup::new();
    let file = RuleFile::new(&format!(
        "targets: {{l: {{netns: {}}}, r: {{netns: {}}}, c: {{cgroup: {}}}}}\ntimeline:\n\
         - {{faults: {{rules: [{{loss: 100%, protocol: icmp}}, {{delay: 10ms}}]}}}}\n\
         - {{every: 100ms, for: 50ms, times: 1000, on: c, faults: {{rules: [{{loss: 1%}}]}}}}\n",
        lab.left.netns,
        lab.right.netns,
        cgroup.path.display(),
    ));
    let devices = || lab.left.run("ip -o link") + &lab.right.run("ip -o link");
    let names = |text: String| -> Vec<String> {
        text.lines().filter_map(|line| line.split(": ").nth(1)).map(str::to_owned).collect()
    };
    let before = names(devices());
    for wait in [0, 30, 170, 400] {
        let mut process = start_scenario(&lab.left, &file.path, &[]);
        process.wait_for("change");
        assert!(!answers(&lab));
        assert!(names(devices()) != before, "it holds packets");
        thread::sleep(Duration::from_millis(wait));
        let pid = process.pid();
        process.child.kill().expect("it is ours");
        let status = process.child.wait().expect("it was killed");
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
        let end = Instant::now() + Duration::from_secs(3);
        while names(devices()) != before || !journals(pid.as_raw()).is_empty() {
            assert!(Instant::now() < end, "{:?} {:?}", names(devices()), journals(pid.as_raw()));
            thread::sleep(Duration::from_millis(20));
        }
        assert!(answers(&lab));
    }
}

/// The pending actions in the journals of a process.
fn journals(pid: i32) -> Vec<PathBuf> {
    let folder = fs::read_dir("/run/injector").into_iter().flatten().flatten();
    let files = folder.map(|file| file.path());
    let its = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.contains(&format!("\"pid\":{pid},")) && text.contains("\"do\"")
    };
    files.filter(its).collect()
}

#[test]
fn what_makes_no_sense_is_wrong_usage() {
    let lab = Lab::new();
    for (text, words) in [
        ("targets: {a: {netns: x}}\ntimeline: [{faults: nope}]", "there is no fault nope"),
        ("targets: {a: {netns: x}}\ntimeline: [{fault: nope}]", "fault"),
    ] {
        let file = RuleFile::new(text);
        let output = apply(&lab.left, &file.path, &[]).output().expect("it runs");
        assert_eq!(output.status.code(), Some(2));
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(words), "{error}");
    }
    let file = RuleFile::new(
        "targets: {a: {netns: no-such-netns}}\ntimeline: [{faults: {rules: [{loss: 1%}]}}]",
    );
    let output = apply(&lab.left, &file.path, &[]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("target a"));
    assert!(apply(&lab.left, &file.path, &["--check"]).output().expect("it runs").status.success());
}

/// The first installed program of these.
fn found(names: &[&str]) -> Option<PathBuf> {
    let folders = std::env::split_paths(&std::env::var_os("PATH")?).collect::<Vec<_>>();
    names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|path| path.exists())
}

#[test]
fn a_report_is_a_page_that_a_browser_shows_without_errors() {
    let lab = Lab::new();
    let file = RuleFile::new(&format!(
        "{}timeline:\n- {{at: 300ms, for: 600ms, on: l, faults: {{rules: [{{name: '<lost>', loss: 50%}}]}}}}\n\
         - {{at: 600ms, for: 600ms, on: r, ramp: {{from: {{rules: [{{loss: 0%}}]}}, to: {{rules: [{{loss: 9%}}]}}, steps: 3}}}}\n",
        targets(&lab)
    ));
    let (timeline, csv) = (scratch_file().with_extension("jsonl"), scratch_file());
    let path = timeline.display().to_string();
    let started = jiff::Timestamp::now();
    let mut process =
        start_scenario(&lab.left, &file.path, &["--timeline", &path, "--sample", "100ms"]);
    lab.left.ping(None, lab.right.address(Family::V4), 600);
    while process.next().is_some() {}
    fs::write(
        &csv,
        format!("time,operations\n{started},10\n{},20\n", started + Duration::from_secs(1)),
    )
    .expect("it can be written");
    let mut report = Command::new(INJECTOR);
    report.args(["report", &path, "--measured"]).arg(&csv);
    let output = report.output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let html = timeline.with_extension("html");
    let text = fs::read_to_string(&html).expect("it is written");
    assert!(!text.contains("http:") && !text.contains("https:") && !text.contains("<lost>"));
    assert!(text.contains("&lt;lost&gt;") && text.contains("operations"));

    // `scripts/setup` installs it.
    if let Some(chromium) = found(&["chromium", "chromium-browser", "google-chrome"]) {
        let profile = scratch_file();
        let output = Command::new(chromium)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--enable-logging=stderr",
                "--dump-dom",
            ])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg(format!("file://{}", html.display()))
            .output()
            .expect("it runs");
        let (dom, log) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let _ = fs::remove_dir_all(profile);
        assert!(output.status.success(), "{log}");
        assert_eq!(dom.matches("<svg class=\"chart lines\"").count(), 5, "{dom}");
        assert_eq!(dom.matches("<svg class=\"chart bars\"").count(), 1, "{dom}");
        assert!(
            dom.matches("<polyline").count() >= 5 && dom.matches("<rect").count() >= 2,
            "{dom}"
        );
        assert!(!log.contains("CONSOLE") && !dom.contains("parsererror"), "{log}");
    } else {
        testbed::skip("no chromium: the page is not shown");
    }
    for path in [timeline, csv, html] {
        let _ = fs::remove_file(path);
    }
}
