//! Tests the values of all faults in both forms.

use std::{fmt::Debug, str::FromStr};

use proptest::{prelude::*, test_runner::TestRunner};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value as Json, json};

use super::{
    clock::{self, ClockFaultPart, Jump, Shift, Strobe},
    info::Info,
    packet::{
        PacketFault,
        corrupt::Corrupt,
        delay::DelaySpec,
        duplicate::Duplicate,
        loss::{Loss, LossEvery, LossGemodel, LossState},
        mtu::Mtu,
        rate::Rate,
        reorder::Reorder,
        rtt::Rtt,
        trace::Trace,
    },
    parameters::Value,
    process::{
        self, ProcessFault, cpu::CpuLimit, errno::Failure, io::IoLimit, kill::Kill,
        pause::PauseSpec,
    },
    rule::{self, RuleSpec},
};

/// Checks that text, value, object and JSON are equivalent.
fn check<V>(value: &V)
where
    V: Value + Serialize + DeserializeOwned + PartialEq + Debug + ToString,
    V: FromStr<Err: Debug>,
{
    let text = value.to_string();
    assert_eq!(&text.parse::<V>().expect("its own text"), value, "{text}");
    let object = value.to_object();
    let read = serde_json::from_value::<V>(object.clone());
    assert_eq!(&read.unwrap_or_else(|error| panic!("{object}: {error}")), value);
    let json = serde_json::to_value(value).expect("plain data");
    assert_eq!(json, json!(text));
    assert_eq!(&serde_json::from_value::<V>(json).expect("its own JSON"), value);
}

/// Checks the values of a fault's examples, if it has any.
fn examples<V>(info: &Info)
where
    V: Value + Serialize + DeserializeOwned + PartialEq + Debug + ToString,
    V: FromStr<Err: Debug>,
{
    assert!(!info.examples.is_empty(), "{}", info.name);
    for text in info.examples {
        check(&text.parse::<V>().unwrap_or_else(|error| panic!("{text}: {error:?}")));
    }
}

fn all() -> impl Iterator<Item = &'static Info> {
    let packets = rule::FAULTS.iter().map(|fault| &fault.info);
    packets.chain(clock::FAULTS.iter().copied()).chain(process::FAULTS.iter().copied())
}

/// Arbitrary parameters: each is absent, or has one of these texts.
fn parameters(names: Vec<&'static str>) -> impl Strategy<Value = Json> {
    let texts = vec![
        "0%",
        "1%",
        "99.5%",
        "100%",
        "0s",
        "1ms",
        "250us",
        "1.5s",
        "90s",
        "5",
        "5ppm",
        "1000",
        "64kb",
        "1mbit",
        "1.25gbit",
        "normal",
        "pareto",
        "uniform",
        "/data/*",
        "./file",
        "+1h",
        "-500ms",
        "@2038-01-19T03:14:00Z",
        "all",
        "realtime+tai",
        "-12.5ppm",
        "TERM",
        "9",
        "3:fsync",
        "openat",
        "write/pwrite64",
        "EIO",
        "10.0.0.0/8",
        "fd00::1",
    ];
    let entry = prop::option::weighted(0.6, prop::sample::select(texts));
    prop::collection::vec(entry, names.len()).prop_map(move |values| {
        let given = names.iter().zip(values).filter_map(|(name, value)| Some((name, value?)));
        given.map(|(name, value)| ((*name).to_owned(), json!(value))).collect::<Map<_, _>>().into()
    })
}

