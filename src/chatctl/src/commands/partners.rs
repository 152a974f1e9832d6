//! `chatctl partners`: lists the user's conversations, the latest first.

use std::cmp::Reverse;

use clap::Args;
use serde_json::{Value, json};

use crate::{
    commands::{
        account::display_name,
        conversation::{member_json, message_json},
        listing::{ROWS_MAX, counted},
    },
    context::Context,
    failure::Failure,
    output::{single_line, table},
};
use chat::limits::PAGE_SIZE_MAX;
use client::{ChatPartner, Consistency};
use terminal::time;

/// Maximum length of the shown part of the last message, in characters.
const SHOWN_CHARS_MAX: usize = 60;

/// List your conversations
#[derive(Debug, Args)]
pub(crate) struct Arguments;

pub(super) async fn run(context: &mut Context, _: Arguments) -> Result<(), Failure> {
    let client = context.session().await?.client;
    let mut found: Vec<ChatPartner> = Vec::new();
    let mut token = String::new();
    let total = loop {
        let page = client.list_chat_partners(PAGE_SIZE_MAX, &token, Consistency::Linearizable).await?;
        // A conversation that moved while the list was read appears again: the later entry replaces the earlier one.
        for partner in page.partners {
            found.retain(|earlier| earlier.conversation_id != partner.conversation_id);
            found.push(partner);
        }
        match page.next_page_token.filter(|_| found.len() < ROWS_MAX) {
            Some(next) => token = next,
            None => break page.total_count,
        }
    };
    found.sort_by_key(|partner| Reverse(partner.last_message.as_ref().map_or(0, |message| message.message_id)));
    context.output.print(
        || json!({ "partners": found.iter().map(partner_json).collect::<Vec<_>>(), "total_count": total }),
        || partners_text(&found, total),
    )?;
    Ok(())
}

fn partner_json(partner: &ChatPartner) -> Value {
    json!({ "username": partner.username, "deleted": partner.deleted, "conversation_id": partner.conversation_id,
            "unread_count": partner.unread_count, "last_seq": partner.last_seq,
            "last_message": partner.last_message.as_ref().map(message_json),
            "members": partner.members.iter().map(member_json).collect::<Vec<_>>() })
}

fn partners_text(partners: &[ChatPartner], total: u64) -> String {
    let mut rows = vec![["PARTNER", "UNREAD", "LAST", ""].map(str::to_owned).to_vec()];
    for partner in partners {
        let name = display_name(&partner.username, partner.deleted);
        let (when, what) = match &partner.last_message {
            Some(message) if message.deleted => (time(message.time_ms), "(deleted)".to_owned()),
            Some(message) => {
                let first = message.body.lines().next().unwrap_or_default();
                let short: String = first.chars().take(SHOWN_CHARS_MAX).collect();
                (time(message.time_ms), format!("{}: {}", message.sender, single_line(&short)))
            }
            None => Default::default(),
        };
        rows.push(vec![name, partner.unread_count.to_string(), when, what]);
    }
    format!("{}\n{}", table(&rows), counted(partners.len(), total, "partner"))
}
