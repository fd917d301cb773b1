//! Receive packet steering: which processors go on with the packets of a device
//! (`Documentation/networking/scaling.rst`).

use std::{fs, io, path::Path};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use super::{
    KernelError,
    netns::{Netns, in_thread},
};

/// Has each flow of a device go on on one processor, on whichever its packets come, so that they keep their order.
pub fn spread(netns: &Netns, device: &str) -> Result<(), KernelError> {
    let online =
        fs::read_to_string("/sys/devices/system/cpu/online").map_err(KernelError::Steering)?;
    let mask = mask(&online);
    in_thread(|| netns.run(|| write(device, &mask).map_err(KernelError::Steering))?)
}

/// Writes the mask for each queue of the device, in a thread that is of no further use.
fn write(device: &str, mask: &str) -> io::Result<()> {
    // /sys shows the devices of the namespace that it was mounted in: have one of our own.
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("injector"), "/sys", Some("sysfs"), MsFlags::empty(), none)?;
    for queue in fs::read_dir(Path::new("/sys/class/net").join(device).join("queues"))? {
        let file = queue?.path().join("rps_cpus");
        if file.exists() {
            fs::write(file, mask)?;
        }
    }
    Ok(())
}

/// A list of processors ("0-3,5") as a mask of hexadecimal words, the last one first.
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
