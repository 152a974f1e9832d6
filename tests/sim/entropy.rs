//! Simulated randomness, in place of the system's: every random number of the process comes from the seed.
//!
//! Ids, salts, election timeouts, keys of hash maps and tokio's own choices all come from `getrandom` in the end. tokio
//! counts its runtimes over the lifetime of a process, so a seed repeats the same run only in a new process.

use std::cell::RefCell;

use super::dice::Dice;

thread_local! {
    static DICE: RefCell<Option<Dice>> = const { RefCell::new(None) };
}

/// Makes `dice` the source of this thread's randomness.
pub fn start(dice: Dice) {
    DICE.with_borrow_mut(|current| *current = Some(dice));
}

/// Fills a buffer with random bytes.
///
/// # Safety
/// As for the function of the C library: `buffer` must be writable for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut libc::c_void, length: usize, flags: libc::c_uint) -> isize {
    let filled = DICE.try_with(|dice| {
        let mut dice = dice.borrow_mut();
        let dice = dice.as_mut()?;
        for at in 0..length {
            // SAFETY: below `length`, which the caller guarantees to be writable.
            unsafe { buffer.cast::<u8>().add(at).write(dice.next() as u8) };
        }
        Some(length as isize)
    });
    match filled {
        Ok(Some(count)) => count,
        // SAFETY: the arguments are passed on unchanged.
        _ => unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as isize },
    }
}
