//! Randomness of the simulation, in place of the system's: every random number of the process comes from the seed.
//!
//! Ids and salts, election time-outs, hash maps' keys and tokio's own choices are all drawn, in the end, from `getrandom`.
//! As tokio counts its runtimes over the life of a process, a seed gives the same run only in a process of its own.

use std::cell::RefCell;

use super::dice::Dice;

thread_local! {
    static DICE: RefCell<Option<Dice>> = const { RefCell::new(None) };
}

/// From now on this thread's randomness comes from `dice`.
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
            // SAFETY: below `length`, by the caller's promise.
            unsafe { buffer.cast::<u8>().add(at).write(dice.next() as u8) };
        }
        Some(length as isize)
    });
    match filled {
        Ok(Some(count)) => count,
        // SAFETY: handed on as it came.
        _ => unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as isize },
    }
}
