//! Heartbeats and elections: their intervals have to fit each other.

use super::{checker::Checker, keys::PREFIX, table::Parsed};

impl Checker {
    pub(super) fn timing(&mut self, parsed: &Parsed) {
        if let (Some(heartbeat), Some(min)) = (parsed.heartbeat, parsed.election_min)
            && heartbeat * 2 > min
        {
            let expected = format!("at least twice {PREFIX}HEARTBEAT_MS ({})", heartbeat.as_millis());
            self.mistake("ELECTION_MIN_MS", &min.as_millis().to_string(), expected);
        }
        if let (Some(min), Some(max)) = (parsed.election_min, parsed.election_max)
            && min >= max
        {
            let expected = format!("more than {PREFIX}ELECTION_MIN_MS ({})", min.as_millis());
            self.mistake("ELECTION_MAX_MS", &max.as_millis().to_string(), expected);
        }
    }
}
