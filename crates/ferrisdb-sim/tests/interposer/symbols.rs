//! The C library's clocks, randomness and threads, as this test program defines them: whoever calls one while a seed runs on his thread has gone past the doors, and the program
//! aborts with the way that led there. Otherwise, and for those on the [list](EXCUSED), the real one is called.
//!
//! A program's own definition of a symbol goes before the library's, for the standard library and for all crates that are linked in. So nothing has to be changed in them, and nothing of this is
//! in any program but this one: a clock that looks first whether anybody simulates would cost each of its readers more than the reading.
//!
//! With the environment variable `FERRISDB_INTERPOSER_TELLS` it tells all of them and goes on.
//!
//! This is the only file of the simulator with `unsafe`: to define what C calls, and to find the real ones, there is no other way.

use std::backtrace::Backtrace;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::io::Write as _;
use std::mem::transmute;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, PoisonError};

/// Who may call what, though a seed runs: a part of a function's name, and why it does no harm.
const EXCUSED: &[(&str, &str)] = &[
    (
        "<turmoil::config::Config as core::default::Default>",
        "the beginning of time, in place of which a world puts its own",
    ),
    (
        "tokio::time::clock::Clock",
        "where paused time begins: only what goes by from there on is looked at, and that is simulated",
    ),
    (
        "turmoil::world::World::new",
        "its maps keep the order of insertion. The keys of the hasher, which all later maps of this thread share, are others in each process: \
         `a_seed_decides_everything` compares two",
    ),
    ("MetricsBatch", "tokio measures how long it was busy, for whoever asks, and nobody does"),
];

/// An excuse holds for those so near to the call. Hashers are far from whoever makes a map.
const NEAR_FRAMES: usize = 22;

thread_local! {
    static IS_ARMED: Cell<bool> = const { Cell::new(false) };
}

/// Ways that were looked at and led through somebody excused.
static KNOWN_WAYS: Mutex<BTreeSet<Vec<usize>>> = Mutex::new(BTreeSet::new());

/// Runs `body`; until it has ended, no call past the doors from this thread is let through.
pub(crate) fn guarded<T>(body: impl FnOnce() -> T) -> T {
    IS_ARMED.set(true);
    let output = body();
    IS_ARMED.set(false);
    output
}

/// Aborts if a seed runs on this thread and nobody on the way here is excused.
fn judge(what: &str) {
    if !IS_ARMED.get() {
        return;
    }
    // What follows may ask for the time, or for memory, as it likes.
    IS_ARMED.set(false);
    let way = way_here();
    let known = || KNOWN_WAYS.lock().unwrap_or_else(PoisonError::into_inner);
    let is_known = known().contains(&way);
    if !is_known {
        let told = Backtrace::force_capture().to_string();
        let near: Vec<&str> = told.lines().take(2 * NEAR_FRAMES).collect();
        let is_near = |name: &str| near.iter().any(|line| line.contains(name));
        if !EXCUSED.iter().any(|(name, _)| is_near(name)) {
            // Not eprintln!: the test harness would keep it back, and lose it.
            writeln!(std::io::stderr(), "{what} was called past the doors while a seed ran:\n{told}").ok();
            if std::env::var_os("FERRISDB_INTERPOSER_TELLS").is_none() {
                std::process::abort();
            }
        }
        known().insert(way);
    }
    IS_ARMED.set(true);
}

/// The addresses of those who called.
fn way_here() -> Vec<usize> {
    /// Enough to tell ways apart. Each of them is looked at once.
    const FRAMES_MAX: usize = 10;

    extern "C" fn note(context: *mut c_void, way: *mut c_void) -> c_int {
        // SAFETY: `way` is the vector that was handed in below, which outlives the walk and is nobody else's during it.
        let way = unsafe { &mut *way.cast::<Vec<usize>>() };
        // SAFETY: the unwinder hands in its own context.
        way.push(unsafe { _Unwind_GetIP(context) });
        // 0: go on. Anything else ends the walk.
        c_int::from(way.len() >= FRAMES_MAX)
    }

    let mut way: Vec<usize> = Vec::with_capacity(FRAMES_MAX);
    // SAFETY: the function is called for each frame with the pointer given here, and not after this has returned.
    unsafe { _Unwind_Backtrace(note, (&raw mut way).cast()) };
    way
}

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, symbol: *const c_char) -> *mut c_void;
    fn _Unwind_Backtrace(note: extern "C" fn(*mut c_void, *mut c_void) -> c_int, data: *mut c_void) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

/// The library's own function of this name.
fn real(cache: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
    /// `RTLD_NEXT`: the next definition behind this program's.
    const NEXT: *mut c_void = std::ptr::without_provenance_mut(usize::MAX);

    let mut found = cache.load(Ordering::Relaxed);
    if found.is_null() {
        // SAFETY: the name ends with a zero, and `RTLD_NEXT` is a handle that is always valid.
        found = unsafe { dlsym(NEXT, name.as_ptr()) };
        assert!(!found.is_null(), "the C library has {name:?}");
        cache.store(found, Ordering::Relaxed);
    }
    found
}

macro_rules! judged {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty, as $symbol:literal;)*) => {
        $(
            /// The C library's, if it may be called.
            ///
            /// # Safety
            /// As the C library's.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($argument: $type),*) -> $result {
                static REAL: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
                judge(stringify!($name));
                // SAFETY: this is the address of a function of this name, whose signature POSIX says.
                let real: unsafe extern "C" fn($($type),*) -> $result = unsafe { transmute(real(&REAL, $symbol)) };
                // SAFETY: whoever called this one keeps what that one wants.
                unsafe { real($($argument),*) }
            }
        )*
    };
}

judged! {
    clock_gettime(clock: c_int, time: *mut c_void) -> c_int, as c"clock_gettime";
    gettimeofday(time: *mut c_void, zone: *mut c_void) -> c_int, as c"gettimeofday";
    time(time: *mut i64) -> i64, as c"time";
    getrandom(buffer: *mut c_void, len: usize, flags: c_uint) -> isize, as c"getrandom";
    getentropy(buffer: *mut c_void, len: usize) -> c_int, as c"getentropy";
    pthread_create(thread: *mut c_void, attributes: *const c_void, main: *const c_void, data: *mut c_void) -> c_int, as c"pthread_create";
}
