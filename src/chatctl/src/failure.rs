//! The failure of a command: its exit code, its text and its JSON.

use std::{fmt, io};

use serde_json::{Value, json};

use crate::{args::Format, output};
use client::ClientError;
use net::tls::TlsError;

/// The exit codes, which are part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// The command succeeded.
    Done = 0,
    /// The service rejected the request, or a node is not healthy.
    Refused = 1,
    /// The usage is wrong, or something on this machine is missing.
    Usage = 2,
    /// No node was reached, or there is no leader: nothing was applied.
    Unreachable = 3,
    /// The request may have been applied.
    Unknown = 4,
    /// `verify` found a violated guarantee.
    Violated = 5,
    /// `verify` found no violation, but proved nothing.
    Inconclusive = 6,
}

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A failure of the service or of the connection to it.
    Client(ClientError),
    /// Wrong usage, or something missing on this machine.
    Usage(String),
    /// Local input or output failed.
    Io(io::Error),
    /// A node does not serve. The details are already printed.
    Unhealthy,
    /// A guarantee was violated. The details are already printed.
    Violated,
    /// No violation was found, but nothing was proven, for this reason.
    Inconclusive(&'static str),
}

impl Failure {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Client(error) if error.outcome_unknown => Exit::Unknown,
            Self::Client(error) if error.is_unavailable() => Exit::Unreachable,
            // Detected here, before anything was sent.
            Self::Client(error) if error.reason.is_none() && error.field.as_deref() == Some("nodes") => Exit::Usage,
            Self::Client(_) | Self::Unhealthy => Exit::Refused,
            Self::Usage(_) | Self::Io(_) => Exit::Usage,
            Self::Violated => Exit::Violated,
            Self::Inconclusive(_) => Exit::Inconclusive,
        }
    }

    /// Prints the failure to standard error, in one line.
    pub(crate) fn print(&self, format: Format) {
        output::print_error(format, || self.json(), &self.to_string());
    }

    fn json(&self) -> Value {
        let message = self.to_string();
        match self {
            Self::Client(ClientError { code, reason, field, trace_id, .. }) => {
                let code = format!("{code:?}");
                json!({ "error": { "code": code, "reason": reason, "field": field, "message": message,
                                   "trace_id": trace_id } })
            }
            _ => json!({ "error": { "code": "Local", "reason": null, "field": null, "message": message,
                                    "trace_id": null } }),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(error) => {
                write!(f, "{error}")?;
                if error.has_reason("TOKEN_INVALID") {
                    f.write_str("; log in again with `chatctl login`")?;
                } else if error.message.contains("it talks TLS") {
                    f.write_str("; name its certificate authority with --tls-ca")?;
                }
                let reason = error.reason.as_deref().map(|reason| format!(" [{reason}]"));
                let trace = error.trace_id.as_deref().map(|id| format!(" (trace {id})"));
                [reason, trace].into_iter().flatten().try_for_each(|part| f.write_str(&part))
            }
            Self::Usage(message) => f.write_str(message),
            Self::Io(error) => write!(f, "{error}"),
            Self::Unhealthy => f.write_str("not all nodes serve"),
            Self::Violated => f.write_str("a guarantee was violated"),
            Self::Inconclusive(why) => write!(f, "nothing was proven: {why}"),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<TlsError> for Failure {
    fn from(error: TlsError) -> Self {
        Self::Usage(format!("--tls-ca: {error}"))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn each_failure_has_its_exit_code() {
        let client =
            |code, outcome_unknown| Failure::Client(ClientError { outcome_unknown, ..ClientError::local(code, "") });
        for (failure, exit) in [
            (client(Code::NotFound, false), Exit::Refused),
            (client(Code::InvalidArgument, false), Exit::Refused),
            (client(Code::Unauthenticated, false), Exit::Refused),
            (client(Code::Unavailable, false), Exit::Unreachable),
            (client(Code::DeadlineExceeded, false), Exit::Unreachable),
            (client(Code::DeadlineExceeded, true), Exit::Unknown),
            (client(Code::Unavailable, true), Exit::Unknown),
            (Failure::Usage(String::new()), Exit::Usage),
            (Failure::Unhealthy, Exit::Refused),
            (Failure::Violated, Exit::Violated),
            (Failure::Inconclusive(""), Exit::Inconclusive),
        ] {
            assert_eq!(failure.exit(), exit, "{failure:?}");
        }
    }

    #[test]
    fn a_failure_says_its_reason_and_field() {
        let error = ClientError {
            reason: Some("FIELD_INVALID".to_owned()),
            field: Some("body".to_owned()),
            ..ClientError::local(Code::InvalidArgument, "body: must not be empty")
        };
        let traced = ClientError { trace_id: Some("0af7".to_owned()), ..error.clone() };
        assert_eq!(Failure::from(traced.clone()).to_string(), "body: must not be empty [FIELD_INVALID] (trace 0af7)");
        assert_eq!(Failure::from(traced).json()["error"]["trace_id"], "0af7");
        let failure = Failure::from(error);
        assert_eq!(failure.to_string(), "body: must not be empty [FIELD_INVALID]");
        let json = failure.json();
        assert_eq!(json["error"]["code"], "InvalidArgument");
        assert_eq!(json["error"]["reason"], "FIELD_INVALID");
        assert_eq!(json["error"]["field"], "body");
    }
}
