//! Path patterns, compared with a naive implementation.

use injector_common::glob::{Glob, MAX_TOKENS};
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed},
};

fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let glob = Glob::new(pattern).expect("short enough");
    glob.accepts(text.iter().fold(Glob::start(), |state, &byte| glob.step(state, byte)))
}

/// The definition, by exhaustive search.
fn matches_by_definition(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => {
            (0..=text.len()).any(|skipped| matches_by_definition(rest, &text[skipped..]))
        }
        Some((&byte, rest)) => text.split_first().is_some_and(|(&first, others)| {
            (byte == b'?' || byte == first) && matches_by_definition(rest, others)
        }),
    }
}

#[test]
fn stars_and_question_marks_match_what_they_should() {
    for (pattern, text, expected) in [
        ("/data/*", "/data/a/b", true),
        ("/data/*", "/data/", true),
        ("/data/*", "/data", false),
        ("/data", "/data", true),
        ("/data", "/data/", false),
        ("*.log", "/var/log/x.log", true),
        ("*.log", "/var/log/x.logs", false),
        ("/?/x", "/a/x", true),
        ("/?/x", "/ab/x", false),
        ("*a*a*", "ba", false),
        ("*", "", true),
        ("", "", true),
        ("", "a", false),
    ] {
        assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
    }
}

#[test]
fn patterns_have_a_longest_length() {
    let longest = vec![b'x'; MAX_TOKENS];
    assert!(matches(&longest, &longest));
    assert!(!matches(&longest, &longest[1..]));
    let with_stars = [&longest[..], b"***"].concat();
    assert!(matches(&with_stars, &[&longest[..], b"abc"].concat()));
    assert_eq!(Glob::new(&[&longest[..], b"?"].concat()), None);
}

proptest! {
    #![proptest_config(Config {
        cases: 2000,
        rng_seed: RngSeed::Fixed(4),
        failure_persistence: None,
        ..Config::default()
    })]

    #[test]
    fn patterns_match_as_defined(pattern in "[ab/*?]{0,9}", text in "[ab/]{0,12}", filler in 0_usize..200) {
        // After bytes that move states from word to word.
        let filler = vec![b'x'; filler];
        let (pattern, text) = ([&filler, pattern.as_bytes()].concat(), [&filler, text.as_bytes()].concat());
        prop_assert_eq!(matches(&pattern, &text), matches_by_definition(&pattern, &text));
    }
}
