//! Mistakes on the command line: each message leads to the right spelling.

use std::{fs, process::Command};

use testbed::{INJECTOR, scratch_file};

/// Wrong command lines, with words that the message must contain.
const MISTAKES: &[(&str, &[&str])] = &[
    // Names of other tools.
    ("run --latency 50ms -- true", &["'--latency'", "tip: use --delay T"]),
    ("run --lag 50ms -- true", &["tip: use --delay T"]),
    ("run --delay 50ms --jitter 10ms -- true", &["tip: use --delay T,jitter=J"]),
    ("run --jitter=10ms -- true", &["tip: use --delay T,jitter=J"]),
    ("run --delay 50ms 10ms -- true", &["separated by commas: --delay 100ms,jitter=10ms"]),
    (
        "run --delay 50ms 10ms distribution normal -- true",
        &["--delay 100ms,jitter=10ms,dist=normal"],
    ),
    ("inject --pid 1 --delay 50ms 10ms", &["separated by commas"]),
    ("run --pause 1s every 2s -- true", &["separated by commas", "--pause 1s,every=10s"]),
    ("run --kill KILL at 2s -- true", &["separated by commas"]),
    ("run --delay 50ms-70ms -- true", &["--delay 100ms,jitter=10ms"]),
    ("run --rtt 50ms±5ms -- true", &["--rtt 100ms,jitter=10ms"]),
    ("run --packet-loss 10% -- true", &["tip: use --loss P"]),
    ("run --drop 10% -- true", &["tip: use --loss P"]),
    ("run --bandwidth 1mbit -- true", &["tip: use --rate R"]),
    ("run --bw 1mbit -- true", &["tip: use --rate R"]),
    ("run --limit 100 --rate 1mbit -- true", &["tip: use --rate R,queue=Q"]),
    ("run --corruption 1% -- true", &["tip: use --corrupt P"]),
    ("run --dup 1% -- true", &["tip: use --duplicate P"]),
    ("run --loss 1% --port 80 -- true", &["--remote-port PORTS", "--local-port PORTS"]),
    ("run --loss 1% --dport 80 -- true", &["tip: use --remote-port"]),
    ("run --loss 1% --sport 80 -- true", &["tip: use --local-port"]),
    ("run --loss 1% --dst 10.0.0.1 -- true", &["tip: use --remote PEER"]),
    ("run --loss 1% --proto tcp -- true", &["tip: use --protocol"]),
    ("run --loss 1% --tcp -- true", &["--protocol tcp"]),
    ("run --loss 1% --egress -- true", &["tip: use --direction egress"]),
    ("run --loss 1% --inbound -- true", &["tip: use --direction ingress"]),
    ("run --loss 1% --duration 10s -- true", &["tip: use --for T"]),
    ("run --loss 1% --timeout 10s -- true", &["tip: use --for T"]),
    ("inject --iface eth0 --loss 1%", &["tip: use --interface IF"]),
    ("inject --dev eth0 --loss 1%", &["tip: use --interface IF"]),
    ("inject --namespace web --loss 1%", &["tip: use --netns NAME"]),
    ("inject --docker web --loss 1%", &["tip: use --container NAME"]),
    ("inject --name nginx --loss 1%", &["tip: use --process NAME"]),
    ("inject --selector app=web --loss 1%", &["tip: use --pods NAMESPACE/SELECTOR"]),
    ("run --faketime +1h -- true", &["tip: use --clock OFFSET"]),
    ("run --drift 200 -- true", &["--clock +0s,drift=200ppm"]),
    ("run --freeze 1s -- true", &["tip: use --pause"]),
    ("run --cpu-limit 50% -- true", &["tip: use --cpu P"]),
    ("run --syscall fsync -- true", &["tip: use --errno CALL=ERRNO"]),
    ("run --loss 1% --json -- true", &["tip: use --output json"]),
    ("run --loss 1% -q -- true", &["tip: use --output-file /dev/null"]),
    ("run --config a.yaml -- true", &["--rules FILE"]),
    ("doctor -v", &["tip: use --debug"]),
    // Directions.
    ("run --loss 1% --direction out -- true", &["--direction egress matches sent packets"]),
    ("run --loss 1% --direction in -- true", &["--direction ingress matches received packets"]),
    ("run --loss 1% --direction outgoing -- true", &["--direction egress"]),
    ("run --loss 1% --direction rx -- true", &["--direction ingress"]),
    ("run --loss 1% --direction any -- true", &["--direction both is the default"]),
    ("run --loss 1% --direction up -- true", &["--direction egress"]),
    // Where options and commands go.
    ("--loss 10% -- true", &["injector run --loss … -- CMD", "injector inject TARGET --loss …"]),
    ("--delay 10ms run -- true", &["options follow the command"]),
    ("--host --loss 1%", &["options follow the command: injector inject has --host"]),
    ("run --loss 10% true", &["put -- before the command", "injector run FAULTS -- true"]),
    ("run curl http://10.0.0.1/", &["injector run FAULTS -- curl"]),
    ("run --loss 10%", &["CMD", "the command follows --"]),
    ("run --pid 1 --loss 10% -- true", &["tip: --pid is an option of injector inject"]),
    (
        "run --interface eth0 --loss 10% -- true",
        &["tip: --interface is an option of injector inject"],
    ),
    ("run --uid 1000 --loss 10% -- true", &["tip: use --user USER"]),
    ("run --chdir /tmp --loss 10% -- true", &["tip: use --cwd DIR"]),
    ("apply --loss 1% a.yaml", &["--loss is an option of injector run, injector inject"]),
    ("inject nginx --loss 1%", &["--process nginx", "--container nginx"]),
    ("inject 4321 --loss 1%", &["tip: use --pid 4321"]),
    ("inject /system.slice/a.service --loss 1%", &["--cgroup /system.slice/a.service"]),
    ("inject --loss 1% -- curl", &["injector run FAULTS -- curl"]),
    // Commands.
    ("start --loss 1%", &["tip: use injector inject TARGET FAULTS"]),
    ("exec --loss 1% -- true", &["tip: use injector run FAULTS -- CMD"]),
    ("stop", &["faults end with their injector", "injector cleanup"]),
    ("status", &["tip: use injector list"]),
    ("loss 10%", &["faults are options of injector run and injector inject: --loss …"]),
    ("latency 10ms", &["faults are options", "--delay T"]),
    ("injct", &["'inject'"]),
    // Values.
    ("run --delay 200 -- true", &["`200` has no unit: write 200ms, or 200s for seconds"]),
    ("run --delay 1.5 -- true", &["write 1.5ms, or 1.5s"]),
    ("run --delay 10ms,jitter=20 -- true", &["write 20ms"]),
    ("run --loss 1% --for 30 -- true", &["30s for seconds"]),
    ("run --delay 100 ms -- true", &["a number and its unit as one word: 100ms"]),
    ("run --loss 5 percent -- curl x", &["a number and its unit as one word: 100ms, 30s, 5%"]),
    ("inject --pid 1 --loss 1% --for 10 seconds", &["a number and its unit as one word"]),
    ("run --loss -5% -- true", &["amounts are not negative"]),
    ("run --kill -9 -- true", &["signals go by name", "--kill KILL,at=10s"]),
    ("inject --pid nginx --loss 1%", &["tip: use --process nginx"]),
    ("run --rtt 100 -- true", &["100ms"]),
    ("run --loss 0.1 -- true", &["0.1% (or 10%)"]),
    ("run --loss 10 -- true", &["write 10%"]),
    ("run --rate 10 -- true", &["`10` has no unit: write 10kbit, or 10mbit"]),
    ("run --rate 10mbps/s -- true", &["1.5mbit"]),
    (
        "run --loss 1% --remote 10.0.0.1:80 -- true",
        &["write 10.0.0.1, and the port as --remote-port 80"],
    ),
    ("run --loss 1% --remote http://10.0.0.1 -- true", &["is a URL: write its host, 10.0.0.1"]),
    ("run --loss 1% --remote https://db.example:8443/a -- true", &["write its host, db.example"]),
    ("run --loss 1% --remote http://[::1]:80/ -- true", &["write its host, ::1"]),
    ("run --loss 1% --remote-port http -- true", &["write ports from 0 to 65535"]),
    ("run --loss 1% --protocol http -- true", &["tcp, udp"]),
    ("run --clock-jump -2s -- true", &["at=T"]),
    (
        "inject --agent 10.0.0.1:9000 --pid 1 --loss 1%",
        &["has no scheme: write https://10.0.0.1:9000"],
    ),
    ("inject --agent node-1:9000 --host --loss 1% --for 1s", &["http://node-1:9000"]),
    ("inject --agent ftp://a:9000 --pid 1 --loss 1%", &["http://HOST:PORT"]),
    // Nothing to do.
    (
        "run -- true",
        &[
            "no fault was asked for",
            "--loss",
            "--delay",
            "--too-big for packets",
            "--clock",
            "--pause",
            "--errno",
        ],
    ),
    ("inject --pid 1", &["no fault was asked for", "--rate", "--clock-jump", "--kill"]),
    ("run --remote-port 80 -- true", &["no fault was asked for"]),
    ("inject --loss 1%", &["no target was given", "--pid", "`injector run`"]),
];

fn injector(line: &str) -> (Option<i32>, String) {
    let output = Command::new(INJECTOR)
        .args(line.split_whitespace())
        .env("COLUMNS", "400")
        .output()
        .expect("it can be run");
    (output.status.code(), String::from_utf8(output.stderr).expect("text"))
}

#[test]
fn each_mistake_has_a_message_that_leads_to_the_right_spelling() {
    let mut failures = Vec::new();
    for (line, words) in MISTAKES {
        let (code, said) = injector(line);
        if code != Some(2) || !words.iter().all(|word| said.contains(word)) {
            failures.push(format!("{line}: {code:?}, not {words:?} in:\n{said}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_directory_for_man_pages_that_is_not_there_is_named() {
    let folder = scratch_file();
    let path = folder.display().to_string();
    let (code, said) = injector(&format!("man {path}"));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("mkdir -p {path}")), "{said}");
    // The advice works.
    fs::create_dir_all(&folder).expect("it can be made");
    let (code, said) = injector(&format!("man {path}"));
    assert_eq!(code, Some(0), "{said}");
    fs::remove_dir_all(&folder).expect("it is there");
}
