//! The published JSON Schema of scenarios matches the code, and the scenarios of the docs conform to it.

use std::{fs, path::Path, process::Command};

use injector_user::spec::scenario::{self, plan::plan};
use serde_json::Value;

fn docs() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs"))
}

fn examples() -> Vec<std::path::PathBuf> {
    let files = fs::read_dir(docs().join("scenarios")).expect("the folder is there");
    let files = files.map(|file| file.expect("it can be read").path());
    let mut files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|name| name == "yaml")).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

#[test]
fn the_published_schema_is_that_of_the_code() {
    let path = docs().join("scenario.schema.json");
    let text = serde_json::to_string_pretty(&scenario::schema()).expect("plain data") + "\n";
    if std::env::var_os("INJECTOR_WRITE_SCHEMA").is_some() {
        fs::write(&path, &text).expect("it can be written");
    }
    let published = fs::read_to_string(&path).unwrap_or_default();
    assert!(published == text, "run this test with INJECTOR_WRITE_SCHEMA=1 to write it anew");
}

#[test]
fn the_examples_follow_the_schema_and_make_sense() {
    let schema = serde_json::to_value(scenario::schema()).expect("plain data");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    for path in examples() {
        let text = fs::read_to_string(&path).expect("it can be read");
        let value: Value = serde_saphyr::from_str(&text).expect("YAML");
        let errors: Vec<String> = validator
            .iter_errors(&value)
            .map(|error| format!("{error} at {}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{}: {errors:?}", path.display());
        let scenario = scenario::read(&path).expect("a scenario");
        plan(&path, &scenario, 0).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

#[test]
fn the_schema_refuses_what_the_code_refuses() {
    let schema = serde_json::to_value(scenario::schema()).expect("plain data");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let good: Value = serde_json::json!({
        "targets": {"a": {"netns": "a"}},
        "timeline": [{"at": "1s", "on": "a", "faults": [{"rules": [{"loss": "1%", "remote": "10.0.0.1"}]}]}],
    });
    assert!(validator.is_valid(&good));
    for (place, wrong) in [
        ("/typo", serde_json::json!(1)),
        ("/targets/a/typo", serde_json::json!(1)),
        ("/timeline/0/typo", serde_json::json!(1)),
        ("/timeline/0/faults/0/rules/0/typo", serde_json::json!(1)),
        ("/timeline/0/partition", serde_json::json!({"shape": "star", "nodes": ["a"]})),
    ] {
        let mut bad = good.clone();
        let (parent, key) = place.rsplit_once('/').expect("a path");
        bad.pointer_mut(parent)
            .and_then(Value::as_object_mut)
            .expect("a map")
            .insert(key.into(), wrong);
        assert!(!validator.is_valid(&bad), "{place}");
    }
}

#[test]
fn checking_touches_nothing_and_needs_no_privileges() {
    let path = &examples()[0];
    // That user may have no access to the build directory.
    let injector = std::env::temp_dir().join(format!("injector-check-{}", std::process::id()));
    fs::copy(env!("CARGO_BIN_EXE_injector"), &injector).expect("it can be copied");
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--clear-groups"])
        .arg(&injector)
        .args(["apply", "--check", "/dev/stdin"])
        .stdin(fs::File::open(path).expect("it can be read"))
        .output()
        .expect("util-linux is installed");
    let _ = fs::remove_file(&injector);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}
