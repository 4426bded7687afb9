//! Django's databases: SQLite and PostgreSQL behind one trait. They are read only, and every wait has an
//! end.

use std::error::Error as StdError;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rusqlite::{OpenFlags, OptionalExtension, Params};
use tokio::runtime::Runtime;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, Config, NoTls, Statement};
use zephserver_plugin::Stop;

use crate::session::seconds;
use crate::settings::{Database, Tables};

/// How often a wait for the network looks whether the service is to stop.
const LOOK: Duration = Duration::from_millis(100);

/// Where sessions and users are. Errors are for the log: they name no secret.
pub trait Store {
    /// The row of a session, expired or not.
    fn session(&mut self, key: &str, until: Instant) -> Result<Option<Row>, String>;
    /// A user by the id that sessions keep.
    fn user(&mut self, id: &str, until: Instant) -> Result<Option<Account>, String>;
}

/// A row of the table of sessions.
#[derive(Clone)]
pub struct Row {
    /// Signed by Django.
    pub data: String,
    /// Seconds since 1970.
    pub expires: f64,
}

/// A row of the table of users.
#[derive(Clone)]
pub struct Account {
    pub username: String,
    /// The field as it is: the hash of a password.
    pub password: String,
    pub is_active: bool,
}

/// Connects, and looks whether the tables are there.
pub fn open(
    database: &Database,
    tables: &Tables,
    stop: &Stop,
    until: Instant,
) -> Result<Box<dyn Store>, String> {
    match database {
        Database::Sqlite(file) => Ok(Box::new(Sqlite::open(file, tables, until)?)),
        Database::Postgres(config) => Ok(Box::new(Postgres::open(config, tables, stop, until)?)),
    }
}

struct Sqlite {
    connection: rusqlite::Connection,
    session: String,
    user: String,
}

impl Sqlite {
    fn open(file: &Path, tables: &Tables, until: Instant) -> Result<Self, String> {
        let Tables { session, user, id, username, active } = tables;
        // Behind a table's name, SQLite takes no column that is missing for a text.
        let active = active.as_ref().map_or("1".into(), |column| format!("u.\"{column}\""));
        let session = format!(
            "SELECT session_data, CAST(expire_date AS TEXT) FROM \"{session}\" WHERE session_key = ?1"
        );
        let user = format!(
            "SELECT CAST(u.\"{username}\" AS TEXT), u.password, {active} FROM \"{user}\" AS u \
             WHERE u.\"{id}\" IN (?1, ?2)"
        );
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = rusqlite::Connection::open_with_flags(file, flags).map_err(|error| said(&error))?;
        let store = Self { connection, session, user };
        store.wait_until(until).map_err(|error| said(&error))?;
        for question in [&store.session, &store.user] {
            store.connection.prepare(question).map_err(|error| said(&error))?;
        }
        Ok(store)
    }

    /// Django may be writing: how long to wait for that.
    fn wait_until(&self, until: Instant) -> rusqlite::Result<()> {
        self.connection.busy_timeout(until.saturating_duration_since(Instant::now()))
    }

