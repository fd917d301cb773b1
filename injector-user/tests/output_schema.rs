//! The published JSON Schema of the JSON output matches the code, and docs/json.md the schema.

use std::{fs, path::Path};

use injector_user::cli::schema::schema;
use serde_json::Value;

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
    let schema: Value = schema().into();
    let text = serde_json::to_string_pretty(&schema).expect("plain data") + "\n";
    published("events.schema.json", &text);
}
