//! The machine code against the model, and plans on this machine's own vDSO.

use std::{
    ffi::{c_int, c_void},
    fs::File,
    mem,
    num::NonZeroUsize,
    os::unix::fs::FileExt as _,
    ptr::{self, NonNull},
    sync::atomic::{AtomicI32, AtomicI64, AtomicU32, Ordering},
};

use injector_common::model::clock::{CLOCKS, Clock, FREEZE, STROBE, Skew, Span};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use procfs::process::MMapPath;
use proptest::prelude::*;

use super::{
    MAX_PLANS, Patcher, block,
    image::{Plan, Unfit},
};
use crate::arch::{
    self,
    vdso::{Block, Function, Header, Slot, UnknownLayout},
};

const SECOND: i64 = 1_000_000_000;

fn machine() -> &'static dyn arch::vdso::Hook {
    arch::vdso_hook().expect("this architecture has a hook")
}

/// The vDSO of this process, as it is mapped.
fn vdso() -> Vec<u8> {
    let maps = procfs::process::Process::myself().and_then(|process| process.maps()).expect("maps");
    let map = maps.iter().find(|map| map.pathname == MMapPath::Vdso).expect("a vDSO");
    let mut image = vec![0; (map.address.1 - map.address.0) as usize];
    let memory = File::open("/proc/self/mem").expect("our own memory");
    memory.read_exact_at(&mut image, map.address.0).expect("it is readable");
    image
}

/// The hook in memory of its own, with functions of ours in place of the originals.
struct Hook {
    start: NonNull<c_void>,
}

type ClockGettime = unsafe extern "C" fn(u64, *mut libc::timespec) -> c_int;
type Gettimeofday = unsafe extern "C" fn(*mut libc::timeval, *mut u64) -> c_int;
type Time = unsafe extern "C" fn(*mut i64) -> i64;

/// What the fake originals say; tests of a thread each have their own.
#[derive(Default)]
struct Original {
    seconds: AtomicI64,
    nanoseconds: AtomicI64,
    error: AtomicI32,
    last_id: AtomicI32,
    zones: AtomicU32,
}

std::thread_local! {
    static ORIGINAL: Original = Original::default();
}

extern "C" fn clock_gettime(id: c_int, time: *mut libc::timespec) -> c_int {
    // The stack is aligned as the ABI has it, if this is spilled with an aligned store.
    ORIGINAL.with(|original| {
        original.last_id.store(id, Ordering::Relaxed);
        let error = original.error.load(Ordering::Relaxed);
        if error == 0 {
            // SAFETY: the tests give valid pointers.
            unsafe {
                (*time).tv_sec = original.seconds.load(Ordering::Relaxed);
                (*time).tv_nsec = original.nanoseconds.load(Ordering::Relaxed);
            }
        }
        error
    })
}

extern "C" fn gettimeofday(time: *mut libc::timeval, zone: *mut u64) -> c_int {
    assert!(time.is_null() && !zone.is_null());
    ORIGINAL.with(|original| original.zones.fetch_add(1, Ordering::Relaxed));
    // SAFETY: the tests give valid pointers.
    unsafe { *zone = 77 };
    0
}

extern "C" fn time(_: *mut i64) -> i64 {
    -77
}

