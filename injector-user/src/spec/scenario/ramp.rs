//! Between two faults: of what is written the same in both, the numbers that differ change little by little.

use serde_json::{Number, Value};

use super::StepError;
use crate::spec::file::FaultsSpec;

/// Keys that say which packets, in which numbers are no amounts.
const FIXED: [&str; 8] = [
    "name",
    "direction",
    "partition",
    "protocol",
    "remote",
    "remote-port",
    "local-port",
    "tcp-flags",
];

/// Units in their base unit, which amounts in between are written in.
const UNITS: [(&str, &str, f64); 29] = [
    ("", "", 1.0),
    ("%", "%", 1.0),
    ("ppm", "ppm", 1.0),
    ("ns", "ns", 1.0),
    ("µs", "ns", 1e3),
    ("us", "ns", 1e3),
    ("ms", "ns", 1e6),
    ("s", "ns", 1e9),
    ("m", "ns", 60e9),
    ("h", "ns", 3600e9),
    ("bit", "bit", 1.0),
    ("kbit", "bit", 1e3),
    ("mbit", "bit", 1e6),
    ("gbit", "bit", 1e9),
    ("tbit", "bit", 1e12),
    ("b", "b", 1.0),
    ("kb", "b", 1024.0),
    ("k", "b", 1024.0),
    ("mb", "b", 1_048_576.0),
    ("gb", "b", 1_073_741_824.0),
    ("g", "b", 1_073_741_824.0),
    ("bps", "bit", 8.0),
    ("kbps", "bit", 8e3),
    ("mbps", "bit", 8e6),
    ("gbps", "bit", 8e9),
    ("kibit", "bit", 1024.0),
    ("mibit", "bit", 1_048_576.0),
    ("gibit", "bit", 1_073_741_824.0),
    ("tibit", "bit", 1_099_511_627_776.0),
];

/// The faults at `steps` points evenly from `from` to `to`, both included.
pub fn between(
    from: &FaultsSpec,
    to: &FaultsSpec,
    steps: u32,
) -> Result<Vec<FaultsSpec>, StepError> {
    let value = |faults| serde_json::to_value(faults).map_err(|e| StepError::Ramp(e.to_string()));
    let (from, to) = (value(from)?, value(to)?);
    (0..steps)
        .map(|step| {
            let part = f64::from(step) / f64::from(steps.saturating_sub(1).max(1));
            let mixed = mix("", &from, &to, part)?;
            serde_json::from_value(mixed).map_err(|error| StepError::Ramp(error.to_string()))
        })
        .collect()
}

fn mix(key: &str, from: &Value, to: &Value, part: f64) -> Result<Value, StepError> {
    let differ = || StepError::Ramp(format!("`{key}` is {from} at one end and {to} at the other"));
    if from == to {
        return Ok(from.clone());
    }
    if FIXED.contains(&key) {
        return Err(differ());
    }
    match (from, to) {
        (Value::Object(from), Value::Object(to)) if from.len() == to.len() => from
            .iter()
            .map(|(key, from)| {
                let to = to.get(key).ok_or_else(differ)?;
                Ok((key.clone(), mix(key, from, to, part)?))
            })
            .collect(),
        (Value::Array(from), Value::Array(to)) if from.len() == to.len() => {
            from.iter().zip(to).map(|(from, to)| mix(key, from, to, part)).collect()
        }
        (Value::Number(from), Value::Number(to)) => {
            let (Some(from), Some(to)) = (from.as_f64(), to.as_f64()) else { return Err(differ()) };
            let mixed = from + (to - from) * part;
            let whole = mixed.round();
            // Counts stay counts.
            let number = if from.fract() == 0.0 && to.fract() == 0.0 {
                Some(Number::from(whole as i64))
            } else {
                Number::from_f64(mixed)
            };
            number.map(Value::Number).ok_or_else(differ)
        }
        (Value::String(from), Value::String(to)) => {
            mix_text(from, to, part).map(Value::String).ok_or_else(differ)
        }
        _ => Err(differ()),
    }
}

