//! Reads clocks and waits by system calls, and reports the results in JSON.
//!
//! - `read`: each clock by system call, between two readings by the vDSO, which probes do not affect
//! - `wait HOW CLOCK MS`: until MS from now by its clock, as read by system call
//! - `share CLOCK MS`: two threads with a shared variable for their deadline
//! - `constant CLOCK`: with a deadline in read-only memory
//! - `hammer MS A B`: reads continuously and counts readings that are neither A nor B nanoseconds off
//! - `bench N`: the time of a system call

use std::{
    io, mem, process, ptr, thread,
    time::{Duration, Instant},
};

use libc::{c_int, c_long, clockid_t, timespec};
use serde_json::{Map, Value, json};

const SECOND: i64 = 1_000_000_000;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |word: &str| word.parse::<i64>().map_err(io::Error::other);
    let report = match *words.as_slice() {
        ["read"] => read(),
        ["wait", how, clock, ms] => wait(how, number(clock)? as c_int, number(ms)? * 1_000_000)?,
        ["share", clock, ms] => share(number(clock)? as c_int, number(ms)? * 1_000_000)?,
        ["constant", clock] => constant(number(clock)? as c_int)?,
        ["hammer", ms, a, b] => hammer(number(ms)?, [number(a)?, number(b)?])?,
        ["bench", count] => bench(number(count)?)?,
        _ => {
            eprintln!("usage: see the source");
            process::exit(2);
        }
    };
    println!("{report}");
    Ok(())
}

/// A system call that must succeed.
fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

const fn ns(time: &timespec) -> i64 {
    time.tv_sec * SECOND + time.tv_nsec
}

const fn time(ns: i64) -> timespec {
    timespec { tv_sec: ns.div_euclid(SECOND), tv_nsec: ns.rem_euclid(SECOND) }
}

/// The reading of a clock by system call.
fn direct(clock: clockid_t) -> io::Result<i64> {
    let mut now = time(0);
    // SAFETY: writes to the variable.
    check(unsafe { libc::syscall(libc::SYS_clock_gettime, clock, &raw mut now) })?;
    Ok(ns(&now))
}

/// The reading of a clock by the vDSO, if there is one.
fn by_vdso(clock: clockid_t) -> io::Result<i64> {
    let mut now = time(0);
    // SAFETY: writes to the variable.
    check(unsafe { libc::clock_gettime(clock, &raw mut now) }.into())?;
    Ok(ns(&now))
}

fn read() -> Value {
    let clocks: Map<String, Value> = (0..=11)
        .filter_map(|clock| {
            let readings = [by_vdso(clock).ok()?, direct(clock).ok()?, by_vdso(clock).ok()?];
            Some((clock.to_string(), json!(readings)))
        })
        .collect();
    let mut now = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let before = by_vdso(libc::CLOCK_REALTIME).unwrap_or(0);
    // SAFETY: writes to the variable.
    unsafe { libc::syscall(libc::SYS_gettimeofday, &raw mut now, ptr::null_mut::<u8>()) };
    let after = by_vdso(libc::CLOCK_REALTIME).unwrap_or(0);
    let gettimeofday = now.tv_sec * SECOND + now.tv_usec * 1000;
    // SAFETY: takes no pointer.
    #[cfg(target_arch = "x86_64")]
    let seconds = unsafe { libc::syscall(libc::SYS_time, 0) };
    // SAFETY: takes no pointer. Other architectures have no such system call.
    #[cfg(not(target_arch = "x86_64"))]
    let seconds = unsafe { libc::time(ptr::null_mut()) };
    json!({"clocks": clocks, "gettimeofday": [before, gettimeofday, after], "time": seconds})
}

fn wait(how: &str, clock: clockid_t, after_ns: i64) -> io::Result<Value> {
    let start = Instant::now();
    let before = time(direct(clock)? + after_ns);
    let mut deadline = before;
    match how {
        "nanosleep" => {
            // SAFETY: reads the variable.
            check(unsafe {
                libc::syscall(
                    libc::SYS_clock_nanosleep,
                    clock,
                    libc::TIMER_ABSTIME,
                    &raw mut deadline,
                    ptr::null_mut::<timespec>(),
                )
            })?;
        }
        "timerfd" => deadline = timerfd(clock, deadline)?,
        "timer" => deadline = timer(clock, deadline)?,
        "futex" => futex(clock, &raw mut deadline)?,
        "futex_waitv" => futex_waitv(clock, &raw mut deadline)?,
        "cond" => cond(clock, &raw const deadline)?,
        "mq" => mq(&raw const deadline)?,
        _ => return Err(io::Error::other("no such way to wait")),
    }
    Ok(json!({
        "waited_ns": start.elapsed().as_nanos() as u64,
        "deadline": ns(&before),
        "deadline_after": ns(&deadline),
        "woken_at": direct(clock)?,
    }))
}

