//! What the settings say. Secrets are never shown, not even in errors.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;
use zephserver_plugin::{Declare, Error, Result, SettingType};

/// Bytes of a file with a secret at most.
const LONGEST_SECRET: u64 = 64 * 1024;

/// The settings of the service, checked.
pub struct Settings {
    /// The name of Django's cookie.
    pub cookie: String,
    /// Sessions come by the cookie; else by `session_id` of the message.
    pub same_domain: bool,
    pub engine: Engine,
    /// Django's SECRET_KEY, and those that it had before.
    pub secrets: Vec<Vec<u8>>,
    pub database: Database,
    pub tables: Tables,
    /// Seconds that a session in a cookie lasts.
    pub cookie_age: f64,
    /// How long a look-up may take, waiting included.
    pub timeout: Duration,
    /// Look-ups at a time, each with a connection of its own.
    pub connections: usize,
    /// Look-ups that wait at most.
    pub waiting: usize,
}

/// Where Django keeps sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// In the cookie itself.
    SignedCookies,
    /// In the database.
    Db,
}

/// Where Django keeps users.
pub enum Database {
    Sqlite(PathBuf),
    Postgres(Box<Config>),
}

/// Names of tables and columns. Each is a plain name: it may stand in quotes.
#[derive(Clone, Debug)]
pub struct Tables {
    pub session: String,
    pub user: String,
    pub id: String,
    pub username: String,
    /// None: all users are active.
    pub active: Option<String>,
}

/// The settings as they come.
#[derive(Deserialize)]
pub struct Written {
    cookie: String,
    same_domain: bool,
    secret_key: Option<String>,
    secret_key_file: Option<String>,
    secret_key_fallbacks: Vec<Value>,
    engine: String,
    database: String,
    database_password_file: Option<String>,
    session_table: String,
    user_table: String,
    user_id_column: String,
    username_column: String,
    active_column: String,
    cookie_age: f64,
    timeout: f64,
    connections: i64,
    waiting: i64,
}

/// What the server must know of them.
pub fn declare(declare: Declare) -> Declare {
    declare
        .setting("cookie", "sessionid", "the name of Django's cookie: SESSION_COOKIE_NAME")
        .setting("same_domain", true, "sessions come by the cookie; false: by `session_id` of the messages")
        .alias("SAME_DOMAIN")
        .optional("secret_key", SettingType::Text, "Django's SECRET_KEY")
        .optional("secret_key_file", SettingType::Text, "a file with Django's SECRET_KEY, instead of it")
        .setting("secret_key_fallbacks", json!([]), "Django's SECRET_KEY_FALLBACKS")
        .setting("engine", "db", "Django's SESSION_ENGINE: \"db\", \"cached_db\" or \"signed_cookies\"")
        .required(
            "database",
            SettingType::Text,
            "\"sqlite:///srv/site/db.sqlite3\" or \"postgres://user:password@host:port/name\"",
        )
        .optional("database_password_file", SettingType::Text, "a file with the password of the database")
        .setting("session_table", "django_session", "the table of sessions")
        .setting("user_table", "auth_user", "the table of users")
        .setting("user_id_column", "id", "its primary key")
        .setting("username_column", "username", "its column with the name that others see")
        .setting("active_column", "is_active", "its column of who may log in; \"\": everybody may")
        .setting("cookie_age", 1_209_600, "Django's SESSION_COOKIE_AGE, seconds")
        .setting("timeout", 5.0, "seconds that a look-up may take")
        .setting("connections", 4, "connections to the database")
        .setting("waiting", 1024, "look-ups that wait at most")
}

fn wrong(what: impl std::fmt::Display) -> Error {
    Error::invalid(format!("[session_django] {what}"))
}

