//! Words for messages.

/// A number of things, such as "1 packet" or "2 processes".
#[must_use]
pub fn plural(count: u64, thing: &str) -> String {
    if count == 1 {
        return format!("1 {thing}");
    }
    // The noun is the first word.
    let (noun, rest) = thing.split_at(thing.find(' ').unwrap_or(thing.len()));
    let end = if noun.ends_with('s') { "es" } else { "s" };
    format!("{count} {noun}{end}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nouns_agree_with_their_number() {
        for (count, thing, text) in [
            (0, "packet", "0 packets"),
            (1, "packet", "1 packet"),
            (2, "process with a wrong clock", "2 processes with a wrong clock"),
            (1, "system call", "1 system call"),
        ] {
            assert_eq!(plural(count, thing), text);
        }
    }
}
