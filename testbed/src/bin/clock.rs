//! Reads clocks, for tests of clock skews: each subcommand is a target program.
//!
//! Programs run until standard input ends and then print their observations as one line of JSON.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use clap::Parser;
use injector_common::model::clock::{CLOCKS as ALL, Skew, Span};
use injector_user::kernel::vdso::{Patcher, restore};
use nix::{
    sched::{CloneFlags, clone},
    sys::wait::{WaitPidFlag, waitpid},
};
use serde_json::{Value, json};

const SECOND: i64 = 1_000_000_000;

/// Clock IDs, those that the vDSO reads first.
const CLOCKS: [(&str, i32); 9] = [
    ("realtime", libc::CLOCK_REALTIME),
    ("realtime_coarse", libc::CLOCK_REALTIME_COARSE),
    ("monotonic", libc::CLOCK_MONOTONIC),
    ("monotonic_coarse", libc::CLOCK_MONOTONIC_COARSE),
    ("monotonic_raw", libc::CLOCK_MONOTONIC_RAW),
    ("boottime", libc::CLOCK_BOOTTIME),
    ("tai", libc::CLOCK_TAI),
    ("process", libc::CLOCK_PROCESS_CPUTIME_ID),
    ("thread", libc::CLOCK_THREAD_CPUTIME_ID),
];

#[derive(Parser)]
enum Program {
    /// For each line of standard input, print the offset of each clock in nanoseconds
    Read,
    /// Read all clocks in all threads until standard input ends, and print the offsets
    Hammer {
        #[arg(long, default_value_t = 16)]
        threads: u32,
        /// The valid offsets in nanoseconds.
        #[arg(long = "offset", allow_negative_numbers = true)]
        offsets: Vec<i64>,
        /// Also check clocks other than the real-time clock.
        #[arg(long)]
        all: bool,
        /// The maximum deviation from a valid offset.
        #[arg(long, default_value_t = 20_000_000)]
        tolerance: i64,
    },
    /// Create threads that read the time and end
    Threads,
    /// Create processes that read the time and end
    Forks,
    /// For each line, fork a child that acts as `read` on the same standard input
    Fork,
    /// Execute `read` after a line on standard input
    Exec,
    /// For each line, vfork(2) a child that sleeps for a number of milliseconds
    Vfork {
        #[arg(long, default_value_t = 2000)]
        sleep: u64,
    },
    /// Sleep
    Sleep,
    /// For each line of standard input, print the time of a call in nanoseconds, and the current time
    Speed {
        #[arg(long, default_value_t = 2_000_000)]
        calls: u32,
    },
    /// Skew processes by an hour and print the duration; for each line, change the skew of all
    Skew { pids: Vec<i32> },
    /// Skew and restore a process until killed
    SkewLoop {
        #[arg(long)]
        owner: u64,
        pid: i32,
    },
}

fn main() -> ExitCode {
    match Program::parse() {
        Program::Read => read(),
        Program::Hammer { threads, offsets, all, tolerance } => {
            hammer(threads, &offsets, all, tolerance);
        }
        Program::Threads => threads(),
        Program::Forks => forks(),
        Program::Fork => fork(),
        Program::Exec => {
            line();
            return exec();
        }
        Program::Vfork { sleep } => vfork(sleep),
        Program::Sleep => until_end(),
        Program::Speed { calls } => speed(calls),
        Program::Skew { pids } => skew(&pids),
        Program::SkewLoop { owner, pid } => skew_loop(owner, pid),
    }
    ExitCode::SUCCESS
}

fn say(value: &Value) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{value}");
    let _ = out.flush();
}

fn ready() {
    say(&json!({ "event": "ready" }));
}

/// Waits for a line on standard input. Reads single bytes, to leave the next line. False at the end.
fn line() -> bool {
    let mut byte = [0];
    loop {
        match io::stdin().read(&mut byte) {
            Ok(1) if byte == *b"\n" => return true,
            Ok(1) => {}
            _ => return false,
        }
    }
}

fn until_end() {
    ready();
    while line() {}
}

fn by_vdso(id: i32) -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid pointer.
    let result = unsafe { libc::clock_gettime(id, &raw mut time) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    assert!((0..SECOND).contains(&time.tv_nsec), "{}", time.tv_nsec);
    time.tv_sec * SECOND + time.tv_nsec
}

fn by_kernel(id: i32) -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid pointer.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, id, &raw mut time) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    time.tv_sec * SECOND + time.tv_nsec
}

fn gettimeofday() -> i64 {
    let mut time = libc::timeval { tv_sec: 0, tv_usec: 0 };
    // SAFETY: valid pointers.
    let result = unsafe { libc::gettimeofday(&raw mut time, std::ptr::null_mut()) };
    assert_eq!(result, 0);
    assert!((0..1_000_000).contains(&time.tv_usec), "{}", time.tv_usec);
    time.tv_sec * SECOND + time.tv_usec * 1000
}

