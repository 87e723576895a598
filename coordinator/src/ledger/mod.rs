//! What must survive: who was here and for how long, what they computed, who is banned, who was
//! invited. SQLite in the home folder; never anything of prompts or outputs.
//!
//! Changes are collected in memory ([`Pending`], one entry per worker however many changes) and
//! written by one task, a batch in one transaction. Nobody waits for the disk: a burst makes a
//! batch's numbers larger, not its entries more. What [`Ledger::standing`] tells has been
//! committed, so a `kill -9` takes back nothing that anyone was shown. The log is SQLite's WAL
//! with `synchronous = NORMAL`: a power cut may lose the last commits, but breaks nothing.

mod invites;
mod pending;
mod workers;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::{WorkerId, WorkerKind};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{SqlSafeStr, SqlitePool};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use self::invites::{INVITES_MAX, Invite, InviteError, Invited};
pub use self::pending::PENDING_KEYS_MAX;
use self::pending::{Delta, Leaving, Pending, Visit};
pub(crate) use self::workers::kind_name;
pub use self::workers::{Ban, RECORDS_MAX, Record, VISITS_MAX};

/// The database's file in the home folder.
pub const FILE: &str = "fleet.db";
/// Connections to the database: the writer's, and those of readers.
const CONNECTIONS_MAX: u32 = 4;
/// How long a statement waits while another program, such as `coordinator invite`, writes.
const BUSY_WITHIN: Duration = Duration::from_secs(10);
/// How long anyone waits for what is pending to be written, and for the file to be closed.
pub const WRITTEN_WITHIN: Duration = Duration::from_secs(5);
/// Keys whose ban was written since the start, of which the writer looks whether an operator
/// lifted it; a ban beyond them is lifted by a restart.
pub const BANS_WATCHED_MAX: usize = 1000;

/// What went wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// It cannot be opened, or is none of ours.
    #[error(
        "the database {path} cannot be used: {error}; if a newer Weft wrote it, use that one, \
         else move the file away to begin with an empty one (credit, bans and invites are in it)"
    )]
    Open {
        /// Where.
        path: PathBuf,
        /// What SQLite said.
        error: sqlx::Error,
    },
    /// There is none.
    #[error(
        "there is no database {path}: no coordinator has run with this home folder; name another \
         one with --home, or with --config the file that `coordinator serve` was given"
    )]
    Missing {
        /// Where.
        path: PathBuf,
    },
    /// What is pending was not written in time.
    #[error(
        "the coordinator's database {FILE} has taken nothing for {} s: is the disk full, or does \
         another program hold it?", WRITTEN_WITHIN.as_secs()
    )]
    Stuck,
    /// A statement failed.
    #[error("the coordinator's database: {0}")]
    Sql(#[from] sqlx::Error),
    /// Too many workers' changes wait to be written.
    #[error("the coordinator's database takes nothing: {PENDING_KEYS_MAX} workers' changes wait")]
    Full,
}

/// The database. Clones share it.
#[derive(Clone, Debug)]
pub struct Ledger {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    pool: SqlitePool,
    state: Mutex<State>,
    /// Something is to be written.
    work: Notify,
    /// The number of the last batch that was written.
    written: watch::Sender<u64>,
    /// There are lifted bans to tell of.
    lifted: Notify,
    closing: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    pending: Pending,
    /// Workers that are connected.
    here: BTreeMap<WorkerId, Here>,
    /// What the writer has taken and not committed yet.
    writing: Option<Arc<Pending>>,
    /// The number of the batch that was taken last.
    batch: u64,
    /// Keys whose bans were committed: see [`BANS_WATCHED_MAX`].
    watched: BTreeSet<String>,
    /// Keys whose bans an operator has lifted, to be told of.
    lifted: Vec<String>,
}

/// A worker that is connected.
#[derive(Debug)]
struct Here {
    key: String,
    invite: Option<i64>,
    /// As it was committed last.
    record: Record,
    /// Up to when its presence was counted.
    counted_to: SystemTime,
    /// Ends its connection, for this reason.
    sent_away: watch::Sender<Option<String>>,
}

