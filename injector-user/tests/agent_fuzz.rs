//! Requests of arbitrary bytes are accepted or refused, without a crash.
//!
//! `scripts/fuzz` runs for longer.

use injector_user::{
    agent::{
        api::{Code, FaultRequest},
        plan::{plan, select},
    },
    spec::{
        clock::{self, ClockSpec},
        distribution::Files,
        file::FaultsSpec,
        process::{self, ProcessSpec},
        rule::{self, RuleSpec},
        target::TargetSpec,
        trace::{Table, Timeline},
    },
    target::peers::Peers,
};
use proptest::prelude::*;
use schemars::JsonSchema;
use serde_json::{Map, Value, json};

/// The keys of an object, from its schema.
fn keys<T: JsonSchema>() -> Vec<String> {
    let schema = schemars::schema_for!(T).to_value();
    let properties = schema["properties"].as_object().expect("an object");
    properties.keys().cloned().collect()
}

/// Keys of values that are objects.
const PARAMETERS: [&str; 17] = [
    "time",
    "jitter",
    "dist",
    "corr",
    "probability",
    "gap",
    "rate",
    "trace",
    "file",
    "loop",
    "queue",
    "offset",
    "at",
    "every",
    "syscall",
    "errno",
    "path",
];

/// The values that faults have for examples.
fn examples() -> impl Iterator<Item = &'static str> {
    let packets = rule::FAULTS.iter().flat_map(|fault| fault.examples);
    let others = clock::FAULTS.iter().chain(process::FAULTS).flat_map(|fault| fault.examples);
    packets.chain(others).copied()
}

/// Words with a meaning in some place, and others.
fn word() -> impl Strategy<Value = String> {
    let mut known = vec![
        "1%",
        "100%,corr=25%",
        "50ms",
        "50ms,jitter=10ms,dist=normal",
        "0s",
        "-1s",
        "1h",
        "25h",
        "1mbit,queue=200ms",
        "10.0.0.0/8",
        "::/0",
        "fd00::1",
        "tcp",
        "icmp",
        "80,443,!22",
        "65536",
        "syn,!ack",
        "egress",
        "both",
        "wire",
        "+1h,clock=all",
        "-2s,at=10s",
        "@2038-01-19T03:14:00Z",
        "2s,every=10s",
        "TERM,after=3:fsync",
        "write/pwrite64=ENOSPC,30%,path=/data/*",
        "connect=ECONNREFUSED,remote=10.0.0.0/8",
        "at=1s",
        "25%",
        "1mbps,device=/dev/null",
        "samples=/etc/passwd",
        "trace=/etc/passwd,loop",
        "../..",
        "/proc/self/mem",
        "nosuchnamespace",
        "shop/app=cart,tier in (web)",
        "shop/cart-0",
        "9999999999999",
        "1e400",
        "NaN",
        "\u{0}",
        "💥",
    ];
    known.extend(examples());
    let known = prop::sample::select(known);
    prop_oneof![4 => known.prop_map(str::to_owned), 1 => ".{0,40}", 1 => "[0-9a-z,.%=:!-]{0,30}"]
}

fn key() -> impl Strategy<Value = String> {
    let mut known = [
        keys::<FaultRequest>(),
        keys::<TargetSpec>(),
        keys::<RuleSpec>(),
        keys::<ClockSpec>(),
        keys::<ProcessSpec>(),
    ]
    .concat();
    known.extend(PARAMETERS.map(str::to_owned));
    prop_oneof![9 => prop::sample::select(known), 1 => ".{0,12}"]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        6 => word().prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        1 => Just(Value::Null),
    ];
    leaf.prop_recursive(4, 48, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key(), inner), 0..6)
                .prop_map(|entries| entries.into_iter().collect::<Map<_, _>>().into()),
        ]
    })
}

