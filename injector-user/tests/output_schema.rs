//! The published JSON Schema of the JSON output matches the code, and docs/json.md the schema.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use injector_user::{
    cli::schema::schema, fault::network::report::Totals, spec::target::TargetSpec,
};
use serde_json::{Map, Value};

/// Everything after this line of docs/json.md is written by this test.
const MARK: &str = "<!-- Written by `cargo test --test output_schema` from the schema. -->\n";

/// The definitions of lines, with their headings.
const LINES: [(&str, &str); 9] = [
    ("EventLine", "run and inject"),
    ("TimelineLine", "apply, and timelines"),
    ("PlannedLine", "apply --check"),
    ("RunningLine", "list: injectors"),
    ("FaultLine", "list: faults of the agent"),
    ("HealthLine", "list --health"),
    ("FindingLine", "doctor: hooks and engines"),
    ("FaultFindingLine", "doctor: faults"),
    ("ProfileLine", "profiles"),
];

fn value() -> Value {
    schema().into()
}

fn published(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    if std::env::var_os("INJECTOR_WRITE_SCHEMA").is_some() {
        fs::write(&path, text).expect("it can be written");
    }
    let published = fs::read_to_string(&path).unwrap_or_default();
    assert!(published == text, "run this test with INJECTOR_WRITE_SCHEMA=1 to write it anew");
}

#[test]
fn the_published_schema_is_that_of_the_code() {
    let text = serde_json::to_string_pretty(&value()).expect("plain data") + "\n";
    published("events.schema.json", &text);
}

#[test]
fn the_documentation_is_that_of_the_schema() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/json.md");
    let text = fs::read_to_string(path).expect("it is there");
    let (by_hand, _) = text.split_once(MARK).expect("the mark");
    published("json.md", &format!("{by_hand}{MARK}{}", reference(&value())));
}

#[test]
fn every_key_is_described() {
    fn undescribed(schema: &Value, path: &str, found: &mut Vec<String>) {
        for (key, property) in properties(schema) {
            let is_tag = property.get("const").is_some();
            if !is_tag && property["description"].as_str().is_none_or(str::is_empty) {
                found.push(format!("{path}.{key}"));
            }
        }
        for variant in schema["oneOf"].as_array().into_iter().flatten() {
            undescribed(variant, path, found);
        }
    }
    let schema = value();
    let mut found = Vec::new();
    for (name, definition) in schema["$defs"].as_object().expect("definitions") {
        undescribed(definition, name, &mut found);
    }
    assert_eq!(found, [""; 0]);
}

/// The same key has the same schema wherever it is, if it stands for the same thing.
#[test]
fn the_same_thing_has_one_shape() {
    let schema = value();
    for key in ["attached", "rules", "target", "resolved", "clocks", "processes"] {
        let mut shapes = BTreeSet::new();
        for definition in schema["$defs"].as_object().expect("definitions").values() {
            let variants = definition["oneOf"].as_array().into_iter().flatten();
            for object in variants.chain([definition]) {
                let Some(property) = object["properties"].get(key) else { continue };
                let mut shape = BTreeSet::new();
                references(property, &mut shape);
                shapes.insert(shape);
            }
        }
        // A fault of the agent has the keys of its request.
        shapes.remove(&BTreeSet::from(["TargetSpec".to_owned()]));
        assert_eq!(shapes.len(), 1, "{key}: {shapes:?}");
    }
}

