//! Percentages need their sign, and other amounts their unit: on the command line, in rule files and scenarios, in
//! requests to the agent, in resources, and in the published schemas.

use std::{fs, path::Path, process::Command};

use injector_user::{
    agent::{api::FaultRequest, routes},
    kubernetes::crd::FaultInjectionSpec,
    output::chain,
    spec::{file, scenario},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use testbed::{INJECTOR, scratch_file};

/// Where a key is in a rule file.
#[derive(Clone, Copy)]
enum Kind {
    Rule,
    Clocks,
    Processes,
}

use Kind::{Clocks, Processes, Rule};

const SIGN: &str = "has no % sign";
const UNIT: &str = "has no unit";

/// Amounts: the key, a value with the sign or unit, the same without, and what is then missing.
const AMOUNTS: &[(Kind, &str, &str, &str, &str)] = &[
    (Rule, "loss", "1%", "1", SIGN),
    (Rule, "loss", "0.1%", "0.1", SIGN),
    (Rule, "loss", "0%", "0", SIGN),
    (Rule, "loss", "1%,corr=25%", "1%,corr=25", SIGN),
    (Rule, "loss", "down=1%,up=2%", "down=1,up=2%", SIGN),
    (Rule, "loss-state", "1%,10%", "1%,10", SIGN),
    (Rule, "loss-gemodel", "1%,20%", "1,20%", SIGN),
    (Rule, "corrupt", "0.1%", "0.1", SIGN),
    (Rule, "duplicate", "1%", "1", SIGN),
    (Rule, "delay", "50ms", "50", UNIT),
    (Rule, "delay", "0s", "0", UNIT),
    (Rule, "delay", "50ms,jitter=10ms", "50ms,jitter=10", UNIT),
    (Rule, "delay", "50ms,jitter=10ms,corr=25%", "50ms,jitter=10ms,corr=25", SIGN),
    (Rule, "delay", "down=10ms", "down=10", UNIT),
    (Rule, "rtt", "100ms", "100", UNIT),
    (Rule, "rate", "1000kbit", "1000", UNIT),
    (Rule, "rate", "1mbit,burst=1500b", "1mbit,burst=1500", UNIT),
    (Rule, "rate", "1mbit,queue=200ms", "1mbit,queue=200", UNIT),
    (Rule, "for", "30s", "30", UNIT),
    (Clocks, "clock", "+1s", "+1", UNIT),
    (Clocks, "clock", "1s", "1", UNIT),
    (Clocks, "clock", "0s,drift=200ppm", "0s,drift=200", UNIT),
    (Clocks, "clock", "1s,slew=10s", "1s,slew=10", UNIT),
    (Clocks, "clock-jump", "-2s,at=10s", "-2s,at=10", UNIT),
    (Clocks, "clock-jump", "2s,at=10s", "2,at=10s", UNIT),
    (Clocks, "clock-strobe", "1s,period=10ms", "1s,period=10", UNIT),
    (Processes, "pause", "2s", "2", UNIT),
    (Processes, "pause", "2s,every=10s,jitter=500ms", "2s,every=10,jitter=500ms", UNIT),
    (Processes, "kill", "at=10s", "at=10", UNIT),
    (Processes, "kill", "at=10s,every=10s", "at=10s,every=10", UNIT),
    (Processes, "cpu", "25%", "25", SIGN),
    (Processes, "io", "1mbps", "1000000", UNIT),
    (Processes, "errno", "write=EIO,30%", "write=EIO,30", SIGN),
];

/// Amounts in objects: the key, the object, and the parameter without which sign or unit.
fn objects() -> Vec<(Kind, &'static str, Value, &'static str, Value, &'static str)> {
    vec![
        (Rule, "loss", json!({"probability": "1%"}), "probability", json!(0.2), SIGN),
        (Rule, "loss", json!({"probability": "1%"}), "probability", json!("0.2"), SIGN),
        (Rule, "loss", json!({"probability": "1%"}), "corr", json!(25), SIGN),
        (Rule, "loss-gemodel", json!({"p": "1%"}), "1-h", json!(70), SIGN),
        (Rule, "loss-state", json!({"p13": "1%"}), "p31", json!(10), SIGN),
        (Rule, "delay", json!({"time": "50ms"}), "time", json!(50), UNIT),
        (Rule, "delay", json!({"time": "50ms"}), "jitter", json!(10), UNIT),
        (Rule, "rate", json!({"rate": "1mbit"}), "rate", json!(1_000_000), UNIT),
        (Rule, "rate", json!({"rate": "1mbit"}), "burst", json!(1500), UNIT),
        (Rule, "rate", json!({"rate": "1mbit"}), "queue", json!(200), UNIT),
        (Clocks, "clock", json!({"offset": "1s"}), "offset", json!(1), UNIT),
        (Clocks, "clock", json!({"offset": "1s"}), "drift", json!(200), UNIT),
        (Processes, "pause", json!({"time": "2s"}), "time", json!(2), UNIT),
        (Processes, "kill", json!({"at": "2s"}), "at", json!(2), UNIT),
        (Processes, "cpu", json!({"share": "25%"}), "share", json!(0.25), SIGN),
        (Processes, "io", json!({"rate": "1mbps"}), "rate", json!(1_000_000), UNIT),
        (
            Processes,
            "errno",
            json!({"syscall": "write", "errno": "EIO"}),
            "probability",
            json!(0.3),
            SIGN,
        ),
    ]
}

/// A rule file with one value.
fn faults(kind: Kind, key: &str, value: &Value) -> Value {
    let several = ["kill", "errno"].contains(&key);
    let value = if several { json!([value]) } else { value.clone() };
    match kind {
        Rule if key == "for" => json!({"rules": [{"loss": "1%", key: value}]}),
        Rule => json!({"rules": [{key: value}]}),
        Clocks => json!({"clocks": {key: value}}),
        Processes => json!({"processes": {key: value}}),
    }
}

fn with(mut object: Value, others: &Value) -> Value {
    let others: Vec<_> = others.as_object().expect("an object").clone().into_iter().collect();
    object.as_object_mut().expect("an object").extend(others);
    object
}

fn error_of<T: DeserializeOwned>(value: Value) -> Option<String> {
    serde_json::from_value::<T>(value).err().map(|error| error.to_string())
}

/// Each way to give a value outside the command line: its name, and the error that it gives.
fn ways(path: &Path, kind: Kind, key: &str, value: &Value) -> Vec<(&'static str, Option<String>)> {
    let faults = faults(kind, key, value);
    fs::write(path, faults.to_string()).expect("it can be written");
    let of_file = file::read(path).err().map(|error| chain(&error));
    let mut ways = vec![
        ("rule file", of_file),
        (
            "request",
            error_of::<FaultRequest>(with(
                faults.clone(),
                &json!({"target": {"netns": "a"}, "for": "1s"}),
            )),
        ),
        (
            "resource",
            error_of::<FaultInjectionSpec>(with(
                faults.clone(),
                &json!({"target": {"pod": "a"}, "for": "1s"}),
            )),
        ),
    ];
    // The duration of a rule in a scenario is that of its step.
    if key != "for" {
        let scenario = json!({"targets": {"a": {"netns": "a"}}, "timeline": [{"for": "1s", "faults": faults}]});
        fs::write(path, scenario.to_string()).expect("it can be written");
        ways.push(("scenario", scenario::read(path).err().map(|error| chain(&error))));
    }
    ways
}

/// The published schemas of a rule file's contents.
fn schemas() -> [(&'static str, jsonschema::Validator); 2] {
    let below = |mut schema: Value, definitions: &str, name: &str| {
        schema["$ref"] = json!(format!("#/{definitions}/{name}"));
        for key in ["type", "properties", "required", "additionalProperties", "paths"] {
            schema.as_object_mut().expect("an object").remove(key);
        }
        jsonschema::validator_for(&schema).expect("a schema")
    };
    let scenario = serde_json::to_value(scenario::schema()).expect("plain data");
    let api = serde_json::to_value(routes::description()).expect("plain data");
    [
        ("scenario.schema.json", below(scenario, "$defs", "FaultsSpec")),
        ("openapi.json", below(api, "components/schemas", "FaultRequest")),
    ]
}

#[test]
fn amounts_without_sign_or_unit_are_refused_everywhere() {
    let path = scratch_file();
    let schemas = schemas();
    let valid = |schema: &(&str, jsonschema::Validator), kind, key: &str, value: &Value| {
        let mut faults = faults(kind, key, value);
        if schema.0 == "openapi.json" {
            faults = with(faults, &json!({"target": {"netns": "a"}, "for": "1s"}));
        }
        schema.1.is_valid(&faults)
    };
    let mut failures = Vec::new();
    let mut check = |kind, key: &str, good: &Value, bad: &Value, words: &str, by_schema: bool| {
        for (way, error) in ways(&path, kind, key, good) {
            if let Some(error) = error {
                failures.push(format!("{way}: {key}: {good} is refused: {error}"));
            }
        }
        for (way, error) in ways(&path, kind, key, bad) {
            let error = error.unwrap_or_else(|| "nothing".into());
            if !error.contains(words) || !error.contains("write ") {
                failures.push(format!("{way}: {key}: {bad}: {error}"));
            }
        }
        for schema in &schemas {
            if !valid(schema, kind, key, good) {
                failures.push(format!("{}: {key}: {good} is refused", schema.0));
            }
            if by_schema && valid(schema, kind, key, bad) {
                failures.push(format!("{}: {key}: {bad} is accepted", schema.0));
            }
        }
    };
    for (kind, key, good, bad, words) in AMOUNTS {
        // Patterns are those of the first amount; the code checks the others.
        let is_first = !bad.contains(['=', ',']);
        check(*kind, key, &json!(good), &json!(bad), words, is_first);
        if let Ok(number) = bad.parse::<f64>() {
            check(*kind, key, &json!(good), &json!(number), words, true);
        }
    }
    for (kind, key, good, parameter, number, words) in objects() {
        let bad = with(good.clone(), &json!({parameter: number}));
        check(kind, key, &good, &bad, words, true);
    }
    fs::remove_file(&path).expect("it is there");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn amounts_without_sign_or_unit_are_refused_as_options() {
    let mut failures = Vec::new();
    let mut check = |options: &str, words: &str| {
        let output = Command::new(INJECTOR)
            .args(options.split_whitespace())
            .args(["--", "true"])
            .env("COLUMNS", "400")
            .output()
            .expect("it can be run");
        let said = String::from_utf8_lossy(&output.stderr);
        let is_said = said.contains(words) && said.contains("write ");
        if output.status.code() != Some(2) || !is_said {
            failures.push(format!("{options}: {said}"));
        }
    };
    for (_, key, _, bad, words) in AMOUNTS {
        let fault = if *key == "for" { "--loss 1% " } else { "" };
        check(&format!("run {fault}--{key} {bad}"), words);
    }
    check("run --delay 50ms --reorder 25", SIGN);
    check("run --delay 50ms --reorder 25%,corr=50", SIGN);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn amounts_of_traces_have_their_sign_and_unit() {
    let path = scratch_file();
    for (row, words) in [
        ("0s,1mbit,10ms,0%", None),
        ("0s,0,10ms,0%", None),
        ("0s,1mbit,10ms,1", Some(SIGN)),
        ("0s,1mbit,10,0%", Some(UNIT)),
        ("0s,1000,10ms,0%", Some(UNIT)),
        ("0,1mbit,10ms,0%", Some(UNIT)),
    ] {
        fs::write(&path, format!("time,rate,delay,loss\n{row}\n")).expect("it can be written");
        let trace = json!({"trace": path.display().to_string()});
        let rules = scratch_file();
        fs::write(&rules, json!({"rules": [trace]}).to_string()).expect("it can be written");
        let error = file::read(&rules).err().map(|error| chain(&error));
        assert_eq!(error.is_some(), words.is_some(), "{row}: {error:?}");
        if let Some((error, words)) = error.zip(words) {
            assert!(error.contains(words), "{row}: {error}");
        }
        fs::remove_file(&rules).expect("it is there");
    }
    fs::remove_file(&path).expect("it is there");
}