    fn ask<T>(
        &self,
        question: &str,
        parameters: impl Params,
        until: Instant,
        read: fn(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, String> {
        let asked = || {
            self.wait_until(until)?;
            self.connection.query_row(question, parameters, read).optional()
        };
        asked().map_err(|error| said(&error))
    }
}

impl Store for Sqlite {
    fn session(&mut self, key: &str, until: Instant) -> Result<Option<Row>, String> {
        let found = self.ask(&self.session, [key], until, |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })?;
        let Some((data, date)) = found else { return Ok(None) };
        let expires = seconds(&date).ok_or("expire_date of a session is no date")?;
        Ok(Some(Row { data, expires }))
    }

    fn user(&mut self, id: &str, until: Instant) -> Result<Option<Account>, String> {
        // Where ids are UUIDs, SQLite has them without hyphens. Numbers have none.
        let bare = if id.len() == 36 { id.replace('-', "") } else { id.into() };
        self.ask(&self.user, [id, bare.as_str()], until, |row| {
            Ok(Account { username: row.get(0)?, password: row.get(1)?, is_active: row.get(2)? })
        })
    }
}

struct Postgres {
    waiting: Waiting,
    client: Client,
    session: Statement,
    user: Statement,
}

impl Postgres {
    fn open(config: &Config, tables: &Tables, stop: &Stop, until: Instant) -> Result<Self, String> {
        let Tables { session, user, id, username, active } = tables;
        let active = active.as_ref().map_or("true".into(), |column| format!("u.\"{column}\""));
        let session = format!(
            "SELECT session_data, CAST(EXTRACT(EPOCH FROM expire_date) AS double precision) \
             FROM \"{session}\" WHERE session_key = $1"
        );
        let user = format!(
            "SELECT CAST(u.\"{username}\" AS text), CAST(u.password AS text), {active} FROM \"{user}\" AS u \
             WHERE u.\"{id}\" = $1"
        );
        let waiting = Waiting::new(stop)?;
        let (client, session, user) = waiting.wait(until, dial(config, &session, &user))?;
        Ok(Self { waiting, client, session, user })
    }
}

impl Store for Postgres {
    fn session(&mut self, key: &str, until: Instant) -> Result<Option<Row>, String> {
        let found = ask(&self.client, &self.session, key, |row| {
            Ok(Row { data: row.try_get(0)?, expires: row.try_get(1)? })
        });
        self.waiting.wait(until, found)
    }

    fn user(&mut self, id: &str, until: Instant) -> Result<Option<Account>, String> {
        let found = ask(&self.client, &self.user, id, |row| {
            Ok(Account { username: row.try_get(0)?, password: row.try_get(1)?, is_active: row.try_get(2)? })
        });
        self.waiting.wait(until, found)
    }
}

/// Connects, and prepares the two questions.
async fn dial(
    config: &Config,
    session: &str,
    user: &str,
) -> Result<(Client, Statement, Statement), tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    // Works while somebody waits for an answer. Where it fails, whoever waits hears of it.
    tokio::spawn(connection);
    // For the database's sake: nobody here waits longer.
    let limit = config.get_connect_timeout().map_or(0, Duration::as_millis);
    let manners = format!("SET default_transaction_read_only = on; SET statement_timeout = {limit}");
    client.batch_execute(&manners).await?;
    let session = client.prepare(session).await?;
    let user = client.prepare(user).await?;
    Ok((client, session, user))
}

async fn ask<T>(
    client: &Client,
    question: &Statement,
    parameter: &str,
    read: fn(&tokio_postgres::Row) -> Result<T, tokio_postgres::Error>,
) -> Result<Option<T>, tokio_postgres::Error> {
    match client.query_opt(question, &[&Text(parameter)]).await {
        Ok(row) => row.as_ref().map(read).transpose(),
        // Such as letters where ids are numbers: nobody has that one.
        Err(error) if error.code().is_some_and(|code| code.code().starts_with("22")) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A parameter as text: PostgreSQL makes of it whatever the column is, a number or a UUID.
#[derive(Debug)]
struct Text<'a>(&'a str);

impl ToSql for Text<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

/// Waits for the network on this thread, and not for ever.
struct Waiting {
    /// There until drop.
    runtime: Option<Runtime>,
    stop: Stop,
}

impl Waiting {
    fn new(stop: &Stop) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| said(&error))?;
        Ok(Self { runtime: Some(runtime), stop: stop.clone() })
    }

    fn wait<T>(
        &self,
        until: Instant,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, String> {
        let stopped = async {
            while !self.stop.is_set() {
                tokio::time::sleep(LOOK).await;
            }
        };
        let waited = async {
            tokio::select! {
                answer = tokio::time::timeout_at(until.into(), answer) => match answer {
                    Ok(answer) => answer.map_err(|error| said(&error)),
                    Err(_) => Err("no answer in time".to_string()),
                },
                () = stopped => Err("the service is to stop".to_string()),
            }
        };
        match &self.runtime {
            Some(runtime) => runtime.block_on(waited),
            None => Err("there is no runtime".into()),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // A look-up of a host's name has no end that we could set: it is left alone.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// An error with its causes, in one line.
fn said(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text.replace('\n', "; ")
}
