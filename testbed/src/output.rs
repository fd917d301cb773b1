//! The JSON output of injector, held against its published schema.
//!
//! The schema lets keys be added. Here, each key must be known, so that nothing is undocumented.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    path::Path,
    process::Command,
    sync::{Mutex, OnceLock},
};

use jsonschema::Validator;
use serde_json::{Map, Value, json};

/// The schema of all output.
const SCHEMA: &str = include_str!("../../docs/events.schema.json");

/// Parses a line of the JSON output of injector, which must follow the schema.
#[must_use]
#[track_caller]
pub fn parse(line: &str) -> Value {
    let value: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
    check_line(&value);
    value
}

/// Parses the JSON output of injector, which must follow the schema.
#[must_use]
#[track_caller]
pub fn lines(text: &str) -> Vec<Value> {
    text.lines().map(parse).collect()
}

/// Fails unless a line of output follows the schema.
#[track_caller]
pub fn check_line(line: &Value) {
    let has = |key: &str| line.get(key).is_some();
    let definition = match line["event"].as_str() {
        Some("planned") => "PlannedLine",
        Some(_) if has("monotonic_ns") => "TimelineLine",
        Some(_) => "EventLine",
        None if has("slot") => "RunningLine",
        None if has("phase") => "FaultLine",
        None if has("active") => "HealthLine",
        None if has("subject") => "FindingLine",
        None if has("profile") => "ProfileLine",
        None => "FaultFindingLine",
    };
    check(definition, line);
}

/// Fails unless an answer of the agent's API follows the schema. `path` is that of its request.
#[track_caller]
pub fn check_answer(path: &str, status: u16, answer: &Value) {
    let definition = match path {
        _ if status >= 400 && path != "/healthz" => "Problem",
        "/v1/faults" if answer.get("faults").is_some() => "FaultList",
        "/healthz" => "Health",
        path if path.starts_with("/v1/faults") => "Fault",
        _ => return,
    };
    check(definition, answer);
}

/// Fails unless a value follows one of the schema's definitions and has no other keys.
#[track_caller]
pub fn check(definition: &str, value: &Value) {
    static VALIDATORS: OnceLock<Validators> = OnceLock::new();
    let validators = VALIDATORS.get_or_init(Validators::new);
    if let Err(error) = validators.check(definition, value) {
        panic!("not a {definition}: {error}: {value}");
    }
}

/// Whether the standard output of this command is that of injector, and not of the command of `run`.
#[must_use]
pub fn is_of_injector(command: &Command) -> bool {
    let mut words = std::iter::once(command.get_program()).chain(command.get_args());
    let is_injector = |word: &OsStr| Path::new(word).file_name() == Some("injector".as_ref());
    words.any(is_injector) && words.next() != Some("run".as_ref())
}

/// The validators that were needed so far, by definition and tag.
struct Validators {
    schema: Value,
    made: Mutex<BTreeMap<(String, String), &'static Validator>>,
}

impl Validators {
    fn new() -> Self {
        let mut schema: Value = serde_json::from_str(SCHEMA).expect("JSON");
        for definition in schema["$defs"].as_object_mut().expect("definitions").values_mut() {
            // An object with variants gets a validator for each.
            if definition.get("properties").is_some() && definition.get("oneOf").is_none() {
                definition["additionalProperties"] = json!(false);
            }
        }
        Self { schema, made: Mutex::default() }
    }

    fn check(&self, definition: &str, value: &Value) -> Result<(), String> {
        // Events and verdicts have a tag.
        let tag = ["event", "verdict"].into_iter().find_map(|key| value[key].as_str());
        let name = (definition.to_owned(), tag.unwrap_or_default().to_owned());
        let made = self.made.lock().expect("nothing panics").get(&name).copied();
        let validator = if let Some(validator) = made {
            validator
        } else {
            let schema = self.closed(definition, &name.1)?;
            let validator = jsonschema::validator_for(&schema).map_err(|e| e.to_string())?;
            let validator: &'static Validator = Box::leak(Box::new(validator));
            self.made.lock().expect("nothing panics").insert(name, validator);
            validator
        };
        let errors = validator.iter_errors(value).take(3);
        let errors: Vec<String> =
            errors.map(|error| format!("{error} at {}", error.instance_path())).collect();
        if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
    }

    /// The schema of one variant of a definition, or of the definition if it has none.
    fn closed(&self, definition: &str, tag: &str) -> Result<Value, String> {
        let mut schema = self.schema["$defs"][definition].clone();
        if schema.is_null() {
            return Err("there is no such definition".into());
        }
        if let Some(variants) = schema.as_object_mut().and_then(|schema| schema.remove("oneOf")) {
            let is_it = |variant: &&Value| {
                let consts = ["event", "verdict"].map(|key| &variant["properties"][key]["const"]);
                consts.contains(&&json!(tag))
            };
            let variant = variants.as_array().and_then(|all| all.iter().find(is_it));
            let variant = variant.ok_or_else(|| format!("it has no variant {tag}"))?;
            let properties = object(&mut schema["properties"]);
            properties.extend(variant["properties"].as_object().cloned().unwrap_or_default());
            let required = variant["required"].as_array().cloned().unwrap_or_default();
            schema["required"].as_array_mut().expect("a list").extend(required);
        }
        schema["additionalProperties"] = json!(false);
        schema["$schema"] = self.schema["$schema"].clone();
        schema["$defs"] = self.schema["$defs"].clone();
        Ok(schema)
    }
}

fn object(value: &mut Value) -> &mut Map<String, Value> {
    value.as_object_mut().expect("an object")
}
