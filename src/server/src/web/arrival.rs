//! What the guard of the web port notes for those behind it.

/// How a request arrived. An extension of every request of the web port.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Arrival {
    /// Whether the browser's connection is encrypted.
    pub(super) secure: bool,
}
