//! What is cached must not matter: the same commands with caches that keep everything, and with some that keep
//! hardly anything.

use super::*;

const ACCOUNTS: u64 = 7;

/// Any command of the accounts and sessions that exist.
fn any(number: u64) -> (u64, Command) {
    let choice = |of: u64, range: u64| cost::random(number * 8 + of) % range;
    let person = |of| choice(of, ACCOUNTS);
    let session = SessionId(ACCOUNTS + 1 + person(0));
    let to = Destination::Person(format!("account{}", person(1)));
    let command = match choice(2, 100) {
        0..60 => {
            let client_id = ClientId(u128::from(number).to_be_bytes());
            Command::SendMessage { session, to, client_id, body: "text".into() }
        }
        60..85 => {
            let conversation = ConversationId(2 * ACCOUNTS + 1 + choice(3, 40));
            let (up_to, read) = (Seq(choice(4, 30)), choice(5, 2) == 0);
            Command::Receipts(vec![ReceiptItem { session, conversation, up_to, read }])
        }
        85..98 => {
            let messages = vec![2 * ACCOUNTS + 1 + choice(3, number + 1)];
            Command::DeleteMessages { session, messages, for_everyone: choice(4, 2) == 0 }
        }
        // Rare, because nothing comes after it.
        98 if number > 2000 => Command::BeginAccountDeletion { session },
        _ => Command::EraseAccount { account: AccountId(person(0) + 1), limit: 3 },
    };
    (1000 + number, command)
}

fn made(dir: &Path, size: CacheSize) -> StateMachine {
    let mut machine = StateMachine::open(dir).expect("open");
    machine.set_cache_size(size).expect("set");
    machine
}

#[test]
fn results_do_not_depend_on_what_is_cached() {
    let dirs = [0, 1].map(|_| tempfile::tempdir().expect("tempdir"));
    let sizes = [CacheSize::of(0), CacheSize::default()];
    let mut both = [0, 1].map(|at| made(dirs[at].path(), sizes[at]));
    let accounts: Vec<_> = (0..ACCOUNTS).map(|account| create(&format!("account{account}"))).collect();
    let logins: Vec<_> = (1..=ACCOUNTS).map(|account| login(account, account as u8)).collect();
    let mut index = 1;
    let mut same = |both: &mut [StateMachine; 2], commands: &[(u64, Command)]| {
        let [one, other] = both.each_mut().map(|machine| machine.apply(vec![entry(index, commands)]).expect("apply"));
        index += 1;
        assert_eq!((one.outcomes, one.events), (other.outcomes, other.events), "entry {index}");
        assert_eq!(both[0].applied(), both[1].applied());
    };
    same(&mut both, &accounts);
    same(&mut both, &logins);
    for commit in 0..1500 {
        let commands: Vec<_> = (0..3).map(|at| any(commit * 3 + at)).collect();
        same(&mut both, &commands);
        if commit % 300 == 299 {
            both[(commit / 300 % 2) as usize].write_all_back().expect("written");
            drop(both);
            both = [0, 1].map(|at| made(dirs[at].path(), sizes[at]));
        }
    }
}
