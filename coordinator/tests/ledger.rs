//! The database: what is in it after a crash, under a burst, and beside another program.

use std::time::{Duration, Instant, SystemTime};

use coordinator::ledger::{FILE, InviteError, Joining, Ledger, LedgerError, Record, VISITS_MAX};
use protocol::{WorkerId, WorkerKind};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, Row, SqliteConnection};

fn key(number: u64) -> String {
    format!("{number:064x}")
}

fn joining(number: u64) -> Joining {
    Joining {
        worker: WorkerId(number),
        key: key(number),
        name: format!("w{number}"),
        kind: WorkerKind::Native,
        invite: None,
    }
}

async fn raw(folder: &tempfile::TempDir) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(folder.path().join(FILE));
    SqliteConnection::connect_with(&options).await.unwrap()
}

/// Kind and seconds of the visits that have ended.
async fn ended_visits(folder: &tempfile::TempDir) -> Vec<(String, i64)> {
    let visits = "SELECT kind, left_s - joined_s FROM visits WHERE left_s IS NOT NULL";
    sqlx::query_as(visits).fetch_all(&mut raw(folder).await).await.unwrap()
}

async fn record(ledger: &Ledger, number: u64) -> Record {
    ledger.record(&key(number)).await.unwrap().expect("it was here")
}

#[tokio::test]
async fn what_was_flushed_is_there_after_the_program_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path()).await.unwrap();
    let none = ledger.record(&key(1)).await.unwrap();
    assert_eq!(none, None);
    let _here = ledger.joined(joining(1), None).unwrap();
    ledger.computed(WorkerId(1), 7);
    ledger.verified(&key(1), 210);
    ledger.audited(&key(1), 3, 1);
    ledger.computed(WorkerId(2), 99);
    ledger.verified(&key(2), 99);
    ledger.flush().await.unwrap();
    let shown = ledger.standing(WorkerId(1)).unwrap();
    assert_eq!((shown.rows, shown.credit), (7, 210));
    // Nothing is closed, and its visit is open: as if it had been killed.
    let again = Ledger::open(folder.path()).await.unwrap();
    let kept = record(&again, 1).await;
    assert_eq!((kept.rows, kept.credit), (7, 210));
    assert_eq!((kept.agreements, kept.disagreements), (3, 1));
    assert_eq!((kept.name.as_str(), kept.kind, &kept.ban), ("w1", WorkerKind::Native, &None));
    assert_eq!(again.record(&key(2)).await.unwrap(), None, "who never joined is not kept");
    let ended = ended_visits(&folder).await;
    assert_eq!(ended.len(), 1, "the open visit was ended: {ended:?}");

    // The same worker again: its figures go on.
    let _here = again.joined(joining(1), Some(kept)).unwrap();
    again.computed(WorkerId(1), 5);
    again.left(WorkerId(1), "it closed its connection");
    again.computed(WorkerId(1), 1000);
    again.close().await;
    let third = Ledger::open(folder.path()).await.unwrap();
    assert_eq!(record(&third, 1).await.rows, 12, "what comes after the leave does not count");
    assert_eq!(ended_visits(&folder).await.len(), 2);
    assert_eq!(third.standing(WorkerId(1)), None, "it is not here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_burst_loses_nothing_and_waits_for_nobody() {
    const WORKERS: u64 = 500;
    const ROUNDS: u64 = 400;
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path()).await.unwrap();
    let _here: Vec<_> =
        (0..WORKERS).map(|number| ledger.joined(joining(number), None).unwrap()).collect();
    ledger.flush().await.unwrap();
    // Another program holds the database's lock all the while.
    let mut other = raw(&folder).await;
    let lock = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let began = Instant::now();
    let tasks: Vec<_> = (0..4u64)
        .map(|part| {
            let ledger = ledger.clone();
            std::thread::spawn(move || {
                for round in 0..ROUNDS {
                    for number in (0..WORKERS).filter(|number| number % 4 == part) {
                        ledger.computed(WorkerId(number), 1 + round % 2);
                        ledger.verified(&key(number), 30);
                    }
                }
            })
        })
        .collect();
    tasks.into_iter().for_each(|task| task.join().unwrap());
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "nobody waits for the lock: {took:?}");
    lock.rollback().await.unwrap();
    ledger.flush().await.unwrap();
    for number in 0..WORKERS {
        let kept = ledger.standing(WorkerId(number)).unwrap();
        assert_eq!((kept.rows, kept.credit), (ROUNDS * 3 / 2, ROUNDS * 30), "{number}");
    }
    let sum = sqlx::query("SELECT sum(rows) AS rows, sum(credit) AS credit FROM workers");
    let sum = sum.fetch_one(&mut other).await.unwrap();
    assert_eq!(sum.get::<i64, _>("rows"), (WORKERS * ROUNDS * 3 / 2) as i64);
    assert_eq!(sum.get::<i64, _>("credit"), (WORKERS * ROUNDS * 30) as i64);
}

