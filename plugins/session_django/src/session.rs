//! What a session says: who has logged in, and until when. Knows the database by its trait only.

use std::time::Instant;

use serde::Deserialize;
use serde_json::Value;
use zephserver_plugin::contract::session::{Identity, User};
use zephserver_plugin::tracing;

use crate::settings::{Engine, Settings};
use crate::signing::{Bad, COOKIES, ROWS, Signer};
use crate::store::Store;

/// Bytes of a session in a cookie at most.
const LONGEST_COOKIE: usize = 64 * 1024;
/// Characters of a row's key: Django takes none that is shorter, and its column is no longer.
const KEY: std::ops::RangeInclusive<usize> = 8..=40;

const MISSING: &str = "there is no such session";
const EXPIRED: &str = "the session has expired";
const FORGED: &str = "the session has a wrong signature";
const UNREADABLE: &str = "the session cannot be read";

/// Who somebody with a session is.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// A user who has logged in.
    User(Identity),
    /// The session is good, and nobody has logged in with it, or the login counts no more.
    Nobody,
    /// The session itself is not good, for this reason.
    Bad(&'static str),
}

/// What is to be looked up of a session.
#[derive(Debug, PartialEq)]
pub enum Ticket<'a> {
    /// The session is in the row of this key.
    Row(&'a str),
    /// The session was in the cookie: its login, and when it ends.
    Login(Login, f64),
}

/// The login that a session keeps.
#[derive(Debug, PartialEq, Eq)]
pub struct Login {
    id: String,
    /// Of the password's field at that time.
    hash: String,
}

/// Reads sessions of a Django site.
pub struct Reader {
    engine: Engine,
    texts: Signer,
    passwords: Signer,
    cookie_age: f64,
}

impl Reader {
    /// By what the settings say.
    pub fn new(settings: &Settings) -> Self {
        let salt = match settings.engine {
            Engine::SignedCookies => COOKIES,
            Engine::Db => ROWS,
        };
        Self {
            engine: settings.engine,
            texts: Signer::of_texts(salt, &settings.secrets),
            passwords: Signer::of_passwords(&settings.secrets),
            cookie_age: settings.cookie_age,
        }
    }

    /// What is to be looked up for a session key; or the answer, where that needs no database.
    pub fn check<'a>(&self, key: &'a str, now: f64) -> Result<Ticket<'a>, Found> {
        if self.engine == Engine::Db {
            let is_key = KEY.contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
            return if is_key { Ok(Ticket::Row(key)) } else { Err(Found::Bad(MISSING)) };
        }
        if key.len() > LONGEST_COOKIE {
            return Err(Found::Bad(UNREADABLE));
        }
        let signed = self.texts.read(key).map_err(|bad| match bad {
            Bad::Signature => Found::Bad(FORGED),
            Bad::Content => Found::Bad(UNREADABLE),
        })?;
        let content = Content::read(&signed.data).ok_or(Found::Bad(UNREADABLE))?;
        let at = signed.at as f64;
        // Django leaves an expiry of the session's own to the browser; here nobody else looks at it.
        let end = (at + self.cookie_age).min(content.end(at).unwrap_or(f64::INFINITY));
        if end < now {
            return Err(Found::Bad(EXPIRED));
        }
        content.login().map(|login| Ticket::Login(login, end)).ok_or(Found::Nobody)
    }

    /// Looks it up. An error is the database's, for the log.
    pub fn look_up(
        &self,
        ticket: &Ticket<'_>,
        store: &mut dyn Store,
        now: f64,
        until: Instant,
    ) -> Result<Found, String> {
        let of_row;
        let (login, end) = match ticket {
            Ticket::Login(login, end) => (login, *end),
            Ticket::Row(key) => {
                let Some(row) = store.session(key, until)? else { return Ok(Found::Bad(MISSING)) };
                if row.expires <= now {
                    return Ok(Found::Bad(EXPIRED));
                }
                let content = self.texts.read(&row.data).ok().and_then(|signed| Content::read(&signed.data));
                let Some(content) = content else {
                    tracing::warn!(
                        "a session in the database cannot be read; is secret_key that of Django, and \
                         SESSION_SERIALIZER the JSONSerializer?"
                    );
                    return Ok(Found::Bad(UNREADABLE));
                };
                let Some(login) = content.login() else { return Ok(Found::Nobody) };
                of_row = login;
                (&of_row, row.expires)
            }
        };
        let Some(account) = store.user(&login.id, until)? else { return Ok(Found::Nobody) };
        // A new password ends all logins, as in Django.
        if !account.is_active || !self.passwords.is_hash(&account.password, &login.hash) {
            return Ok(Found::Nobody);
        }
        let user = User { id: login.id.clone(), username: account.username };
        Ok(Found::User(Identity { user, expires: Some(end.max(0.0) as u64), issued: None }))
    }
}

