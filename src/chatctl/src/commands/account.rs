//! How commands show accounts, and how they confirm and report the deletion of one.

use serde_json::json;

use crate::{context::Context, failure::Failure, prompt::ask};
use terminal::time;

/// Formats the name of an account in a list.
pub(super) fn display_name(username: &str, deleted: bool) -> String {
    if deleted { format!("{username} (deleted)") } else { username.to_owned() }
}

/// Formats the last use of a session, as the end of a line; empty when it is not recorded.
pub(super) fn last_use(used_ms: Option<u64>) -> String {
    used_ms.map(|ms| format!("  used {}", time(ms))).unwrap_or_default()
}

/// Asks the user to type the name of the account that will be deleted.
pub(super) fn confirm_deletion(name: &str) -> Result<(), Failure> {
    if ask(&format!("This deletes {name} and all messages it sent. Type the name to go on: "))? != name {
        return Err(Failure::Usage("not the name of the account: nothing was deleted".to_owned()));
    }
    Ok(())
}

/// Prints that an account was deleted.
pub(super) fn print_deletion(
    context: &mut Context,
    name: &str,
    deleted_messages: u64,
    revision: u64,
) -> Result<(), Failure> {
    context.output.print(
        || json!({ "username": name, "deleted_messages": deleted_messages, "revision": revision }),
        || format!("account {name} deleted, with {deleted_messages} messages"),
    )?;
    Ok(())
}
