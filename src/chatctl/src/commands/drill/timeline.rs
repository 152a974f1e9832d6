//! The effects of a drill on clients: acknowledged sends in each second, and the longest wait in each step.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::commands::drill::steps::Step;
use ::verify::history::{Action, History};

/// Bar heights, from zero to the maximum of all seconds.
const LEVELS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Seconds per line of the diagram.
const LINE_SECONDS: usize = 60;

/// A step as clients experienced it. Times are in microseconds since the load began.
#[derive(Debug, PartialEq)]
struct StepEffect {
    description: String,
    began_us: u64,
    ended_us: u64,
    acknowledged: u64,
    /// The longest time without an acknowledgement that overlaps with the step.
    longest_wait_us: u64,
}

/// The timeline of a drill. See the module.
#[derive(Debug)]
pub(super) struct Timeline {
    steps: Vec<StepEffect>,
    per_second: Vec<u64>,
}

impl Timeline {
    /// Creates the timeline of a history; `began` is the start of the load.
    pub(super) fn new(history: &History, steps: &[Step], began: Instant) -> Self {
        let micros = |at: Instant| u64::try_from(at.saturating_duration_since(began).as_micros()).unwrap_or(u64::MAX);
        let spans = steps.iter().map(|step| (step.description.clone(), micros(step.began), micros(step.ended)));
        Self::of(&acknowledged(history), history.header.load_ended_us, spans)
    }

    fn of(moments: &[u64], end: u64, spans: impl Iterator<Item = (String, u64, u64)>) -> Self {
        let steps = spans.map(|(description, began_us, ended_us)| {
            let within = |at: &u64| (began_us..ended_us).contains(at);
            StepEffect {
                acknowledged: moments.iter().filter(|at| within(at)).count() as u64,
                longest_wait_us: longest_wait(moments, began_us, ended_us.min(end)),
                description,
                began_us,
                ended_us,
            }
        });
        let steps = steps.collect();
        let seconds = usize::try_from(end.div_ceil(1_000_000)).unwrap_or(0);
        let mut per_second = vec![0; seconds];
        for at in moments {
            if let Some(count) = per_second.get_mut(usize::try_from(at / 1_000_000).unwrap_or(usize::MAX)) {
                *count += 1;
            }
        }
        Self { steps, per_second }
    }

    pub(super) fn json(&self) -> Value {
        let steps: Vec<Value> = self
            .steps
            .iter()
            .map(|step| {
                json!({ "what": step.description, "began_ms": step.began_us / 1000, "ended_ms": step.ended_us / 1000,
                        "acknowledged": step.acknowledged, "longest_wait_ms": step.longest_wait_us.div_ceil(1000) })
            })
            .collect();
        json!({ "steps": steps, "acknowledged_per_second": self.per_second })
    }

    pub(super) fn text(&self) -> String {
        let most = self.per_second.iter().copied().max().unwrap_or(0);
        let mut lines = vec![format!("Acknowledged sends per second, up to {most}; a blank is a second without any:")];
        for (number, line) in self.per_second.chunks(LINE_SECONDS).enumerate() {
            let bars: String = line.iter().map(|count| bar(*count, most)).collect();
            lines.push(format!("{:>5} s |{bars}|", number * LINE_SECONDS));
        }
        lines.push(String::new());
        for step in &self.steps {
            let second = |us: u64| Duration::from_micros(us).as_secs();
            lines.push(format!(
                "{:>5} s  {} ({} s until whole again): {} acknowledged, longest wait {} ms",
                second(step.began_us),
                step.description,
                second(step.ended_us - step.began_us),
                step.acknowledged,
                step.longest_wait_us.div_ceil(1000)
            ));
        }
        lines.join("\n")
    }
}

fn bar(count: u64, most: u64) -> char {
    let top = LEVELS.len() as u64 - 1;
    // Any non-zero count is visible.
    let level = if count == 0 { 0 } else { (count * top).div_ceil(most.max(1)).clamp(1, top) };
    LEVELS[usize::try_from(level).unwrap_or(0)]
}

/// Returns the times at which sends were acknowledged, in order.
fn acknowledged(history: &History) -> Vec<u64> {
    let sends = history.records.iter().filter_map(|record| match &record.action {
        Action::Send { outcome, .. } => outcome.ok().map(|_| record.ended_us),
        _ => None,
    });
    let mut moments: Vec<u64> = sends.collect();
    moments.sort_unstable();
    moments
}

/// Returns the longest time between two consecutive acknowledgements that overlaps with `from` to `to`. The load begins
/// at 0. A wait that continues beyond `to` is cut off there.
fn longest_wait(moments: &[u64], from: u64, to: u64) -> u64 {
    let first = moments.partition_point(|at| *at <= from);
    let before = first.checked_sub(1).map_or(0, |at| moments[at]);
    let mut longest = 0;
    let mut since = before;
    for at in &moments[first..] {
        longest = longest.max(at - since);
        since = *at;
        if *at >= to {
            return longest;
        }
    }
    longest.max(to.saturating_sub(since))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_measured_from_one_acknowledgement_to_the_next() {
        let moments = [100, 200, 900, 1000, 5000];
        assert_eq!(longest_wait(&moments, 0, 1000), 700);
        assert_eq!(longest_wait(&moments, 150, 180), 100, "the wait that it lies in");
        assert_eq!(longest_wait(&moments, 1000, 2000), 4000, "it is over after the step");
        assert_eq!(longest_wait(&moments, 5000, 8000), 3000, "or not at all");
        assert_eq!(longest_wait(&[], 0, 70), 70);
    }

    #[test]
    fn each_step_has_what_happened_in_it() {
        let moments = [100_000, 1_500_000, 1_600_000, 4_000_000];
        let spans = [("quiet".to_owned(), 0, 1_000_000), ("n1 is killed".to_owned(), 1_000_000, 4_500_000)];
        let timeline = Timeline::of(&moments, 5_000_000, spans.into_iter());
        assert_eq!(timeline.per_second, [1, 2, 0, 0, 1]);
        let step = &timeline.steps[1];
        assert_eq!((step.acknowledged, step.longest_wait_us), (3, 2_400_000));
        assert_eq!(timeline.json()["steps"][0]["longest_wait_ms"], 1400);
        let text = timeline.text();
        assert!(text.contains("|▄█  ▄|"), "{text}");
        assert!(
            text.contains("1 s  n1 is killed (3 s until whole again): 3 acknowledged, longest wait 2400 ms"),
            "{text}"
        );
    }

    #[test]
    fn nothing_at_all_is_drawn_as_well() {
        let timeline = Timeline::of(&[], 2_000_000, std::iter::empty());
        assert!(timeline.text().contains("|  |"));
        assert_eq!(bar(1, 1000), '▁');
        assert_eq!(bar(0, 0), ' ');
    }
}