impl Settings {
    /// Checks them, and reads the files that they name.
    pub fn new(written: Written) -> Result<Self> {
        let module = written.engine.strip_prefix("django.contrib.sessions.backends.");
        let engine = match module.unwrap_or(&written.engine) {
            "signed_cookies" => Engine::SignedCookies,
            "db" | "cached_db" => Engine::Db,
            _ => {
                let text = "engine is not known; it is \"db\", \"cached_db\" or \"signed_cookies\"";
                return Err(wrong(text));
            }
        };
        let secret = match (written.secret_key, &written.secret_key_file) {
            (Some(secret), None) => secret.into_bytes(),
            (None, Some(file)) => read_secret("secret_key_file", file)?,
            _ => return Err(wrong("it needs either `secret_key` or `secret_key_file`")),
        };
        let mut secrets = vec![secret];
        for fallback in written.secret_key_fallbacks {
            match fallback {
                Value::String(secret) => secrets.push(secret.into_bytes()),
                _ => return Err(wrong("secret_key_fallbacks is a list of texts")),
            }
        }
        if secrets.iter().any(Vec::is_empty) {
            return Err(wrong("a secret key is empty"));
        }
        let seconds = |name: &str, seconds: f64, most: f64| match (0.001..=most).contains(&seconds) {
            true => Ok(seconds),
            false => Err(wrong(format!("{name} is a number of seconds above 0, {most} at most"))),
        };
        let count = |name: &str, count: i64, most: i64| match (1..=most).contains(&count) {
            true => Ok(count as usize),
            false => Err(wrong(format!("{name} is a number from 1 to {most}"))),
        };
        let timeout = Duration::from_secs_f64(seconds("timeout", written.timeout, 3600.0)?);
        if written.cookie.is_empty() || !written.cookie.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong("cookie is the name of a cookie, such as \"sessionid\""));
        }
        Ok(Self {
            cookie: written.cookie,
            same_domain: written.same_domain,
            engine,
            secrets,
            database: database(&written.database, written.database_password_file.as_deref(), timeout)?,
            tables: Tables {
                session: plain("session_table", written.session_table)?,
                user: plain("user_table", written.user_table)?,
                id: plain("user_id_column", written.user_id_column)?,
                username: plain("username_column", written.username_column)?,
                active: match written.active_column.is_empty() {
                    true => None,
                    false => Some(plain("active_column", written.active_column)?),
                },
            },
            cookie_age: seconds("cookie_age", written.cookie_age, 1e10)?,
            timeout,
            connections: count("connections", written.connections, 64)?,
            waiting: count("waiting", written.waiting, 65_536)?,
        })
    }
}

/// A name that needs no escape in any database.
fn plain(setting: &str, name: String) -> Result<String> {
    let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && name.bytes().next().is_some_and(|first| !first.is_ascii_digit());
    match is_plain {
        true => Ok(name),
        false => Err(wrong(format!("{setting} is \"{name}\"; a name has letters, digits and `_` only"))),
    }
}

/// Errors never quote the URL: it may have a password in it.
fn database(url: &str, password_file: Option<&str>, timeout: Duration) -> Result<Database> {
    if let Some(path) = url.strip_prefix("sqlite://") {
        return match (path.starts_with('/'), password_file) {
            (true, None) => Ok(Database::Sqlite(path.into())),
            (true, Some(_)) => Err(wrong("database_password_file is for PostgreSQL")),
            (false, _) => Err(wrong(
                "database: a file of SQLite has its whole path: \"sqlite:///srv/site/db.sqlite3\", three slashes",
            )),
        };
    }
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(wrong("database begins with sqlite:/// or postgres://"));
    }
    let config = url.parse::<Config>();
    let mut config =
        config.map_err(|_| wrong("database is written \"postgres://user:password@host:port/name\""))?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err(wrong("database names no host; this machine is \"localhost\""));
    }
    if config.get_ssl_mode() == SslMode::Require {
        return Err(wrong("database asks for TLS, which is not spoken here; use a tunnel, or a socket"));
    }
    if let Some(file) = password_file {
        if config.get_password().is_some() {
            return Err(wrong("the password is in `database` and in `database_password_file`"));
        }
        config.password(read_secret("database_password_file", file)?);
    }
    config.ssl_mode(SslMode::Disable).connect_timeout(timeout).application_name("zephserver");
    Ok(Database::Postgres(Box::new(config)))
}

/// A secret that others can read is none.
fn read_secret(setting: &str, path: &str) -> Result<Vec<u8>> {
    let wrong_file = |what: &dyn std::fmt::Display| wrong(format!("{setting} {path}: {what}"));
    let file = File::open(path).map_err(|error| wrong_file(&error))?;
    let metadata = file.metadata().map_err(|error| wrong_file(&error))?;
    if metadata.mode() & 0o077 != 0 {
        return Err(wrong_file(&format!("others may read it; chmod 600 {path}")));
    }
    let mut secret = Vec::new();
    file.take(LONGEST_SECRET + 1).read_to_end(&mut secret).map_err(|error| wrong_file(&error))?;
    if secret.len() as u64 > LONGEST_SECRET {
        return Err(wrong_file(&format!("it has more than {LONGEST_SECRET} bytes")));
    }
    // The line end that an editor leaves is no part of it.
    while secret.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        secret.pop();
    }
    match secret.is_empty() {
        true => Err(wrong_file(&"it is empty")),
        false => Ok(secret),
    }
}

