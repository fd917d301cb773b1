//! Absolute deadlines: while the kernel reads a deadline on a faulted clock, it is replaced by the
//! corresponding true time.
//!
//! The kernel only accepts deadlines in the caller's memory. The true time is therefore written
//! there just before the kernel reads it, and the original is restored at once. Threads may share
//! the variable.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_probe_read_user, bpf_probe_write_user},
};
use injector_common::{
    model::clock::Clock,
    probe::{DeadlineKey, Replaced, TimerKey},
};

use crate::{
    arch::calls,
    atomic, current,
    kernel::field,
    maps,
    skew::{self, count},
    task::{self, Arguments},
};

const SECOND: i64 = 1_000_000_000;

/// `CLOCK_REALTIME`.
const REALTIME: i32 = 0;

/// `CLOCK_MONOTONIC`.
const MONOTONIC: i32 = 1;

/// `TIMER_ABSTIME` and `TFD_TIMER_ABSTIME`.
const ABSOLUTE: u64 = 1;

/// Offset of the first expiration in `struct itimerspec`, after the interval.
const FIRST_EXPIRATION: u64 = 16;

/// The system calls that take deadlines.
#[derive(Clone, Copy)]
enum Call {
    /// `clock_nanosleep(clock, flags, deadline, …)`.
    Nanosleep,
    /// `timerfd_settime(fd, flags, itimerspec, …)`.
    TimerFd,
    /// `timer_settime(timer, flags, itimerspec, …)`.
    Timer,
    /// `futex(…, operation, …, deadline, …)`.
    Futex,
    /// `futex_waitv(…, …, …, deadline, clock)`.
    FutexWaitv,
    /// `mq_timedsend` and `mq_timedreceive(…, …, …, …, deadline)`.
    MessageQueue,
}

impl Call {
    /// The current call, if it takes a deadline.
    #[inline(always)]
    fn of(arguments: Arguments) -> Option<Self> {
        Some(match arguments.call() {
            calls::CLOCK_NANOSLEEP => Self::Nanosleep,
            calls::TIMERFD_SETTIME => Self::TimerFd,
            calls::TIMER_SETTIME => Self::Timer,
            calls::FUTEX => Self::Futex,
            calls::FUTEX_WAITV => Self::FutexWaitv,
            calls::MQ_TIMEDSEND | calls::MQ_TIMEDRECEIVE => Self::MessageQueue,
            _ => return None,
        })
    }

    /// The address of the deadline; 0 if there is none.
    #[inline(always)]
    fn pointer(self, arguments: Arguments) -> u64 {
        let absolute = |pointer| if arguments.second() & ABSOLUTE != 0 { pointer } else { 0 };
        match self {
            Self::Nanosleep => absolute(arguments.third()),
            Self::TimerFd | Self::Timer => match absolute(arguments.third()) {
                0 => 0,
                pointer => pointer.wrapping_add(FIRST_EXPIRATION),
            },
            Self::Futex => match futex_clock(arguments.second()) {
                Some(_) => arguments.fourth(),
                None => 0,
            },
            Self::FutexWaitv => arguments.fourth(),
            Self::MessageQueue => arguments.fifth(),
        }
    }

    /// The ID of the clock that the deadline refers to, if known.
    #[inline(always)]
    fn clock(self, arguments: Arguments) -> Option<i32> {
        match self {
            Self::Nanosleep => Some(arguments.first() as i32),
            Self::TimerFd => timerfd_clock(arguments.first() as i32),
            Self::Timer => timer_clock(arguments.first() as i32),
            Self::Futex => futex_clock(arguments.second()),
            Self::FutexWaitv => Some(arguments.fifth() as i32),
            Self::MessageQueue => Some(REALTIME),
        }
    }
}

/// Runs before the kernel reads a time: replaces it by the true one.
#[inline(always)]
pub fn is_read() {
    if !current::is_in_target() || !skew::has_lease() {
        return;
    }
    let arguments = Arguments::current();
    let Some(call) = Call::of(arguments) else { return };
    let pointer = call.pointer(arguments);
    if pointer == 0 {
        return;
    }
    match call.clock(arguments) {
        Some(clock) => replace(pointer, clock),
        None => count(|counters| &mut counters.left),
    }
}

/// Runs after the kernel has read it: restores the caller's deadline.
#[inline(always)]
pub fn was_read() {
    if !current::is_in_target() {
        return;
    }
    let arguments = Arguments::current();
    let Some(call) = Call::of(arguments) else { return };
    let pointer = call.pointer(arguments);
    if pointer != 0 {
        put_back(pointer);
    }
}

/// Runs after `timer_create(clock, event, timer)`: remembers the timer's clock.
#[inline(always)]
pub fn timer_created() {
    if !current::is_in_target() {
        return;
    }
    let arguments = Arguments::current();
    // SAFETY: the helper checks the address.
    let Ok(timer) = (unsafe { bpf_probe_read_user(arguments.third() as *const i32) }) else {
        return;
    };
    // If the map is full, the timer's deadlines stay unchanged.
    let _ = maps::TIMERS.insert(
        TimerKey { process: current::process_and_thread().0, timer },
        arguments.first() as i32,
        0,
    );
}