/// A piece of text: an amount, or what is around amounts.
#[derive(Debug, PartialEq)]
enum Token<'a> {
    Amount { number: f64, unit: &'static str, is_signed: bool },
    Text(&'a str),
}

fn mix_text(from: &str, to: &str, part: f64) -> Option<String> {
    let (from, to) = (tokens(from), tokens(to));
    if from.len() != to.len() {
        return None;
    }
    let mut mixed = String::new();
    for pair in from.into_iter().zip(to) {
        match pair {
            (
                Token::Amount { number: from, unit, is_signed },
                Token::Amount { number: to, unit: same, .. },
            ) if unit == same || from == 0.0 || to == 0.0 => {
                // 0 may have any unit of its kind; "0" has none.
                let unit = if unit.is_empty() { same } else { unit };
                let amount = from + (to - from) * part;
                let sign = if is_signed && amount >= 0.0 { "+" } else { "" };
                // Below the smallest unit of time, and rates, there is nothing.
                let amount = match unit {
                    "ns" | "bit" | "b" => format!("{:.0}", amount.round()),
                    _ => {
                        let text = format!("{amount:.9}");
                        text.trim_end_matches('0').trim_end_matches('.').to_owned()
                    }
                };
                mixed.extend([sign, &amount, unit]);
            }
            (Token::Text(from), Token::Text(to)) if from == to => mixed += from,
            _ => return None,
        }
    }
    Some(mixed)
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        if let Some((token, after)) = amount(rest) {
            tokens.push(token);
            rest = after;
            continue;
        }
        // Up to what comes after the next comma or equals sign: an amount is all that is between them.
        let end = rest.find([',', '=']).map_or(rest.len(), |at| at + 1);
        tokens.push(Token::Text(&rest[..end]));
        rest = &rest[end..];
    }
    tokens
}

fn amount(text: &str) -> Option<(Token<'_>, &str)> {
    let end = text.find([',', '=']).unwrap_or(text.len());
    let (whole, rest) = text.split_at(end);
    let is_signed = whole.starts_with(['+', '-']);
    let digits = whole
        .char_indices()
        .find(|&(at, c)| !(c.is_ascii_digit() || c == '.' || (at == 0 && is_signed)))
        .map_or(whole.len(), |(at, _)| at);
    let (number, unit) = whole.split_at(digits);
    let number: f64 = number.parse().ok()?;
    let (_, base, factor) = UNITS.into_iter().find(|(name, ..)| *name == unit)?;
    Some((Token::Amount { number: number * factor, unit: base, is_signed }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(yaml: &str) -> FaultsSpec {
        serde_saphyr::from_str(yaml).expect(yaml)
    }

    fn steps(from: &str, to: &str, steps: u32) -> Vec<String> {
        let steps = between(&faults(from), &faults(to), steps).expect("a ramp");
        let check = |faults: &FaultsSpec| {
            let files = &mut crate::spec::distribution::Files::default();
            faults.check_with("test".as_ref(), files).expect("valid")
        };
        let name = |faults: FaultsSpec| {
            let faults = check(&faults);
            let clock = faults.clock.map(|clock| clock.name);
            faults
                .rules
                .into_iter()
                .map(|rule| rule.name)
                .chain(clock)
                .collect::<Vec<_>>()
                .join("; ")
        };
        steps.into_iter().map(name).collect()
    }

    #[test]
    fn amounts_change_evenly_from_one_end_to_the_other() {
        let steps = |from, to| steps(from, to, 3);
        assert_eq!(
            steps("rules: [{loss: 0%}]", "rules: [{loss: 20%}]"),
            ["loss 0%", "loss 10%", "loss 20%"]
        );
        assert_eq!(
            steps("rules: [{delay: '0s,jitter=1ms'}]", "rules: [{delay: '1s,jitter=2ms'}]"),
            ["delay 0ns,jitter=1ms", "delay 500ms,jitter=1.5ms", "delay 1s,jitter=2ms"]
        );
        assert_eq!(
            steps("rules: [{rate: 10mbit}]", "rules: [{rate: 64kbit}]"),
            ["rate 10mbit", "rate 5032kbit", "rate 64kbit"]
        );
        assert_eq!(
            steps("clocks: {clock: '-1s,drift=100'}", "clocks: {clock: '+1s,drift=200'}"),
            ["clock -1s,drift=100", "clock +0ns,drift=150", "clock +1s,drift=200"]
        );
    }

    #[test]
    fn several_rules_change_together() {
        let ends =
            ["rules: [{loss-every: 10}, {loss: 1%}]", "rules: [{loss-every: 4}, {loss: 3%}]"];
        assert_eq!(
            steps(ends[0], ends[1], 3),
            ["loss-every 10; loss 1%", "loss-every 7; loss 2%", "loss-every 4; loss 3%"]
        );
    }

    #[test]
    fn what_is_no_amount_must_be_the_same() {
        for (from, to) in [
            ("{rules: [{loss: 1%}]}", "{rules: [{delay: 1s}]}"),
            ("{rules: [{loss: 1%, remote: 10.0.0.1}]}", "{rules: [{loss: 2%, remote: 10.0.0.2}]}"),
            ("{rules: [{loss: 1%, remote-port: 80}]}", "{rules: [{loss: 2%, remote-port: 90}]}"),
            ("{rules: [{loss: 1%}]}", "{rules: [{loss: 1%}, {loss: 2%}]}"),
            ("{rules: [{rate: 1mbit}]}", "{rules: [{rate: '1mbit,queue=1s'}]}"),
            ("{rules: [{loss: 1%}]}", "{rules: [{loss: 1%, ecn: true}]}"),
        ] {
            assert!(between(&faults(from), &faults(to), 3).is_err(), "{from} {to}");
        }
    }
}
