//! Clock skews in running processes, by patching their vDSO. Each test starts the processes that it
//! patches, and ends them.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::{fs::FileExt as _, process::ExitStatusExt as _},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use injector_common::model::clock::{CLOCKS, Clock, FREEZE, STROBE, Skew, Span};
use injector_user::kernel::vdso::{Patched, Patcher, Refusal, Unfit, owner_of, restore};
use nix::{
    sys::{
        ptrace,
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use serde_json::Value;
use testbed::{TIMEOUT, program, state, wait_for_state};

const SECOND: i64 = 1_000_000_000;
const MILLISECOND: i64 = 1_000_000;
const HOUR: i64 = 3600 * SECOND;

const OWNER: u64 = 0x7e57;

/// A running `clock` of the testbed.
struct Program {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Program {
    /// Starts it, and waits until it is ready.
    fn start(line: &str) -> Self {
        let program = Self::launch(line);
        assert_eq!(program.line()["event"], "ready");
        program
    }

    fn launch(line: &str) -> Self {
        Self::of(Command::new(program("clock")).args(line.split_whitespace()))
    }

    fn of(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, input, lines }
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    fn line(&self) -> Value {
        let line = self.lines.recv_timeout(TIMEOUT).expect("it says something in time");
        serde_json::from_str(&line).expect("JSON")
    }

    fn tell(&mut self) {
        self.input.as_mut().expect("open").write_all(b"\n").expect("it listens");
    }

    fn ask(&mut self) -> Value {
        self.tell();
        self.line()
    }

    /// The offset of the real-time clock.
    fn realtime(&mut self) -> i64 {
        self.ask()["realtime"].as_i64().expect("a number")
    }

    /// Ends it by closing its standard input. It must succeed.
    fn finish(mut self) -> Value {
        self.input = None;
        let report = self.line();
        let end = Instant::now() + TIMEOUT;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                break status;
            }
            assert!(Instant::now() < end, "it does not end");
            thread::sleep(Duration::from_millis(5));
        };
        assert!(status.success(), "{status:?}, signal {:?}", status.signal());
        report
    }

    /// The process state: R, S, T, t, Z…
    fn state(&self) -> char {
        state(self.child.id())
    }

    fn wait_for_state(&self, wanted: char) {
        wait_for_state(self.child.id(), wanted);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn now(id: i32) -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid pointer.
    assert_eq!(unsafe { libc::syscall(libc::SYS_clock_gettime, id, &raw mut time) }, 0);
    time.tv_sec * SECOND + time.tv_nsec
}

const IDS: [i32; CLOCKS] = [
    libc::CLOCK_REALTIME,
    libc::CLOCK_MONOTONIC,
    libc::CLOCK_MONOTONIC_RAW,
    libc::CLOCK_BOOTTIME,
    libc::CLOCK_TAI,
];

/// A skew of some clocks that starts now.
fn from_now(clocks: &[Clock], lease: Duration, skew: Skew) -> Skew {
    let mut spans = [Span::TRUE; CLOCKS];
    for clock in clocks {
        let base = now(IDS[*clock as usize]);
        spans[*clock as usize] = Span { base, lease: base + lease.as_nanos() as i64 };
    }
    Skew { clocks: spans, ..skew }
}

const LONG: Duration = Duration::from_hours(1);

fn realtime(offset: i64) -> Skew {
    from_now(&[Clock::Realtime], LONG, Skew { offset, ..Skew::TRUE })
}

fn patch(program: &Program, skew: &Skew) -> Patched {
    Patcher::new(OWNER).patch(program.pid(), skew).expect("it can be patched")
}

fn assert_near(what: &str, value: &Value, expected: i64, tolerance: i64) {
    let value = value.as_i64().expect("a number");
    assert!((value - expected).abs() <= tolerance, "{what}: {value}, not {expected}");
}

/// A coarse clock ticks 100 to 1,000 times a second, and may have ticked before the true one is read.
const TICK: i64 = 11 * MILLISECOND;

fn assert_realtime(read: &Value, offset: i64) {
    assert_near("realtime", &read["realtime"], offset, MILLISECOND);
    assert_near("gettimeofday", &read["gettimeofday"], offset, MILLISECOND);
    assert_near("coarse", &read["realtime_coarse"], offset, TICK);
    assert_eq!(read["time_agrees"], true);
}

fn assert_others_true(read: &Value) {
    for clock in ["monotonic", "monotonic_raw", "boottime", "tai"] {
        assert_near(clock, &read[clock], 0, MILLISECOND);
    }
    assert_near("monotonic_coarse", &read["monotonic_coarse"], 0, TICK);
}

#[test]
fn offsets_are_exact_in_all_functions_and_only_there() {
    let mut program = Program::start("read");
    let mut neighbour = Program::start("read");
    let before = program.ask();
    assert_realtime(&before, 0);
    let mut patched = patch(&program, &realtime(HOUR));
    assert_eq!(patched.pid(), program.pid());
    for offset in [
        HOUR,
        -500 * MILLISECOND,
        1,
        20 * 365 * 24 * HOUR,
        -50 * 365 * 24 * HOUR,
        -90 * 365 * 24 * HOUR,
    ] {
        patched.set(&realtime(offset)).expect("it runs");
        let read = program.ask();
        assert_realtime(&read, offset);
        assert_others_true(&read);
        let next = neighbour.ask();
        assert_realtime(&next, 0);
        assert_others_true(&next);
    }
    let all = from_now(&Clock::ALL, LONG, Skew { offset: -HOUR, ..Skew::TRUE });
    patched.set(&all).expect("it runs");
    let read = program.ask();
    assert_realtime(&read, -HOUR);
    for clock in ["monotonic", "monotonic_raw", "boottime", "tai"] {
        assert_near(clock, &read[clock], -HOUR, MILLISECOND);
    }
    // CPU-time clocks are never skewed.
    for clock in ["process", "thread"] {
        assert_near(clock, &read[clock], 0, MILLISECOND);
    }
    assert_eq!(owner_of(program.pid()).expect("it runs"), Some(OWNER));
    assert_eq!(owner_of(neighbour.pid()).expect("it runs"), None);
    assert!(restore(program.pid(), Some(OWNER)).expect("it runs"));
    assert_eq!(owner_of(program.pid()).expect("it runs"), None);
    assert!(!restore(program.pid(), None).expect("it runs"), "there is nothing any more");
    let read = program.ask();
    assert_realtime(&read, 0);
    assert_others_true(&read);
}

#[test]
fn drift_freeze_and_strobe_are_seen() {
    let mut program = Program::start("read");
    // A tenth faster.
    let skew = |skew| from_now(&[Clock::Realtime], LONG, skew);
    let drifting = skew(Skew { drift: (1i64 << 32) / 10, ..Skew::TRUE });
    let mut patched = patch(&program, &drifting);
    let base = drifting.clocks[0].base;
    thread::sleep(Duration::from_secs(1));
    let before = now(libc::CLOCK_REALTIME) - base;
    let off = program.realtime();
    let after = now(libc::CLOCK_REALTIME) - base;
    let range = before / 10 - MILLISECOND..after / 10 + MILLISECOND;
    assert!(range.contains(&off), "{off} after {before} to {after}");

    let frozen = skew(Skew { flags: FREEZE, offset: HOUR, ..Skew::TRUE });
    patched.set(&frozen).expect("it runs");
    for _ in 0..3 {
        let read = program.ask();
        assert_eq!(read["realtime_now"], frozen.clocks[0].base + HOUR);
        thread::sleep(Duration::from_millis(20));
    }
    let period = 200 * MILLISECOND;
    patched
        .set(&skew(Skew { flags: STROBE, step: HOUR, period_ns: period, ..Skew::TRUE }))
        .expect("it runs");
    let mut seen = [0; 2];
    for _ in 0..40 {
        let off = program.realtime();
        if off.abs() < MILLISECOND {
            seen[0] += 1;
        } else if (off - HOUR).abs() < MILLISECOND {
            seen[1] += 1;
        } else {
            panic!("{off}");
        }
        thread::sleep(Duration::from_millis(25));
    }
    assert!(seen[0] > 8 && seen[1] > 8, "{seen:?}");
}

#[test]
fn time_becomes_true_when_the_lease_ends() {
    let mut program = Program::start("read");
    let lease = Duration::from_millis(400);
    let skew = from_now(&Clock::ALL, lease, Skew { offset: HOUR, ..Skew::TRUE });
    let start = Instant::now();
    drop(patch(&program, &skew));
    assert_realtime(&program.ask(), HOUR);
    assert!(start.elapsed() < lease, "this machine is too slow for the test");
    // A coarse clock is one tick later.
    thread::sleep(lease + Duration::from_nanos(TICK.cast_unsigned()));
    let read = program.ask();
    assert_realtime(&read, 0);
    assert_others_true(&read);
}

#[test]
fn a_fork_inherits_and_is_adopted() {
    let mut program = Program::start("fork");
    let patcher = Patcher::new(OWNER);
    let _parent = patcher.patch(program.pid(), &realtime(HOUR)).expect("it can be patched");
    program.tell();
    assert_eq!(program.line()["event"], "ready");
    let read = program.ask();
    assert_realtime(&read, HOUR);
    let child = read["pid"].as_i64().expect("a number") as i32;
    assert_ne!(child, program.pid());
    assert_eq!(owner_of(child).expect("it runs"), Some(OWNER));
    let other = Patcher::new(OWNER + 1).patch(child, &realtime(0));
    assert!(matches!(other, Err(Refusal::Owned(OWNER))), "{other:?}");
    // A traced process cannot be stopped, so this works without stopping.
    let traced = Traced::new(child);
    let mut adopted = patcher.patch(child, &realtime(-HOUR)).expect("it is ours");
    drop(traced);
    assert_realtime(&program.ask(), -HOUR);
    adopted.set(&realtime(SECOND)).expect("it runs");
    assert_realtime(&program.ask(), SECOND);
}

#[test]
fn an_exec_ends_it() {
    let mut program = Program::launch("exec");
    while owner_of(program.pid()).is_err() {
        thread::sleep(Duration::from_millis(1));
    }
    let mut patched = patch(&program, &realtime(HOUR));
    program.tell();
    assert_eq!(program.line()["event"], "ready");
    assert_realtime(&program.ask(), 0);
    assert!(patched.set(&realtime(HOUR)).is_err());
    assert_eq!(owner_of(program.pid()).expect("it runs"), None);
}

#[test]
fn what_has_ended_is_gone() {
    let mut program = Program::start("read");
    let mut patched = patch(&program, &realtime(HOUR));
    let pid = program.pid();
    program.child.kill().expect("it runs");
    program.wait_for_state('Z');
    assert!(patched.set(&realtime(0)).is_err());
    let zombie = Patcher::new(OWNER).patch(pid, &realtime(0));
    assert!(matches!(zombie, Err(Refusal::Gone)), "{zombie:?}");
    program.child.wait().expect("our child");
    let none = Patcher::new(OWNER).patch(pid, &realtime(0));
    assert!(matches!(none, Err(Refusal::Gone)), "{none:?}");
    assert!(matches!(restore(pid, None), Err(Refusal::Gone)));
    // A kernel thread.
    let kernel = Patcher::new(OWNER).patch(2, &realtime(0));
    assert!(matches!(kernel, Err(Refusal::NoVdso)), "{kernel:?}");
}

/// A process that this thread traces.
struct Traced(Pid);

impl Traced {
    fn new(pid: i32) -> Self {
        let pid = Pid::from_raw(pid);
        ptrace::seize(pid, ptrace::Options::empty()).expect("nobody else traces it");
        Self(pid)
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = ptrace::interrupt(self.0);
        let _ = nix::sys::wait::waitpid(self.0, Some(nix::sys::wait::WaitPidFlag::__WALL));
        let _ = ptrace::detach(self.0, None);
    }
}

#[test]
fn a_traced_process_is_refused() {
    let mut program = Program::start("read");
    let traced = Traced::new(program.pid());
    let refused = Patcher::new(OWNER).patch(program.pid(), &realtime(HOUR));
    assert!(matches!(refused, Err(Refusal::Traced)), "{refused:?}");
    drop(traced);
    assert_realtime(&program.ask(), 0);
    let _patched = patch(&program, &realtime(HOUR));
    // Clocks that cannot be restored read true nevertheless.
    let traced = Traced::new(program.pid());
    assert!(matches!(restore(program.pid(), None), Err(Refusal::Traced)));
    drop(traced);
    assert_realtime(&program.ask(), 0);
    assert!(restore(program.pid(), None).expect("it runs"));
}

#[test]
fn a_stopped_process_stays_stopped() {
    let mut program = Program::start("read");
    let pid = Pid::from_raw(program.pid());
    for _ in 0..20 {
        kill(pid, Signal::SIGSTOP).expect("it runs");
        // With the stop delivered or not.
        if program.pid() % 2 == 0 {
            program.wait_for_state('T');
        }
        let _patched = patch(&program, &realtime(HOUR));
        program.wait_for_state('T');
        thread::sleep(Duration::from_millis(5));
        assert_eq!(program.state(), 'T');
        assert!(restore(program.pid(), None).expect("it is there"));
        thread::sleep(Duration::from_millis(2));
        program.wait_for_state('T');
        let _patched = patch(&program, &realtime(HOUR));
        kill(pid, Signal::SIGCONT).expect("it is there");
        assert_realtime(&program.ask(), HOUR);
        assert!(restore(program.pid(), None).expect("it runs"));
    }
}

#[test]
fn signals_are_neither_lost_nor_invented() {
    // bash counts received signals, which are sent while it is patched and restored.
    let script = "n=0; trap 'n=$((n+1))' USR1; echo '{\"event\":\"ready\"}'; \
                  while read -t 0.001 line; [ $? -gt 128 ]; do :; done; echo $n";
    let mut program = Program::of(Command::new("bash").args(["-c", script]));
    assert_eq!(program.line()["event"], "ready");
    let mut sent = 0;
    for _ in 0..200 {
        // Standard signals are not queued, so the previous one must have been handled.
        let pending = || {
            let status =
                fs::read_to_string(format!("/proc/{}/status", program.pid())).expect("it runs");
            status
                .lines()
                .any(|line| line.starts_with("ShdPnd") && !line.ends_with(&"0".repeat(16)))
        };
        while pending() {
            thread::yield_now();
        }
        kill(Pid::from_raw(program.pid()), Signal::SIGUSR1).expect("it runs");
        sent += 1;
        let _patched = patch(&program, &realtime(HOUR));
        assert!(restore(program.pid(), None).expect("it runs"));
    }
    thread::sleep(Duration::from_millis(100));
    program.input = None;
    assert_eq!(program.line(), sent);
}

#[test]
fn a_process_that_waits_for_a_vfork_is_patched() {
    let mut program = Program::start("vfork --sleep 1500");
    program.tell();
    program.wait_for_state('D');
    let start = Instant::now();
    let _patched = patch(&program, &realtime(HOUR));
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    let end = program.line();
    assert_near("realtime", &end["realtime"], HOUR, MILLISECOND);
    assert_near("realtime", &program.ask()["realtime"], HOUR, MILLISECOND);
}

#[test]
fn a_32_bit_process_is_refused() {
    let path =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("pause32-{}", std::process::id()));
    // mov eax, 29 (pause); int 0x80; jmp back
    let code = [0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7];
    let mut elf: Vec<u8> = b"\x7fELF\x01\x01\x01".to_vec();
    elf.resize(16, 0);
    let base: u32 = 0x0804_8000;
    let start: u32 = 52 + 32;
    let half = |elf: &mut Vec<u8>, value: u16| elf.extend(value.to_le_bytes());
    let word = |elf: &mut Vec<u8>, value: u32| elf.extend(value.to_le_bytes());
    half(&mut elf, 2); // an executable
    half(&mut elf, 3); // i386
    for value in [1, base + start, 52, 0, 0] {
        word(&mut elf, value);
    }
    for value in [52, 32, 1, 0, 0, 0] {
        half(&mut elf, value);
    }
    let length = start + code.len() as u32;
    for value in [1, 0, base, base, length, length, 5, 4096] {
        word(&mut elf, value);
    }
    elf.extend(code);
    fs::write(&path, elf).expect("writable");
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
    let child = Command::new(&path).spawn();
    let refused = child.map(|mut child| {
        thread::sleep(Duration::from_millis(50));
        let refused = Patcher::new(OWNER).patch(child.id().cast_signed(), &realtime(HOUR));
        let is_alive = child.try_wait().expect("our child").is_none();
        child.kill().expect("our child");
        child.wait().expect("our child");
        (refused, is_alive)
    });
    fs::remove_file(&path).expect("ours");
    match refused {
        Ok((refused, is_alive)) => {
            assert!(is_alive);
            assert!(
                matches!(refused, Err(Refusal::Unfit(Unfit::Compat) | Refusal::NoVdso)),
                "{refused:?}"
            );
        }
        Err(error) => println!("skipped: this kernel runs no 32-bit programs ({error})"),
    }
}

/// The vDSO of a process.
fn image(pid: i32) -> Vec<u8> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
    let line = maps.lines().find(|line| line.ends_with("[vdso]")).expect("it has one");
    let (start, rest) = line.split_once('-').expect("a range");
    let (end, _) = rest.split_once(' ').expect("a range");
    let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).expect("a number"));
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("it runs");
    let mut image = vec![0; (end - start) as usize];
    memory.read_exact_at(&mut image, start).expect("readable");
    image
}