/// Expects `ETIMEDOUT`.
fn timed_out(result: c_long) -> io::Result<()> {
    match check(result) {
        Err(error) if error.raw_os_error() == Some(libc::ETIMEDOUT) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::other("woken by somebody")),
    }
}

/// Returns the deadline variable after the call.
fn timerfd(clock: clockid_t, deadline: timespec) -> io::Result<timespec> {
    let mut spec = libc::itimerspec { it_interval: time(0), it_value: deadline };
    let mut ticks = 0_u64;
    // SAFETY: reads and writes the variables.
    unsafe {
        let fd = check(libc::timerfd_create(clock, 0).into())? as c_int;
        let flags = libc::TFD_TIMER_ABSTIME;
        check(libc::timerfd_settime(fd, flags, &raw mut spec, ptr::null_mut()).into())?;
        // Another descriptor of the same timer.
        let other = check(libc::dup(fd).into())? as c_int;
        check(libc::read(other, (&raw mut ticks).cast(), size_of_val(&ticks)) as c_long)?;
    }
    Ok(spec.it_value)
}

/// Returns the deadline variable after the call.
fn timer(clock: clockid_t, deadline: timespec) -> io::Result<timespec> {
    let mut spec = libc::itimerspec { it_interval: time(0), it_value: deadline };
    // SAFETY: all zeroes are a set and an event; the calls read and write the variables.
    unsafe {
        let mut signals: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut signals);
        libc::sigaddset(&raw mut signals, libc::SIGUSR1);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const signals, ptr::null_mut()).into())?;
        let mut event: libc::sigevent = mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGUSR1;
        let mut timer = ptr::null_mut();
        check(libc::timer_create(clock, &raw mut event, &raw mut timer).into())?;
        let flags = libc::TIMER_ABSTIME;
        check(libc::timer_settime(timer, flags, &raw mut spec, ptr::null_mut()).into())?;
        check(libc::sigwaitinfo(&raw const signals, ptr::null_mut()).into())?;
    }
    Ok(spec.it_value)
}

fn futex(clock: clockid_t, deadline: *mut timespec) -> io::Result<()> {
    let word = 0_u32;
    let mut operation = libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG;
    if clock == libc::CLOCK_REALTIME {
        operation |= libc::FUTEX_CLOCK_REALTIME;
    }
    // SAFETY: reads the variables.
    timed_out(unsafe {
        libc::syscall(
            libc::SYS_futex,
            &raw const word,
            operation,
            0,
            deadline,
            ptr::null::<u32>(),
            u32::MAX,
        )
    })
}

fn futex_waitv(clock: clockid_t, deadline: *mut timespec) -> io::Result<()> {
    /// `struct futex_waitv` of the kernel's interface.
    #[repr(C)]
    struct Waiter {
        value: u64,
        address: u64,
        flags: u32,
        reserved: u32,
    }
    const SIZE_U32: u32 = 2;

    let word = 0_u32;
    let waiter =
        Waiter { value: 0, address: (&raw const word) as u64, flags: SIZE_U32, reserved: 0 };
    // SAFETY: reads the variables.
    timed_out(unsafe {
        libc::syscall(libc::SYS_futex_waitv, &raw const waiter, 1, 0, deadline, clock)
    })
}

/// `pthread_cond_timedwait`, as most programs wait.
fn cond(clock: clockid_t, deadline: *const timespec) -> io::Result<()> {
    // SAFETY: all are initialised before they are used, and not moved.
    unsafe {
        let mut attributes: libc::pthread_condattr_t = mem::zeroed();
        libc::pthread_condattr_init(&raw mut attributes);
        libc::pthread_condattr_setclock(&raw mut attributes, clock);
        let mut condition = libc::PTHREAD_COND_INITIALIZER;
        libc::pthread_cond_init(&raw mut condition, &raw const attributes);
        let mut mutex = libc::PTHREAD_MUTEX_INITIALIZER;
        libc::pthread_mutex_lock(&raw mut mutex);
        loop {
            match libc::pthread_cond_timedwait(&raw mut condition, &raw mut mutex, deadline) {
                0 => {}
                libc::ETIMEDOUT => return Ok(()),
                error => return Err(io::Error::from_raw_os_error(error)),
            }
        }
    }
}

