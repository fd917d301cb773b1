//! Generates the table in docs/kernels.md from the output of `injector doctor` on each kernel.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{kernel::Kernel, results::GuestResults};

const BEGIN: &str = "<!-- written by `cargo xtask vm --doctor`: -->";
const END: &str = "<!-- end of what is written -->";

/// Replaces the table between the markers in the document.
pub fn document(file: &Path, columns: &[(&Kernel, GuestResults)]) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let (before, rest) = text.split_once(BEGIN).with_context(|| {
        format!("{} has no line {BEGIN} to mark the table's place", file.display())
    })?;
    let (_, after) =
        rest.split_once(END).with_context(|| format!("{} has no line {END}", file.display()))?;
    let columns: Vec<_> =
        columns.iter().map(|(kernel, results)| (kernel.release.as_str(), &*results.json)).collect();
    let text = format!("{before}{BEGIN}\n\n{}\n{END}{after}", table(&columns));
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

/// A row for each mechanism and fault, a column for each kernel.
fn table(columns: &[(&str, &[Value])]) -> String {
    let mut rows: Vec<(&str, &str)> = Vec::new();
    for (_, findings) in columns {
        for finding in *findings {
            for key in ["subject", "fault"] {
                if let Some(name) = finding[key].as_str()
                    && !rows.contains(&(key, name))
                {
                    rows.push((key, name));
                }
            }
        }
    }
    let mut text = String::from("| |");
    for (release, _) in columns {
        let _ = write!(text, " {} |", release.trim_end_matches("-cloud-amd64"));
    }
    text += "\n|---|";
    text += &"---|".repeat(columns.len());
    text.push('\n');
    for (key, name) in rows {
        let option = if key == "fault" { "`--" } else { "" };
        let close = if key == "fault" { "`" } else { "" };
        let _ = write!(text, "| {option}{name}{close} |");
        for (_, findings) in columns {
            let finding = findings.iter().find(|finding| finding[key] == name);
            let _ = write!(text, " {} |", finding.map_or("?".into(), cell));
        }
        text.push('\n');
    }
    text
}

fn cell(finding: &Value) -> String {
    if let Some(hooks) = finding["works_by"].as_array() {
        let hooks: Vec<_> = hooks.iter().filter_map(Value::as_str).collect();
        return if hooks.is_empty() { "no".into() } else { hooks.join(", ") };
    }
    match finding["verdict"].as_str() {
        Some("ok") => "yes".into(),
        Some(verdict) => finding["reason"].as_str().map_or(verdict.into(), |_| "no".into()),
        None => "?".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::table;

    #[test]
    fn each_kernel_is_a_column() {
        let old = [json!({"subject": "tcx", "verdict": "unavailable", "reason": "x"})];
        let new = [
            json!({"subject": "tcx", "verdict": "ok"}),
            json!({"fault": "loss", "works_by": ["tcx", "xdp"], "not_by": []}),
        ];
        assert_eq!(
            table(&[("6.1.0-cloud-amd64", &old), ("7.3", &new)]),
            "| | 6.1.0 | 7.3 |\n|---|---|---|\n| tcx | no | yes |\n| `--loss` | ? | tcx, xdp |\n"
        );
    }
}