/// A worker as it joins.
#[derive(Clone, Debug)]
pub struct Joining {
    /// Its connection.
    pub worker: WorkerId,
    /// Its public key, hex.
    pub key: String,
    /// For people.
    pub name: String,
    /// What sort.
    pub kind: WorkerKind,
    /// The invite that it showed.
    pub invite: Option<i64>,
}

impl Ledger {
    /// Opens `fleet.db` in `folder`, made if it is not there, and starts the task that writes.
    /// Visits that a killed coordinator left open end when their workers were seen last.
    ///
    /// # Errors
    /// The file cannot be used.
    pub async fn open(folder: &Path) -> Result<Ledger, LedgerError> {
        let ledger = Ledger::open_quietly(folder).await?;
        workers::close_open_visits(&ledger.shared.pool).await?;
        tokio::spawn(writer::run(ledger.shared.clone()));
        Ok(ledger)
    }

    /// Opens the one that is there, for what an operator asks and says beside a coordinator that
    /// may run.
    ///
    /// # Errors
    /// There is none, or the file cannot be used.
    pub async fn open_existing(folder: &Path) -> Result<Ledger, LedgerError> {
        let path = folder.join(FILE);
        match path.exists() {
            true => Ledger::open_quietly(folder).await,
            false => Err(LedgerError::Missing { path }),
        }
    }

    /// Opens it, made if it is not there, beside a coordinator that may run: nothing is written
    /// that is not said outright.
    ///
    /// # Errors
    /// The file cannot be used.
    pub async fn open_quietly(folder: &Path) -> Result<Ledger, LedgerError> {
        let path = folder.join(FILE);
        let pool = connect(&path).await.map_err(|error| LedgerError::Open { path, error })?;
        let shared = Shared {
            pool,
            state: Mutex::default(),
            work: Notify::new(),
            written: watch::Sender::new(0),
            lifted: Notify::new(),
            closing: CancellationToken::new(),
        };
        Ok(Ledger { shared: Arc::new(shared) })
    }

    /// Notes that a worker is here, with `record` as what is known of it; the receiver tells
    /// why it has to go, should an operator say so.
    ///
    /// # Errors
    /// [`LedgerError::Full`].
    pub fn joined(
        &self,
        joining: Joining,
        record: Option<Record>,
    ) -> Result<watch::Receiver<Option<String>>, LedgerError> {
        let Joining { worker, key, name, kind, invite } = joining;
        let now = SystemTime::now();
        let mut state = self.shared.state();
        let visit = Visit { worker, key: key.clone(), kind, joined_s: seconds(now) };
        state.pending.join(visit, name.clone())?;
        let record = record.unwrap_or_else(|| Record::new(&key, &name, kind, seconds(now)));
        let (sent_away, receiver) = watch::channel(None);
        let here = Here { key, invite, record, counted_to: now, sent_away };
        state.here.insert(worker, here);
        drop(state);
        self.shared.work.notify_one();
        Ok(receiver)
    }

    /// Notes that a worker has gone. One that is not here changes nothing.
    pub fn left(&self, worker: WorkerId, reason: &str) {
        let mut state = self.shared.state();
        let state = &mut *state;
        let Some(mut here) = state.here.remove(&worker) else { return };
        let now = SystemTime::now();
        let present = here.present(now);
        state.pending.add(&here.key, present);
        let reason = protocol::clean_text(reason);
        state.pending.leave(Leaving { worker, left_s: seconds(now), reason });
        self.shared.work.notify_one();
    }

    /// A worker that is here computed so many more rows.
    pub fn computed(&self, worker: WorkerId, rows: u64) {
        let mut state = self.shared.state();
        let state = &mut *state;
        let Some(here) = state.here.get(&worker) else { return };
        state.pending.add(&here.key, Delta { rows, ..Delta::default() });
        self.shared.work.notify_one();
    }

    /// So many more rows × layers of a key's work were verified.
    pub fn verified(&self, key: &str, credit: u64) {
        self.shared.state().pending.add(key, Delta { credit, ..Delta::default() });
        self.shared.work.notify_one();
    }

