//! The amounts of a ramp: what differs between its ends, as numbers with units.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::spec::{
    file::FaultsSpec,
    packet::rate::{BitRate, Size},
};

/// An amount that a ramp changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Amount {
    /// The fault, and its parameter if it is not the first one: `delay`, `delay jitter`.
    pub name: String,
    /// The amount.
    pub value: f64,
    /// Its unit: `%`, `ms`, `kbit/s`, `KiB`, or none for counts.
    pub unit: String,
}

/// The amounts that differ between the ends of a ramp, with their values at one of its steps.
#[must_use]
pub fn amounts(from: &FaultsSpec, to: &FaultsSpec, step: &FaultsSpec) -> Vec<Amount> {
    let mut found = Vec::new();
    let [from, to, step] = [from, to, step].map(|faults| serde_json::to_value(faults).ok());
    if let (Some(from), Some(to), Some(step)) = (from, to, step) {
        let has_several = step["rules"].as_array().is_some_and(|rules| rules.len() > 1);
        for (key, value) in step.as_object().into_iter().flatten() {
            let prefix = (key == "rules" && has_several).then_some("rule");
            compare(prefix.unwrap_or_default(), &from[key], &to[key], value, &mut found);
        }
    }
    found
}

/// Collects what differs below a key.
fn compare(name: &str, from: &Json, to: &Json, step: &Json, found: &mut Vec<Amount>) {
    if from == to {
        return;
    }
    let below = |key: &str| if name.is_empty() { key.into() } else { format!("{name} {key}") };
    match step {
        Json::Object(object) => {
            for (key, value) in object {
                compare(&below(key), &from[key], &to[key], value, found);
            }
        }
        Json::Array(list) => {
            for (number, value) in list.iter().enumerate() {
                let name = if name == "rule" { below(&number.to_string()) } else { name.into() };
                compare(&name, &from[number], &to[number], value, found);
            }
        }
        Json::Number(number) => {
            let value = number.as_f64().unwrap_or_default();
            found.push(Amount { name: name.into(), value, unit: String::new() });
        }
        Json::String(text) => {
            let [from, to] = [from, to].map(|text| parameters(text.as_str().unwrap_or_default()));
            for (parameter, text) in parameters(text) {
                let has_it = |(name, _): &&(&str, &str)| *name == parameter;
                if from.iter().find(has_it) == to.iter().find(has_it) {
                    continue;
                }
                if let Some((value, unit)) = number(text) {
                    let name = if parameter.is_empty() { name.into() } else { below(parameter) };
                    found.push(Amount { name, value, unit: unit.into() });
                }
            }
        }
        _ => {}
    }
}

/// The parameters of a value, with their texts. The first one has no name.
fn parameters(text: &str) -> Vec<(&str, &str)> {
    text.split(',').map(|part| part.split_once('=').unwrap_or(("", part))).collect()
}

/// A number with the unit that it is charted in.
fn number(text: &str) -> Option<(f64, &'static str)> {
    if let Ok(count) = text.parse() {
        return Some((count, ""));
    }
    if let Some(drift) = text.strip_suffix("ppm") {
        return Some((drift.trim().parse().ok()?, "ppm"));
    }
    if let Some(percent) = text.strip_suffix('%') {
        return Some((percent.trim().parse().ok()?, "%"));
    }
    if let Ok(time) = text.parse::<jiff::SignedDuration>() {
        return Some((time.as_nanos() as f64 / 1e6, "ms"));
    }
    if text.ends_with("bit") {
        return Some((text.parse::<BitRate>().ok()?.0 as f64 / 1e3, "kbit/s"));
    }
    Some((text.parse::<Size>().ok()?.0 as f64 / 1024.0, "KiB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(from: &str, to: &str) -> Vec<(String, f64, String)> {
        let faults = |yaml: &str| serde_saphyr::from_str::<FaultsSpec>(yaml).expect(yaml);
        let (from, to) = (faults(from), faults(to));
        let tell = |Amount { name, value, unit }| (name, value, unit);
        amounts(&from, &to, &to).into_iter().map(tell).collect()
    }

    #[test]
    fn what_a_ramp_changes_is_told_with_its_unit() {
        let amount = |name: &str, value, unit: &str| (name.to_owned(), value, unit.to_owned());
        for (from, to, expected) in [
            ("rules: [{loss: 0%}]", "rules: [{loss: 20%}]", vec![amount("loss", 20.0, "%")]),
            (
                "rules: [{delay: '0s,jitter=1ms'}]",
                "rules: [{delay: '1s,jitter=1500us'}]",
                vec![amount("delay", 1000.0, "ms"), amount("delay jitter", 1.5, "ms")],
            ),
            (
                "rules: [{delay: '0s,jitter=1ms'}]",
                "rules: [{delay: '1s,jitter=1ms'}]",
                vec![amount("delay", 1000.0, "ms")],
            ),
            (
                "rules: [{rate: 10mbit}]",
                "rules: [{rate: 64kbit}]",
                vec![amount("rate", 64.0, "kbit/s")],
            ),
            (
                "clocks: {clock: '-1s,drift=100ppm'}",
                "clocks: {clock: '+2s,drift=200ppm'}",
                vec![amount("clock", 2000.0, "ms"), amount("clock drift", 200.0, "ppm")],
            ),
            (
                "rules: [{loss-every: 10}, {loss: 1%}]",
                "rules: [{loss-every: 4}, {loss: 3%}]",
                vec![amount("rule 0 loss-every", 4.0, ""), amount("rule 1 loss", 3.0, "%")],
            ),
            ("processes: {cpu: 50%}", "processes: {cpu: 10%}", vec![amount("cpu", 10.0, "%")]),
        ] {
            assert_eq!(told(from, to), expected, "{from} {to}");
        }
    }
}
