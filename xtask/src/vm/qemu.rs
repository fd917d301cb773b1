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

use super::{kernel::Kernel, output_of, results::GuestResults};

const QEMU: &str = "qemu-system-x86_64";

/// The minimum major version of QEMU: TCG of older ones corrupts the memory of these kernels.
const MIN_VERSION: u32 = 10;

/// The timeout of booting.
const BOOT_TIMEOUT: Duration = Duration::from_mins(3);

/// Checks that a suitable QEMU is installed.
pub fn check() -> Result<()> {
    let remedy = "run scripts/setup-vm to install it";
    let text = output_of(Command::new(QEMU).arg("--version"))
        .with_context(|| format!("no QEMU: {remedy}"))?;
    let version = text.split_once("version ").and_then(|(_, rest)| rest.split_once('.'));
    let major: u32 = version.and_then(|(major, _)| major.parse().ok()).context("QEMU's version")?;
    ensure!(
        major >= MIN_VERSION,
        "QEMU {major} is too old, {MIN_VERSION} or later is required: {remedy}"
    );
    Ok(())
}

/// A virtual machine to boot.
#[derive(Debug)]
pub struct Machine<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// The initramfs.
    pub initramfs: &'a Path,
    /// The log file of the kernel console.
    pub log: &'a Path,
}

impl Machine<'_> {
    /// Boots the guest, prints its output, and returns the results.
    pub fn run(&self, timeout: Duration) -> Result<GuestResults> {
        let name = self.kernel.series.name;
        let mut guest = self.start()?;
        let output = BufReader::new(guest.0.stdout.take().context("no pipe")?);
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut lines = output.split(b'\n').map_while(Result::ok);
            lines.try_for_each(|line| sender.send(String::from_utf8_lossy(&line).into_owned()))
        });

        let started = Instant::now();
        let mut results = GuestResults::default();
        while !results.is_done {
            let limit = if results.release.is_some() { timeout } else { timeout.min(BOOT_TIMEOUT) };
            match lines.recv_timeout(limit.saturating_sub(started.elapsed())) {
                Ok(line) => {
                    if let Some(line) = results.parse_line(line.trim_end_matches('\r')) {
                        println!("[{name}] {line}");
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    results.problems.push(format!("the guest ended early{}", self.console_tail()));
                    break;
                }
                Err(RecvTimeoutError::Timeout) => {
                    let limit = limit.as_secs();
                    results.problems.push(format!("no end after {limit} s{}", self.console_tail()));
                    break;
                }
            }
        }
        Ok(results)
    }

    fn start(&self) -> Result<Guest> {
        let console = format!("file:{}", self.log.display());
        // setpriv ends QEMU with this process. A panic reboots, which ends QEMU (-no-reboot).
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

    /// The end of the console log.
    fn console_tail(&self) -> String {
        let log = fs::read(self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        // Show a panic rather than what followed it.
        let panic = lines.iter().position(|line| line.contains("Kernel panic"));
        let from = panic.map_or(lines.len(), |at| at + 10).saturating_sub(25);
        let tail = lines[from..].iter().take(40).map(|line| line.trim_end()).collect::<Vec<_>>();
        format!("; the end of its console, {}:\n{}", self.log.display(), tail.join("\n"))
    }
}

/// A running QEMU. Killed when dropped.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // The process may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
