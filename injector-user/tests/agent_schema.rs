//! The published description of the agent's API matches the code.

use std::{fs, path::Path};

use injector_user::{
    agent::{api::FaultRequest, routes},
    fault::counts::ProcessCounts,
};
use serde_json::Value;

#[test]
fn the_published_description_is_that_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let text = serde_json::to_string_pretty(&routes::description()).expect("plain data") + "\n";
    if std::env::var_os("INJECTOR_WRITE_SCHEMA").is_some() {
        fs::write(&path, &text).expect("it can be written");
    }
    let published = fs::read_to_string(&path).unwrap_or_default();
    assert!(published == text, "run this test with INJECTOR_WRITE_SCHEMA=1 to write it anew");
}

#[test]
fn it_describes_each_operation_and_what_it_takes_and_gives() {
    let api = serde_json::to_value(routes::description()).expect("plain data");
    for (path, method, success) in [
        ("/v1/faults", "post", "201"),
        ("/v1/faults", "get", "200"),
        ("/v1/faults/{name}", "get", "200"),
        ("/v1/faults/{name}", "delete", "200"),
        ("/v1/faults/{name}/renew", "post", "200"),
        ("/v1/faults/{name}/events", "get", "200"),
        ("/v1/events", "get", "200"),
        ("/healthz", "get", "200"),
        ("/metrics", "get", "200"),
    ] {
        let operation = &api["paths"][path][method];
        assert!(operation["operationId"].is_string(), "{method} {path}: {operation}");
        assert!(operation["responses"][success].is_object(), "{method} {path}: {operation}");
        let named = operation["parameters"].as_array().is_some_and(|parameters| {
            parameters.iter().any(|parameter| parameter["name"] == "name")
        });
        assert_eq!(named, path.contains("{name}"), "{method} {path}: {operation}");
    }
    let body = &api["paths"]["/v1/faults"]["post"]["requestBody"]["content"]["application/json"];
    assert_eq!(body["schema"]["$ref"], "#/components/schemas/FaultRequest");
    for name in ["FaultRequest", "Fault", "Problem", "TargetSpec", "RuleSpec"] {
        assert!(api["components"]["schemas"][name].is_object(), "{name}");
    }
}

#[test]
fn the_dashboard_shows_metrics_that_there_are() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/grafana/injector-agent.json");
    let text = fs::read_to_string(path).expect("it is there");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let source = include_str!("../src/agent/metrics.rs");
    let mut queries = 0;
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().expect("queries") {
            let query = target["expr"].as_str().expect("a query");
            let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let mut names = query
                .split(|c| !is_part(c))
                .filter(|word| word.starts_with("injector_") || word.starts_with("process_"));
            let is_metric = |name: &str| {
                let mut of_processes = ProcessCounts::default().each();
                source.contains(&format!("\"{name}\""))
                    || of_processes.any(|(counter, _)| counter.metric().0 == name)
            };
            // The series of a histogram.
            let of_histogram = |name: &str| {
                let parts = ["_bucket", "_sum", "_count"];
                parts.iter().any(|part| name.strip_suffix(part).is_some_and(is_metric))
            };
            assert!(names.all(|name| is_metric(name) || of_histogram(name)), "{query}");
            queries += 1;
        }
    }
    assert!(queries >= 10);
}

#[test]
fn the_examples_of_the_documentation_are_requests() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/agent.md");
    let text = fs::read_to_string(path).expect("it is there");
    let blocks: Vec<&str> =
        text.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let requests = blocks.iter().filter_map(|block| serde_json::from_str::<Value>(block).ok());
    let requests: Vec<Value> = requests.filter(|value| value["target"].is_object()).collect();
    assert!(!requests.is_empty(), "{blocks:?}");
    for request in requests.into_iter().filter(|value| value["phase"].is_null()) {
        serde_json::from_value::<FaultRequest>(request.clone())
            .unwrap_or_else(|error| panic!("{request}: {error}"));
    }
}
