//! Receive packet steering: the CPUs that process the packets of a device
//! (`Documentation/networking/scaling.rst`).

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
};

use super::{KernelError, mount::Context, netns::Netns};

/// Steers each flow of a device to one CPU, which keeps its packets in order.
pub fn spread(netns: &Netns, device: &str) -> Result<(), KernelError> {
    let write = || -> io::Result<()> {
        let online = fs::read_to_string("/sys/devices/system/cpu/online")?;
        let mask = mask(&online);
        for_each_queue(device, |file| file.write_all(mask.as_bytes()))
    };
    netns.run(|| write().map_err(KernelError::Steering))?
}

/// Checks that [`spread`] works for devices of this namespace, without changing anything.
pub fn check(netns: &Netns) -> Result<(), KernelError> {
    netns.run(|| for_each_queue("lo", |_| Ok(())).map_err(KernelError::Steering))?
}

/// Opens the CPU mask of each receive queue of a device of the current namespace for writing. Kernels
/// without receive packet steering, such as those without SMP, have none.
fn for_each_queue(
    device: &str,
    mut work: impl FnMut(&mut fs::File) -> io::Result<()>,
) -> io::Result<()> {
    // `/sys` shows the devices of the namespace in which it was mounted, and may be read-only or
    // missing.
    let sysfs = Context::open(c"sysfs")?.mount()?;
    for queue in fs::read_dir(sysfs.path().join("class/net").join(device).join("queues"))? {
        let mask = queue?.path().join("rps_cpus");
        if mask.exists() {
            work(&mut OpenOptions::new().write(true).open(mask)?)?;
        }
    }
    Ok(())
}

/// Converts a CPU list ("0-3,5") to a mask of hexadecimal words, the highest first.
fn mask(list: &str) -> String {
    let mut words = Vec::new();
    for range in list.trim().split(',') {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let (Ok(from), Ok(to)) = (from.parse::<usize>(), to.parse::<usize>()) else {
            continue;
        };
        for number in from..=to {
            words.resize((number / 32 + 1).max(words.len()), 0u32);
            words[number / 32] |= 1 << (number % 32);
        }
    }
    let words: Vec<String> = words.iter().rev().map(|word| format!("{word:08x}")).collect();
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::mask;

    #[test]
    fn processors_are_bits() {
        for (list, expected) in [
            ("0-1\n", "00000003"),
            ("0", "00000001"),
            ("0-3,5", "0000002f"),
            ("0-32", "00000001,ffffffff"),
            ("64", "00000001,00000000,00000000"),
        ] {
            assert_eq!(mask(list), expected, "{list}");
        }
    }
}
