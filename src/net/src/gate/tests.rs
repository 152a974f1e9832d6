//! Displacement in full pools, owners, and unread answers.

use super::*;

fn gate(proven: usize, unproven: usize) -> Gate {
    Gate::new(Pools { proven, unproven, equals_displace: false }, Arc::new(|_| {}))
}

fn from(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], 1))
}

fn cut(tickets: &[Arc<Ticket>]) -> Vec<bool> {
    tickets.iter().map(|ticket| ticket.is_cut()).collect()
}

#[test]
fn a_flood_displaces_itself() {
    let gate = gate(8, 3);
    let tickets: Vec<_> = [1, 2, 2, 2, 3, 2].map(|host| gate.admit(from(host))).into();
    assert_eq!(cut(&tickets), [false, true, true, true, false, false]);
    assert_eq!(gate.counts(), (3, 0));
    tickets[1].leave();
    tickets[0].leave();
    assert_eq!(gate.counts(), (2, 0));
}

#[test]
fn proven_connections_are_out_of_reach_of_strangers() {
    let gate = gate(2, 1);
    let member = gate.admit(from(1));
    member.prove(Owner::Account(1));
    let strangers: Vec<_> = (0..10).map(|_| gate.admit(from(1))).collect();
    assert!(!member.is_cut());
    assert_eq!(strangers.iter().filter(|ticket| !ticket.is_cut()).count(), 1);
}

#[test]
fn a_full_pool_is_shared_by_its_owners() {
    let gate = gate(3, 8);
    let prove = |owner| {
        let ticket = gate.admit(from(1));
        ticket.prove(Owner::Account(owner));
        ticket
    };
    let tickets: Vec<_> = [1, 1, 1, 2, 3, 1, 4].map(prove).into();
    assert_eq!(cut(&tickets), [true, true, false, false, false, true, true], "{gate:?}");
}

#[test]
fn the_newest_probe_and_the_newest_connection_of_a_proxy_get_in() {
    let probes = Gate::new(Pools { proven: 2, unproven: 8, equals_displace: true }, Arc::new(|_| {}));
    let prove = |host| {
        let ticket = probes.admit(from(host));
        ticket.prove(ticket.owner());
        ticket
    };
    let tickets: Vec<_> = [1, 2, 3, 3, 1].map(prove).into();
    assert_eq!(cut(&tickets), [true, true, true, false, false]);
    let gate = gate(2, 8);
    let forward = |_| {
        let ticket = gate.admit(from(1));
        ticket.forward();
        ticket
    };
    let tickets: Vec<_> = [(); 4].map(forward).into();
    assert_eq!(cut(&tickets), [true, true, false, false]);
}

#[test]
fn addresses_of_one_host_are_one_owner() {
    let owner = |text: &str| Owner::of(text.parse().unwrap());
    assert_eq!(owner("2001:db8::1"), owner("2001:db8::ffff:1"));
    assert_ne!(owner("2001:db8:0:1::1"), owner("2001:db8:0:2::1"));
    assert_eq!(owner("::ffff:10.0.0.1"), owner("10.0.0.1"));
    assert_ne!(owner("10.0.0.2"), owner("10.0.0.1"));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_taken_ends_its_connection() {
    let gate = gate(8, 8);
    let (idle, reading, stalled) = (gate.admit(from(1)), gate.admit(from(1)), gate.admit(from(1)));
    stalled.handed_out();
    let slot = reading.handed_out();
    tokio::time::advance(ANSWER_STALL_MAX).await;
    reading.written(slot);
    reading.handed_out();
    tokio::time::advance(Duration::from_millis(1)).await;
    gate.sweep();
    assert_eq!(cut(&[idle, reading, stalled]), [false, false, true]);
    assert_eq!(gate.counts(), (2, 0));
}