/// The definitions that a schema refers to.
fn references(schema: &Value, found: &mut BTreeSet<String>) {
    match schema {
        Value::Object(object) => {
            let name = object.get("$ref").and_then(Value::as_str);
            found.extend(name.and_then(|name| name.strip_prefix("#/$defs/")).map(Into::into));
            object.values().for_each(|value| references(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema["properties"].as_object().into_iter().flatten()
}

/// A description in one line of a table.
fn described(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    let sentence = |paragraph: &str| {
        let words = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
        let is_whole = words.is_empty() || words.ends_with(['.', ':']);
        if is_whole { words } else { format!("{words}.") }
    };
    // The first paragraph of a help text has no full stop.
    text.split("\n\n").map(sentence).collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// The type of a value.
fn type_of(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/")) {
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(value) = schema.get("const") {
        return format!("`{value}`");
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ");
    }
    if let Some(either) = schema["anyOf"].as_array() {
        let types = either.iter().filter(|schema| schema["type"] != "null").map(type_of);
        return types.collect::<Vec<_>>().join(" or ");
    }
    let types = match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
        kind => vec![kind.as_str().unwrap_or("any")],
    };
    match types.into_iter().find(|kind| *kind != "null").unwrap_or("null") {
        "array" => format!("list of {}", type_of(&schema["items"])),
        "object" => format!("map to {}", type_of(&schema["additionalProperties"])),
        kind => kind.into(),
    }
}

/// Keys that several objects have in common, with the place where they are described.
fn groups() -> [(&'static str, Map<String, Value>); 2] {
    let target = schemars::schema_for!(TargetSpec).into();
    let totals = schemars::schema_for!(Totals).into();
    [("[packet counters](#packet-counters)", totals), ("[TargetSpec](#targetspec)", target)].map(
        |(name, schema): (_, Value)| {
            (name, schema["properties"].as_object().cloned().unwrap_or_default())
        },
    )
}

/// A table of an object's keys, but for those in `hidden`.
fn table(schema: &Value, hidden: &[&str]) -> String {
    let has = |(_, keys): &(&str, Map<String, Value>)| {
        let own = schema["properties"].as_object();
        own.is_some_and(|own| {
            own.len() > keys.len() && keys.keys().all(|key| own.contains_key(key))
        })
    };
    let groups: Vec<_> = groups().into_iter().filter(has).collect();
    let required = schema["required"].as_array();
    let is_required =
        |key: &str| required.is_some_and(|required| required.iter().any(|name| name == key));
    let mut rows = String::new();
    for (key, property) in properties(schema) {
        let is_grouped = groups.iter().any(|(_, keys)| keys.contains_key(key));
        if hidden.contains(&key.as_str()) || is_grouped {
            continue;
        }
        let optional = if is_required(key) { "" } else { ", optional" };
        let (kind, what) = (type_of(property), described(property));
        writeln!(rows, "| `{key}` | {kind}{optional} | {what} |").expect("a string");
    }
    for (name, keys) in groups {
        let optional = if keys.keys().any(|key| is_required(key)) { "" } else { " optional" };
        writeln!(rows, "| {name} |{optional} | |").expect("a string");
    }
    if rows.is_empty() {
        return String::new();
    }
    format!("| key | type | meaning |\n|---|---|---|\n{rows}\n")
}

/// An object or an enumeration.
fn definition(schema: &Value, hidden: &[&str]) -> String {
    let mut text = described(schema);
    text += "\n\n";
    text += &table(schema, hidden);
    let variants: Vec<&Value> = schema["oneOf"].as_array().into_iter().flatten().collect();
    for variant in variants {
        let tag = ["event", "verdict"].into_iter().find(|key| {
            variant["properties"].get(*key).is_some_and(|tag| tag.get("const").is_some())
        });
        if let Some(tag) = tag {
            let name = variant["properties"][tag]["const"].as_str().expect("a name");
            write!(text, "**`{name}`**: {}\n\n", described(variant)).expect("a string");
            text += &table(variant, &[tag]);
        } else {
            writeln!(text, "- {}: {}", type_of(variant), described(variant)).expect("a string");
        }
    }
    if schema["enum"].is_array() {
        writeln!(text, "One of {}.", type_of(schema)).expect("a string");
    } else if schema.get("properties").is_none() && schema.get("oneOf").is_none() {
        writeln!(text, "Type: {}.", type_of(schema)).expect("a string");
    }
    text.trim_end().to_owned() + "\n\n"
}

fn reference(schema: &Value) -> String {
    let mut text = String::from("\n");
    let definitions = schema["$defs"].as_object().expect("definitions");
    let mut reached = BTreeSet::new();
    for (name, heading) in LINES {
        write!(text, "## {heading}\n\n").expect("a string");
        text += &definition(&definitions[name], &["schema_version", "reports_dropped"]);
        references(&definitions[name], &mut reached);
    }
    let lines = schema["anyOf"].as_array().expect("a list");
    let known = LINES.map(|(name, _)| format!("#/$defs/{name}"));
    assert!(lines.iter().all(|line| known.iter().any(|known| line["$ref"] == *known)));
    loop {
        let mut further = reached.clone();
        for name in &reached {
            references(&definitions[name], &mut further);
        }
        if further == reached {
            break;
        }
        reached = further;
    }
    text += "## Packet counters\n\nThe counters of a rule, or their sums over all rules.\n\n";
    let totals: Value = schemars::schema_for!(Totals).into();
    text += "| key | type | meaning |\n|---|---|---|\n";
    for (key, property) in properties(&totals) {
        writeln!(text, "| `{key}` | {} | {} |", type_of(property), described(property))
            .expect("a string");
    }
    text += "\n## Objects\n\n";
    for name in reached {
        write!(text, "### {name}\n\n{}", definition(&definitions[&name], &[])).expect("a string");
    }
    text.trim_end().to_owned() + "\n"
}
