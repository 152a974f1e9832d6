//! The allocator of the program: mimalloc, except for large blocks.
//!
//! Little is as large but the memory in which a password is hashed. mimalloc gives a freed block back to the kernel in
//! some later call, or never: idle nodes kept 30 MiB. A mapping costs page faults, which take some hundredths of the
//! time that hashing takes.

#![expect(unsafe_code, reason = "an allocator is an unsafe trait")]

use std::{
    alloc::{GlobalAlloc, Layout},
    ptr,
};

use mimalloc::MiMalloc;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Size from which on a block is mapped, in bytes.
const MAPPED: usize = 8 << 20;
/// Alignment that each mapping has: no system has smaller pages.
const PAGE: usize = 4096;

/// mimalloc, and mappings for large blocks.
pub struct Allocator;

/// Depends on the layout alone, so that it is the same when a block is freed.
fn is_mapped(layout: Layout) -> bool {
    layout.size() >= MAPPED && layout.align() <= PAGE
}

// SAFETY: Each block is freed by the allocator that it came from, because both follow from its layout. A mapping has
// the size that was asked for, is aligned to a page, and is not shared until it is unmapped.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_mapped(layout) {
            return unsafe { MiMalloc.alloc(layout) };
        }
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        let mapped = unsafe { mmap_anonymous(ptr::null_mut(), layout.size(), access, flags) };
        mapped.map_or(ptr::null_mut(), |block| block.cast())
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if !is_mapped(layout) {
            return unsafe { MiMalloc.dealloc(block, layout) };
        }
        // It fails if the kernel has no memory for its own list of mappings. The block is then lost.
        let _ = unsafe { munmap(block.cast(), layout.size()) };
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match is_mapped(layout) {
            // The kernel's pages are zero.
            true => unsafe { self.alloc(layout) },
            false => unsafe { MiMalloc.alloc_zeroed(layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        if !is_mapped(layout) && !is_mapped(new) {
            return unsafe { MiMalloc.realloc(block, layout, size) };
        }
        let moved = unsafe { self.alloc(new) };
        if !moved.is_null() {
            unsafe {
                ptr::copy_nonoverlapping(block, moved, layout.size().min(size));
                self.dealloc(block, layout);
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block of `from` bytes that grows or shrinks to `to`, and what is in it then.
    fn moved(from: usize, to: usize) -> (u8, u8) {
        let layout = Layout::from_size_align(from, 64).expect("a layout");
        unsafe {
            let block = Allocator.alloc_zeroed(layout);
            assert_eq!((*block, *block.add(from - 1)), (0, 0));
            *block = 1;
            *block.add(from.min(to) - 1) = 2;
            let block = Allocator.realloc(block, layout, to);
            let found = (*block, *block.add(from.min(to) - 1));
            Allocator.dealloc(block, Layout::from_size_align(to, 64).expect("a layout"));
            found
        }
    }

    #[test]
    fn blocks_of_any_size_keep_what_is_in_them_when_they_grow_and_shrink() {
        let sizes = [100, MAPPED - 1, MAPPED, MAPPED + 1, 3 * MAPPED];
        for from in sizes {
            for to in sizes {
                assert_eq!(moved(from, to), (1, 2), "{from} to {to}");
            }
        }
    }

    /// Bytes of this process that are in memory.
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").expect("read");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        line.trim_end_matches("kB").trim().parse::<usize>().expect("a number") << 10
    }

    #[test]
    fn what_a_large_block_took_is_given_back_at_once() {
        const SIZE: usize = 256 << 20;
        let before = resident();
        let block = vec![1_u8; SIZE];
        assert!(resident() >= before + SIZE / 2, "the block is not in memory");
        drop(std::hint::black_box(block));
        assert!(resident() < before + SIZE / 2, "{} MiB more than before", (resident() - before) >> 20);
    }
}