/// The clock of a futex operation with an absolute deadline.
#[inline(always)]
fn futex_clock(operation: u64) -> Option<i32> {
    const PRIVATE: u64 = 128;
    const CLOCK_REALTIME: u64 = 256;
    const LOCK_PI: u64 = 6;
    const WAIT_BITSET: u64 = 9;
    const WAIT_REQUEUE_PI: u64 = 11;
    const LOCK_PI2: u64 = 13;

    let operation = operation & 0xffff_ffff;
    match operation & !(PRIVATE | CLOCK_REALTIME) {
        LOCK_PI => Some(REALTIME),
        WAIT_BITSET | WAIT_REQUEUE_PI | LOCK_PI2 => {
            Some(if operation & CLOCK_REALTIME == 0 { MONOTONIC } else { REALTIME })
        }
        _ => None,
    }
}

/// The clock of a timerfd. For any other file the value is arbitrary, but then the call fails
/// anyway.
#[inline(always)]
fn timerfd_clock(fd: i32) -> Option<i32> {
    let files: u64 = field(task::address(), maps::TASK_FILES.load())?;
    let table: u64 = field(files, maps::FILES_TABLE.load())?;
    let length: u32 = field(table, maps::TABLE_LENGTH.load())?;
    if fd < 0 || fd as u32 >= length {
        return None;
    }
    let files: u64 = field(table, maps::TABLE_FILES.load())?;
    let file: u64 = field(files, 8 * fd as u64)?;
    let data: u64 = field(file, maps::FILE_DATA.load())?;
    field(data, maps::TIMERFD_CLOCK.load())
}

/// The clock of a POSIX timer that was created while the probes were active.
#[inline(always)]
fn timer_clock(timer: i32) -> Option<i32> {
    let key = TimerKey { process: current::process_and_thread().0, timer };
    // SAFETY: an entry replaced meanwhile yields another timer's clock, as does the call then.
    unsafe { maps::TIMERS.get(&key) }.copied()
}

/// Replaces the deadline at `pointer`, which refers to the clock with this ID.
#[inline(never)]
fn replace(pointer: u64, clock: i32) {
    let Some(clock) = Clock::of_id(clock) else { return };
    let key = DeadlineKey { pointer, process: current::process_and_thread().0, reserved: 0 };
    if let Some(replaced) = maps::REPLACED.get_ptr_mut(&key) {
        // Another thread is waiting with the same variable. If that thread is just restoring it,
        // this deadline stays unskewed.
        // SAFETY: in the map, aligned.
        if unsafe { atomic::fetch_add(&raw mut (*replaced).calls, 1) } == 0 {
            count(|counters| &mut counters.left);
        }
        return;
    }
    // SAFETY: the helper checks the address.
    let Ok(wanted) = (unsafe { bpf_probe_read_user(pointer as *const [i64; 2]) }) else { return };
    let [seconds, ns] = wanted;
    // Skip values that the kernel rejects or does not wait for: 0 disarms a timer. Larger values
    // never expire.
    let is_sound = (0..i64::MAX / SECOND).contains(&seconds) && (0..SECOND).contains(&ns);
    if !is_sound || seconds | ns == 0 {
        return;
    }
    let shown = seconds * SECOND + ns;
    let when = skew::with(|skew| {
        // A clock without a skew: unchanged.
        if skew.clocks[clock as usize].lease == i64::MIN {
            return Some(shown);
        }
        // A sentinel that fits into a register: the clock never reaches the deadline.
        Some(skew.when(clock, shown).unwrap_or(i64::MIN))
    });
    let Some(when) = when else { return };
    if when == shown {
        return;
    }
    if when == i64::MIN {
        count(|counters| &mut counters.left);
        return;
    }
    // A time before the epoch has passed; 0 would disarm a timer.
    let when = if when > 0 { when as u64 } else { 1 };
    let given = [(when / SECOND as u64).cast_signed(), (when % SECOND as u64).cast_signed()];
    let replaced = Replaced { wanted, given, calls: 1 };
    if maps::REPLACED.insert(&key, &replaced, u64::from(BPF_NOEXIST)).is_err() {
        count(|counters| &mut counters.left);
        return;
    }
    // SAFETY: the helper checks the address.
    if unsafe { bpf_probe_write_user(pointer as *mut [i64; 2], &raw const given) }.is_ok() {
        count(|counters| &mut counters.deadlines);
    } else {
        count(|counters| &mut counters.failed);
        let _ = maps::REPLACED.remove(&key);
    }
}

/// Restores the deadline at `pointer`, unless another thread is still reading it.
#[inline(never)]
fn put_back(pointer: u64) {
    let key = DeadlineKey { pointer, process: current::process_and_thread().0, reserved: 0 };
    let Some(replaced) = maps::REPLACED.get_ptr_mut(&key) else { return };
    // SAFETY: in the map, aligned.
    let calls = unsafe { atomic::fetch_add(&raw mut (*replaced).calls, 1_u64.wrapping_neg()) };
    if calls != 1 {
        return;
    }
    // SAFETY: in the map; not written by others while no call uses it.
    let Replaced { wanted, given, .. } = unsafe { *replaced };
    let pointer = pointer as *mut [i64; 2];
    // SAFETY: the helper checks the address.
    let now = unsafe { bpf_probe_read_user(pointer) };
    // Unless the process has changed it meanwhile.
    if now.is_ok_and(|now| now[0] == given[0] && now[1] == given[1]) {
        // SAFETY: the helper checks the address.
        if unsafe { bpf_probe_write_user(pointer, &raw const wanted) }.is_err() {
            count(|counters| &mut counters.failed);
        }
    }
    let _ = maps::REPLACED.remove(&key);
}
