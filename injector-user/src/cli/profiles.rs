//! `injector profiles`: lists the link profiles.

use std::{fmt::Write as _, process::ExitCode};

use anyhow::Result;
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;

use super::args::{Output, OutputArgs};
use crate::{
    output, report,
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
        text += &report::line(&ProfileReport::from(profile))?;
    }
    Ok(text)
}

/// A link profile.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Profile")]
pub struct ProfileReport {
    /// The name.
    profile: &'static str,
    /// Received packets.
    down: LinkReport,
    /// Sent packets.
    up: LinkReport,
    /// The additional time of a round trip, in milliseconds.
    rtt_ms: u32,
    /// The options that the profile stands for.
    options: String,
    /// Where the values are from.
    source: &'static str,
}

/// One direction of a link.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Link")]
pub struct LinkReport {
    /// The rate in kbit/s.
    rate_kbit: u32,
    /// The delay in milliseconds.
    delay_ms: u32,
    /// The loss in percent.
    loss_percent: u32,
}

impl From<&Link> for LinkReport {
    fn from(link: &Link) -> Self {
        let Link { rate_kbit, delay_ms, loss_percent } = *link;
        Self { rate_kbit, delay_ms, loss_percent }
    }
}

impl From<&Profile> for ProfileReport {
    fn from(profile: &Profile) -> Self {
        let Profile { name, down, up, source } = profile;
        Self {
            profile: name,
            down: down.into(),
            up: up.into(),
            rtt_ms: profile.rtt_ms(),
            options: profile.options(),
            source,
        }
    }
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