    /// What audits have shown of a key up to here.
    pub fn audited(&self, key: &str, agreements: u32, disagreements: u32) {
        if let Some(change) = self.shared.state().pending.change(key) {
            change.audited = Some((agreements, disagreements));
        }
        self.shared.work.notify_one();
    }

    /// A key is let in no more; why, in words, if that is known.
    pub fn banned(&self, key: &str, because: Option<&str>) {
        if let Some(change) = self.shared.state().pending.change(key) {
            change.banned = true;
            change.banned_because =
                because.map(protocol::clean_text).or(change.banned_because.take());
        }
        self.shared.work.notify_one();
    }

    /// What is committed of a worker that is here.
    pub fn standing(&self, worker: WorkerId) -> Option<Record> {
        self.shared.state().here.get(&worker).map(|here| here.record.clone())
    }

    /// Waits until an operator has lifted bans; of which keys. For one waiter.
    pub async fn lifted(&self) -> Vec<String> {
        loop {
            let lifted = std::mem::take(&mut self.shared.state().lifted);
            if !lifted.is_empty() {
                return lifted;
            }
            self.shared.lifted.notified().await;
        }
    }

    /// Waits until all that came before this call is committed, at most [`WRITTEN_WITHIN`].
    ///
    /// # Errors
    /// [`LedgerError::Stuck`] (what waits is not lost), or the task that writes has ended.
    pub async fn flush(&self) -> Result<(), LedgerError> {
        let next = self.shared.state().batch + 1;
        self.written(next).await
    }

    /// Waits until the batch of that number, or a later one, is committed.
    async fn written(&self, batch: u64) -> Result<(), LedgerError> {
        let mut written = self.shared.written.subscribe();
        self.shared.work.notify_one();
        let gone = || LedgerError::Sql(sqlx::Error::PoolClosed);
        tokio::select! {
            done = timeout(WRITTEN_WITHIN, written.wait_for(|&written| written >= batch)) => {
                done.map_err(|_elapsed| LedgerError::Stuck)?.map(drop).map_err(|_| gone())
            }
            () = self.shared.pool.close_event() => Err(gone()),
        }
    }

    /// Writes what is left and closes the file, in twice [`WRITTEN_WITHIN`] at most.
    pub async fn close(&self) {
        let workers: Vec<WorkerId> = self.shared.state().here.keys().copied().collect();
        for worker in workers {
            self.left(worker, "the coordinator stopped");
        }
        if let Err(error) = self.flush().await {
            tracing::error!("the last changes were not written: {error}");
        }
        self.shared.closing.cancel();
        if timeout(WRITTEN_WITHIN, self.shared.pool.close()).await.is_err() {
            tracing::error!("the database is left as it is: a statement does not end");
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Here {
    /// Its presence since it was counted last.
    fn present(&mut self, now: SystemTime) -> Delta {
        let since = now.duration_since(self.counted_to).unwrap_or_default();
        self.counted_to = now;
        let present_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        Delta { present_ms, ..Delta::default() }
    }
}

/// Seconds since 1970.
fn seconds(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// As SQLite keeps it: signed.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

async fn connect(path: &Path) -> Result<SqlitePool, sqlx::Error> {
    // For its owner only, and so are the log and the index beside it, which SQLite makes with the
    // file's own mode. An empty file is an empty database.
    #[cfg(unix)]
    {
        let mut making = std::fs::File::options();
        making.write(true).create_new(true);
        std::os::unix::fs::OpenOptionsExt::mode(&mut making, 0o600);
        match making.open(path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(sqlx::Error::Io(error));
            }
            Ok(_) | Err(_) => {}
        }
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(BUSY_WITHIN);
    let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS_MAX);
    let pool = pool.connect_with(options).await?;
    let migrations = [("ledger", include_str!("../../migrations/0001_ledger.sql"))];
    let migrations = (1..).zip(migrations).map(|(version, (name, sql))| {
        let sql = sql.into_sql_str();
        Migration::new(version, name.into(), MigrationType::Simple, sql, false)
    });
    Migrator::with_migrations(migrations.collect()).run(&pool).await?;
    Ok(pool)
}
