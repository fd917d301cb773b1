//! The virtual machine.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{kernel::Kernel, output_of, tally::Tally};

const QEMU: &str = "qemu-system-x86_64";

/// The code generator of older ones corrupts the memory of these kernels.
const OLDEST: u32 = 10;

/// A guest that has not booted by then never will.
const BOOT: Duration = Duration::from_mins(3);

/// Fails unless there is a QEMU that will do.
pub fn check() -> Result<()> {
    let remedy = "run scripts/setup-vm, which installs it";
    let text = output_of(Command::new(QEMU).arg("--version"))
        .with_context(|| format!("no QEMU: {remedy}"))?;
    let version = text.split_once("version ").and_then(|(_, rest)| rest.split_once('.'));
    let major: u32 = version.and_then(|(major, _)| major.parse().ok()).context("QEMU's version")?;
    ensure!(major >= OLDEST, "QEMU is {major}, but {OLDEST} or later is needed: {remedy}");
    Ok(())
}

/// What is booted.
#[derive(Debug)]
pub struct Machine<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Its file system.
    pub initramfs: &'a Path,
    /// Where the kernel's console goes.
    pub log: &'a Path,
}

impl Machine<'_> {
    /// Boots it, streams what it says, and returns how it went.
    pub fn run(&self, patience: Duration) -> Result<Tally> {
        let name = self.kernel.series.name;
        let mut guest = self.start()?;
        let output = BufReader::new(guest.0.stdout.take().context("no pipe")?);
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut lines = output.split(b'\n').map_while(Result::ok);
            lines.try_for_each(|line| sender.send(String::from_utf8_lossy(&line).into_owned()))
        });

        let started = Instant::now();
        let mut tally = Tally::default();
        while !tally.is_done {
            let limit = if tally.release.is_some() { patience } else { patience.min(BOOT) };
            match lines.recv_timeout(limit.saturating_sub(started.elapsed())) {
                Ok(line) => {
                    if let Some(line) = tally.hear(line.trim_end_matches('\r')) {
                        println!("[{name}] {line}");
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    tally.problems.push(format!("the guest ended early{}", self.last_words()));
                    break;
                }
                Err(RecvTimeoutError::Timeout) => {
                    let limit = limit.as_secs();
                    tally.problems.push(format!("no end after {limit} s{}", self.last_words()));
                    break;
                }
            }
        }
        Ok(tally)
    }

    fn start(&self) -> Result<Guest> {
        let console = format!("file:{}", self.log.display());
        // It must not outlive us. A panic reboots, and a reboot ends QEMU.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", QEMU])
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2G"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-serial", &console, "-serial", "stdio"])
            .args(["-append", "console=ttyS0 panic=-1 oops=panic loglevel=6 no_timer_check"])
            .arg("-kernel")
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(self.initramfs)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        Ok(Guest(command.spawn().context("cannot run QEMU by setpriv")?))
    }

    /// The end of the kernel's console.
    fn last_words(&self) -> String {
        let log = fs::read(self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        // A panic is worth more than what came after it.
        let panic = lines.iter().position(|line| line.contains("Kernel panic"));
        let from = panic.map_or(lines.len(), |at| at + 10).saturating_sub(25);
        let tail = lines[from..].iter().take(40).map(|line| line.trim_end()).collect::<Vec<_>>();
        format!("; its console, {}, says:\n{}", self.log.display(), tail.join("\n"))
    }
}

/// A running QEMU, which ends with this value.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