#[tokio::test]
async fn a_ban_outlives_the_worker_and_can_be_lifted() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path()).await.unwrap();
    let _here = ledger.joined(joining(1), None).unwrap();
    ledger.left(WorkerId(1), "gone");
    ledger.flush().await.unwrap();
    ledger.banned(&key(1), None);
    ledger.banned(&key(1), Some("its answers were not what an audit found"));
    ledger.banned(&key(1), None);
    let ban = record(&ledger, 1).await.ban.expect("it is banned");
    assert_eq!(ban.because, "its answers were not what an audit found");
    ledger.close().await;
    let aside = Ledger::open_existing(folder.path()).await.unwrap();
    assert!(aside.unban(&key(1)).await.unwrap());
    assert!(!aside.unban(&key(1)).await.unwrap(), "it is not banned any more");
    assert_eq!(record(&aside, 1).await.ban, None);
}

#[tokio::test]
async fn a_coordinator_that_runs_hears_of_a_lifted_ban() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path()).await.unwrap();
    for number in [1, 2] {
        let _here = ledger.joined(joining(number), None).unwrap();
        ledger.left(WorkerId(number), "gone");
        ledger.banned(&key(number), Some("it lied"));
    }
    ledger.flush().await.unwrap();
    let aside = Ledger::open_existing(folder.path()).await.unwrap();
    for _again in 0..2 {
        assert!(aside.unban(&key(2)).await.unwrap());
        assert_eq!(ledger.lifted().await, [key(2)], "nobody is here, and it is told all the same");
        assert_eq!(record(&ledger, 2).await.ban, None);
        ledger.banned(&key(2), Some("it lied again"));
        assert_eq!(record(&ledger, 2).await.ban.unwrap().because, "it lied again");
    }
    assert!(record(&ledger, 1).await.ban.is_some());
    // Whoever is banned is listed, however many have more credit.
    let _here = ledger.joined(joining(3), None).unwrap();
    ledger.verified(&key(3), 1_000_000);
    ledger.flush().await.unwrap();
    let listed: Vec<String> = ledger.records(3).await.unwrap().into_iter().map(|r| r.key).collect();
    assert_eq!(listed.last(), Some(&key(3)), "{listed:?}");
    assert_eq!((listed.len(), ledger.records_count().await.unwrap()), (3, 3));
}

#[tokio::test]
async fn nobody_waits_for_ever_for_a_database_that_takes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path()).await.unwrap();
    let _here = ledger.joined(joining(1), None).unwrap();
    ledger.flush().await.unwrap();
    let mut other = raw(&folder).await;
    let lock = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    ledger.banned(&key(1), Some("it lied"));
    // From here on waiting takes no time.
    tokio::time::pause();
    for _whether_it_is_pending_or_being_written in 0..2 {
        let refused = ledger.record(&key(1)).await;
        assert!(matches!(refused, Err(LedgerError::Stuck)), "{refused:?}");
    }
    assert!(matches!(ledger.flush().await, Err(LedgerError::Stuck)));
    tokio::time::resume();
    lock.rollback().await.unwrap();
    let healed = record(&ledger, 1).await;
    assert_eq!(healed.ban.expect("it was not lost").because, "it lied");

    let lock = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    tokio::time::pause();
    ledger.close().await;
    drop(lock);
}

