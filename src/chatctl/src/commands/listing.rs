//! The size of lists: how many rows are shown, and how their number is worded.

/// Maximum number of rows in a list. Users search for more.
pub(super) const ROWS_MAX: usize = 1000;

/// Formats the number of rows of a list, as in "3 partners", or "1 of 2 accounts" when not all are shown.
pub(super) fn counted(shown: usize, total: u64, noun: &str) -> String {
    let all = plural(total, noun);
    if shown as u64 == total { all } else { format!("{shown} of {all}") }
}

/// Formats a count, as in "1 message", "2 messages".
pub(super) fn plural(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_not_several() {
        assert_eq!([0, 1, 2].map(|count| plural(count, "partner")), ["0 partners", "1 partner", "2 partners"]);
        assert_eq!(
            (counted(1, 1, "account"), counted(1, 2, "account")),
            ("1 account".into(), "1 of 2 accounts".into())
        );
    }
}
