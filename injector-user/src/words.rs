//! Words for messages.

/// A number of things, such as "1 packet" or "2 child processes".
#[must_use]
pub fn plural(count: u64, thing: &str) -> String {
    let end = match (count, thing.ends_with('s')) {
        (1, _) => "",
        (_, false) => "s",
        (_, true) => "es",
    };
    format!("{count} {thing}{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nouns_agree_with_their_number() {
        for (count, thing, text) in [
            (0, "packet", "0 packets"),
            (1, "packet", "1 packet"),
            (2, "child process", "2 child processes"),
            (1, "system call", "1 system call"),
        ] {
            assert_eq!(plural(count, thing), text);
        }
    }
}
