//! Converts generated JSON Schemas to the structural schemas that Kubernetes accepts.

use schemars::Schema;
use serde_json::{Map, Value, json};

/// Formats that Kubernetes supports.
const FORMATS: [&str; 4] = ["date-time", "double", "int32", "int64"];

/// Makes a schema structural: one type a value, no references, no alternatives.
pub fn structural(schema: &mut Schema) {
    if let Some(object) = schema.as_object_mut() {
        rewrite(object, false);
    }
}

/// Makes a schema structural and preserves unknown fields. Kubernetes would prune them silently, so
/// a misspelt match would widen the fault. The agents see the preserved fields and refuse them.
pub fn closed(schema: &mut Schema) {
    if let Some(object) = schema.as_object_mut() {
        rewrite(object, true);
    }
}

fn rewrite(schema: &mut Map<String, Value>, is_closed: bool) {
    // Kubernetes would write defaults into the stored objects.
    for key in ["default", "nullable", "title", "$schema"] {
        schema.remove(key);
    }
    if schema.get("format").and_then(Value::as_str).is_some_and(|format| !FORMATS.contains(&format))
    {
        schema.remove("format");
    }
    while merge(schema, "anyOf") || merge(schema, "allOf") {}
    merge_enum(schema);
    // Servers refuse a definition with `null` as a value.
    if let Some(Value::Array(values)) = schema.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    single_type(schema);
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

/// Replaces alternatives by the one that is not null; of a list and its element, by the list; of text and an object, by
/// anything, with the fields in its description. Servers that apply (1.20) take what has fields for an object in any case.
/// Returns whether there were alternatives.
fn merge(schema: &mut Map<String, Value>, alternatives: &str) -> bool {
    let Some(Value::Array(variants)) = schema.get(alternatives) else { return false };
    let is_text = |variant: &Value| {
        let kind = &variant["type"];
        kind == "string" || kind.as_array().is_some_and(|kinds| kinds.contains(&"string".into()))
    };
    let object = variants.iter().find(|variant| variant["type"] == "object");
    if let Some(fields) = object.map(|object| object["properties"].clone())
        && variants.iter().any(is_text)
    {
        let fields = describe(&fields);
        schema.remove(alternatives);
        let description = schema.get("description").and_then(Value::as_str).unwrap_or_default();
        let description = format!("{description}\n\nAs an object: {fields}");
        schema.insert("description".into(), description.into());
        schema.insert("x-kubernetes-preserve-unknown-fields".into(), true.into());
        // All that can be refused without a type; agents refuse the rest.
        schema.insert("not".into(), json!({"enum": [true, false]}));
        return true;
    }
    let is_list = |variant: &&Value| variant["type"] == "array";
    let is_something = |variant: &&Value| variant["type"] != "null" && !is_null(variant);
    let chosen = variants.iter().find(is_list).or_else(|| variants.iter().find(is_something));
    let Some(Value::Object(chosen)) = chosen.cloned() else { return false };
    schema.remove(alternatives);
    for (key, value) in chosen {
        schema.entry(key).or_insert(value);
    }
    true
}

/// The fields of an object with what they are, in words.
fn describe(fields: &Value) -> String {
    let fields = fields.as_object().into_iter().flatten();
    let described = fields.map(|(name, field)| {
        let description = field["description"].as_str().unwrap_or_default();
        format!("`{name}`: {description}")
    });
    described.collect::<Vec<_>>().join(" ")
}

fn is_null(schema: &Value) -> bool {
    schema["enum"] == json!([null])
}

/// Turns `oneOf` constants into an `enum`.
fn merge_enum(schema: &mut Map<String, Value>) {
    let Some(Value::Array(variants)) = schema.get("oneOf") else { return };
    let names: Option<Vec<Value>> =
        variants.iter().map(|variant| variant.get("const").cloned()).collect();
    if let Some(names) = names {
        schema.remove("oneOf");
        schema.insert("type".into(), "string".into());
        schema.insert("enum".into(), names.into());
    }
}

/// Reduces several types to one.
fn single_type(schema: &mut Map<String, Value>) {
    let Some(Value::Array(types)) = schema.get_mut("type") else { return };
    types.retain(|name| name != "null");
    let one = match &types[..] {
        [one] => one.clone(),
        // Strings that may also be written as numbers. x-kubernetes-int-or-string would say so, but
        // breaks server-side apply on older servers (1.20): each agent would replace the status
        // entries of all others.
        _ => "string".into(),
    };
    schema.insert("type".into(), one);
}