#[cfg(unix)]
#[tokio::test]
async fn its_files_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path()).await.unwrap();
    let _here = ledger.joined(joining(1), None).unwrap();
    ledger.flush().await.unwrap();
    let mut seen = Vec::new();
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let file = file.unwrap();
        let mode = file.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", file.path());
        seen.push(file.file_name().into_string().unwrap());
    }
    seen.sort();
    assert_eq!(seen, [FILE.to_owned(), format!("{FILE}-shm"), format!("{FILE}-wal")]);
}

#[tokio::test]
async fn an_invite_is_good_for_the_first_key_alone() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path()).await.unwrap();
    let hour = SystemTime::now() + Duration::from_secs(3600);
    let invited = ledger.invite("garage", Some(hour)).await.unwrap();
    assert_eq!(ledger.use_invite(&invited.token, &key(1)).await.unwrap(), invited.id);
    assert_eq!(ledger.use_invite(&invited.token, &key(1)).await.unwrap(), invited.id);
    let other = ledger.use_invite(&invited.token, &key(2)).await;
    assert!(matches!(other, Err(InviteError::Taken)), "{other:?}");
    let unknown = ledger.use_invite("weft_invite_00", &key(1)).await;
    assert!(matches!(unknown, Err(InviteError::Unknown)), "{unknown:?}");

    let past = SystemTime::now() - Duration::from_secs(1);
    let late = ledger.invite("late", Some(past)).await.unwrap();
    let expired = ledger.use_invite(&late.token, &key(3)).await;
    assert!(matches!(expired, Err(InviteError::Expired)), "{expired:?}");

    assert!(ledger.revoke(invited.id).await.unwrap());
    assert!(!ledger.revoke(invited.id).await.unwrap(), "it was revoked before");
    assert!(!ledger.revoke(12345).await.unwrap(), "there is none");
    let revoked = ledger.use_invite(&invited.token, &key(1)).await;
    assert!(matches!(revoked, Err(InviteError::Revoked)), "{revoked:?}");
    let names: Vec<String> =
        ledger.invites().await.unwrap().into_iter().map(|invite| invite.name).collect();
    assert_eq!(names, ["late", "garage"]);

    // No token is in any of the database's files.
    ledger.close().await;
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let holds = |token: &str| bytes.windows(token.len()).any(|part| part == token.as_bytes());
        assert!(!holds(&invited.token) && !holds(&late.token));
    }
}

#[tokio::test]
async fn the_history_of_visits_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path()).await.unwrap();
    let mut aside = raw(&folder).await;
    for id in [1, 2, VISITS_MAX + 1] {
        let adding = sqlx::query(
            "INSERT INTO visits (id, key, kind, joined_s, left_s) VALUES (?1, 'k', 'browser', 5, 9)",
        );
        adding.bind(id).execute(&mut aside).await.unwrap();
    }
    assert_eq!(ended_visits(&folder).await.len(), 3);
    let _here = ledger.joined(joining(1), None).unwrap();
    ledger.flush().await.unwrap();
    let ended = ended_visits(&folder).await;
    assert_eq!(ended, [("browser".into(), 4)], "those from {VISITS_MAX} visits ago are gone");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(FILE), "this is a letter, not a database").unwrap();
    let refused = Ledger::open(folder.path()).await.unwrap_err().to_string();
    assert!(refused.contains(FILE) && refused.contains("move the file away"), "{refused}");
}