/// The end of an ELF image whose last part is its section headers.
fn elf_end(image: &[u8]) -> usize {
    let number = |at: usize, length: usize| {
        image[at..at + length].iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
    };
    number(40, 8) + number(58, 2) * number(60, 2)
}

#[test]
fn the_image_is_put_back_byte_by_byte() {
    let program = Program::start("read");
    let other = Program::start("read");
    let pristine = image(other.pid());
    assert_eq!(image(program.pid()), pristine);
    for _ in 0..3 {
        let _patched = patch(&program, &realtime(HOUR));
        let end = elf_end(&pristine);
        assert_ne!(image(program.pid())[..end], pristine[..end]);
        assert!(restore(program.pid(), None).expect("it runs"));
        assert_eq!(image(program.pid())[..end], pristine[..end]);
    }
    assert_eq!(image(other.pid()), pristine);
}

#[test]
fn readers_see_one_skew_or_the_other() {
    const OFFSETS: [i64; 2] = [HOUR, -7 * HOUR];
    // True until it is patched.
    let program = Program::start(&format!(
        "hammer --all --offset 0 --offset {} --offset {}",
        OFFSETS[0], OFFSETS[1]
    ));
    // They differ in all fields, so that torn reads show. One needs a division, the other must not divide.
    let all = |skew| from_now(&Clock::ALL, LONG, skew);
    let skews = [
        all(Skew { offset: OFFSETS[0], step: 5 * HOUR, period_ns: 0, ..Skew::TRUE }),
        all(Skew { offset: OFFSETS[1] - HOUR, step: HOUR, period_ns: 1 << 62, ..Skew::TRUE }),
    ];
    let mut patched = {
        let patcher = Patcher::new(OWNER);
        patcher.patch(program.pid(), &skews[0]).expect("it can be patched")
    };
    let end = Instant::now() + Duration::from_secs(5);
    let mut sets = 0;
    while Instant::now() < end {
        sets += 1;
        patched.set(&skews[sets % 2]).expect("it runs");
        thread::sleep(Duration::from_micros(500));
    }
    let report = program.finish();
    println!("{sets} changes: {report}");
    assert!(sets > 1000, "{sets}");
    assert_eq!(report["wrong"], 0, "{report}");
}