/// What a session has of ours among what the site keeps in it.
#[derive(Deserialize)]
struct Content {
    #[serde(default, rename = "_auth_user_id")]
    id: Value,
    #[serde(default, rename = "_auth_user_backend")]
    backend: Value,
    #[serde(default, rename = "_auth_user_hash")]
    hash: Value,
    #[serde(default, rename = "_session_expiry")]
    expiry: Value,
}

impl Content {
    fn read(data: &[u8]) -> Option<Self> {
        serde_json::from_slice(data).ok()
    }

    /// All three parts of a login are there, or it is none.
    fn login(&self) -> Option<Login> {
        let id = match &self.id {
            Value::String(id) => id.clone(),
            Value::Number(id) => id.to_string(),
            _ => return None,
        };
        self.backend.as_str()?;
        Some(Login { id, hash: self.hash.as_str()?.into() })
    }

    /// When a session that was signed at a time ends by its own expiry: seconds, or a date.
    fn end(&self, signed_at: f64) -> Option<f64> {
        match &self.expiry {
            Value::String(date) => seconds(date),
            // Zero: when the browser is closed, which nobody sees.
            expiry => expiry.as_f64().filter(|age| *age != 0.0).map(|age| signed_at + age),
        }
    }
}

/// Seconds since 1970 of a date in Django's forms: `2026-01-31 10:20:30.5`, or with a `T`, and with an
/// offset such as `+02:00`. Without one it is UTC.
pub fn seconds(text: &str) -> Option<f64> {
    let (date, time) = text.split_once(['T', ' '])?;
    let (time, offset) = time.split_at(time.find(['Z', '+', '-']).unwrap_or(time.len()));
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time, ':')?;
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 24 || minute > 59 || second > 60 {
        return None;
    }
    let fraction: f64 = format!("0.{fraction}").parse().ok()?;
    let offset = match offset.split_at_checked(1) {
        None | Some(("Z", "")) => 0,
        Some((sign, offset)) => {
            let [hours, minutes] = numbers(offset, ':')?;
            (hours * 60 + minutes) * if sign == "-" { -60 } else { 60 }
        }
    };
    let whole = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    Some(whole as f64 + fraction)
}

/// So many numbers, no less and no more.
fn numbers<const N: usize>(text: &str, separator: char) -> Option<[i64; N]> {
    let parts = text.split(separator).map(|part| part.parse::<u32>().ok().map(i64::from));
    parts.collect::<Option<Vec<i64>>>()?.try_into().ok()
}

