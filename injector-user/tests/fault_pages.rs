//! The tables of options in docs/faults/*.md match the code, and each fault has one page.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use injector_user::spec::scenario;
use serde_json::{Map, Value};

/// Begins the part of a page that this test writes. The names of the page's options follow.
const BEGIN: &str = "<!-- Written by `cargo test --test fault_pages` for the options ";
const END: &str = "<!-- End of the written part -->";

/// Keys of rules that are matches, or that only files have.
const NO_FAULTS: [&str; 11] = [
    "data-only",
    "direction",
    "for",
    "local-port",
    "longer-than",
    "name",
    "protocol",
    "remote",
    "remote-port",
    "tcp-flags",
    // docs/packets.md describes it.
    "pieces",
];

fn pages() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/faults");
    let files = fs::read_dir(folder).expect("it is there");
    files
        .map(|file| file.expect("it can be read").path())
        .filter(|path| !path.ends_with("index.md"))
        .collect()
}

fn definitions() -> Map<String, Value> {
    let schema = serde_json::to_value(scenario::schema()).expect("plain data");
    schema["$defs"].as_object().expect("definitions").clone()
}

/// The keys of faults, with their schemas.
fn faults(definitions: &Map<String, Value>) -> BTreeMap<String, Value> {
    let keys = ["RuleSpec", "ClockSpec", "ProcessSpec"]
        .into_iter()
        .filter_map(|name| definitions[name]["properties"].as_object());
    keys.flatten()
        .filter(|(key, _)| !NO_FAULTS.contains(&key.as_str()))
        .map(|(key, schema)| (key.clone(), schema.clone()))
        .collect()
}

/// The parameters of a value: the keys of its object form, with their descriptions.
fn parameters<'a>(
    schema: &'a Value,
    definitions: &'a Map<String, Value>,
    found: &mut BTreeMap<&'a str, &'a str>,
) {
    if let Some(name) = schema["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/")) {
        parameters(&definitions[name], definitions, found);
    }
    for (key, property) in schema["properties"].as_object().into_iter().flatten() {
        let text = property["description"].as_str().unwrap_or_default();
        // Other names of parameters, and directions.
        if !text.starts_with("The same as") && !["down", "up"].contains(&&**key) {
            found.insert(key, text);
        }
    }
    for either in schema["anyOf"].as_array().into_iter().flatten().chain(schema.get("items")) {
        parameters(either, definitions, found);
    }
}

/// The description of an option, and a table of its parameters.
fn option(name: &str, schema: &Value, definitions: &Map<String, Value>) -> String {
    let description = schema["description"].as_str().expect("it has one");
    let (help, syntax) = description.split_once("\n\nAs text: ").unwrap_or((description, ""));
    // The first paragraph of a help text has no full stop.
    let sentence = |text: &str| {
        let end = if text.ends_with(['.', ':']) { "" } else { "." };
        text.split_whitespace().collect::<Vec<_>>().join(" ") + end
    };
    let help: Vec<String> = help.split("\n\n").map(sentence).collect();
    let value = if syntax.is_empty() { String::new() } else { format!(" {syntax}") };
    let mut text = format!("`--{name}{value}`: {}\n\n", help.join(" "));
    let mut found = BTreeMap::new();
    parameters(schema, definitions, &mut found);
    if !found.is_empty() {
        let mut rows: Vec<_> = found.into_iter().collect();
        // In the order of the text form, which shortens the names of some to a capital letter.
        let words: Vec<&str> = syntax.split(|c: char| !(c.is_alphanumeric() || c == '-')).collect();
        let is_for = |word: &str, name: &str| {
            let is_letter = word.len() == 1 && name.starts_with(&word.to_lowercase());
            is_letter || word.to_lowercase() == name
        };
        rows.sort_by_key(|(name, _)| words.iter().position(|word| is_for(word, name)));
        text += "| parameter | meaning |\n|---|---|\n";
        for (name, meaning) in rows {
            writeln!(text, "| `{name}` | {} |", meaning.replace('|', "\\|")).expect("a string");
        }
        text.push('\n');
    }
    text
}

#[test]
fn the_options_of_each_page_are_those_of_the_code() {
    let definitions = definitions();
    let mut faults = faults(&definitions);
    for path in pages() {
        let page = fs::read_to_string(&path).expect("it can be read");
        let shown = path.display();
        let (before, rest) =
            page.split_once(BEGIN).unwrap_or_else(|| panic!("{shown}: no part to write"));
        let (names, rest) = rest.split_once(" -->\n").expect("the comment ends");
        let (_, after) = rest.split_once(END).unwrap_or_else(|| panic!("{shown}: no end"));
        let mut text = format!("{before}{BEGIN}{names} -->\n\n");
        for name in names.split(", ") {
            let schema = faults.remove(name).unwrap_or_else(|| panic!("{shown}: {name}?"));
            text += &option(name, &schema, &definitions);
        }
        text += END;
        text += after;
        if std::env::var_os("INJECTOR_WRITE_SCHEMA").is_some() {
            fs::write(&path, &text).expect("it can be written");
        } else {
            assert!(
                page == text,
                "{shown}: run this test with INJECTOR_WRITE_SCHEMA=1 to write it anew"
            );
        }
    }
    assert!(faults.is_empty(), "no page in docs/faults describes {:?}", faults.keys());
}

/// Readers find the same on each page, in the same order.
#[test]
fn pages_have_one_order() {
    let order = ["Example", "Options", "Accuracy", "Limits", "Alternatives", "Related pages"];
    for path in pages() {
        let page = fs::read_to_string(&path).expect("it can be read");
        let headings: Vec<&str> =
            page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        assert_eq!(headings, order, "{}", path.display());
    }
}
