//! The ids as values of SQLite.
//!
//! They are here because only the crate of a type or of a trait may implement one for the other. Owns no schema, which
//! is in `storage`.
//!
//! SQLite's integers are signed, ours are not. A value that does not fit is written as `i64::MAX`, and a negative
//! number that is read is an error; `storage::db` says why.

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, Value, ValueRef};

use super::{AccountId, ClientId, ConversationId, Revision, Seq, SessionId, StateDigest, TimeMs, TokenHash};

macro_rules! as_integer {
    ($($name:ident),*) => {$(
        impl ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(ToSqlOutput::Owned(Value::Integer(i64::try_from(self.0).unwrap_or(i64::MAX))))
            }
        }

        impl FromSql for $name {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                let number = value.as_i64()?;
                u64::try_from(number).map($name).map_err(|_| FromSqlError::OutOfRange(number))
            }
        }
    )*};
}

as_integer!(AccountId, SessionId, ConversationId, Seq, Revision, TimeMs);

macro_rules! as_blob {
    ($($name:ident),*) => {$(
        impl ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(ToSqlOutput::Borrowed(ValueRef::Blob(&self.0)))
            }
        }

        impl FromSql for $name {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                FromSql::column_result(value).map($name)
            }
        }
    )*};
}

as_blob!(ClientId, StateDigest, TokenHash);
