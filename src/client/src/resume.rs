//! Which events a stream passes on, and where it resumes: a value without I/O.
//!
//! There are two phases. A stream without a start revision begins with the catch-up: the node sends the undelivered
//! messages in the order of their ids, and then a heartbeat with the revision up to which everything was sent. There is
//! no cursor before that heartbeat. If the connection breaks earlier, the stream starts over and drops the messages
//! that it has passed on, which are those up to the highest id. After the heartbeat, the cursor is the last revision
//! seen, and nothing at or before it is passed on again.

use proto::chat::v1::{SubscribeRequest, SubscribeResponse, subscribe_response};

use super::{Event, EventKind};

/// Position of an event stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Resume {
    /// Revision up to which everything was passed on; absent during the catch-up.
    cursor: Option<u64>,
    /// Highest id of a message that was passed on during the catch-up.
    caught_up_to: u64,
}

impl Resume {
    pub(super) fn new(after_revision: Option<u64>) -> Self {
        Self { cursor: after_revision, caught_up_to: 0 }
    }

    /// Returns the subscription to request from a node.
    pub(super) fn request(&self) -> SubscribeRequest {
        SubscribeRequest { after_revision: self.cursor, consistency: None }
    }

    /// Revision up to which everything was passed on; absent during the catch-up.
    pub(super) fn cursor(&self) -> Option<u64> {
        self.cursor
    }

    /// Processes a response of a node. Returns the event to pass on, unless there is none or it was passed on before.
    pub(super) fn accept(&mut self, response: SubscribeResponse) -> Option<Event> {
        let revision = response.revision;
        let kind = match response.event? {
            subscribe_response::Event::Heartbeat(_) => {
                self.cursor = Some(self.cursor.map_or(revision.max(self.caught_up_to), |had| had.max(revision)));
                return None;
            }
            subscribe_response::Event::Message(event) => EventKind::Message(event.message?.into()),
            subscribe_response::Event::Receipt(event) => EventKind::Receipt(event.into()),
            subscribe_response::Event::Deletion(event) => EventKind::Deletion(event.into()),
            subscribe_response::Event::AccountDeleted(event) => EventKind::AccountDeleted(event.into()),
        };
        match (&mut self.cursor, &kind) {
            (Some(cursor), _) if revision <= *cursor => return None,
            (Some(cursor), _) => *cursor = revision,
            (None, EventKind::Message(message)) if message.message_id <= self.caught_up_to => return None,
            (None, EventKind::Message(message)) => self.caught_up_to = message.message_id,
            (None, _) => {}
        }
        // The id of a message is its revision, also where the node leaves the revision out.
        let revision = if let EventKind::Message(message) = &kind { message.message_id } else { revision };
        Some(Event { revision, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{heartbeat, message, receipt};

    /// Feeds the responses of one connection, and returns the revisions that were passed on.
    fn feed(resume: &mut Resume, answers: &[SubscribeResponse]) -> Vec<u64> {
        answers.iter().filter_map(|answer| resume.accept(answer.clone())).map(|event| event.revision).collect()
    }

    #[test]
    fn after_a_cut_nothing_is_passed_on_twice_and_nothing_is_left_out() {
        let mut resume = Resume::new(Some(10));
        assert_eq!(feed(&mut resume, &[message(11), receipt(12), message(15)]), [11, 12, 15]);
        assert_eq!(resume.request().after_revision, Some(15));
        // This node repeats more than was requested.
        assert_eq!(feed(&mut resume, &[receipt(12), message(15), message(16)]), [16]);
    }

    #[test]
    fn a_heartbeat_moves_the_cursor_and_never_back() {
        let mut resume = Resume::new(Some(10));
        assert_eq!(feed(&mut resume, &[heartbeat(40), heartbeat(30)]), [0; 0]);
        assert_eq!(resume.cursor(), Some(40));
        assert_eq!(feed(&mut resume, &[message(40), message(41)]), [41]);
    }

    #[test]
    fn a_catch_up_that_is_cut_starts_over_without_repeats() {
        for with_revision in [true, false] {
            let undelivered = |id| SubscribeResponse { revision: if with_revision { id } else { 0 }, ..message(id) };
            let mut resume = Resume::new(None);
            assert_eq!(feed(&mut resume, &[undelivered(3), undelivered(5)]), [3, 5]);
            assert_eq!(resume.request().after_revision, None, "no cursor before the catch-up is complete");
            assert_eq!(feed(&mut resume, &[undelivered(3), undelivered(5), undelivered(8), heartbeat(20)]), [8]);
            assert_eq!(resume.request().after_revision, Some(20));
            assert_eq!(feed(&mut resume, &[message(8), message(21)]), [21]);
        }
    }

    #[test]
    fn what_a_newer_service_may_send_is_ignored() {
        let mut resume = Resume::new(Some(1));
        assert_eq!(resume.accept(SubscribeResponse { revision: 9, ..SubscribeResponse::default() }), None);
        assert_eq!(resume.cursor(), Some(1), "what was not understood is asked for again");
    }
}
