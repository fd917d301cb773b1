//! The published custom resource definition matches the code and is structural.

use std::{fs, path::Path};

use injector_user::kubernetes::crd;
use serde_json::Value;

#[test]
fn the_published_definition_is_that_of_the_code() {
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging");
    let text = crd::definition_yaml().expect("plain data");
    // Helm reads only files of its chart, and not all copies of a repository preserve links.
    for place in ["kubernetes/crd.yaml", "helm/injector/crds/faultinjection.yaml"] {
        let path = packaging.join(place);
        if std::env::var_os("INJECTOR_WRITE_SCHEMA").is_some() {
            fs::create_dir_all(path.parent().expect("a folder")).expect("it can be made");
            fs::write(&path, &text).expect("it can be written");
        }
        let published = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            published == text,
            "{place}: run this test with INJECTOR_WRITE_SCHEMA=1 to write it anew"
        );
    }
}

#[test]
fn each_value_has_one_type_or_is_text_or_an_object_and_unknown_fields_of_what_is_asked_for_are_kept()
 {
    let definition = serde_json::to_value(crd::definition()).expect("plain data");
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    check(schema, "", false);
}

/// As <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema>
/// has it; the tests with an API server show the rest.
fn check(schema: &Value, path: &str, is_spec: bool) {
    // Without a type, it is a value that is text or an object, whose fields are described.
    let description = schema["description"].as_str().unwrap_or_default();
    let is_either = schema["type"].is_null()
        && schema["x-kubernetes-preserve-unknown-fields"] == true
        && description.contains("As an object: `");
    assert!(schema["type"].is_string() || is_either, "{path}: {schema}");
    for never in ["$ref", "anyOf", "allOf", "default", "const"] {
        assert!(schema[never].is_null(), "{path}: {never}");
    }
    let values = schema["enum"].as_array();
    assert!(values.is_none_or(|values| !values.contains(&Value::Null)), "{path}: {schema}");
    let properties = schema["properties"].as_object();
    assert_ne!(schema["additionalProperties"], false, "{path}");
    assert!(properties.is_none() || schema["additionalProperties"].is_null(), "{path}");
    if is_spec && properties.is_some() {
        assert_eq!(schema["x-kubernetes-preserve-unknown-fields"], true, "{path}");
    }
    for (name, below) in properties.into_iter().flatten() {
        check(below, &format!("{path}.{name}"), is_spec || path.is_empty() && name == "spec");
    }
    for key in ["items", "additionalProperties"] {
        if schema[key].is_object() {
            check(&schema[key], &format!("{path}[]"), is_spec);
        }
    }
}
