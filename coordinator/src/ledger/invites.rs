//! Invites: tokens that make a native worker trusted. Only a token's hash is kept, and the key
//! that used it first is the only one that it is good for.

use std::time::SystemTime;

use sha2::{Digest, Sha256};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::workers::unsigned;
use super::{Ledger, LedgerError, seconds};
use crate::random;

/// Invites that are kept, revoked ones included; beyond them the oldest dead ones go.
pub const INVITES_MAX: i64 = 10_000;
/// What tokens begin with, so that people and scanners for secrets know one.
const TOKEN_PREFIX: &str = "weft_invite_";
/// Random bytes of a token.
const TOKEN_BYTES: usize = 20;

/// An invite, without its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invite {
    /// For `coordinator revoke`.
    pub id: i64,
    /// For people.
    pub name: String,
    /// When it was made, seconds since 1970.
    pub created_s: u64,
    /// Until when it may be used for the first time, seconds since 1970.
    pub expires_s: Option<u64>,
    /// The worker that used it, by its key.
    pub key: Option<String>,
    /// When it was used first, seconds since 1970.
    pub used_s: Option<u64>,
    /// When it was revoked, seconds since 1970.
    pub revoked_s: Option<u64>,
}

/// A new invite.
#[derive(Debug)]
pub struct Invited {
    /// Its number.
    pub id: i64,
    /// What the worker has to show; kept nowhere.
    pub token: String,
}

/// Why an invite does not count, for the worker that showed it.
#[derive(Debug, thiserror::Error)]
pub enum InviteError {
    /// No such token.
    #[error(
        "the invite token is not one of this coordinator's: ask its operator for one \
         (`coordinator invite`), or join without"
    )]
    Unknown,
    /// It was not used in time.
    #[error("the invite was not used before it expired: ask the operator for another one")]
    Expired,
    /// An operator took it back.
    #[error("the invite was revoked: ask the operator for another one, or join without")]
    Revoked,
    /// Another worker used it first.
    #[error(
        "the invite was used by another worker, and is good for that one's key only: each worker \
         needs its own (`coordinator invite`)"
    )]
    Taken,
    /// The database failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl Ledger {
    /// Makes an invite that may be used for the first time until `expires`.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn invite(
        &self,
        name: &str,
        expires: Option<SystemTime>,
    ) -> Result<Invited, LedgerError> {
        let token = format!("{TOKEN_PREFIX}{}", random::hex::<TOKEN_BYTES>());
        let now = seconds(SystemTime::now());
        let mut transaction = self.shared.pool.begin_with("BEGIN IMMEDIATE").await?;
        let making = sqlx::query(
            "INSERT INTO invites (name, token_hash, created_s, expires_s) VALUES (?1, ?2, ?3, ?4)",
        );
        let hash = hash(&token);
        let making = making.bind(name).bind(&hash[..]).bind(now).bind(expires.map(seconds));
        let id = making.execute(&mut *transaction).await?.last_insert_rowid();
        let forgetting = sqlx::query(
            "DELETE FROM invites WHERE id IN (SELECT id FROM invites WHERE revoked_s IS NOT NULL \
             OR (key IS NULL AND expires_s <= ?1) ORDER BY id \
             LIMIT max(0, (SELECT count(*) FROM invites) - ?2))",
        );
        forgetting.bind(now).bind(INVITES_MAX).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(Invited { id, token })
    }

    /// Has the worker with this key use an invite; the first to do so is the only one who can.
    /// Answers the invite's number.
    ///
    /// # Errors
    /// Why it does not count.
    pub async fn use_invite(&self, token: &str, key: &str) -> Result<i64, InviteError> {
        let (hash, now) = (hash(token), seconds(SystemTime::now()));
        let pool = &self.shared.pool;
        let taking = sqlx::query(
            "UPDATE invites SET key = ?1, used_s = ?2 WHERE token_hash = ?3 AND key IS NULL \
             AND revoked_s IS NULL AND (expires_s IS NULL OR expires_s > ?2)",
        );
        let sql = |error| InviteError::Ledger(LedgerError::Sql(error));
        taking.bind(key).bind(now).bind(&hash[..]).execute(pool).await.map_err(sql)?;
        let found = sqlx::query("SELECT * FROM invites WHERE token_hash = ?1").bind(&hash[..]);
        let found = found.fetch_optional(pool).await.map_err(sql)?.ok_or(InviteError::Unknown)?;
        let invite = Invite::of(&found).map_err(sql)?;
        match invite {
            Invite { revoked_s: Some(_), .. } => Err(InviteError::Revoked),
            Invite { key: None, .. } => Err(InviteError::Expired),
            Invite { key: Some(first), .. } if first != key => Err(InviteError::Taken),
            Invite { id, .. } => Ok(id),
        }
    }

    /// All invites, the newest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn invites(&self) -> Result<Vec<Invite>, LedgerError> {
        let found = sqlx::query("SELECT * FROM invites ORDER BY id DESC");
        let found = found.fetch_all(&self.shared.pool).await?;
        Ok(found.iter().map(Invite::of).collect::<Result<_, _>>()?)
    }

    /// Takes an invite back; a coordinator that runs sends its worker away within seconds.
    /// False if there is none, or it was revoked before.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn revoke(&self, id: i64) -> Result<bool, LedgerError> {
        let revoking =
            sqlx::query("UPDATE invites SET revoked_s = ?1 WHERE id = ?2 AND revoked_s IS NULL");
        let now = seconds(SystemTime::now());
        let done = revoking.bind(now).bind(id).execute(&self.shared.pool).await?;
        Ok(done.rows_affected() > 0)
    }
}

impl Invite {
    fn of(row: &SqliteRow) -> Result<Invite, sqlx::Error> {
        let time = |column| row.try_get::<Option<i64>, _>(column).map(|at| at.map(unsigned));
        Ok(Invite {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            created_s: unsigned(row.try_get("created_s")?),
            expires_s: time("expires_s")?,
            key: row.try_get("key")?,
            used_s: time("used_s")?,
            revoked_s: time("revoked_s")?,
        })
    }

    /// What may become of it, in a word.
    pub fn state(&self, now_s: u64) -> &'static str {
        match self {
            Invite { revoked_s: Some(_), .. } => "revoked",
            Invite { key: Some(_), .. } => "used",
            Invite { expires_s: Some(at), .. } if *at <= now_s => "expired",
            Invite { .. } => "open",
        }
    }
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}
