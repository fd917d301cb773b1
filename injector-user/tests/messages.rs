//! Snapshots of the help texts and of the messages for wrong command lines and files. `INSTA_UPDATE=always cargo test
//! --test messages` rewrites them.

use std::{fmt::Write as _, fs, process::Command};

use testbed::{INJECTOR, scratch_file};

const COMMANDS: [&str; 11] = [
    "run",
    "inject",
    "apply",
    "agent",
    "report",
    "doctor",
    "list",
    "profiles",
    "cleanup",
    "completions",
    "man",
];

/// Columns of the terminal.
const WIDTH: usize = 80;

/// What a command prints as its help.
fn help(command: &str, option: &str) -> String {
    let output = Command::new(INJECTOR)
        .args(command.split_whitespace())
        .arg(option)
        .env("COLUMNS", WIDTH.to_string())
        .output()
        .expect("it can be run");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn short_help_has_one_line_an_option() {
    for command in COMMANDS {
        let text = help(command, "-h");
        let options = text.lines().skip_while(|line| !line.ends_with(':'));
        let continued: Vec<&str> = options.filter(|line| line.starts_with("         ")).collect();
        assert!(continued.is_empty(), "{command}: {continued:#?}");
        insta::assert_snapshot!(format!("{command}-short"), text);
    }
    insta::assert_snapshot!("injector-short", help("", "-h"));
}

#[test]
fn long_help_fits_the_terminal() {
    for command in COMMANDS {
        let text = help(command, "--help");
        let long: Vec<&str> = text.lines().filter(|line| line.chars().count() > WIDTH).collect();
        assert!(long.is_empty(), "{command}: {long:#?}");
        insta::assert_snapshot!(format!("{command}-long"), text);
    }
    insta::assert_snapshot!("injector-long", help("", "--help"));
}

#[test]
fn profiles_are_listed_with_their_values_and_sources() {
    let list = |options: &[&str]| {
        let output = Command::new(INJECTOR).arg("profiles").args(options).output();
        let output = output.expect("it can be run");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    insta::assert_snapshot!("profiles", list(&[]));
    insta::assert_snapshot!("profiles-json", list(&["--output", "json"]));
}

/// Wrong command lines. None of them gets as far as a target.
const WRONG_LINES: &[&str] = &[
    "run --loss 10% true",
    "run -- true",
    "run --loss 10 -- true",
    "run --loss 101% -- true",
    "run --loss 10%,corr=2% --loss-every 3 -- true",
    "run --delay 200 -- true",
    "run --delay 61s -- true",
    "run --delay 10ms,jitter=20 -- true",
    "run --delay 10ms,dist=gaussian -- true",
    "run --reorder 10% -- true",
    "run --rate 1m -- true",
    "run --rate 8mbit,queue=1m -- true",
    "run --ecn -- true",
    "run --profile 3gg -- true",
    "run --profile 3g --loss 1% --loss-every 3 -- true",
    "run --rules wrong-profile.yaml -- true",
    "run --remote nowhere..example --loss 1% -- true",
    "run --remote 10.0.0.0/33 --loss 1% -- true",
    "run --remote container: --loss 1% -- true",
    "run --remote pod:web --loss 1% -- true",
    "run --remote database:db --loss 1% -- true",
    "run --partition redis:6379 -- true",
    "run --remote-port 80-70 --loss 1% -- true",
    "run --protocol quic --loss 1% -- true",
    "run --tcp-flags syn,sin --loss 1% -- true",
    "run --clock 1 -- true",
    "run --clock +1h,drift=fast -- true",
    "run --clock-jump -2s -- true",
    "run --kill STOPP,at=1s -- true",
    "run --kill after=3:fsynk -- true",
    "run --errno fsync=EWHAT -- true",
    "run --cpu 0% -- true",
    "run --for 0s --loss 1% -- true",
    "run --for 10 --loss 1% -- true",
    "run --engine edt,tap --delay 1ms -- true",
    "run --rules missing.yaml -- true",
    "run --rules wrong-key.yaml -- true",
    "run --rules wrong-value.yaml -- true",
    "run --rules empty-list.yaml -- true",
    "run --rules rules.yaml --loss 1% -- true",
    "inject --loss 1%",
    "inject --host --loss 1%",
    "inject --host --pid 1 --loss 1% --for 1s",
    "inject --cgroup /a --cgroup /b --loss 1% --for 1s",
    "inject --netns web --xdp --delay 1ms --for 1s",
    "inject --netns web --clock +1h --for 1s",
    "apply missing.yaml",
    "apply wrong-key.yaml",
    "apply wrong-scenario.yaml",
    "agent --tls-cert a.pem",
    "injekt",
];

/// Files that some of them name.
const FILES: [(&str, &str); 6] = [
    ("wrong-key.yaml", "rules:\n  - los: 1%\n"),
    ("wrong-value.yaml", "rules:\n  - loss: 1%\n  - loss: 0.2\n"),
    ("empty-list.yaml", "rules:\n  - {loss: 1%, remote: []}\n"),
    ("wrong-profile.yaml", "rules:\n  - profile: 5g\n"),
    ("rules.yaml", "rules:\n  - loss: 1%\n"),
    (
        "wrong-scenario.yaml",
        "targets: {a: {netns: a}}\ntimeline:\n  - {on: b, faults: [{rules: [{loss: 1%}]}]}\n",
    ),
];

#[test]
fn errors_say_what_is_wrong_and_where() {
    let folder = scratch_file();
    fs::create_dir(&folder).expect("it can be made");
    for (name, text) in FILES {
        fs::write(folder.join(name), text).expect("it can be written");
    }
    let mut messages = String::new();
    for line in WRONG_LINES {
        let output = Command::new(INJECTOR)
            .args(line.split_whitespace())
            .env("COLUMNS", WIDTH.to_string())
            .current_dir(&folder)
            .output()
            .expect("it can be run");
        let code = output.status.code().expect("it ends by itself");
        assert_eq!(code, 2, "{line}: {output:?}");
        assert_eq!(output.stdout, b"", "{line}");
        let message = String::from_utf8(output.stderr).expect("text");
        writeln!(messages, "$ injector {line}\n{message}exit code {code}\n").expect("a string");
    }
    fs::remove_dir_all(&folder).expect("it can be removed");
    insta::assert_snapshot!("errors", messages);
}