/// Days from 1970-01-01 to a date. Years begin in March here: a leap day is the last of its year.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + leap_days + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::tests::settings;
    use crate::signing::vectors::{AT, FIVE_MINUTES, LOGINS, PASSWORD, SECRET, SIXTY_SECONDS, SMALL};
    use crate::store::{Account, Row};

    const NOW: f64 = AT as f64 + 1.0;
    const AGE: f64 = 1_209_600.0;

    /// One session and one user, and what was asked for.
    struct Fake {
        row: Option<Row>,
        account: Option<Account>,
        asked: Vec<String>,
    }

    impl Store for Fake {
        fn session(&mut self, key: &str, _: Instant) -> Result<Option<Row>, String> {
            self.asked.push(key.into());
            Ok(self.row.clone())
        }

        fn user(&mut self, id: &str, _: Instant) -> Result<Option<Account>, String> {
            self.asked.push(id.into());
            Ok(self.account.clone())
        }
    }

    fn fake() -> Fake {
        let row = Row { data: LOGINS[1].2.into(), expires: NOW + 9.5 };
        let account = Account { username: "ann".into(), password: PASSWORD.into(), is_active: true };
        Fake { row: Some(row), account: Some(account), asked: Vec::new() }
    }

    fn reader(engine: &str, secret: &str) -> Reader {
        Reader::new(&settings(serde_json::json!({"engine": engine, "secret_key": secret})).unwrap())
    }

    fn found(engine: &str, key: &str, now: f64, store: &mut Fake) -> Found {
        let reader = reader(engine, SECRET);
        match reader.check(key, now) {
            Ok(ticket) => reader.look_up(&ticket, store, now, Instant::now()).unwrap(),
            Err(found) => found,
        }
    }

    fn ann(expires: f64) -> Found {
        let user = User { id: "7".into(), username: "ann".into() };
        Found::User(Identity { user, expires: Some(expires as u64), issued: None })
    }

    #[test]
    fn a_login_in_a_cookie_names_its_user() {
        for (version, cookie, _) in LOGINS {
            let mut store = fake();
            let end = AT as f64 + AGE;
            assert_eq!(found("signed_cookies", cookie, NOW, &mut store), ann(end), "{version}");
            assert_eq!(store.asked, ["7"]);
            assert_eq!(found("signed_cookies", cookie, end, &mut store), ann(end));
            assert_eq!(found("signed_cookies", cookie, end + 0.1, &mut store), Found::Bad(EXPIRED));
        }
    }

    #[test]
    fn a_login_in_a_row_names_its_user() {
        for (version, _, data) in LOGINS {
            let mut store = fake();
            store.row.as_mut().unwrap().data = data.into();
            assert_eq!(found("db", "abcdefgh", NOW, &mut store), ann(NOW + 9.5), "{version}");
            assert_eq!(store.asked, ["abcdefgh", "7"]);
            assert_eq!(found("db", "abcdefgh", NOW + 9.5, &mut store), Found::Bad(EXPIRED));
        }
    }

    #[test]
    fn a_login_that_counts_no_more_is_nobodys() {
        let change: [fn(&mut Account); 3] = [
            |account| account.is_active = false,
            |account| account.password = "another".into(),
            |account| account.password.clear(),
        ];
        for change in change {
            let mut store = fake();
            change(store.account.as_mut().unwrap());
            assert_eq!(found("db", "abcdefgh", NOW, &mut store), Found::Nobody);
            assert_eq!(found("signed_cookies", LOGINS[0].1, NOW, &mut store), Found::Nobody);
        }
        let mut store = Fake { account: None, ..fake() };
        assert_eq!(found("db", "abcdefgh", NOW, &mut store), Found::Nobody);
    }

    #[test]
    fn what_is_not_good_is_known_without_the_database() {
        let mut store = fake();
        let long = "a".repeat(41);
        for key in ["", "short", "with blank", "with\0zero", "größer-als", &long] {
            assert_eq!(found("db", key, NOW, &mut store), Found::Bad(MISSING), "{key}");
        }
        assert_eq!(found("signed_cookies", "abcdefgh", NOW, &mut store), Found::Bad(FORGED));
        let long = "a".repeat(LONGEST_COOKIE + 1);
        assert_eq!(found("signed_cookies", &long, NOW, &mut store), Found::Bad(UNREADABLE));
        assert_eq!(found("signed_cookies", SMALL, NOW, &mut store), Found::Nobody);
        assert!(store.asked.is_empty());
    }

    #[test]
    fn a_row_that_is_missing_or_not_ours_is_bad() {
        let mut store = Fake { row: None, ..fake() };
        assert_eq!(found("db", "abcdefgh", NOW, &mut store), Found::Bad(MISSING));
        let other = reader("db", "another key");
        let found = other.look_up(&Ticket::Row("abcdefgh"), &mut fake(), NOW, Instant::now());
        assert_eq!(found, Ok(Found::Bad(UNREADABLE)));
    }

    #[test]
    fn a_session_may_have_an_expiry_of_its_own() {
        let mut store = fake();
        let at = AT as f64;
        for (cookie, end) in [(SIXTY_SECONDS, at + 60.0), (FIVE_MINUTES, at + 300.2)] {
            assert_eq!(found("signed_cookies", cookie, end - 0.1, &mut store), Found::Nobody);
            assert_eq!(found("signed_cookies", cookie, end + 0.1, &mut store), Found::Bad(EXPIRED));
        }
        let end = |json: &str| Content::read(json.as_bytes()).unwrap().end(100.0);
        assert_eq!(end(r#"{"_session_expiry":60}"#), Some(160.0));
        for none in ["{}", r#"{"_session_expiry":0}"#, r#"{"_session_expiry":null}"#] {
            assert_eq!(end(none), None, "{none}");
        }
    }

    #[test]
    fn a_login_has_three_parts() {
        let login = |json: &str| Content::read(json.as_bytes()).unwrap().login();
        let whole = r#"{"_auth_user_id":"7","_auth_user_backend":"b","_auth_user_hash":"h","x":"\ud800"}"#;
        assert_eq!(login(whole), Some(Login { id: "7".into(), hash: "h".into() }));
        assert_eq!(login(&whole.replace("\"7\"", "7")).unwrap().id, "7");
        for part in ["id", "backend", "hash"] {
            assert_eq!(login(&whole.replace(&format!("_user_{part}"), "x")), None, "{part}");
        }
        assert!(Content::read(b"7").is_none() && Content::read(b"{").is_none());
    }

    #[test]
    fn dates_are_read() {
        for (text, expected) in [
            ("1970-01-01 00:00:00", 0.0),
            ("2026-01-01T00:05:00.5+00:00", AT as f64 + 300.5),
            ("2026-01-01 02:05:00+02:00", AT as f64 + 300.0),
            ("2025-12-31T18:30:00-05:30", AT as f64),
            ("2026-01-01T00:00:00Z", AT as f64),
            ("2000-02-29 23:59:59", 951_868_799.0),
            ("2024-03-01 00:00:00", 1_709_251_200.0),
            ("1969-12-31 23:59:59", -1.0),
        ] {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        for text in ["", "2026-01-01", "2026-13-01 00:00:00", "2026-01-01 00:00", "2026-01-01 00:00:00+x"] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
