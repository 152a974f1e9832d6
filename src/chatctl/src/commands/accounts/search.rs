//! The accounts that a user finds, with the user's session.

use serde_json::{Value, json};

use crate::{
    commands::{
        account::display_name,
        listing::{ROWS_MAX, counted},
    },
    context::Context,
    failure::Failure,
};
use chat::limits::PAGE_SIZE_MAX;
use client::{Account, Consistency};

pub(super) async fn run(context: &mut Context, query: &str) -> Result<(), Failure> {
    let client = context.session().await?.client;
    let mut found: Vec<Account> = Vec::new();
    let mut token = String::new();
    let total = loop {
        let page = client.list_accounts(query, PAGE_SIZE_MAX, &token, Consistency::Linearizable).await?;
        found.extend(page.accounts);
        match page.next_page_token.filter(|_| found.len() < ROWS_MAX) {
            Some(next) => token = next,
            None => break page.total_count,
        }
    };
    context.output.print(
        || json!({ "accounts": found.iter().map(account_json).collect::<Vec<_>>(), "total_count": total }),
        || {
            let names = found.iter().map(|account| display_name(&account.username, account.deleted));
            names.chain([counted(found.len(), total, "account")]).collect::<Vec<_>>().join("\n")
        },
    )?;
    Ok(())
}

fn account_json(account: &Account) -> Value {
    json!({ "account_id": account.account_id, "username": account.username, "deleted": account.deleted })
}