fn time() -> i64 {
    let mut stored = 0;
    // SAFETY: a valid pointer.
    let time = unsafe { libc::time(&raw mut stored) };
    assert_eq!(time, stored);
    time
}

/// The offset of a reading from the true clock, which is read before and after. Repeats until those are
/// close.
fn off(id: i32, read: impl Fn() -> i64) -> i64 {
    loop {
        let before = by_kernel(id);
        let read = read();
        let after = by_kernel(id);
        if after - before < 200_000 {
            return read - before;
        }
    }
}

fn read() {
    ready();
    while line() {
        let mut all = serde_json::Map::new();
        for (name, id) in CLOCKS {
            all.insert(name.into(), off(id, || by_vdso(id)).into());
        }
        all.insert("gettimeofday".into(), off(libc::CLOCK_REALTIME, gettimeofday).into());
        // The same second, or either of two if it changes just now.
        let (before, time, after) =
            (by_vdso(libc::CLOCK_REALTIME_COARSE), time(), by_vdso(libc::CLOCK_REALTIME_COARSE));
        let agrees = (before.div_euclid(SECOND)..=after.div_euclid(SECOND)).contains(&time);
        all.insert("time_agrees".into(), agrees.into());
        all.insert("realtime_now".into(), by_vdso(libc::CLOCK_REALTIME).into());
        all.insert("pid".into(), std::process::id().into());
        say(&Value::Object(all));
    }
}

fn hammer(threads: u32, offsets: &[i64], all: bool, tolerance: i64) {
    let is_over = Arc::new(AtomicBool::new(false));
    let calls = Arc::new(AtomicU64::new(0));
    let wrong = Arc::new(AtomicU64::new(0));
    let worst = Arc::new(AtomicI64::new(0));
    let examples = Arc::new(Mutex::new(Vec::new()));
    let offsets: Arc<[i64]> = offsets.into();
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            let (is_over, calls, wrong, worst, examples, offsets) = (
                is_over.clone(),
                calls.clone(),
                wrong.clone(),
                worst.clone(),
                examples.clone(),
                offsets.clone(),
            );
            thread::spawn(move || {
                let judge =
                    |name: &str, is_skewed: bool, before: i64, read: i64, after: i64, unit: i64| {
                        let true_only = [0];
                        let offsets = if is_skewed { &offsets[..] } else { &true_only };
                        let distance = |offset: &i64| {
                            let (low, high) = (before + offset - unit, after + offset);
                            (low - read).max(read - high).max(0)
                        };
                        let distance = offsets.iter().map(distance).min().unwrap_or(0);
                        worst.fetch_max(distance, Ordering::Relaxed);
                        if distance > tolerance {
                            wrong.fetch_add(1, Ordering::Relaxed);
                            let mut examples = examples.lock().expect("no thread panics");
                            if examples.len() < 5 {
                                examples
                                    .push(format!("{name}: {read} between {before} and {after}"));
                            }
                        }
                    };
                while !is_over.load(Ordering::Relaxed) {
                    for (name, id) in CLOCKS {
                        let is_real = ["realtime", "realtime_coarse"].contains(&name);
                        let is_cpu = ["process", "thread"].contains(&name);
                        let before = by_kernel(id);
                        let read = by_vdso(id);
                        let after = by_kernel(id);
                        judge(name, is_real || (all && !is_cpu), before, read, after, 0);
                    }
                    let before = by_kernel(libc::CLOCK_REALTIME);
                    let read = gettimeofday();
                    let after = by_kernel(libc::CLOCK_REALTIME);
                    judge("gettimeofday", true, before, read, after, 1000);
                    let before = by_kernel(libc::CLOCK_REALTIME_COARSE);
                    let read = time() * SECOND;
                    let after = by_kernel(libc::CLOCK_REALTIME_COARSE);
                    judge("time", true, before, read, after, SECOND);
                    // Many calls without a system call, so that threads are mostly in the vDSO.
                    for _ in 0..200 {
                        std::hint::black_box(by_vdso(libc::CLOCK_REALTIME));
                        std::hint::black_box(gettimeofday());
                        std::hint::black_box(time());
                    }
                    calls.fetch_add(11 + 600, Ordering::Relaxed);
                }
            })
        })
        .collect();
    until_end();
    is_over.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.join().expect("no thread panics");
    }
    say(&json!({
        "calls": calls.load(Ordering::Relaxed),
        "wrong": wrong.load(Ordering::Relaxed),
        "worst": worst.load(Ordering::Relaxed),
        "examples": *examples.lock().expect("no thread panics"),
    }));
}

fn threads() {
    keep_making(|| {
        let work = || {
            for _ in 0..50 {
                std::hint::black_box(by_vdso(libc::CLOCK_REALTIME));
            }
        };
        let some: Vec<_> = (0..4).map(|_| thread::spawn(work)).collect();
        let made = some.len() as u64;
        for thread in some {
            thread.join().expect("it does not panic");
        }
        made
    });
}