impl Hook {
    fn new(skew: Skew) -> Self {
        let mut code = machine().code().to_vec();
        let header = Header {
            magic: block::MAGIC,
            owner: 1,
            size: code.len() as u32,
            armed: 1,
            entries: Default::default(),
        };
        let block = Block::new(header, skew);
        code[..size_of::<Block>()].copy_from_slice(block::as_bytes(&block));
        let originals: [*const (); 3] =
            [clock_gettime as *const (), gettimeofday as *const (), time as *const ()];
        for (function, original) in Function::ALL.into_iter().zip(originals) {
            let (at, length) = machine().trampoline(function);
            // mov rax, original; jmp rax
            let mut jump = vec![0x48, 0xb8];
            jump.extend((original.addr() as u64).to_le_bytes());
            jump.extend([0xff, 0xe0]);
            assert!(jump.len() <= length);
            code[at..at + jump.len()].copy_from_slice(&jump);
        }
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE | ProtFlags::PROT_EXEC;
        let length = NonZeroUsize::new(code.len()).expect("not empty");
        // SAFETY: a new mapping, into which as much is written as it has.
        let start = unsafe {
            let start =
                mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE).expect("memory");
            ptr::copy_nonoverlapping(code.as_ptr(), start.cast().as_ptr(), code.len());
            start
        };
        Self { start }
    }

    fn address(&self, function: Function) -> *mut c_void {
        // SAFETY: within the mapping.
        unsafe { self.start.as_ptr().byte_add(machine().replacement(function)) }
    }

    fn set(&self, index: usize, skew: Skew) {
        let block = self.start.cast::<Block>().as_ptr();
        // SAFETY: the mapping begins with a block, and is used by this thread alone.
        unsafe {
            (*block).slots[index].skew = skew;
            (*block).current = (index * size_of::<Slot>()) as u64;
        }
    }

    fn clock_gettime(&self, id: i32) -> Result<(i64, i64), c_int> {
        let mut time = libc::timespec { tv_sec: -1, tv_nsec: -1 };
        // SAFETY: the hook has the ABI of the function. The upper half of an int's register is undefined.
        let result = unsafe {
            let function: ClockGettime = mem::transmute(self.address(Function::ClockGettime));
            function(u64::from(id.cast_unsigned()) | 0xdead_beef << 32, &raw mut time)
        };
        if result == 0 { Ok((time.tv_sec, time.tv_nsec)) } else { Err(result) }
    }

    fn gettimeofday(&self, wants_time: bool, zone: Option<&mut u64>) -> (c_int, i64, i64) {
        let mut time = libc::timeval { tv_sec: -1, tv_usec: -1 };
        let pointer = if wants_time { &raw mut time } else { ptr::null_mut() };
        let zone = zone.map_or(ptr::null_mut(), ptr::from_mut);
        // SAFETY: the hook has the ABI of the function.
        let result = unsafe {
            let function: Gettimeofday = mem::transmute(self.address(Function::Gettimeofday));
            function(pointer, zone)
        };
        (result, time.tv_sec, time.tv_usec)
    }

    fn time(&self, pointer: *mut i64) -> i64 {
        // SAFETY: the hook has the ABI of the function.
        unsafe {
            let function: Time = mem::transmute(self.address(Function::Time));
            function(pointer)
        }
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and not used any more.
        unsafe { munmap(self.start, machine().code().len()) }.expect("it is mapped");
    }
}

fn originally(seconds: i64, nanoseconds: i64, error: i32) {
    ORIGINAL.with(|original| {
        original.seconds.store(seconds, Ordering::Relaxed);
        original.nanoseconds.store(nanoseconds, Ordering::Relaxed);
        original.error.store(error, Ordering::Relaxed);
    });
}

fn last_id() -> i32 {
    ORIGINAL.with(|original| original.last_id.load(Ordering::Relaxed))
}

fn duration() -> BoxedStrategy<i64> {
    prop_oneof![
        Just(0),
        -10..10i64,
        -10 * SECOND..10 * SECOND,
        -(1i64 << 61)..1 << 61,
        (-100..100i64).prop_map(|seconds| seconds * SECOND),
    ]
    .boxed()
}

fn time_ns() -> BoxedStrategy<i64> {
    prop_oneof![0..1000i64, 0..4 * SECOND, 0..1i64 << 62].boxed()
}

fn rate() -> BoxedStrategy<i64> {
    prop_oneof![Just(0), -100_000..100_000i64, -(1i64 << 33)..1 << 33, any::<i64>()].boxed()
}

fn span(time: i64) -> BoxedStrategy<Span> {
    let base = prop_oneof![Just(time), time_ns(), (time - 100..time + 100)];
    let lease = prop_oneof![
        4 => Just(i64::MAX),
        1 => Just(i64::MIN),
        1 => time - 2..time + 2,
        1 => any::<i64>(),
    ];
    (base, lease).prop_map(|(base, lease)| Span { base, lease }).boxed()
}

