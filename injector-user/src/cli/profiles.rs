//! `injector profiles`: lists the link profiles.

use std::{fmt::Write as _, process::ExitCode};

use anyhow::Result;
use clap::Args;
use serde_json::{Value as Json, json};

use super::args::{Output, OutputArgs};
use crate::{
    output,
    spec::packet::profile::{Link, PROFILES, Profile},
};

/// List the link profiles of `--profile` with their values and sources
#[derive(Args, Debug)]
pub struct ProfilesArgs {
    #[command(flatten)]
    format: OutputArgs,
}

/// Prints one line per profile.
pub fn run(args: &ProfilesArgs) -> Result<ExitCode> {
    let text = match args.format.output {
        Output::Json => lines()?,
        Output::Human => table()?,
    };
    output::print(text)?;
    Ok(ExitCode::SUCCESS)
}

fn lines() -> Result<String> {
    let mut text = String::new();
    for profile in PROFILES {
        writeln!(text, "{}", json(profile))?;
    }
    Ok(text)
}

fn json(profile: &Profile) -> Json {
    let Profile { name, down, up, source } = profile;
    let link = |link: &Link| {
        let Link { rate_kbit, delay_ms, loss_percent } = link;
        json!({"rate_kbit": rate_kbit, "delay_ms": delay_ms, "loss_percent": loss_percent})
    };
    json!({
        "profile": name,
        "down": link(down),
        "up": link(up),
        "rtt_ms": profile.rtt_ms(),
        "options": profile.options(),
        "source": source,
    })
}

fn table() -> Result<String> {
    let mut text = String::new();
    let mut row = |[name, rates, delays, rtt, loss, source]: [&str; 6]| {
        writeln!(text, "{name:<10}  {rates:>17}  {delays:>13}  {rtt:>8}  {loss:>4}  {source}")
    };
    row(["profile", "kbit/s down / up", "ms down / up", "RTT ms", "loss", "source"])?;
    for profile in PROFILES {
        let Profile { name, down, up, source } = profile;
        let both = |down: u32, up: u32| format!("{down} / {up}");
        row([
            name,
            &both(down.rate_kbit, up.rate_kbit),
            &both(down.delay_ms, up.delay_ms),
            &profile.rtt_ms().to_string(),
            &format!("{}%", down.loss_percent),
            source,
        ])?;
    }
    text.push_str("down: received packets; up: sent packets; the loss is that of each direction\n");
    Ok(text)
}
