//! `--write`: the output of a benchmark as a section of this machine's page in docs/performance.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/performance");
const END: &str = "<!-- end of what is written -->";

/// Runs this command again without `--write`, prints its output, and writes it to the page.
///
/// A benchmark that misses a target is written as well.
pub fn write(name: &str) -> Result<ExitCode> {
    let args: Vec<String> = env::args().skip(1).filter(|arg| arg != "--write").collect();
    let mut child = Command::new(env::current_exe()?).args(&args).stdout(Stdio::piped()).spawn()?;
    let mut output = String::new();
    for line in BufReader::new(child.stdout.take().context("it is piped")?).lines() {
        let line = line?;
        println!("{line}");
        output += &line;
        output.push('\n');
    }
    let status = child.wait()?;
    // 1 is also a missed target.
    anyhow::ensure!(matches!(status.code(), Some(0 | 1)) && !output.is_empty(), "{status}");

    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let release = release.trim();
    let machine = format!("{}, Linux {}", processors()?, version(release));
    let date = Command::new("date").arg("--iso-8601").output()?.stdout;
    let date = String::from_utf8(date)?;
    let section = format!(
        "`cargo xtask {}`, {}, Linux {release}.\n\n{}",
        args.join(" "),
        date.trim(),
        output.trim_end()
    );
    let file = Path::new(FOLDER).join(format!("{}.md", slug(&machine)));
    let page = match fs::read_to_string(&file) {
        Ok(page) => page,
        Err(_) => format!("# Results: {machine}\n"),
    };
    fs::write(&file, put(&page, name, &section))
        .with_context(|| format!("cannot write to {}", file.display()))?;
    eprintln!("bench: written to {}; docs/SUMMARY.md lists the pages", file.display());
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The number and the name of the processors.
pub fn processors() -> Result<String> {
    let info = fs::read_to_string("/proc/cpuinfo")?;
    let models = info.lines().filter_map(|line| line.strip_prefix("model name"));
    let model = models.clone().next().unwrap_or_default().trim_start_matches(['\t', ':', ' ']);
    Ok(format!("{} × {model}", models.count()))
}

/// `6.18` of `6.18.44-debian`.
fn version(release: &str) -> String {
    release.split('.').take(2).collect::<Vec<_>>().join(".")
}

/// A name of a file.
fn slug(text: &str) -> String {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '.');
    let words = words.filter(|word| !word.is_empty() && *word != "Linux");
    words.collect::<Vec<_>>().join("-").to_lowercase()
}

/// The page with this section of the benchmark, in place of an earlier one or at the end.
fn put(page: &str, name: &str, section: &str) -> String {
    let begin = format!("<!-- written by `cargo xtask bench {name} --write`: -->");
    let section = format!("{begin}\n\n## {name}\n\n{section}\n\n{END}");
    if let Some((before, rest)) = page.split_once(&begin)
        && let Some((_, after)) = rest.split_once(END)
    {
        return format!("{before}{section}{after}");
    }
    format!("{}\n\n{section}\n", page.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_takes_the_place_of_that_of_the_same_benchmark() {
        let first = put("# Results\n", "packets", "one");
        let both = put(&first, "wire", "two");
        assert!(both.starts_with(&first), "{both}");
        let again = put(&both, "packets", "three");
        assert_eq!(again, both.replace("one", "three"));
        assert_eq!(put(&again, "packets", "three"), again);
    }

    #[test]
    fn the_page_is_named_after_the_machine() {
        assert_eq!(slug("2 × AMD EPYC, Linux 6.18"), "2-amd-epyc-6.18");
        assert_eq!(version("6.18.44-fc"), "6.18");
    }
}