#[cfg(test)]
pub mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Settings with these changes; null leaves one out.
    pub fn settings(changes: Value) -> Result<Settings> {
        let mut all = json!({
            "cookie": "sessionid", "same_domain": true, "secret_key": "key", "secret_key_fallbacks": [],
            "engine": "db", "database": "sqlite:///srv/site/db.sqlite3", "session_table": "django_session",
            "user_table": "auth_user", "user_id_column": "id", "username_column": "username",
            "active_column": "is_active", "cookie_age": 1_209_600, "timeout": 5.0, "connections": 4,
            "waiting": 1024
        });
        let all_of_it = all.as_object_mut().unwrap();
        all_of_it.extend(changes.as_object().unwrap().clone());
        all_of_it.retain(|_, value| !value.is_null());
        Settings::new(serde_json::from_value(all).unwrap())
    }

    fn fault(changes: Value) -> String {
        settings(changes).err().expect("it is wrong").text
    }

    #[test]
    fn the_plain_case() {
        let settings = settings(json!({"secret_key_fallbacks": ["old"]})).unwrap();
        assert_eq!(settings.engine, Engine::Db);
        assert_eq!(settings.secrets, [b"key".to_vec(), b"old".to_vec()]);
        let Database::Sqlite(file) = &settings.database else { panic!("it is SQLite") };
        assert_eq!(file.to_str(), Some("/srv/site/db.sqlite3"));
        assert_eq!(settings.tables.active.as_deref(), Some("is_active"));
    }

    #[test]
    fn engines_are_named_as_in_django_or_short() {
        for (name, engine) in [
            ("signed_cookies", Engine::SignedCookies),
            ("django.contrib.sessions.backends.signed_cookies", Engine::SignedCookies),
            ("django.contrib.sessions.backends.db", Engine::Db),
            ("django.contrib.sessions.backends.cached_db", Engine::Db),
            ("cached_db", Engine::Db),
        ] {
            assert_eq!(settings(json!({"engine": name})).unwrap().engine, engine);
        }
        assert!(fault(json!({"engine": "django.contrib.sessions.backends.cache"})).contains("engine"));
    }

    #[test]
    fn faults_say_what_to_write_and_no_secret() {
        for (changes, part) in [
            (json!({"secret_key": null}), "either `secret_key` or `secret_key_file`"),
            (json!({"secret_key_file": "/dev/null"}), "either"),
            (json!({"secret_key": ""}), "empty"),
            (json!({"secret_key_fallbacks": [""]}), "empty"),
            (json!({"secret_key_fallbacks": [5_551_212]}), "list of texts"),
            (json!({"database": "sqlite://db.sqlite3"}), "three slashes"),
            (json!({"database": "mysql://ann:5551212@host/name"}), "begins with"),
            (json!({"database": "postgres://ann:5551212@host:port/name"}), "is written"),
            (json!({"database": "postgres:///name?user=ann&password=5551212"}), "no host"),
            (json!({"database": "postgres://ann:5551212@host/name?sslmode=require"}), "TLS"),
            (json!({"database_password_file": "/dev/null"}), "is for PostgreSQL"),
            (
                json!({"database": "postgres://a:5551212@host/name", "database_password_file": "/dev/null"}),
                "the password is in",
            ),
            (json!({"user_table": "auth_user\" --"}), "user_table"),
            (json!({"user_id_column": ""}), "user_id_column"),
            (json!({"session_table": "1st"}), "session_table"),
            (json!({"cookie": "a b"}), "cookie"),
            (json!({"cookie_age": 0}), "cookie_age"),
            (json!({"timeout": -1.0}), "timeout"),
            (json!({"connections": 0}), "connections is a number from 1 to 64"),
            (json!({"waiting": 1_000_000}), "waiting"),
        ] {
            let text = fault(changes);
            assert!(text.contains(part) && text.starts_with("[session_django] "), "{part:?} not in: {text}");
            assert!(!text.contains("5551212"), "{text}");
        }
    }

    #[test]
    fn a_password_may_stand_in_the_url_or_in_a_file() {
        let of = |changes: Value| match settings(changes).unwrap().database {
            Database::Postgres(config) => config,
            Database::Sqlite(_) => panic!("it is PostgreSQL"),
        };
        let config = of(json!({"database": "postgres://ann:p%40ss@db:5433/site"}));
        assert_eq!((config.get_user(), config.get_password()), (Some("ann"), Some(&b"p@ss"[..])));
        assert_eq!((config.get_dbname(), config.get_ports()), (Some("site"), &[5433][..]));
        let file = std::env::temp_dir().join(format!("session-django-password-{}", std::process::id()));
        let in_file = || json!({"database": "postgresql://ann@db/site", "database_password_file": file.to_str().unwrap()});
        fs::write(&file, "p@ss\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let password = of(in_file()).get_password().map(<[u8]>::to_vec);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let readable = fault(in_file());
        fs::remove_file(&file).unwrap();
        assert_eq!(password.as_deref(), Some(&b"p@ss"[..]));
        assert!(readable.contains("others may read it; chmod 600"), "{readable}");
        assert!(fault(in_file()).contains("database_password_file"), "it is gone");
    }
}
