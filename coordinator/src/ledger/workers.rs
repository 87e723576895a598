//! What is kept of workers, by their keys.

use protocol::WorkerKind;
use scheduler::Standing;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection, SqlitePool};

use super::pending::Pending;
use super::{Ledger, LedgerError};

/// Workers that are remembered; beyond them those without credit or ban go first, the ones
/// that were not seen for the longest time before the others. Keys cost nothing to make.
pub const RECORDS_MAX: i64 = 200_000;
/// Joins and leaves that are remembered, the newest.
pub const VISITS_MAX: i64 = 200_000;

/// What is known of a worker from all its visits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Ed25519 public key, hex.
    pub key: String,
    /// For people, as it said last.
    pub name: String,
    /// What sort.
    pub kind: WorkerKind,
    /// First join, seconds since 1970.
    pub first_seen_s: u64,
    /// Last sign of it, seconds since 1970.
    pub last_seen_s: u64,
    /// Milliseconds connected, all visits together.
    pub present_ms: u64,
    /// Rows computed.
    pub rows: u64,
    /// Rows × layers that were verified.
    pub credit: u64,
    /// Audits in a row that agreed.
    pub agreements: u32,
    /// Audits that did not, and were not made good.
    pub disagreements: u32,
    /// Since when and why it is let in no more.
    pub ban: Option<Ban>,
}

/// A ban.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ban {
    /// Since when, seconds since 1970.
    pub since_s: u64,
    /// Why, in words.
    pub because: String,
}

impl Record {
    /// Of a worker that was never here.
    pub(super) fn new(key: &str, name: &str, kind: WorkerKind, now_s: i64) -> Record {
        let now_s = unsigned(now_s);
        Record {
            key: key.to_owned(),
            name: name.to_owned(),
            kind,
            first_seen_s: now_s,
            last_seen_s: now_s,
            present_ms: 0,
            rows: 0,
            credit: 0,
            agreements: 0,
            disagreements: 0,
            ban: None,
        }
    }

    /// As the scheduler takes it with a join.
    pub fn standing(&self) -> Standing {
        Standing {
            agreements: self.agreements,
            disagreements: self.disagreements,
            banned: self.ban.is_some(),
            rows_verified: self.credit,
        }
    }

    /// Of a row with all columns of `workers`.
    pub(super) fn of(row: &SqliteRow) -> Result<Record, sqlx::Error> {
        let number = |column| row.try_get::<i64, _>(column).map(unsigned);
        let since = row.try_get::<Option<i64>, _>("banned_s")?;
        let because = row.try_get::<Option<String>, _>("banned_because")?;
        Ok(Record {
            key: row.try_get("key")?,
            name: row.try_get("name")?,
            kind: kind_of(row.try_get("kind")?),
            first_seen_s: number("first_seen_s")?,
            last_seen_s: number("last_seen_s")?,
            present_ms: number("present_ms")?,
            rows: number("rows")?,
            credit: number("credit")?,
            agreements: row.try_get("agreements")?,
            disagreements: row.try_get("disagreements")?,
            ban: since.map(|since| Ban {
                since_s: unsigned(since),
                because: because.unwrap_or_default(),
            }),
        })
    }
}

impl Ledger {
    /// What is known of the worker with this key, what waits to be written or is being written
    /// included.
    ///
    /// # Errors
    /// The database cannot be read, or takes nothing while something of this key waits.
    pub async fn record(&self, key: &str) -> Result<Option<Record>, LedgerError> {
        let batch = {
            let state = self.shared.state();
            let has = |pending: &Pending| pending.changes.contains_key(key);
            match &state.writing {
                _ if has(&state.pending) => Some(state.batch + 1),
                Some(writing) if has(writing) => Some(state.batch),
                _ => None,
            }
        };
        if let Some(batch) = batch {
            self.written(batch).await?;
        }
        let found = sqlx::query("SELECT * FROM workers WHERE key = ?1");
        let found = found.bind(key).fetch_optional(&self.shared.pool).await?;
        Ok(found.as_ref().map(Record::of).transpose()?)
    }

    /// Lets a banned key in again, of a coordinator that runs too; false if it was not banned.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn unban(&self, key: &str) -> Result<bool, LedgerError> {
        let lifting = sqlx::query(
            "UPDATE workers SET banned_s = NULL, banned_because = NULL \
             WHERE key = ?1 AND banned_s IS NOT NULL",
        );
        let done = lifting.bind(key).execute(&self.shared.pool).await?;
        Ok(done.rows_affected() > 0)
    }

    /// How many are remembered.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn records_count(&self) -> Result<u64, LedgerError> {
        let counting = sqlx::query_scalar("SELECT count(*) FROM workers");
        Ok(unsigned(counting.fetch_one(&self.shared.pool).await?))
    }

    /// Who is remembered, at most `max`: the banned ones first, then the most credit.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn records(&self, max: u32) -> Result<Vec<Record>, LedgerError> {
        let found = sqlx::query(
            "SELECT * FROM workers \
             ORDER BY banned_s IS NULL, credit DESC, rows DESC, last_seen_s DESC LIMIT ?1",
        );
        let found = found.bind(max).fetch_all(&self.shared.pool).await?;
        Ok(found.iter().map(Record::of).collect::<Result<_, _>>()?)
    }
}

/// Ends the visits that a killed coordinator left open, when their workers were seen last.
pub(super) async fn close_open_visits(pool: &SqlitePool) -> Result<(), sqlx::Error> {
    let closing = sqlx::query(
        "UPDATE visits SET reason = 'the coordinator ended', left_s = max(joined_s, \
         (SELECT coalesce(max(last_seen_s), 0) FROM workers WHERE workers.key = visits.key)) \
         WHERE left_s IS NULL",
    );
    closing.execute(pool).await.map(drop)
}

/// Forgets whom there is no room for.
pub(super) async fn forget(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let forgetting = sqlx::query(
        "DELETE FROM workers WHERE key IN (SELECT key FROM workers \
         ORDER BY credit > 0 OR banned_s IS NOT NULL, last_seen_s \
         LIMIT max(0, (SELECT count(*) FROM workers) - ?1))",
    );
    forgetting.bind(RECORDS_MAX).execute(connection).await.map(drop)
}

/// As the API and the database name it.
pub(crate) fn kind_name(kind: WorkerKind) -> &'static str {
    match kind {
        WorkerKind::Embedded => "embedded",
        WorkerKind::Native => "native",
        WorkerKind::Browser => "browser",
    }
}

fn kind_of(name: &str) -> WorkerKind {
    match name {
        "embedded" => WorkerKind::Embedded,
        "browser" => WorkerKind::Browser,
        _ => WorkerKind::Native,
    }
}

pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