fn forks() {
    keep_making(|| {
        // SAFETY: the child only reads the time and ends.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                for _ in 0..20 {
                    by_vdso(libc::CLOCK_REALTIME);
                }
                libc::_exit(0);
            }
            let mut status = 0;
            while libc::waitpid(child, &raw mut status, 0) != child {}
            assert_eq!(status, 0);
        }
        1
    });
}

/// Creates threads or processes until standard input ends, and prints their number.
fn keep_making(make: impl Fn() -> u64 + Send + 'static) {
    let is_over = Arc::new(AtomicBool::new(false));
    let worker = {
        let is_over = is_over.clone();
        thread::spawn(move || {
            let mut total = 0;
            while !is_over.load(Ordering::Relaxed) {
                total += make();
            }
            total
        })
    };
    until_end();
    is_over.store(true, Ordering::Relaxed);
    say(&json!({ "made": worker.join().expect("it does not panic") }));
}

fn fork() {
    ready();
    if !line() {
        return;
    }
    // SAFETY: there is only one thread, so the child may call anything.
    let child = unsafe { libc::fork() };
    if child == 0 {
        read();
    } else {
        // SAFETY: our child. The status is not asked for.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    }
}

fn exec() -> ExitCode {
    let error = Command::new("/proc/self/exe").arg("read").exec();
    say(&json!({ "error": error.to_string() }));
    ExitCode::FAILURE
}

fn vfork(sleep: u64) {
    ready();
    while line() {
        let mut stack = vec![0; 64 << 10];
        let child = move || {
            let time = libc::timespec {
                tv_sec: (sleep / 1000).cast_signed(),
                tv_nsec: (sleep % 1000 * 1_000_000).cast_signed(),
            };
            // SAFETY: a valid pointer, and no other.
            unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) as isize }
        };
        let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
        // SAFETY: this process is suspended until the child has ended, which only sleeps.
        let child = unsafe { clone(Box::new(child), &mut stack, flags, Some(libc::SIGCHLD)) };
        let ended = child.and_then(|child| waitpid(child, Some(WaitPidFlag::__WALL)));
        say(
            &json!({ "ended": format!("{ended:?}"), "realtime": off(libc::CLOCK_REALTIME, || by_vdso(libc::CLOCK_REALTIME)) }),
        );
    }
}

/// A constant offset of all clocks, without an end.
fn ahead(offset: i64) -> Skew {
    Skew { offset, clocks: [Span { base: 0, lease: i64::MAX }; ALL], ..Skew::TRUE }
}

fn skew(pids: &[i32]) {
    let patcher = Patcher::new(u64::from(std::process::id()));
    let start = Instant::now();
    let mut done = Vec::new();
    for pid in pids {
        match patcher.patch(*pid, &ahead(3600 * SECOND)) {
            Ok(process) => done.push(process),
            Err(refusal) => say(&json!({ "pid": pid, "refused": refusal.to_string() })),
        }
    }
    say(&json!({ "patched": done.len(), "us": start.elapsed().as_micros() as u64 }));
    while line() {
        let start = Instant::now();
        let set = done.iter_mut().filter_map(|process| process.set(&ahead(SECOND)).ok()).count();
        say(&json!({ "set": set, "us": start.elapsed().as_micros() as u64 }));
    }
    let start = Instant::now();
    let restored = pids.iter().filter(|pid| matches!(restore(**pid, None), Ok(true))).count();
    say(&json!({ "restored": restored, "us": start.elapsed().as_micros() as u64 }));
}

fn skew_loop(owner: u64, pid: i32) {
    let skew = ahead(3600 * SECOND);
    let patcher = Patcher::new(owner);
    ready();
    loop {
        if let Err(refusal) = patcher.patch(pid, &skew) {
            say(&json!({ "refused": refusal.to_string() }));
        }
        if let Err(refusal) = restore(pid, Some(owner)) {
            say(&json!({ "refused": refusal.to_string() }));
        }
    }
}

fn speed(calls: u32) {
    ready();
    while line() {
        let measure = |call: &dyn Fn()| {
            let start = by_kernel(libc::CLOCK_MONOTONIC);
            for _ in 0..calls {
                call();
            }
            (by_kernel(libc::CLOCK_MONOTONIC) - start) as f64 / f64::from(calls)
        };
        let best = |call: &dyn Fn()| (0..5).map(|_| measure(call)).fold(f64::MAX, f64::min);
        say(&json!({
            "clock_gettime": best(&|| { std::hint::black_box(by_vdso(libc::CLOCK_REALTIME)); }),
            "monotonic": best(&|| { std::hint::black_box(by_vdso(libc::CLOCK_MONOTONIC)); }),
            "coarse": best(&|| { std::hint::black_box(by_vdso(libc::CLOCK_REALTIME_COARSE)); }),
            "gettimeofday": best(&|| { std::hint::black_box(gettimeofday()); }),
            "time": best(&|| { std::hint::black_box(time()); }),
            "system_call": best(&|| { std::hint::black_box(by_kernel(libc::CLOCK_REALTIME)); }),
            "now": by_vdso(libc::CLOCK_REALTIME),
        }));
    }
}