prop_compose! {
    fn skew(time: i64)(
        flags in 0..4u64,
        offset in duration(),
        (drift, slew) in (rate(), rate()),
        slew_ns in time_ns(),
        step in prop_oneof![duration(), any::<i64>()].boxed(),
        first_ns in time_ns(),
        period_ns in prop_oneof![Just(0), time_ns(), any::<i64>()].boxed(),
        clocks in prop::array::uniform5(span(time)),
    ) -> Skew {
        Skew { flags, offset, drift, slew, slew_ns, step, first_ns, period_ns, clocks }
    }
}

fn case() -> BoxedStrategy<(i64, Skew)> {
    time_ns().prop_flat_map(|time| (Just(time), skew(time))).boxed()
}

fn split(time: i64) -> (i64, i64) {
    (time.div_euclid(SECOND), time.rem_euclid(SECOND))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn the_hook_reads_what_the_model_says((time, skew) in case(), id in -2..18i32, index in 0..2usize) {
        let hook = Hook::new(Skew::TRUE);
        hook.set(index, skew);
        let (seconds, nanoseconds) = split(time);
        originally(seconds, nanoseconds, 0);
        let expected = Clock::of_id(id).map_or(time, |clock| skew.read(clock, time));
        prop_assert_eq!(hook.clock_gettime(id), Ok(split(expected)));
        prop_assert_eq!(last_id(), id);

        let (seconds, nanoseconds) = split(skew.read(Clock::Realtime, time));
        prop_assert_eq!(hook.gettimeofday(true, None), (0, seconds, nanoseconds / 1000));
        prop_assert_eq!(last_id(), libc::CLOCK_REALTIME);
        let mut stored = 0;
        prop_assert_eq!(hook.time(&raw mut stored), seconds);
        prop_assert_eq!(stored, seconds);
        prop_assert_eq!(last_id(), libc::CLOCK_REALTIME_COARSE);
        prop_assert_eq!(hook.time(ptr::null_mut()), seconds);
    }
}

#[test]
fn whole_seconds_are_split_right() {
    let clocks = [Span { base: 0, lease: i64::MAX }; CLOCKS];
    for seconds in -1000..1000i64 {
        for around in -1..=1 {
            let offset = seconds * SECOND + around;
            let hook = Hook::new(Skew { offset, clocks, ..Skew::TRUE });
            originally(0, 0, 0);
            assert_eq!(hook.clock_gettime(7), Ok(split(offset)));
        }
    }
}

#[test]
fn errors_of_the_original_are_passed_on() {
    let clocks = [Span { base: 0, lease: i64::MAX }; CLOCKS];
    let hook = Hook::new(Skew { offset: SECOND, clocks, ..Skew::TRUE });
    originally(0, 0, -libc::EPERM);
    assert_eq!(hook.clock_gettime(0), Err(-libc::EPERM));
    assert_eq!(hook.gettimeofday(true, None), (-libc::EPERM, -1, -1));
    assert_eq!(hook.time(ptr::null_mut()), -77, "the original is asked");
}

#[test]
fn the_time_zone_is_the_originals() {
    let hook = Hook::new(Skew::TRUE);
    originally(5, 6000, 0);
    let mut zone = 0;
    assert_eq!(hook.gettimeofday(false, Some(&mut zone)), (0, -1, -1));
    assert_eq!(zone, 77);
    assert_eq!(hook.gettimeofday(true, Some(&mut zone)), (0, 5, 6));
    assert_eq!(hook.gettimeofday(false, None), (0, -1, -1));
    assert_eq!(ORIGINAL.with(|original| original.zones.load(Ordering::Relaxed)), 2);
}

#[test]
fn strobe_and_freeze_are_in_what_is_tested() {
    // The flags that are drawn above are all there are.
    assert_eq!(FREEZE | STROBE, 3);
}

#[test]
fn the_hook_is_small_enough_for_all_kernels() {
    let length = machine().code().len();
    println!("{length} bytes");
    assert!(length <= 896, "{length}");
    assert!(machine().code()[..size_of::<Block>()].iter().all(|byte| *byte == 0));
}

#[test]
fn this_machine_is_understood() {
    let image = vdso();
    let plan = Plan::new(&image).expect("it can be patched");
    assert!(image[plan.at()..].iter().all(|byte| *byte == 0));
    for (entry, _) in plan.jumps() {
        assert_eq!(plan.relocate(entry), Ok(None));
        assert_eq!(plan.relocate(entry + machine().jump_length()), Ok(None));
    }
}

