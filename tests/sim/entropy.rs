//! Simulated randomness, in place of the system's: every random number of the process comes from the seed.
//!
//! Ids, salts, election timeouts, keys of hash maps and tokio's own choices all come from `getrandom` in the end. tokio
//! counts its runtimes over the lifetime of a process, so a seed repeats the same run only in a new process.

use std::cell::RefCell;

use super::rng::Rng;

thread_local! {
    static RNG: RefCell<Option<Rng>> = const { RefCell::new(None) };
}

/// Makes `rng` the source of this thread's randomness.
pub fn start(rng: Rng) {
    RNG.with_borrow_mut(|current| *current = Some(rng));
}

/// Fills a buffer with random bytes.
///
/// # Safety
/// As for the function of the C library: `buffer` must be writable for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut libc::c_void, length: usize, flags: libc::c_uint) -> isize {
    let filled = RNG.try_with(|rng| {
        let mut rng = rng.borrow_mut();
        let rng = rng.as_mut()?;
        for at in 0..length {
            // SAFETY: below `length`, which the caller guarantees to be writable.
            unsafe { buffer.cast::<u8>().add(at).write(rng.next() as u8) };
        }
        Some(length as isize)
    });
    match filled {
        Ok(Some(count)) => count,
        // SAFETY: the arguments are passed on unchanged.
        _ => unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as isize },
    }
}
