//! Ends of threads: release builds abort when one panics, others do not.

use std::thread::JoinHandle;

use thiserror::Error;

/// A thread panicked. What it panicked of was said on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the thread {0} of injector panicked, which is a bug of injector")]
pub struct Panicked(&'static str);

/// Waits for a thread.
pub fn join<T>(name: &'static str, thread: JoinHandle<T>) -> Result<T, Panicked> {
    thread.join().map_err(|_| Panicked(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_of_whoever_joins() {
        let thread = std::thread::spawn(|| assert!(std::env::args_os().count() == 0, "as planned"));
        let error = join("planned", thread).expect_err("it panicked");
        assert!(error.to_string().contains("the thread planned"), "{error}");
        assert_eq!(join("fine", std::thread::spawn(|| 7)), Ok(7));
    }
}
