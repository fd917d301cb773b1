//! The commands in the documentation parse, also those that `tests/guide.rs` does not run.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Parser as _;
use pulldown_cmark::{Event, Parser, Tag, TagEnd};

use super::Cli;

/// Text that readers replace, or a shell.
const PLACEHOLDERS: [&str; 3] = ["…", "$", "NAMESPACE"];

fn pages() -> impl Iterator<Item = PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let docs = root.join("docs");
    let folders = [docs.clone(), docs.join("howto"), docs.join("faults")];
    let files = folders.into_iter().flat_map(|folder| {
        fs::read_dir(folder).expect("it is there").map(|file| file.expect("it is read").path())
    });
    files
        .chain([root.join("README.md")])
        .filter(|path| path.extension().is_some_and(|name| name == "md"))
}

/// The words of the first command of a line, without `sudo`.
fn words(line: &str) -> Option<Vec<String>> {
    let line = line.strip_prefix("$ ").unwrap_or(line);
    let words = shlex::split(line)?.into_iter();
    let words: Vec<String> = words
        .skip_while(|word| ["sudo", "-E"].contains(&word.as_str()))
        .take_while(|word| !["|", ">", "&&", "&"].contains(&word.as_str()))
        .collect();
    let has_placeholder =
        words.iter().any(|word| PLACEHOLDERS.iter().any(|part| word.contains(part)));
    (!has_placeholder && words.first().is_some_and(|word| word == "injector")).then_some(words)
}

#[test]
fn the_commands_in_the_documentation_parse() {
    let (mut seen, mut wrong) = (0, Vec::new());
    for page in pages() {
        let text = fs::read_to_string(&page).expect("it is there");
        let mut in_block = false;
        for event in Parser::new(&text) {
            match event {
                Event::Start(Tag::CodeBlock(_)) => in_block = true,
                Event::End(TagEnd::CodeBlock) => in_block = false,
                Event::Text(code) if in_block => {
                    let joined = code.replace("\\\n> ", "").replace("\\\n", "");
                    for words in joined.lines().filter_map(words) {
                        seen += 1;
                        if let Err(error) = Cli::try_parse_from(&words) {
                            wrong.push(format!("{}: {}: {error}", page.display(), words.join(" ")));
                        }
                    }
                }
                _ => (),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 50, "{seen}");
}