/// Checks a fault's examples, and arbitrary parameters.
fn check_fault<V>(info: &Info)
where
    V: Value + Serialize + DeserializeOwned + PartialEq + Debug + ToString,
    V: FromStr<Err: Debug>,
{
    examples::<V>(info);
    let names = V::PARAMETERS.iter().map(|parameter| parameter.name).collect();
    let mut runner = TestRunner::new(ProptestConfig::with_cases(256));
    let result = runner.run(&parameters(names), |object| {
        if let Ok(value) = serde_json::from_value::<V>(object) {
            check(&value);
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{}: {error}", info.name));
}

#[test]
fn values_are_the_same_in_both_forms() {
    macro_rules! check_all {
        ($trait:ident: $($type:ty),+) => {
            $(check_fault::<$type>(&<$type as $trait>::INFO);)+
        };
    }
    check_all!(PacketFault: Loss, LossEvery, LossState, LossGemodel, Corrupt, Duplicate);
    check_all!(PacketFault: DelaySpec, Rtt, Reorder, Rate, Trace, Mtu);
    check_all!(ClockFaultPart: Shift, Jump, Strobe);
    check_all!(ProcessFault: PauseSpec, Kill, Failure, CpuLimit, IoLimit);
}

#[test]
fn the_option_is_named_as_the_key() {
    let schemas = [
        schemars::schema_for!(RuleSpec),
        schemars::schema_for!(clock::ClockSpec),
        schemars::schema_for!(process::ProcessSpec),
    ];
    for info in all() {
        let key = format!("/properties/{}", info.name);
        assert!(schemas.iter().any(|schema| schema.pointer(&key).is_some()), "{}", info.name);
        // Must fit on one line of `-h`.
        assert!(info.help.len() <= 80 && !info.help.ends_with('.'), "{}", info.help);
    }
}

fn refused(yaml: &str) -> String {
    serde_saphyr::from_str::<RuleSpec>(yaml).expect_err(yaml).to_string()
}

#[test]
fn objects_say_what_their_text_says() {
    for (object, text) in [
        (
            "{delay: {time: 50ms, jitter: 10ms, distribution: normal}}",
            "{delay: '50ms,jitter=10ms,dist=normal'}",
        ),
        ("{delay: {samples: /a b}}", "{delay: 'samples=/a b'}"),
        ("{loss: {probability: 1%, correlation: 25%}}", "{loss: '1%,corr=25%'}"),
        ("{loss-gemodel: {p: 1%, 1-h: 70%}}", "{loss-gemodel: '1%,99%,70%,0%'}"),
        ("{loss-state: {p13: 1%, p31: 10%}}", "{loss-state: '1%,10%'}"),
        ("{loss-every: {every: 3}}", "{loss-every: 3}"),
        ("{loss: 1%, mtu: {bytes: 1500}}", "{loss: 1%, mtu: 1500}"),
        (
            "{rate: {rate: 1mbit, queue: 64kb, overhead: -4}}",
            "{rate: '1mbit,overhead=-4,queue=64kb'}",
        ),
        ("{rate: {trace: /a b, loop: true}}", "{rate: 'trace=/a b,loop'}"),
        ("{trace: {file: /a b, queue: 64kb}}", "{trace: '/a b,queue=64kb'}"),
        ("{delay: 1s, reorder: {probability: 25%, gap: 5}}", "{delay: 1s, reorder: '25%,gap=5'}"),
    ] {
        let read = |yaml| {
            serde_saphyr::from_str::<RuleSpec>(yaml).unwrap_or_else(|e| panic!("{yaml}: {e}"))
        };
        assert_eq!(read(object), read(text), "{object}");
    }
    let errno = json!({"syscall": "write/pwrite64", "errno": "ENOSPC", "probability": "30%", "path": "/data/*"});
    let errno: Failure = serde_json::from_value(errno).expect("valid");
    assert_eq!(errno.to_string(), "write/pwrite64=ENOSPC,30%,path=/data/*");
    let kill: Kill = serde_json::from_value(json!({"after": "100:fsync"})).expect("valid");
    assert_eq!(kill.to_string(), "after=100:fsync");
    let shift: Shift =
        serde_json::from_value(json!({"drift": "200ppm", "clock": "all"})).expect("valid");
    assert_eq!(shift.to_string(), "+0s,clock=all,drift=200ppm");
}

#[test]
fn wrong_objects_are_refused_by_what_is_wrong() {
    for (yaml, words) in [
        (
            "{delay: {time: 50ms, jiter: 1ms}}",
            "unknown field `jiter` of a delay, expected `time`, ",
        ),
        ("{loss: {probability: 0.2}}", "`0.2` has no % sign: write 0.2% (or 20%)"),
        ("{loss: {probability: 1%, corr: 100%}}", "a correlation of 100%"),
        ("{loss: {corr: 1%}}", "missing field `probability`"),
        ("{rate: {rate: 1mbit, queue: 1m}}", "60s or 1mb"),
        ("{delay: {time: '50ms,jitter=1ms'}}", "`time` of a delay contains a comma"),
        ("{delay: {time: ''}}", "`time` of a delay is empty"),
        ("{delay: {time: 50ms, dist: normal}}", "give jitter=J as well"),
        ("{delay: {time: 50ms, jitter: 1ms, dist: normal, distribution: normal}}", "given twice"),
        ("{delay: {time: [50ms]}}", "text or a number"),
        ("{delay: {}}", "T[,jitter=J"),
        ("{rate: {burst: 16kb}}", "R[,burst"),
        ("{trace: {loop: true}}", "missing field `file`"),
        ("{reset: {}}", "expected"),
    ] {
        let error = refused(yaml);
        assert!(error.contains(words), "{yaml}: {error}");
    }
}