#[test]
fn patching_under_load_crashes_nothing() {
    let hammer = Program::start(&format!("hammer --all --offset 0 --offset {HOUR}"));
    let maker = Program::start("threads");
    let forker = Program::start("forks");
    let patcher = Patcher::new(OWNER);
    let skew = from_now(&Clock::ALL, LONG, Skew { offset: HOUR, ..Skew::TRUE });
    let mut longest = Duration::ZERO;
    for _ in 0..200 {
        for program in [&hammer, &maker, &forker] {
            let start = Instant::now();
            patcher.patch(program.pid(), &skew).expect("it can be patched");
            longest = longest.max(start.elapsed());
            assert!(restore(program.pid(), Some(OWNER)).expect("it runs"));
        }
    }
    println!("the longest patch took {longest:?}");
    println!("{}", maker.finish());
    println!("{}", forker.finish());
    let report = hammer.finish();
    println!("{report}");
    assert_eq!(report["wrong"], 0, "{report}");
}

#[test]
fn a_patcher_may_be_killed_at_any_moment() {
    let target = Program::start(&format!("hammer --threads 4 --all --offset 0 --offset {HOUR}"));
    let mut reader = Program::start("read");
    for moment in 0..50u64 {
        // Pseudo-random microseconds. A round takes some hundreds.
        let wait = Duration::from_micros(moment.wrapping_mul(7919) % 5000);
        for pid in [target.pid(), reader.pid()] {
            let owner = 100 + moment;
            let mut patcher = Program::start(&format!("skew-loop --owner {owner} {pid}"));
            thread::sleep(wait);
            patcher.child.kill().expect("it runs");
            patcher.child.wait().expect("our child");
            thread::sleep(Duration::from_millis(2));
            let state = state(pid.cast_unsigned());
            assert!(matches!(state, 'R' | 'S'), "it is {state}");
            let _ = restore(pid, None).expect("it runs");
            assert_eq!(owner_of(pid).expect("it runs"), None);
        }
        assert_realtime(&reader.ask(), 0);
        let patcher = Patcher::new(OWNER);
        patcher.patch(reader.pid(), &realtime(HOUR)).expect("it can be patched again");
        assert_realtime(&reader.ask(), HOUR);
        assert!(restore(reader.pid(), Some(OWNER)).expect("it runs"));
    }
    let report = target.finish();
    println!("{report}");
    assert_eq!(report["wrong"], 0, "{report}");
}
