//! Corruption of an SQLite write-ahead log.

use std::path::Path;

/// Size of the header of the file, and of each frame's header.
const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
/// Positions of the salts in the file's header and in a frame's. They distinguish current frames from older ones that
/// are still in the file.
const SALTS: [std::ops::Range<usize>; 2] = [16..24, 8..16];

/// Flips a bit of the page in the frame at this distance from the last one. False: there is no such frame.
pub fn flip_a_bit(wal: &Path, frames_before_the_last: usize) -> bool {
    let mut bytes = std::fs::read(wal).unwrap_or_default();
    if bytes.len() < HEADER_BYTES {
        return false;
    }
    let page_bytes = u32::from_be_bytes(bytes[8..12].try_into().expect("four bytes")) as usize;
    let frame_bytes = FRAME_HEADER_BYTES + page_bytes;
    let of_this_turn = |frame: &&[u8]| frame[SALTS[1].clone()] == bytes[SALTS[0].clone()];
    let frames = bytes[HEADER_BYTES..].chunks_exact(frame_bytes).take_while(of_this_turn).count();
    let Some(frame) = frames.checked_sub(1 + frames_before_the_last) else { return false };
    let page = HEADER_BYTES + frame * frame_bytes + FRAME_HEADER_BYTES;
    bytes[page + page_bytes / 2] ^= 1;
    std::fs::write(wal, bytes).expect("written");
    true
}
