//! Tips for command lines that do not parse: the right spelling of what was probably meant.

use std::ffi::OsString;

use clap::{
    Command, Error,
    builder::StyledStr,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::spec::{clock, process, rule};

/// Options of other tools, and what injector has for them.
const OPTIONS: &[(&[&str], &str)] = &[
    (
        &["latency", "lag", "wait", "slow", "delay-ms", "latency-ms"],
        "--delay T, for instance --delay 100ms",
    ),
    (&["jitter", "variance"], "--delay T,jitter=J, for instance --delay 100ms,jitter=10ms"),
    (
        &["distribution", "dist"],
        "--delay T,jitter=J,dist=NAME, for instance --delay 100ms,jitter=10ms,dist=normal",
    ),
    (&["correlation", "corr"], "a parameter of the fault, for instance --loss 1%,corr=25%"),
    (&["packet-loss", "drop", "losses", "drop-rate", "plr"], "--loss P, for instance --loss 10%"),
    (&["gemodel"], "--loss-gemodel P,R"),
    (&["corruption", "bitflip", "bit-flip"], "--corrupt P, for instance --corrupt 0.1%"),
    (&["dup", "duplication"], "--duplicate P, for instance --duplicate 1%"),
    (&["reordering", "gap"], "--delay T --reorder P, for instance --delay 10ms --reorder 25%"),
    (
        &["bandwidth", "bw", "throughput", "rate-limit", "ratelimit", "speed", "shape"],
        "--rate R, for instance --rate 1mbit",
    ),
    (&["queue", "limit", "buffer"], "--rate R,queue=Q, for instance --rate 1mbit,queue=200ms"),
    (&["disconnect", "block", "blackhole", "isolate", "split"], "--partition PEER"),
    (&["rst", "reset-connections", "kill-connections"], "--reset"),
    (
        &["port", "ports", "p"],
        "--remote-port PORTS for ports of the peer, or --local-port PORTS for those of the target",
    ),
    (
        &[
            "dport",
            "dst-port",
            "destination-port",
            "dest-port",
            "server-port",
            "remote-ports",
            "egress-port",
        ],
        "--remote-port PORTS",
    ),
    (
        &["sport", "src-port", "source-port", "listen-port", "local-ports", "ingress-port"],
        "--local-port PORTS",
    ),
    (
        &[
            "dst",
            "destination",
            "dest",
            "peer",
            "to",
            "address",
            "addr",
            "ip",
            "remote-ip",
            "server",
            "upstream",
        ],
        "--remote PEER, an address, a prefix or a name",
    ),
    (
        &["src", "source", "from", "remote-host"],
        "--remote PEER: the other end of the connection, whichever direction",
    ),
    (&["proto"], "--protocol PROTOCOL"),
    (&["tcp", "udp", "icmp"], "--protocol PROTOCOL, for instance --protocol tcp"),
    (&["flags", "tcp-flag", "syn"], "--tcp-flags FLAGS, for instance --tcp-flags syn,!ack"),
    (&["egress", "out", "outgoing", "outbound", "send", "tx", "upload"], "--direction egress"),
    (&["ingress", "in", "incoming", "inbound", "receive", "rx", "download"], "--direction ingress"),
    (&["dir", "way"], "--direction egress or --direction ingress"),
    (
        &["duration", "timeout", "time", "during", "length", "t", "d"],
        "--for T, for instance --for 30s",
    ),
    (&["forever", "infinite"], "--for forever"),
    (&["iface", "dev", "device", "nic", "if", "i"], "--interface IF"),
    (&["namespace", "ns", "network-namespace", "net"], "--netns NAME"),
    (&["docker", "podman", "container-id", "container-name"], "--container NAME"),
    (&["systemd", "systemd-unit"], "--unit NAME"),
    (&["name", "process-name", "comm", "exe", "program"], "--process NAME"),
    (&["selector", "labels", "label", "l"], "--pods NAMESPACE/SELECTOR"),
    (
        &["clock-offset", "time-offset", "offset", "faketime", "date"],
        "--clock OFFSET, for instance --clock +1h",
    ),
    (
        &["drift", "clock-drift", "ppm"],
        "--clock OFFSET,drift=PPM, for instance --clock +0s,drift=200ppm",
    ),
    (&["jump", "time-jump"], "--clock-jump OFFSET,at=T, for instance --clock-jump -2s,at=10s"),
    (
        &["stop", "freeze", "suspend", "sigstop"],
        "--pause T,every=T, for instance --pause 2s,every=10s",
    ),
    (&["signal", "sigkill", "crash"], "--kill SIGNAL,at=T, for instance --kill KILL,at=10s"),
    (&["cpu-limit", "cpus", "cpu-quota"], "--cpu P, for instance --cpu 50%"),
    (&["disk", "iops", "io-limit"], "--io LIMITS"),
    (
        &["errors", "error", "fail", "syscall", "fault", "inject"],
        "--errno CALL=ERRNO, for instance --errno write=EIO,10%",
    ),
    (&["uid", "run-as", "as-user", "u"], "--user USER"),
    (&["chdir", "workdir", "working-dir", "directory", "C"], "--cwd DIR"),
    (&["random-seed", "rand"], "--seed N"),
    (
        &["file", "f", "config", "rule", "scenario"],
        "--rules FILE for rules, or injector apply FILE for a scenario",
    ),
    (&["json", "format", "o"], "--output json"),
    (&["log-level", "trace-log", "vv", "verbose", "v"], "--debug"),
    (&["quiet", "q", "silent"], "--output-file /dev/null"),
    (&["dry-run", "check", "plan"], "injector apply FILE --check"),
];

/// Commands of other tools, and what injector has for them.
const COMMANDS: &[(&[&str], &str)] = &[
    (&["start", "add", "attack", "fault", "attach", "create"], "injector inject TARGET FAULTS"),
    (&["exec", "wrap", "command"], "injector run FAULTS -- CMD"),
    (
        &[
            "stop", "end", "delete", "del", "rm", "remove", "destroy", "reset", "undo", "clear",
            "clean",
        ],
        "faults end with their injector (Ctrl-C or SIGTERM); injector list shows those that run, and injector cleanup \
         undoes what a killed one left",
    ),
    (&["ps", "ls", "status", "show", "get"], "injector list"),
    (&["check", "test", "diagnose", "support", "info"], "injector doctor"),
    (&["scenario", "play", "plan", "execute"], "injector apply FILE"),
    (&["serve", "server", "daemon"], "injector agent"),
    (&["completion"], "injector completions SHELL"),
];

/// Words for directions.
const DIRECTIONS: &[(&[&str], &str)] = &[
    (
        &["out", "outgoing", "outbound", "output", "send", "sent", "tx", "up", "upload", "to"],
        "--direction egress matches sent packets",
    ),
    (
        &[
            "in", "incoming", "inbound", "input", "receive", "received", "recv", "rx", "down",
            "download", "from",
        ],
        "--direction ingress matches received packets",
    ),
    (&["all", "any", "inout", "bidirectional", "*"], "--direction both is the default"),
];

/// Units, which a space must not separate from their number.
const UNITS: &[&str] = &[
    "%", "percent", "ns", "us", "ms", "msec", "s", "sec", "secs", "second", "seconds", "m", "min",
    "mins", "minute", "minutes", "h", "hour", "hours", "bit", "kbit", "mbit", "gbit", "bps",
    "kbps", "mbps", "gbps", "b", "kb", "mb", "ppm",
];

/// Parameters of faults, which a space must not separate from the value before them.
const PARAMETERS: &[&str] = &["distribution", "every", "at", "after", "jitter", "period", "corr"];

/// Adds a tip to an error of a command line, if there is one.
pub fn add(error: Error, command: &Command, arguments: impl Iterator<Item = OsString>) -> Error {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    let wrong = text(ContextKind::InvalidArg);
    let subcommand = arguments
        .skip(1)
        .filter_map(|argument| argument.into_string().ok())
        // What is before the command is not an argument of it.
        .take_while(|argument| wrong.is_empty() || !argument.starts_with(wrong))
        .find(|argument| command.find_subcommand(argument).is_some());
    let found = match error.kind() {
        ErrorKind::UnknownArgument => unknown(command, subcommand.as_deref(), wrong),
        ErrorKind::InvalidSubcommand => not_a_command(text(ContextKind::InvalidSubcommand)),
        ErrorKind::InvalidValue if text(ContextKind::InvalidArg).starts_with("--direction") => {
            find(DIRECTIONS, text(ContextKind::InvalidValue)).map(str::to_owned)
        }
        ErrorKind::ValueValidation => value(wrong, text(ContextKind::InvalidValue)),
        ErrorKind::MissingRequiredArgument if subcommand.as_deref() == Some("run") => {
            Some("the command follows --: injector run --loss 10% -- curl http://10.0.0.2/".into())
        }
        _ => None,
    };
    match found {
        Some(tip) => with_tip(&error, command, tip),
        None => error,
    }
}

/// The tip for an argument that the command does not have.
fn unknown(command: &Command, subcommand: Option<&str>, argument: &str) -> Option<String> {
    let name = argument.trim_start_matches('-').split('=').next().unwrap_or_default();
    if !argument.starts_with('-') {
        return positional(subcommand?, argument);
    }
    if argument[1..].starts_with(|first: char| first.is_ascii_digit()) {
        return Some(
            "amounts are not negative, and signals go by name: --loss 5%, --kill KILL,at=10s"
                .into(),
        );
    }
    // Only an option of the whole name: `-p` is not `--pause`.
    let has_option = |command: &Command| {
        argument.starts_with("--")
            && command.get_arguments().any(|option| option.get_long() == Some(name))
    };
    let others = command.get_subcommands().filter(|command| !command.is_hide_set());
    let others: Vec<String> = others
        .filter(|command| has_option(command))
        .map(|command| format!("injector {}", command.get_name()))
        .collect();
    match (subcommand, others.as_slice()) {
        (_, []) => find(OPTIONS, name).map(|option| format!("use {option}")),
        (None, _) if is_fault(name) => Some(format!(
            "options follow the command: injector run --{name} … -- CMD, or injector inject TARGET --{name} …"
        )),
        (None, others) => {
            Some(format!("options follow the command: {} has --{name}", others.join(", ")))
        }
        (Some(_), others) => Some(format!("--{name} is an option of {}", others.join(", "))),
    }
}

/// The tip for an argument without dashes that a command does not take.
fn positional(subcommand: &str, argument: &str) -> Option<String> {
    let is_amount = argument.starts_with(|first: char| first.is_ascii_digit());
    let is_number = argument.bytes().all(|byte| byte.is_ascii_digit());
    let is_parameter = PARAMETERS.contains(&argument);
    match subcommand {
        "run" | "inject" if UNITS.contains(&argument.to_ascii_lowercase().as_str()) => {
            Some("write a number and its unit as one word: 100ms, 30s, 5%, 1mbit".into())
        }
        "run" | "inject" if is_amount && !is_number || is_parameter => Some(
            "parameters follow the value, separated by commas: --delay 100ms,jitter=10ms,dist=normal or --pause \
             1s,every=10s"
                .into(),
        ),
        "run" => Some(format!(
            "put -- before the command and its arguments: injector run FAULTS -- {argument} …"
        )),
        "inject" if is_number => Some(format!("use --pid {argument}")),
        "inject" if argument.starts_with('/') => Some(format!(
            "use --cgroup {argument} for an existing target, or injector run FAULTS -- {argument} … for a new command"
        )),
        "inject" => Some(format!(
            "name the target by an option, such as --process {argument} or --container {argument}, or use injector run \
             FAULTS -- {argument} … for a new command"
        )),
        _ => None,
    }
}

/// The tip for a value of an option.
fn value(option: &str, value: &str) -> Option<String> {
    let name = option.split(' ').next().unwrap_or_default();
    match name {
        "--pid" if value.starts_with(|first: char| first.is_ascii_alphabetic()) => {
            Some(format!("use --process {value}"))
        }
        "--delay" | "--rtt" if value.contains(['±', '~']) || value.contains('-') => {
            Some(format!("delays that vary have a mean and a jitter: {name} 100ms,jitter=10ms"))
        }
        _ => None,
    }
}

fn not_a_command(name: &str) -> Option<String> {
    if let Some(command) = find(COMMANDS, name) {
        return Some(format!("use {command}").replace("use faults end", "faults end"));
    }
    let option = if is_fault(name) { Some(format!("--{name} …")) } else { None };
    let option = option.or_else(|| find(OPTIONS, name).map(str::to_owned))?;
    Some(format!("faults are options of injector run and injector inject: {option}"))
}

/// Whether a fault has this name.
fn is_fault(name: &str) -> bool {
    let packets = rule::FAULTS.iter().map(|fault| fault.info.name);
    let others = clock::FAULTS.iter().chain(process::FAULTS).map(|fault| fault.name);
    packets.chain(others).any(|fault| fault == name)
}

fn find(table: &[(&[&str], &'static str)], word: &str) -> Option<&'static str> {
    let word = word.to_ascii_lowercase();
    table.iter().find(|(words, _)| words.contains(&word.as_str())).map(|(_, meant)| *meant)
}

/// The error with this tip instead of clap's suggestions, which know only similar words.
fn with_tip(error: &Error, command: &Command, tip: String) -> Error {
    let mut other = Error::new(error.kind()).with_cmd(command);
    for (kind, value) in error.context() {
        let is_suggestion = matches!(
            kind,
            ContextKind::Suggested
                | ContextKind::SuggestedArg
                | ContextKind::SuggestedCommand
                | ContextKind::SuggestedSubcommand
                | ContextKind::SuggestedValue
        );
        if !is_suggestion {
            other.insert(kind, value.clone());
        }
    }
    other.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![StyledStr::from(tip)]));
    other
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    /// The options that a tip names.
    fn options(tip: &str) -> impl Iterator<Item = &str> {
        let words = tip.split_whitespace().filter_map(|word| word.strip_prefix("--"));
        let end = |c: char| !(c.is_ascii_alphabetic() || c == '-');
        words
            .map(move |word| word.split(end).next().unwrap_or_default())
            .filter(|word| !word.is_empty())
    }

    #[test]
    fn tips_name_options_and_commands_that_there_are() {
        let mut command = Cli::command();
        command.build();
        let has = |name: &str| {
            let mut commands = command.get_subcommands();
            commands.any(|command| command.get_arguments().any(|arg| arg.get_long() == Some(name)))
        };
        for (words, tip) in OPTIONS.iter().chain(COMMANDS).chain(DIRECTIONS) {
            for option in options(tip) {
                assert!(has(option), "{words:?}: {tip}");
            }
            for (_, rest) in
                tip.match_indices("injector ").map(|(at, text)| (at, &tip[at + text.len()..]))
            {
                let name =
                    rest.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
                // It may not be built in.
                let is_one = command.find_subcommand(name).is_some() || name == "agent";
                assert!(is_one || name.is_empty(), "{tip}");
            }
        }
    }

    #[test]
    fn words_that_have_tips_are_not_options_themselves() {
        for (words, _) in OPTIONS {
            for word in *words {
                let exist = ["verbose", "rules", "check", "pause"];
                let command = Cli::command();
                let mut commands = command.get_subcommands();
                let is_there = commands
                    .any(|command| command.get_arguments().any(|arg| arg.get_long() == Some(word)));
                assert!(!is_there || exist.contains(word), "{word}");
            }
        }
    }
}