/// An object with some related keys.
fn object<T: JsonSchema>() -> impl Strategy<Value = Value> {
    let parameter = (prop::sample::select(PARAMETERS.to_vec()), word());
    let parameters = prop::collection::vec(parameter, 0..4);
    let entry = (prop::sample::select(keys::<T>()), word(), any::<u8>(), parameters);
    prop::collection::vec(entry, 0..5).prop_map(|entries| {
        let value = |word: String, kind: u8, parameters: Vec<(&str, String)>| match kind % 8 {
            0 => json!(true),
            1 => json!([word]),
            2 => json!(u32::from(kind)),
            3 | 4 => {
                parameters.into_iter().map(|(key, word)| (key.to_owned(), json!(word))).collect()
            }
            _ => json!(word),
        };
        entries
            .into_iter()
            .map(|(key, word, kind, parameters)| (key, value(word, kind, parameters)))
            .collect::<Map<_, _>>()
            .into()
    })
}

/// An almost valid request, whose target is nothing on this host.
fn request() -> impl Strategy<Value = Value> {
    let rules = prop::collection::vec(object::<RuleSpec>(), 0..4);
    let target = prop_oneof![
        Just(json!({"netns": "injector-fuzz-no-such"})),
        word().prop_map(|pods| json!({"pods": pods})),
    ];
    (rules, object::<ClockSpec>(), object::<ProcessSpec>(), word(), word(), value(), target).prop_map(
        |(rules, clocks, processes, lasts, name, other, target)| {
            json!({
                "target": target,
                "name": name, "rules": rules, "clocks": clocks, "processes": processes, "for": lasts,
                "lease": if other.is_null() { json!("10s") } else { json!(null) },
            })
        },
    )
}

fn check(text: &str) {
    let Ok(request) = serde_json::from_str::<FaultRequest>(text) else { return };
    // A parsed request can be serialized and parsed again.
    let again = serde_json::to_string(&request).expect("plain data");
    let again: FaultRequest =
        serde_json::from_str(&again).unwrap_or_else(|e| panic!("{e}: {again}"));
    assert_eq!(request, again);
    // No name server may be queried.
    let is_name = |remote: &injector_user::spec::value::Remote| {
        matches!(remote, injector_user::spec::value::Remote::Peer(_))
    };
    if request.rules.iter().any(|rule| rule.remote.iter().chain(&rule.partition).any(is_name)) {
        return;
    }
    let planned = match request.target.pods.clone() {
        Some(pods) => select(request, pods).map(drop),
        None => plan(request, Peers::default()).map(drop),
    };
    if let Err(problem) = planned {
        assert_eq!(problem.error, Code::Invalid);
        assert!(!problem.message.is_empty());
    }
}

/// Parses and validates a request.
fn check_rules(text: &str) {
    if let Ok(file) = serde_saphyr::from_str::<FaultsSpec>(text) {
        let _ = file.check_with("rules".as_ref(), &mut Files::closed());
    }
}

proptest! {
    #[test]
    fn api_takes_or_refuses_any_text(text in ".{0,200}") {
        check(&text);
    }

    #[test]
    fn api_takes_or_refuses_any_json(value in value()) {
        check(&value.to_string());
    }

    #[test]
    fn api_takes_or_refuses_what_is_nearly_right(request in request()) {
        check(&request.to_string());
    }

    #[test]
    fn rules_of_any_text_are_taken_or_refused(text in "[ -~\n]{0,200}|.{0,200}") {
        check_rules(&text);
    }

    #[test]
    fn traces_of_any_text_are_taken_or_refused(
        text in prop_oneof![
            "[0-9\n]{0,200}",
            "((time|rate|loss|delay|direction|[0-9.]{1,9}(ns|ms|s|h|%|mbit|bps)|0|up|down)[,\n]){0,60}",
            "[ -~\n]{0,200}",
            ".{0,200}",
        ],
        is_loop in any::<bool>(),
    ) {
        let _ = Table::opportunities(&text, is_loop);
        for text in [format!("time,rate,loss\n0s,{text}"), format!("time,delay,direction\n0s,{text}"), text] {
            let _ = Timeline::parse(&text, is_loop);
        }
    }

    #[test]
    fn rules_of_any_kind_are_taken_or_refused(value in value(), cut in any::<prop::sample::Index>()) {
        let text = value.to_string();
        let end = text.char_indices().map(|(at, _)| at).nth(cut.index(text.chars().count().max(1)));
        for text in [text.as_str(), &text[..end.unwrap_or_default()]] {
            check_rules(text);
        }
    }
}
