//! Empty lists are refused everywhere. The test finds all lists in the published schemas, so that new ones
//! are covered.

use std::{collections::BTreeSet, fs, process::Command};

use injector_user::{agent::routes, kubernetes::crd, spec::scenario};
use serde_json::{Value, json};
use testbed::{INJECTOR, Lab, agent::Agent, scratch_file};

/// A step from a value to one within it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Key(String),
    Element,
    Entry,
}

/// The places of all lists within `schema`. Each must have `minItems`.
fn lists(root: &Value, schema: &Value) -> BTreeSet<Vec<Step>> {
    let mut found = BTreeSet::new();
    visit(root, schema, &mut Vec::new(), &mut found);
    found
}

fn visit(root: &Value, schema: &Value, at: &mut Vec<Step>, found: &mut BTreeSet<Vec<Step>>) {
    if let Some(reference) = schema["$ref"].as_str() {
        let pointer = reference.strip_prefix('#').expect("within the document");
        visit(root, root.pointer(pointer).expect("it is there"), at, found);
    }
    for alternatives in ["anyOf", "oneOf", "allOf"] {
        for schema in schema[alternatives].as_array().into_iter().flatten() {
            visit(root, schema, at, found);
        }
    }
    let mut below = |step, schema: &Value, found: &mut BTreeSet<Vec<Step>>| {
        at.push(step);
        visit(root, schema, at, found);
        at.pop();
    };
    for (key, schema) in schema["properties"].as_object().into_iter().flatten() {
        below(Step::Key(key.clone()), schema, found);
    }
    if schema["additionalProperties"].is_object() {
        below(Step::Entry, &schema["additionalProperties"], found);
    }
    if schema["items"].is_object() {
        below(Step::Element, &schema["items"], found);
    }
    let kind = &schema["type"];
    if kind == "array" || kind.as_array().is_some_and(|kinds| kinds.contains(&json!("array"))) {
        assert!(schema["minItems"].as_u64() >= Some(1), "{at:?} has no minItems: {schema}");
        found.insert(at.clone());
    }
}

/// A document with only an empty list at this place.
fn document(place: &[Step]) -> Value {
    place.iter().rev().fold(json!([]), |value, step| match step {
        Step::Key(key) => json!({key: value}),
        Step::Element => json!([value]),
        Step::Entry => json!({"name": value}),
    })
}

/// The key of the list at this place.
fn key(place: &[Step]) -> &str {
    let keys = place.iter().rev().filter_map(|step| match step {
        Step::Key(key) => Some(key.as_str()),
        _ => None,
    });
    keys.into_iter().next().expect("lists have keys")
}

fn check_message(message: &str, place: &[Step]) {
    assert!(message.contains("list is empty"), "{place:?}: {message}");
    let named = format!("{}: this list", key(place));
    assert!(message.contains(&named), "{place:?} is not named: {message}");
}

/// The error of the command, which must refuse the file.
fn refused(options: &[&str], document: &Value) -> String {
    let file = scratch_file();
    // As YAML with a line for each key, to check the line number.
    fs::write(&file, serde_saphyr::to_string(document).expect("plain data")).expect("a file");
    let output = Command::new(INJECTOR).args(options).arg(&file).output().expect("it can be run");
    let message = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(2), "{document}: {message}");
    assert!(message.contains(&format!("{}:", file.display())), "no file and line: {message}");
    fs::remove_file(file).expect("it is there");
    message
}

fn faults_schema(scenario: &Value) -> &Value {
    &scenario["$defs"]["FaultsSpec"]
}

#[test]
fn in_rule_files() {
    let schema = serde_json::to_value(scenario::schema()).expect("plain data");
    let places = lists(&schema, faults_schema(&schema));
    assert!(places.len() >= 6, "{places:?}");
    for place in places {
        let inject = ["inject", "--netns", "nowhere", "--rules"];
        check_message(&refused(&inject, &document(&place)), &place);
    }
}

#[test]
fn in_scenarios() {
    let schema = serde_json::to_value(scenario::schema()).expect("plain data");
    let places = lists(&schema, &schema);
    assert!(places.len() >= 20, "{places:?}");
    for place in places {
        check_message(&refused(&["apply", "--check"], &document(&place)), &place);
    }
}

#[test]
fn in_requests_to_an_agent() {
    let api = serde_json::to_value(routes::description()).expect("plain data");
    let schema = &api["components"]["schemas"]["FaultRequest"];
    let places = lists(&api, schema);
    assert!(places.len() >= 8, "{places:?}");
    let lab = Lab::new();
    let agent = Agent::start(&lab.left);
    for place in places {
        let (status, answer) = agent.ask("POST", "/v1/faults", Some(&document(&place)));
        assert_eq!(status, 422, "{place:?}: {answer}");
        check_message(answer["message"].as_str().expect("a message"), &place);
    }
}

#[test]
fn in_custom_resources() {
    let definition = serde_json::to_value(crd::definition()).expect("plain data");
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    let places = lists(&definition, &schema["spec"]);
    assert!(places.len() >= 8, "{places:?}");
    for place in places {
        let document = document(&place);
        let message = crd::FaultInjectionSpec::check(&document).expect_err("an empty list");
        check_message(&message, &place);
    }
}