#[test]
fn a_patched_image_describes_itself() {
    let image = vdso();
    let plan = Plan::new(&image).expect("it can be patched");
    let mut patched = image.clone();
    assert!(block::find(&patched).is_none());
    let header = plan.header(7);
    let at = plan.at();
    let body = plan.body(Skew::TRUE);
    patched[at..at + size_of::<Header>()].copy_from_slice(block::as_bytes(&header));
    let body_at = at + size_of::<Header>();
    patched[body_at..body_at + body.len()].copy_from_slice(&body);
    let found = block::find(&patched).expect("it is there");
    assert_eq!((found.at, found.owner()), (at, Some(7)));
    assert!(!found.is_complete(&patched));
    for (entry, jump) in plan.jumps() {
        patched[entry..entry + jump.len()].copy_from_slice(jump);
    }
    assert!(found.is_complete(&patched));
    assert!(plan.fits(&found, &patched));
    assert_eq!(*found.pristine(&patched), *image);
}

#[test]
fn unknown_images_are_refused() {
    let image = vdso();
    assert_eq!(Plan::new(&[]).err(), Some(UnknownLayout::Elf.into()));
    let mut compat = image.clone();
    compat[4] = 1;
    assert_eq!(Plan::new(&compat).err(), Some(Unfit::Compat));
    let mut full = image.clone();
    *full.last_mut().expect("not empty") = 1;
    assert!(matches!(Plan::new(&full), Err(Unfit::NoRoom { .. })));

    let entries: Vec<usize> = Plan::new(&image).expect("fit").jumps().map(|(at, _)| at).collect();
    let [entry, other, _] = entries[..] else { panic!("three functions") };
    let with = |at: usize, bytes: &[u8]| {
        let mut image = image.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        Plan::new(&image).err()
    };
    // A call, a return, a jump and no instruction at the entry.
    for bytes in [&[0xe8, 0, 0, 0, 0][..], &[0xc3], &[0x90, 0xeb, 0x10], &[0x74, 0x10]] {
        let refusal = with(entry, bytes);
        assert!(
            matches!(refusal, Some(Unfit::UnknownLayout(UnknownLayout::Flow(_)))),
            "{bytes:x?}: {refusal:?}"
        );
    }
    let refusal = with(entry, &[0x06]);
    assert!(
        matches!(refusal, Some(Unfit::UnknownLayout(UnknownLayout::Instruction(_)))),
        "{refusal:?}"
    );
    // A branch from elsewhere to within what is replaced, behind instructions that keep the code in step.
    let distance = (entry + 1).wrapping_sub(other + 5) as u32;
    let mut jump = vec![0xe9];
    jump.extend(distance.to_le_bytes());
    let rest = vec![0x90; 16];
    let refusal = with(other, &[&jump[..], &rest].concat());
    assert!(matches!(refusal, Some(Unfit::UnknownLayout(_))), "{refusal:?}");
}

#[test]
fn what_is_cut_off_or_damaged_does_not_panic() {
    let image = vdso();
    for length in (0..image.len()).step_by(7) {
        let _ = Plan::new(&image[..length]);
    }
    for at in 0..image.len() {
        let mut damaged = image.clone();
        damaged[at] ^= 0xff;
        let _ = Plan::new(&damaged);
    }
}

#[test]
fn numbers_at_their_ends_do_not_panic() {
    let image = vdso();
    for at in (0..image.len() - 8).step_by(4) {
        for number in [u64::MAX, u64::MAX - 4, 1 << 63, 0xffff_ffff, 0xffff, 0] {
            let mut forged = image.clone();
            forged[at..at + 8].copy_from_slice(&number.to_le_bytes());
            let _ = Plan::new(&forged);
        }
    }
}

#[test]
fn processes_that_change_their_image_take_no_memory() {
    let image = vdso();
    let patcher = Patcher::new(1);
    for number in 0..100 {
        let mut forged = image.clone();
        *forged.last_mut().expect("not empty") = number;
        let planned = patcher.plan(None, &forged);
        assert_eq!(planned.is_ok(), number == 0);
    }
    assert!(patcher.plans.lock().expect("no panic").len() <= MAX_PLANS);
}
