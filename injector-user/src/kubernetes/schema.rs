//! From the JSON Schema of types to what Kubernetes takes: a structural schema.

use schemars::Schema;
use serde_json::{Map, Value, json};

/// Formats that Kubernetes knows.
const FORMATS: [&str; 4] = ["date-time", "double", "int32", "int64"];

/// Makes the schema of a type structural: one type for each value, no references, no alternatives.
pub fn structural(schema: &mut Schema) {
    if let Some(object) = schema.as_object_mut() {
        rewrite(object, false);
    }
}

/// The same for one without unknown fields. Kubernetes cannot refuse those by the schema, but would drop them in
/// silence, so that a misspelt match were none and a fault wider than was asked for. They are kept instead, for the
/// agents to refuse them.
pub fn closed(schema: &mut Schema) {
    if let Some(object) = schema.as_object_mut() {
        rewrite(object, true);
    }
}

fn rewrite(schema: &mut Map<String, Value>, is_closed: bool) {
    // A default would be written into what is asked for.
    for key in ["default", "nullable", "title", "$schema"] {
        schema.remove(key);
    }
    if schema.get("format").and_then(Value::as_str).is_some_and(|format| !FORMATS.contains(&format))
    {
        schema.remove("format");
    }
    for alternatives in ["anyOf", "allOf"] {
        merge(schema, alternatives);
    }
    name_values(schema);
    one_type(schema);
    if schema.get("additionalProperties") == Some(&Value::Bool(false)) {
        schema.remove("additionalProperties");
    }
    if is_closed && schema.contains_key("properties") {
        schema.insert("x-kubernetes-preserve-unknown-fields".into(), true.into());
    }
    for key in ["items", "additionalProperties"] {
        if let Some(Value::Object(below)) = schema.get_mut(key) {
            rewrite(below, is_closed);
        }
    }
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        for below in properties.values_mut().filter_map(Value::as_object_mut) {
            rewrite(below, is_closed);
        }
    }
}

/// Takes over the alternative that is not null; where a list may be written as its one element, the list.
fn merge(schema: &mut Map<String, Value>, alternatives: &str) {
    let Some(Value::Array(variants)) = schema.get(alternatives) else { return };
    let is_list = |variant: &&Value| variant["type"] == "array";
    let is_something = |variant: &&Value| variant["type"] != "null" && !is_null(variant);
    let chosen = variants.iter().find(is_list).or_else(|| variants.iter().find(is_something));
    let Some(Value::Object(chosen)) = chosen.cloned() else { return };
    schema.remove(alternatives);
    for (key, value) in chosen {
        schema.entry(key).or_insert(value);
    }
}

fn is_null(schema: &Value) -> bool {
    schema["enum"] == json!([null])
}

/// Has the values of an enumeration in one list.
fn name_values(schema: &mut Map<String, Value>) {
    let Some(Value::Array(variants)) = schema.get("oneOf") else { return };
    let names: Option<Vec<Value>> =
        variants.iter().map(|variant| variant.get("const").cloned()).collect();
    if let Some(names) = names {
        schema.remove("oneOf");
        schema.insert("type".into(), "string".into());
        schema.insert("enum".into(), names.into());
    }
}

/// Has one type where there are several.
fn one_type(schema: &mut Map<String, Value>) {
    let Some(Value::Array(types)) = schema.get_mut("type") else { return };
    types.retain(|name| name != "null");
    let one = match &types[..] {
        [one] => one.clone(),
        // All there are: text that may be written as a bare number. Kubernetes could be told so
        // (x-kubernetes-int-or-string), but older servers (1.20) do not understand the rest of the schema any more
        // when they are to apply something, and each agent would replace the entries of all others.
        _ => "string".into(),
    };
    schema.insert("type".into(), one);
}
