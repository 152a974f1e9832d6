//! A log writer that never waits for its reader.
//!
//! A suspended terminal, a pipe with a blocked reader, or a slow disk must not block the threads that serve requests.
//! Lines go into a queue that is bounded in bytes, and a separate thread writes them. When the queue is full, the
//! oldest lines are dropped and counted, because the last lines of a failing node explain its failure.
//!
//! Does not cover: output that bypasses it, such as the report of a panic.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Write},
    os::fd::BorrowedFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

/// Longest wait for the last lines at the end of a program.
pub const LAST_LINES_MAX: Duration = Duration::from_secs(1);
/// Bytes in the queue, without the line that is being written.
const QUEUE_BYTES_MAX: usize = 1 << 20;

/// The writer. Clones share the queue.
#[derive(Debug, Clone, Default)]
pub struct Unhurried(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Whether a line was taken out and is not written yet.
    writing: bool,
    lost: u64,
}

impl Unhurried {
    /// Starts the thread that writes to `target`, bypassing all locks and buffers of this process.
    ///
    /// # Errors
    /// The target is closed, or the thread cannot be started.
    pub fn start(target: BorrowedFd<'_>) -> io::Result<Self> {
        let target = File::from(target.try_clone_to_owned()?);
        let writer = Self::default();
        let queue = writer.clone();
        thread::Builder::new().name("output".to_owned()).spawn(move || queue.write_to(target))?;
        Ok(writer)
    }

    /// Lines that were dropped from the full queue or could not be written.
    pub fn lost(&self) -> u64 {
        self.lock().lost
    }

    /// Waits until everything is written, at most for `timeout`. Returns whether everything is written.
    pub fn finish(&self, timeout: Duration) -> bool {
        let unfinished = |queue: &mut Queue| queue.writing || !queue.lines.is_empty();
        let waited = self.0.changed.wait_timeout_while(self.lock(), timeout, unfinished);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a line.
    pub fn push(&self, line: &[u8]) {
        let mut queue = self.lock();
        if line.len() > QUEUE_BYTES_MAX {
            queue.lost += 1;
            return;
        }
        while queue.bytes + line.len() > QUEUE_BYTES_MAX {
            let Some(oldest) = queue.lines.pop_front() else { break };
            queue.bytes -= oldest.len();
            queue.lost += 1;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line.to_vec());
        self.0.changed.notify_all();
    }

    fn write_to(&self, mut target: impl Write) {
        loop {
            let idle = |queue: &mut Queue| queue.lines.is_empty();
            let waited = self.0.changed.wait_while(self.lock(), idle);
            let mut queue = waited.unwrap_or_else(PoisonError::into_inner);
            let Some(line) = queue.lines.pop_front() else { continue };
            queue.bytes -= line.len();
            queue.writing = true;
            drop(queue);
            let written = target.write_all(&line);
            let mut queue = self.lock();
            queue.writing = false;
            queue.lost += u64::from(written.is_err());
            self.0.changed.notify_all();
        }
    }
}

impl Write for Unhurried {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !bytes.is_empty() {
            self.push(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Unhurried {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::fd::AsFd as _};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn nobody_waits_for_a_reader_that_does_not_read_and_the_last_line_is_kept() {
        let (reader, writer) = io::pipe().unwrap();
        let mut output = Unhurried::start(writer.as_fd()).unwrap();
        drop(writer);
        let line = |n: usize| format!("{n:07}{}\n", "x".repeat(1000));
        // More than the capacity of the pipe and the queue.
        for n in 0..4000 {
            output.write_all(line(n).as_bytes()).unwrap();
        }
        assert!(!output.finish(Duration::from_millis(1)));
        let lost = output.lost();
        assert!(lost > 1000, "{lost}");
        let reading = thread::spawn(move || {
            let (mut reader, mut text, mut chunk) = (reader, Vec::new(), [0; 1 << 16]);
            while !text.ends_with(line(3999).as_bytes()) {
                let count = reader.read(&mut chunk).unwrap();
                assert!(count > 0, "the last line is missing");
                text.extend_from_slice(&chunk[..count]);
            }
            String::from_utf8(text).unwrap()
        });
        assert!(output.finish(LONG));
        let text = reading.join().unwrap();
        assert_eq!(text.lines().count() as u64 + lost, 4000, "whole lines, each written or counted");
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_ends_nothing() {
        let (reader, writer) = io::pipe().unwrap();
        let mut output = Unhurried::start(writer.as_fd()).unwrap();
        drop(reader);
        output.write_all(b"nobody is there\n").unwrap();
        output.write_all(&vec![0; QUEUE_BYTES_MAX + 1]).unwrap();
        assert!(output.finish(LONG));
        assert_eq!(output.lost(), 2);
    }
}
