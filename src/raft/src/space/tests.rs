//! Decisions about space, and the reserve file.

use std::fs;

use super::volume::{RESERVE_FILE, make_reserve_file};
use super::*;

#[test]
fn the_reserve_is_a_part_of_a_small_volume_and_low_does_not_flap() {
    let space = Space::default();
    let mib = 1 << 20;
    let look = |free, total| space.look(Volume { free, total }, 256 * mib, true);
    assert!(!look(10 * mib, 64 * mib), "64 MiB have a reserve of 6.4");
    assert!(look(6 * mib, 64 * mib) && space.is_low());
    assert!(!look(7 * mib, 64 * mib) && space.is_low(), "a little more is not enough");
    assert!(look(9 * mib, 64 * mib) && !space.is_low());
    assert!(look(200 * mib, 100_000 * mib));
}

#[test]
fn a_leader_that_is_low_refuses_growth_only_where_nobody_else_can_take_it() {
    use Room::{Enough, Low, Silent, Unknown};
    let soon = Duration::ZERO;
    let decide = |rooms: &[Room], troubled| decide(rooms[0], rooms, troubled);
    assert_eq!(decide(&[Enough, Enough, Enough, Low, Low], soon), Growth::Taken);
    assert_eq!(decide(&[Enough, Enough, Low, Low, Low], soon), Growth::Refused);
    // A dead voter acknowledges nothing. Without a low voter, the cause is not a lack of space.
    assert_eq!(decide(&[Enough, Enough, Silent, Silent, Low], soon), Growth::Refused);
    assert_eq!(decide(&[Enough, Enough, Silent, Silent, Silent], soon), Growth::Taken);
    // While another node is asked to lead, no caller gets a storage error.
    assert_eq!(decide(&[Low, Enough, Enough, Enough, Silent], soon), Growth::Elsewhere);
    assert_eq!(decide(&[Low, Enough, Enough, Enough, Silent], 2 * TRANSFER_INTERVAL), Growth::Refused);
    assert_eq!(decide(&[Low], soon), Growth::Refused);
    assert_eq!(decide(&[Low, Silent, Silent], soon), Growth::Elsewhere);
    // A new leader does not count a missing report as low space.
    assert_eq!(decide(&[Enough, Low, Unknown, Unknown, Unknown], soon), Growth::Taken);
    assert_eq!(decide(&[Low, Unknown, Unknown, Unknown, Unknown], soon), Growth::Elsewhere);
}

#[test]
fn entries_that_may_not_fit_are_not_taken_until_they_do() {
    let (space, mib) = (Space::default(), 1 << 20);
    let look = |free, has_file| space.look(Volume { free, total: 64 * mib }, 0, has_file);
    let forget = || *space.0.coming.lock().unwrap() = Coming::default();
    look(4 * mib, true);
    assert!(space.takes(mib / 2), "it writes 2 of 4 MiB");
    assert!(!space.takes(mib / 2), "the first ones may not be written yet");
    assert!(!space.takes(1), "what comes later does not overtake");
    assert!(look(2 * mib, true) && space.is_low(), "who takes no entries is low");
    assert!(look(3 * mib, true), "the first ones are written, and what was refused fits");
    forget();
    assert!(space.takes(1) && !space.is_low());
    look(mib / 4, true);
    assert!(!space.takes(1));
    look(mib, true);
    assert!(space.takes(1));
    // Without the reserve file, the next start cannot free any space.
    look(64 * mib, false);
    assert!(!space.takes(1));
}

#[test]
fn what_came_long_ago_is_written() {
    let (mut coming, began) = (Coming::default(), Instant::now());
    coming.turn(began);
    coming.now = 7;
    coming.turn(began + CHECK_INTERVAL / 2);
    assert_eq!((coming.now, coming.before), (7, 0));
    coming.turn(began + CHECK_INTERVAL);
    assert_eq!((coming.now, coming.before), (0, 7));
    coming.turn(began + 4 * CHECK_INTERVAL);
    assert_eq!((coming.now, coming.before), (0, 0));
}

#[test]
fn a_node_that_starts_without_a_reserve_file_takes_nothing_unless_it_fits() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Space::at_start(dir.path(), 1 << 20).takes(1), "there is space for tests");
    assert!(!Space::at_start(&dir.path().join("nowhere"), 1 << 20).is_critical(), "what is not known refuses nothing");
    let (space, full) = (Space::default(), Volume { free: 1 << 20, total: 1 << 30 });
    assert!(!has_reserve_file(dir.path(), full) && !full.fits_reserve_file());
    space.look(full, 1 << 20, false);
    assert!(space.is_critical());
}

#[test]
fn the_reserve_file_is_given_up_only_without_space() {
    let dir = tempfile::tempdir().unwrap();
    let volume = Volume { free: 1 << 30, total: 1 << 30 };
    make_reserve_file(dir.path(), volume).unwrap();
    make_reserve_file(dir.path(), volume).unwrap();
    assert_eq!(fs::metadata(dir.path().join(RESERVE_FILE)).unwrap().len(), 4 << 20);
    assert!(!give_up_reserve_file(dir.path()).unwrap(), "there is space for tests");
    let full = Volume { free: 1 << 20, total: 1 << 30 };
    assert!(full.is_critical() && !Volume { free: 4 << 20, ..full }.is_critical());
}
