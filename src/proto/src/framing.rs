//! How gRPC puts a message on the wire.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message;
use tonic::Status;

/// Before each message: a flag (compressed or not), and the length in four bytes.
pub const PREFIX_BYTES: usize = 5;

/// A message with its length.
pub fn framed(message: &impl Message) -> Result<Bytes, Status> {
    let length = message.encoded_len();
    let prefix = u32::try_from(length).map_err(|_| Status::invalid_argument("the message is too long"))?;
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + length);
    bytes.put_u8(0);
    bytes.put_u32(prefix);
    message.encode_raw(&mut bytes);
    Ok(bytes.freeze())
}