/// A message queue that stays empty; by `CLOCK_REALTIME`.
fn mq(deadline: *const timespec) -> io::Result<()> {
    let name = format!("/clockcalls-{}\0", process::id());
    let mut message = [0_u8; 8192];
    // SAFETY: the name ends with 0, and the message has room for the default size.
    unsafe {
        let flags = libc::O_RDONLY | libc::O_CREAT | libc::O_EXCL;
        let queue = libc::mq_open(name.as_ptr().cast(), flags, 0o600, ptr::null::<u8>());
        check(queue.into())?;
        libc::mq_unlink(name.as_ptr().cast());
        let pointer = message.as_mut_ptr().cast();
        timed_out(libc::mq_timedreceive(queue, pointer, message.len(), ptr::null_mut(), deadline)
            as c_long)
    }
}

/// The address of a value that threads share.
#[derive(Clone, Copy)]
struct Shared(*mut timespec);

// SAFETY: only the kernel reads and writes there while threads run.
unsafe impl Send for Shared {}

fn share(clock: clockid_t, after_ns: i64) -> io::Result<Value> {
    let start = Instant::now();
    let before = time(direct(clock)? + after_ns);
    let mut deadline = before;
    let shared = Shared(&raw mut deadline);
    let waits: Vec<_> = (0..2)
        .map(|n| {
            thread::spawn(move || {
                let shared = shared;
                // The second starts once the first waits.
                thread::sleep(Duration::from_millis(n * 100));
                futex(clock, shared.0).map(|()| start.elapsed().as_nanos() as u64)
            })
        })
        .collect();
    let mut waited = Vec::new();
    for wait in waits {
        waited.push(wait.join().map_err(|_| io::Error::other("a thread panicked"))??);
    }
    Ok(json!({
        "waited_ns": waited,
        "deadline": ns(&before),
        "deadline_after": ns(&deadline),
    }))
}

fn constant(clock: clockid_t) -> io::Result<Value> {
    // SAFETY: a new mapping with room for the value, which is dereferenced while it may be.
    let deadline = unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let page = libc::mmap(ptr::null_mut(), 4096, access, flags, -1, 0);
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // So far in the past that no skew moves it to the future.
        *page.cast() = time(1);
        check(libc::mprotect(page, 4096, libc::PROT_READ).into())?;
        page.cast::<timespec>()
    };
    // SAFETY: reads the page.
    let result = check(unsafe {
        libc::syscall(libc::SYS_clock_nanosleep, clock, libc::TIMER_ABSTIME, deadline, 0)
    })?;
    // SAFETY: as above.
    Ok(json!({"result": result, "deadline": ns(unsafe { &*deadline })}))
}

fn hammer(ms: i64, offsets: [i64; 2]) -> io::Result<Value> {
    let end = by_vdso(libc::CLOCK_MONOTONIC)? + ms * 1_000_000;
    let (mut seen, mut wrong, mut first_wrong) = ([0_u64; 2], 0_u64, None);
    while by_vdso(libc::CLOCK_MONOTONIC)? < end {
        let before = by_vdso(libc::CLOCK_REALTIME)?;
        let now = direct(libc::CLOCK_REALTIME)?;
        let after = by_vdso(libc::CLOCK_REALTIME)?;
        let fits = |offset: i64| (before + offset..=after + offset).contains(&now);
        if let Some(which) = offsets.iter().position(|&offset| fits(offset)) {
            seen[which] += 1;
        } else {
            wrong += 1;
            first_wrong.get_or_insert(now - before);
        }
    }
    Ok(json!({"seen": seen, "wrong": wrong, "first_wrong": first_wrong}))
}

fn bench(count: i64) -> io::Result<Value> {
    let measure = |call: &dyn Fn() -> io::Result<i64>| -> io::Result<f64> {
        let start = Instant::now();
        for _ in 0..count {
            call()?;
        }
        Ok(start.elapsed().as_nanos() as f64 / count as f64)
    };
    let getppid = || {
        // SAFETY: takes nothing.
        Ok(unsafe { libc::syscall(libc::SYS_getppid) })
    };
    Ok(json!({
        "clock_gettime_ns": measure(&|| direct(libc::CLOCK_MONOTONIC))?,
        "other_call_ns": measure(&getppid)?,
    }))
}
