//! Changes that are charged on this node, and the commands that it has refused.
//!
//! Does not cover: the rates (`admission`), and the charges for proposed commands (`proposer`).

use std::sync::PoisonError;

use super::Node;
use crate::admission::Refusal;
use chat::AccountId;

impl Node {
    /// The name of each limit, and the number of commands that this node has refused because of it.
    pub fn refusals(&self) -> Vec<(&'static str, u64)> {
        self.inner.refusals.get()
    }

    /// Charges changes of an account that are not proposed in its name, at its rate on this node.
    ///
    /// # Errors
    /// The account exceeds its rate of changes. The caller must not apply anything.
    pub fn charge(&self, account: AccountId, changes: usize) -> Result<(), Refusal> {
        let mut charges = self.inner.charges.lock().unwrap_or_else(PoisonError::into_inner);
        charges.charge(account, changes, &self.inner.refusals)
    }
}
